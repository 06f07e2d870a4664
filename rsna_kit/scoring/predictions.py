"""A file of predictions → the breasts that the metrics judge, with their truth."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from rsna_kit.competition.rows import Rows, read_rows
from rsna_kit.competition.submission import prediction_id
from rsna_kit.runtime.errors import TableError, did_you_mean
from rsna_kit.scoring.breasts import refuse, refuse_two_patients, to_breasts

_MOST_FOLDS = 10**6


def read_predictions(path: Path, truth: Path | None = None) -> pd.DataFrame:
    """Breasts with their truth out of a predictions file, ready for `rsna_kit.scoring.intervals.summarise`.

    The file has one row per image (`image_id`, and `prediction_id` or `patient_id` + `laterality`) or per breast
    (`prediction_id`), a `score`, and `cancer`. With `truth`, the labels come from that file instead (train.csv
    fits, and so does `prediction_id,cancer`); a file without `score` is then read as a submission, its `cancer`
    being the score. Images may have an `attention` (see `to_breasts`). Further columns are ignored.

    Ids are what `rsna_kit.competition.rows` makes of them: `10008.0` is the patient `10008`.

    Returns:
        `prediction_id, patient_id` (str), `cancer` (int8), `score` (float64 in [0, 1]), one row per breast; and `fold`
        (int64) where the file of the scores says it.

    Raises:
        TableError: a missing column (with the nearest name), a bad cell, ids that are missing, repeated or rounded by
            a spreadsheet, ids that differ between the files, a breast of two patients, or a patient in two folds.
    """
    rows = read_rows(path)
    score = "cancer" if truth is not None and "score" not in rows.columns and "cancer" in rows.columns else "score"
    rows.require([score] if truth is not None else [score, "cancer"])
    scores = rows.number(score, 0, 1)
    labelled = rows if truth is None else read_rows(truth)
    key = "image_id" if "image_id" in rows.columns and "image_id" in labelled.columns else "prediction_id"
    table = _labels(labelled, key)
    ids = rows.ids("image_id", once=True) if key == "image_id" else _breast_ids(rows)
    given = pd.DataFrame({key: ids, "score": scores})
    if key == "image_id":
        if "attention" in rows.columns:
            given["attention"] = rows.number("attention", -math.inf, math.inf)
        _same_ids(given["image_id"], table["image_id"], path, truth)
        breasts = to_breasts(given, table)
        given["prediction_id"] = given["image_id"].map(table.set_index("image_id")["prediction_id"])
    else:
        repeated = given["prediction_id"].duplicated()
        rows.refuse(repeated, _id_column(rows), "one row per breast", "Add a column image_id if these rows are images.")
        refuse_two_patients(table)
        # Image-level labels of a breast-level file: the breast has cancer when any image says so.
        table = table.groupby("prediction_id", sort=False).agg({"patient_id": "first", "cancer": "max"}).reset_index()
        _same_ids(given["prediction_id"], table["prediction_id"], path, truth)
        breasts = table.merge(given, on="prediction_id", how="left", validate="1:1")
    if "fold" in rows.columns:
        folds = rows.whole("fold", 0, _MOST_FOLDS).astype("int64")
        patients = given["prediction_id"].map(breasts.set_index("prediction_id")["patient_id"])
        torn = folds.groupby(patients).nunique() > 1
        refuse(torn.index.to_series(), torn, f"{path}: {{}} in more than one fold", "patients")
        breasts["fold"] = breasts["prediction_id"].map(folds.groupby(given["prediction_id"]).first())
    return breasts


def _labels(rows: Rows, key: str) -> pd.DataFrame:
    """`prediction_id, patient_id, cancer` (and `image_id` when it is the key), one row per row of the file."""
    rows.require(["cancer"])
    table = pd.DataFrame({"prediction_id": _breast_ids(rows), "cancer": rows.flag("cancer").astype("int8")})
    if key == "image_id":
        table["image_id"] = rows.ids("image_id", once=True)
    if "patient_id" in rows.columns:
        table["patient_id"] = rows.ids("patient_id")
    else:
        shape = table["prediction_id"].str.fullmatch(r".+_[LR]")
        rows.refuse(~shape, "prediction_id", "<patient_id>_<L or R>", "Or add a column patient_id.")
        table["patient_id"] = table["prediction_id"].str.rsplit("_", n=1).str[0]
    return table


def _breast_ids(rows: Rows) -> pd.Series:
    """`prediction_id`, or what `patient_id` and `laterality` make of it."""
    if "prediction_id" in rows.columns:
        return rows.ids("prediction_id")
    if "laterality" not in rows.columns or "patient_id" not in rows.columns:
        wanted = "prediction_id, or patient_id and laterality"
        hint = "".join(dict.fromkeys(did_you_mean(name, rows.columns) for name in ("prediction_id", "laterality")))
        raise TableError(f"{rows.path}, line 1: got columns {', '.join(rows.columns)}, expected {wanted}.{hint}")
    pairs = zip(rows.ids("patient_id"), rows.choice("laterality", ("L", "R")), strict=True)
    return pd.Series([prediction_id(patient, laterality) for patient, laterality in pairs])


def _id_column(rows: Rows) -> str:
    return "prediction_id" if "prediction_id" in rows.columns else "patient_id"


def _same_ids(given: pd.Series, labelled: pd.Series, path: Path, truth: Path | None) -> None:
    """Refuse predictions without a label and labels without a prediction."""
    kind = str(given.name)
    refuse(given, ~given.isin(labelled), f"{path}: {{}} that {truth} does not label", f"{kind}s")
    refuse(labelled, ~labelled.isin(given), f"{truth}: {{}} that {path} does not score", f"{kind}s")
