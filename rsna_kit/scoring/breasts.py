"""Image scores → breast scores, and a predictions file → the breasts that the metrics judge.

The score of a breast is the mean over its images, however many: on the winner's out-of-fold scores the mean beat the
maximum (F1 0.518 to 0.509). A breast-level model says with a column `attention` how much each image counts; then it is
the mean of logits, weighted by the softmax of the attention over the breast's images (Ilse, Tomczak and Welling,
Attention-based deep multiple instance learning, 2018), which is what the model was trained with.
Scores and breasts are joined by id, never by position.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from rsna_kit.competition.rows import Rows, read_rows
from rsna_kit.competition.submission import prediction_id
from rsna_kit.runtime.errors import TableError, did_you_mean

_CARRIED = ("patient_id", "cancer")
_MOST_FOLDS = 10**6
_CERTAIN = 1e-15  # nearest to 0 and 1 that a score counts as: the logits of 0 and 1 are infinite


def to_breasts(image_scores: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Score of every breast in `table`, in the order in which the breasts first appear there.

    Args:
        image_scores: `image_id` (unique) and `score` (finite, in [0, 1]); scores of images that `table` does not
            name are ignored, so that a part of a table can be scored. With a column `attention` (finite, a logit)
            scores are pooled by it.
        table: `image_id` and `prediction_id`; `patient_id` and `cancer` are carried along when present. A breast
            has cancer when any of its images says so.

    Returns:
        `prediction_id`, then `patient_id` and `cancer` (int8) if given, then `score` (float64).

    Raises:
        TableError: a missing column, a repeated image, a score that is missing, NaN or outside [0, 1], an
            attention that is not finite, or a prediction_id shared by two patients.
    """
    _need(image_scores, ("image_id", "score"), "image scores")
    _need(table, ("image_id", "prediction_id"), "image table")
    _refuse(image_scores["image_id"], image_scores["image_id"].duplicated(), "image scores: {} scored twice")
    outside = ~image_scores["score"].between(0, 1)
    _refuse(image_scores["image_id"], outside, "image scores: {} with a score that is NaN or outside [0, 1]")
    _refuse(table["image_id"], table["image_id"].duplicated(), "image table: {} listed twice")
    absent = ~table["image_id"].isin(image_scores["image_id"])
    _refuse(table["image_id"], absent, "image scores: {} without a score, expected one for each image of the table")
    by_id = image_scores.set_index("image_id")
    images = table.assign(score=table["image_id"].map(by_id["score"].astype("float64")))
    carried = [name for name in _CARRIED if name in table.columns]
    for name in ("prediction_id", *carried):
        _refuse(table["image_id"], table[name].isna(), f"image table: {{}} without a {name}")
    if "patient_id" in carried:
        _refuse_two_patients(images)
    codes, _ = pd.factorize(images["prediction_id"])
    breasts = images.drop_duplicates("prediction_id")[["prediction_id", *carried]].reset_index(drop=True)
    if "cancer" in carried:
        breasts["cancer"] = images["cancer"].groupby(codes).max().astype("int8")
    score, weights = images["score"].to_numpy(), None
    if "attention" in by_id.columns:
        strange = image_scores["attention"].astype("float64").abs().lt(math.inf).eq(False)
        _refuse(image_scores["image_id"], strange, "image scores: {} with an attention that is not a finite number")
        attention = images["image_id"].map(by_id["attention"]).astype("float64")
        weights = np.exp((attention - attention.groupby(codes).transform("max")).to_numpy())
        score = logit(np.clip(score, _CERTAIN, 1 - _CERTAIN)) * weights
    means = np.bincount(codes, score) / np.bincount(codes, weights)
    breasts["score"] = np.clip(means, 0, 1) if weights is None else expit(means)
    return breasts


def _refuse_two_patients(images: pd.DataFrame) -> None:
    owners = images.groupby("prediction_id", sort=False)["patient_id"].nunique()
    _refuse(owners.index.to_series(), owners > 1, "image table: {} with images of two patients", "breasts")


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
        _refuse_two_patients(table)
        # Image-level labels of a breast-level file: the breast has cancer when any image says so.
        table = table.groupby("prediction_id", sort=False).agg({"patient_id": "first", "cancer": "max"}).reset_index()
        _same_ids(given["prediction_id"], table["prediction_id"], path, truth)
        breasts = table.merge(given, on="prediction_id", how="left", validate="1:1")
    if "fold" in rows.columns:
        folds = rows.whole("fold", 0, _MOST_FOLDS).astype("int64")
        patients = given["prediction_id"].map(breasts.set_index("prediction_id")["patient_id"])
        torn = folds.groupby(patients).nunique() > 1
        _refuse(torn.index.to_series(), torn, f"{path}: {{}} in more than one fold", "patients")
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
    _refuse(given, ~given.isin(labelled), f"{path}: {{}} that {truth} does not label", f"{kind}s")
    _refuse(labelled, ~labelled.isin(given), f"{truth}: {{}} that {path} does not score", f"{kind}s")


def _need(frame: pd.DataFrame, names: Iterable[str], what: str) -> None:
    """Refuse a frame without the columns."""
    known = [str(column) for column in frame.columns]
    for name in names:
        if name not in known:
            raise TableError(f"{what}: no column {name!r}, got {', '.join(known)}.{did_you_mean(name, known)}")


def _refuse(ids: pd.Series, bad: pd.Series, message: str, noun: str = "images") -> None:
    """Raise when any `bad` is true; `message` gets the number and the first ids."""
    names = ids[bad.to_numpy()].astype(str)
    if len(names):
        shown = ", ".join(names.iloc[:5]) + (", …" if len(names) > 5 else "")
        raise TableError(message.format(f"{len(names)} {noun} ({shown})") + ". Nothing was scored.")
