"""Scores of several models → one score for each breast, and the weights that out-of-fold scores choose for them.

Weights are found by looking at every point of a grid on the simplex: with a few models that is a few thousand weighted
means, and there is no step size, no start and no luck in it. A tie goes to the point nearest to the plain mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from math import comb

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import UsageError
from rsna_kit.scoring.breasts import to_breasts
from rsna_kit.scoring.metrics import average_precision_score, roc_auc_score
from rsna_kit.scoring.threshold import can_cross_fit, choose_threshold, cross_fitted

Objective = Callable[[np.ndarray, np.ndarray], float]
# What weights are chosen for: labels and scores → a number, better when higher.
OBJECTIVES: Mapping[str, Objective] = {
    "roc_auc": roc_auc_score,
    "pr_auc": average_precision_score,
    "pf1": lambda labels, scores: choose_threshold(labels, scores).f1,  # F1 of the calls that would be submitted
}
_FINEST = 20  # weights are multiples of 1 / 20 as long as there are few models
_MOST_POINTS = 2000


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


def choose_weights(labels: np.ndarray, scores: np.ndarray, objective: str = "roc_auc") -> np.ndarray:
    """The weights of the best weighted mean.

    Args:
        labels: 0/1 of shape (N,).
        scores: probabilities of shape (N, M), a column for each model.
        objective: one of OBJECTIVES.

    Returns:
        float64 (M,), non-negative, sum 1; multiples of 1/20 with up to four models, coarser with more.

    Raises:
        UsageError: an unknown objective.

    Example:
        >>> choose_weights(np.array([0, 0, 1]), np.array([[0.2, 0.9], [0.1, 0.3], [0.3, 0.1]])).tolist()
        [0.9, 0.1]
    """
    if objective not in OBJECTIVES:
        raise UsageError(f"--metric: got {objective!r}, expected one of {', '.join(OBJECTIVES)}")
    count = scores.shape[1]
    mean = np.full(count, 1 / count)
    points = sorted([mean, *_simplex(count)], key=lambda point: float(np.square(point - mean).sum()))
    values = [OBJECTIVES[objective](labels, scores @ point) for point in points]
    return points[int(np.argmax(np.round(values, 12)))]  # the first of equals is the nearest to the mean


def blend_out_of_fold(
    labels: np.ndarray, scores: np.ndarray, folds: np.ndarray, objective: str = "roc_auc"
) -> np.ndarray:
    """Weighted means whose weights were chosen on other folds than the one they score: float64 (N,).

    Args:
        labels, scores, objective: as in `choose_weights`.
        folds: of shape (N,). Where there is nothing to choose on, as with one fold, weights are equal.
    """
    if not can_cross_fit(labels, folds):
        return scores.mean(axis=1)
    return cross_fitted(
        folds, lambda others, held: scores[held] @ choose_weights(labels[others], scores[others], objective)
    )


def _simplex(count: int) -> Iterator[np.ndarray]:
    """The points of the finest grid that has not too many."""
    steps = max(n for n in range(1, _FINEST + 1) if n == 1 or comb(n + count - 1, count - 1) <= _MOST_POINTS)
    for bars in combinations(range(steps + count - 1), count - 1):  # stars and bars
        yield np.array([right - left - 1 for left, right in pairwise([-1, *bars, steps + count - 1])]) / steps
