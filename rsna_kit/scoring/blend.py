"""Scores of several models → one score for each breast, and the weights that out-of-fold scores choose for them.

Weights are found by looking at every point of a grid on the simplex: with a few models that is a few thousand weighted
means, and there is no step size, no start and no luck in it. A tie goes to the point nearest to the plain mean.

Weights that are judged on the breasts that chose them look too good. `nested` gives each fold the weights that the
other folds chose, so its scores are as honest as those of the models themselves.

Three more ways to blend, none of which has weights: `rank_mean`, `logit_mean` and voting (`nested_votes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from math import comb

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring.breasts import to_breasts
from rsna_kit.scoring.logits import logits, sigmoid
from rsna_kit.scoring.metrics import average_precision_score, roc_auc_score
from rsna_kit.scoring.threshold import choose_threshold

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


def join_models(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Out-of-fold scores of several models, side by side for each breast.

    Args:
        tables: name of a model → its out-of-fold image scores: `image_id, prediction_id, patient_id, cancer, fold,
            score` and, for breast-level models, `attention`.

    Returns:
        `prediction_id, patient_id, cancer, fold` and a column of scores named as each model.

    Raises:
        TableError: two models disagree about breasts, patients, labels or folds; models and breasts are named.
    """
    joined: pd.DataFrame | None = None
    for name, table in tables.items():
        breasts = to_breasts(table, table)
        folds = table.groupby("prediction_id")["fold"]
        split = folds.nunique()[lambda count: count > 1].index
        _refuse(split, f"model {name}: {{}} in more than one fold, expected patients to stay whole")
        breasts["fold"] = breasts["prediction_id"].map(folds.first()).astype("int64")
        if joined is None:
            first, joined = name, breasts.rename(columns={"score": name})
            continue
        ours, theirs = joined.set_index("prediction_id"), breasts.set_index("prediction_id")
        advice = "Blend models that were trained on the same prepared patients, with the same train.folds and seed"
        _refuse(ours.index.difference(theirs.index), f"model {name} has no score for {{}} of {first}. {advice}")
        _refuse(theirs.index.difference(ours.index), f"model {first} has no score for {{}} of {name}. {advice}")
        theirs = theirs.loc[ours.index]
        for column, what in (("patient_id", "patient"), ("cancer", "label"), ("fold", "fold")):
            other = ours.index[(ours[column] != theirs[column]).to_numpy()]
            _refuse(other, f"models {first} and {name}: {{}} with another {what} in each. {advice}")
        joined[name] = theirs["score"].to_numpy()
    assert joined is not None, "no model"
    order = ["prediction_id", "patient_id", "cancer", "fold", *tables]
    return joined[order]


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


def nested(
    labels: np.ndarray, scores: np.ndarray, folds: np.ndarray, objective: str = "roc_auc"
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Weighted means whose weights were chosen without the breast they score.

    Args:
        labels, scores, objective: as in `choose_weights`.
        folds: of shape (N,).

    Returns:
        float64 (N,), and the weights of each fold: those that its other folds chose. With one fold there is nothing to
        choose on, and weights are equal.
    """
    blended = np.empty(len(labels))
    weights = {}
    for fold in np.unique(folds):
        held = folds == fold
        others = labels[~held]
        chosen = choose_weights(others, scores[~held], objective) if 0 < others.sum() < len(others) else None
        weights[int(fold)] = np.full(scores.shape[1], 1 / scores.shape[1]) if chosen is None else chosen
        blended[held] = scores[held] @ weights[int(fold)]
    return np.clip(blended, 0, 1), weights


def rank_mean(scores: np.ndarray) -> np.ndarray:
    """The mean of the models' ranks, each divided by the number of breasts; equal scores share the mean of their ranks.

    Only the order that each model gives counts, so models with score scales of their own mix evenly. A rank says where
    a breast stands among those that are ranked with it: all breasts have to be there at once, and a breast's value is
    another among others.

    Args:
        scores: (N, M), a column for each model.

    Returns:
        float64 (N,) in (0, 1].

    Example:
        >>> rank_mean(np.array([[0.1, 0.5], [0.2, 0.4], [0.2, 0.9], [0.9, 0.3]])).tolist()
        [0.5, 0.5625, 0.8125, 0.625]
    """
    total = np.zeros(len(scores))
    for column in scores.T:
        _, places, counts = np.unique(column, return_inverse=True, return_counts=True)
        total += (np.cumsum(counts) - (counts - 1) / 2)[places]  # mean rank of equals, the lowest rank being 1
    return total / scores.size


def logit_mean(scores: np.ndarray) -> np.ndarray:
    """The probability whose logit is the mean of the models' logits; scores of 0 and 1 count as 1e-15 from there.

    Args:
        scores: (N, M), probabilities.

    Example:
        >>> logit_mean(np.array([[0.5, 0.9]])).round(4).tolist()
        [0.75]
    """
    return sigmoid(logits(scores).mean(axis=1))


def votes(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The share of the models that call each breast; more than half is a majority.

    Args:
        scores: (N, M).
        thresholds: (M,), each model's own.

    Example:
        >>> votes(np.array([[0.2, 0.9, 0.5]]), np.array([0.1, 0.5, 0.6])).round(4).tolist()
        [0.6667]
    """
    return (scores >= thresholds).mean(axis=1)


def nested_votes(labels: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """`votes` by thresholds, the middle of each model's plateau, that the other folds chose.

    Args:
        labels, scores, folds: as in `nested`. With one fold its own breasts choose.
    """
    shares = np.empty(len(labels))
    for fold in np.unique(folds):
        held = folds == fold
        others = ~held if labels[~held].any() else held
        thresholds = [choose_threshold(labels[others], column[others]).value for column in scores.T]
        shares[held] = votes(scores[held], np.array(thresholds))
    return shares


def _simplex(count: int) -> Iterator[np.ndarray]:
    """The points of the finest grid that has not too many."""
    steps = max(n for n in range(1, _FINEST + 1) if n == 1 or comb(n + count - 1, count - 1) <= _MOST_POINTS)
    for bars in combinations(range(steps + count - 1), count - 1):  # stars and bars
        yield np.array([right - left - 1 for left, right in pairwise([-1, *bars, steps + count - 1])]) / steps


def _refuse(breasts: pd.Index, message: str) -> None:
    """Raise when there is any; `message` gets the number and the first ids."""
    if len(breasts):
        shown = ", ".join(map(str, breasts[:5])) + (", …" if len(breasts) > 5 else "")
        raise TableError(message.format(f"{len(breasts)} breasts ({shown})") + ". Nothing was blended.")
