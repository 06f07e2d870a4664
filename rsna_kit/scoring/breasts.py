"""Image scores → breast scores, by one network or by several.

The score of a breast is the mean over its images, however many: on the winner's out-of-fold scores the mean beat the
maximum (F1 0.518 to 0.509). A breast-level model says with a column `attention` how much each image counts; then it is
the mean of logits, weighted by the softmax of the attention over the breast's images (Ilse, Tomczak and Welling,
Attention-based deep multiple instance learning, 2018), which is what the model was trained with.
Scores and breasts are joined by id, never by position.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from rsna_kit.runtime.errors import TableError, did_you_mean, listed

_CARRIED = ("patient_id", "cancer")


_CERTAIN = 1e-15  # nearest to 0 and 1 that a score counts as: the logits of 0 and 1 are infinite
_CERTAIN_F4 = 1e-7  # the same for calibration: networks compute in float32, where nothing below 1 is nearer than 6e-8


@dataclass(frozen=True)
class Calibration:
    """A rising map from score to probability, sigmoid(slope * logit(score) + intercept)."""

    slope: float
    intercept: float

    def apply(self, scores: ArrayLike) -> np.ndarray:
        """Probabilities, float64, of scores in [0, 1] of any shape; never falling where scores rise.

        Example:
            >>> Calibration(1.0, -1.0).apply([0.1, 0.5]).round(3).tolist()
            [0.039, 0.269]
        """
        return expit(self.slope * to_logit(scores) + self.intercept)

    @classmethod
    def from_dict(cls, content: Any) -> Calibration:
        """What `rsna_kit.scoring.calibration.calibrate` gave and JSON has kept.

        Raises:
            TableError: not two finite numbers of a rising map.
        """
        given = [content.get(name) for name in ("slope", "intercept")] if isinstance(content, Mapping) else []
        numbers = [float(number) for number in given if isinstance(number, int | float) and math.isfinite(number)]
        if len(numbers) < 2 or numbers[0] < 0:
            raise TableError(f"calibration: got {content!r}, expected slope (at least 0) and intercept. Train again.")
        return cls(*numbers)


def to_logit(scores: ArrayLike) -> np.ndarray:
    """Logits, float64, of scores as sure as float32 can be.

    Raises:
        TableError: a score that is NaN or outside [0, 1].
    """
    values = np.asarray(scores, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise TableError("calibration: got a score that is NaN or outside [0, 1]")
    return logit(np.clip(values, _CERTAIN_F4, 1 - _CERTAIN_F4))


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
    refuse(image_scores["image_id"], image_scores["image_id"].duplicated(), "image scores: {} scored twice")
    outside = ~image_scores["score"].between(0, 1)
    refuse(image_scores["image_id"], outside, "image scores: {} with a score that is NaN or outside [0, 1]")
    refuse(table["image_id"], table["image_id"].duplicated(), "image table: {} listed twice")
    absent = ~table["image_id"].isin(image_scores["image_id"])
    refuse(table["image_id"], absent, "image scores: {} without a score, expected one for each image of the table")
    by_id = image_scores.set_index("image_id")
    images = table.assign(score=table["image_id"].map(by_id["score"].astype("float64")))
    carried = [name for name in _CARRIED if name in table.columns]
    for name in ("prediction_id", *carried):
        refuse(table["image_id"], table[name].isna(), f"image table: {{}} without a {name}")
    if "patient_id" in carried:
        refuse_two_patients(images)
    codes, _ = pd.factorize(images["prediction_id"])
    breasts = images.drop_duplicates("prediction_id")[["prediction_id", *carried]].reset_index(drop=True)
    if "cancer" in carried:
        breasts["cancer"] = images["cancer"].groupby(codes).max().astype("int8")
    score, weights = images["score"].to_numpy(), None
    if "attention" in by_id.columns:
        strange = image_scores["attention"].astype("float64").abs().lt(math.inf).eq(False)
        refuse(image_scores["image_id"], strange, "image scores: {} with an attention that is not a finite number")
        attention = images["image_id"].map(by_id["attention"]).astype("float64")
        weights = np.exp((attention - attention.groupby(codes).transform("max")).to_numpy())
        score = logit(np.clip(score, _CERTAIN, 1 - _CERTAIN)) * weights
    means = np.bincount(codes, score) / np.bincount(codes, weights)
    breasts["score"] = np.clip(means, 0, 1) if weights is None else expit(means)
    return breasts


def weighted_breasts(
    image_scores: pd.DataFrame, table: pd.DataFrame, parts: Sequence[tuple[float, str, str | None]]
) -> pd.DataFrame:
    """Weighted mean of the breast scores of several parts.

    A part that has not looked at an image is NaN there: its breast score comes from the other images, and a breast that
    it has not seen at all is scored by the other parts.

    Args:
        image_scores: `image_id` and the columns that the parts name.
        table: `image_id` and `prediction_id` of all images.
        parts: weight, column of scores, column of attentions or None, as `rsna_kit.models.ensemble.Part`.

    Returns:
        `prediction_id`, `score` (float64) and `images` (how many were scored) of the breasts that have one.
    """
    total, weights = pd.Series(dtype="float64"), pd.Series(dtype="float64")
    for weight, score, attention in parts:
        seen = image_scores.dropna(subset=[score])
        if seen.empty:
            continue
        columns = {"image_id": seen["image_id"], "score": seen[score]}
        columns |= {} if attention is None else {"attention": seen[attention]}
        rows = table.loc[table["image_id"].isin(seen["image_id"]), ["image_id", "prediction_id"]]
        breasts = to_breasts(pd.DataFrame(columns), rows).set_index("prediction_id")["score"]
        share = pd.Series(weight, index=breasts.index)
        total = share * breasts if total.empty else total.add(share * breasts, fill_value=0)
        weights = share if weights.empty else weights.add(share, fill_value=0)
    images = table.loc[table["image_id"].isin(image_scores["image_id"]), "prediction_id"].value_counts()
    scores = (total / weights).rename_axis("prediction_id").rename("score").reset_index()
    scores["score"] = scores["score"].astype("float64").clip(0, 1)
    return scores.assign(images=scores["prediction_id"].map(images).astype("int64"))


def refuse_two_patients(images: pd.DataFrame) -> None:
    """Refuse a prediction_id that stands for two patients."""
    owners = images.groupby("prediction_id", sort=False)["patient_id"].nunique()
    refuse(owners.index.to_series(), owners > 1, "image table: {} with images of two patients", "breasts")


def _need(frame: pd.DataFrame, names: Iterable[str], what: str) -> None:
    """Refuse a frame without the columns."""
    known = [str(column) for column in frame.columns]
    for name in names:
        if name not in known:
            raise TableError(f"{what}: no column {name!r}, got {', '.join(known)}.{did_you_mean(name, known)}")


def refuse(ids: pd.Series, bad: pd.Series, message: str, noun: str = "images") -> None:
    """Raise when any `bad` is true; `message` gets the number and the first ids."""
    names = ids[bad.to_numpy()]
    if len(names):
        raise TableError(message.format(listed(names, noun)) + ". Nothing was scored.")
