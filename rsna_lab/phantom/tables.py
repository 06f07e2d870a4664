"""Plans → train.csv, test.csv, sample_submission.csv and truth.csv, with the real columns, order and spelling."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from rsna_kit.competition.submission import prediction_id
from rsna_kit.competition.tables import TEST_COLUMNS, TRAIN_COLUMNS
from rsna_kit.runtime.files import write_csv
from rsna_lab.phantom.population import PatientPlan

TRUTH_COLUMNS = ("prediction_id", "patient_id", "laterality", "cancer", "site_id", "machine_id")
SAMPLE_SCORE = 0.0211676964  # the constant of the real sample submission: share of positive images in train.csv


def image_rows(plans: Iterable[PatientPlan]) -> pd.DataFrame:
    """One row an image with every column any of the tables needs; unknown values are missing."""
    rows = []
    for plan in plans:
        for image in plan.images:
            breast = plan.breasts[image.laterality]
            rows.append(
                {
                    "site_id": plan.site_id,
                    "patient_id": plan.patient_id,
                    "image_id": image.image_id,
                    "laterality": image.laterality,
                    "view": image.view,
                    "age": float(plan.age) if plan.show_age else None,
                    "cancer": breast.cancer,
                    "biopsy": breast.biopsy,
                    "invasive": breast.invasive,
                    "BIRADS": None if breast.birads is None else float(breast.birads),
                    "implant": plan.implant,
                    "density": plan.density if plan.show_density else None,
                    "machine_id": plan.machine_id,
                    "difficult_negative_case": breast.difficult,
                    "prediction_id": prediction_id(plan.patient_id, image.laterality),
                }
            )
    return pd.DataFrame(rows)


def write_train(rows: pd.DataFrame, path: Path) -> None:
    """train.csv: numbers that can be missing are floats ("61.0"), as pandas wrote the real one."""
    frame = rows.loc[:, list(TRAIN_COLUMNS)].astype({"age": float, "BIRADS": float})
    write_csv(path, frame)


def write_test(rows: pd.DataFrame, folder: Path) -> None:
    """test.csv and sample_submission.csv of `folder`: one sample row a breast, in the order of test.csv."""
    test = rows.loc[:, list(TEST_COLUMNS)]
    if test["age"].notna().all():
        test = test.astype({"age": int})  # as in the real visible test: "81", not "81.0"
    sample = pd.DataFrame({"prediction_id": test["prediction_id"].drop_duplicates(), "cancer": SAMPLE_SCORE})
    write_csv(folder / "test.csv", test)
    write_csv(folder / "sample_submission.csv", sample)


def write_truth(rows: pd.DataFrame, path: Path) -> None:
    """truth.csv of a hidden test: one row a breast, in the order of the sample submission."""
    write_csv(path, rows.drop_duplicates("prediction_id").loc[:, list(TRUTH_COLUMNS)])


def counts(rows: pd.DataFrame) -> dict[str, int]:
    """What a table of images holds, for people."""
    breasts = rows.drop_duplicates("prediction_id")
    return {
        "patients": int(rows["patient_id"].nunique()),
        "breasts": len(breasts),
        "images": len(rows),
        "cancers": int(breasts["cancer"].sum()),
        "machines": int(rows["machine_id"].nunique()),
    }
