"""Labels and scores of breasts → the competition's pF1 and its companions, one float each.

`y_true` is 0/1 of shape (N,), `y_score` finite numbers of shape (N,); a breast is called positive when
score >= threshold. Names ending in `_score` mean that higher is better.

All ranking metrics are read off one object, `Counts`: sort once, group ties, count positives and negatives at or
above every distinct score. With weights of shape (R, N) it counts R weighted copies of the table at once, which
is what makes the bootstrap of `rsna_kit.scoring.uncertainty` fast. No arithmetic exists twice.

A metric that is not defined (no positives, say) is NaN inside `Counts`; the public functions return the value
their docstring names, with an `UndefinedMetricWarning`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rsna_kit.runtime.errors import TableError

Metric = Callable[["Counts"], np.ndarray]


class UndefinedMetricWarning(RuntimeWarning):
    """A metric has no value on this data (one class is absent, nothing is called positive)."""


@dataclass(frozen=True)
class Counts:
    """What every metric needs, for one table or, with a leading axis, for R weighted copies of it.

    `thresholds` (T,) are the distinct scores, ascending. `tp` and `fp` (…, T) count positives and negatives with
    score >= threshold, so their first column counts all. `soft_tp` and `soft_fp` (…) are the sums of the
    scores, clipped to [0, 1], over positives and negatives: the probabilistic counts of the competition.
    """

    thresholds: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    soft_tp: np.ndarray
    soft_fp: np.ndarray

    @property
    def positives(self) -> np.ndarray:
        """Positives in all, of shape (…)."""
        return self.tp[..., 0]

    @property
    def negatives(self) -> np.ndarray:
        """Negatives in all, of shape (…)."""
        return self.fp[..., 0]

    def at(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """`(tp, fp)` of calling positive what scores at least `threshold`."""
        index = int(np.searchsorted(self.thresholds, threshold, side="left"))
        if index == len(self.thresholds):
            return np.zeros_like(self.positives), np.zeros_like(self.negatives)
        return self.tp[..., index], self.fp[..., index]


class Ranking:
    """A table sorted by score once, ready to be counted with any weights."""

    def __init__(self, y_true: ArrayLike, y_score: ArrayLike) -> None:
        labels, scores = _checked(y_true, y_score)
        self.order = np.argsort(scores, kind="stable")
        self.scores, self.labels = scores[self.order], labels[self.order]
        self._starts = np.flatnonzero(np.r_[True, np.diff(self.scores) > 0])
        self._soft = np.clip(self.scores, 0, 1)

    def counts(self, weights: np.ndarray | None = None) -> Counts:
        """Count with `weights` of shape (N,) or (R, N), in the order of the given table; None counts each once."""
        weights = np.ones(len(self.order)) if weights is None else np.asarray(weights, dtype=np.float64)
        weights = weights[..., self.order]
        positive, negative = weights * self.labels, weights * (1 - self.labels)
        return Counts(
            thresholds=self.scores[self._starts],
            tp=_from_the_top(positive, self._starts),
            fp=_from_the_top(negative, self._starts),
            # Not a matrix product: its last bits depend on how many copies are counted together.
            soft_tp=(positive * self._soft).sum(axis=-1),
            soft_fp=(negative * self._soft).sum(axis=-1),
        )


def pf1_score(y_true: ArrayLike, y_score: ArrayLike, beta: float = 1.0) -> float:
    """The competition's probabilistic F-score: F-beta of cTP = Σp over positives and cFP = Σp over negatives.

    Scores are clipped to [0, 1]. For scores of 0 and 1 it is the ordinary F-beta. 0.0 without positives.

    Example:
        >>> round(pf1_score([1, 0], [0.8, 0.4]), 4)
        0.7273
    """
    if not beta > 0:
        raise TableError(f"pf1_score: got beta = {beta}, expected more than 0")
    return _defined(pf1(Ranking(y_true, y_score).counts(), beta), "pF1", "no positives", 0.0)


def roc_auc_score(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the ROC curve, ties counted half. 0.5 when one class is absent.

    Example:
        >>> roc_auc_score([0, 0, 1], [0.1, 0.5, 0.5])
        0.75
    """
    return _defined(roc_auc(Ranking(y_true, y_score).counts()), "ROC-AUC", "one class is absent", 0.5)


def average_precision_score(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the precision-recall curve as a sum of steps, equal scores taken as one step. 0.0 without positives.

    Example:
        >>> round(average_precision_score([1, 0, 1], [0.9, 0.8, 0.7]), 4)
        0.8333
    """
    return _defined(average_precision(Ranking(y_true, y_score).counts()), "average precision", "no positives", 0.0)


def f1_at(y_true: ArrayLike, y_score: ArrayLike, threshold: float) -> float:
    """F1 of the calls `score >= threshold`: what pF1 gives a 0/1 submission. 0.0 without positives.

    Example:
        >>> f1_at([1, 0, 1], [0.9, 0.8, 0.1], 0.5)
        0.5
    """
    return _defined(at("f1", threshold)(Ranking(y_true, y_score).counts()), "F1", "no positives", 0.0)


def f1_curve(y_true: ArrayLike, y_score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """F1 at every distinct score: `(thresholds, f1)`, thresholds ascending, both of shape (T,).

    Between two neighbours F1 is that of the upper one, since a breast is called when score >= threshold.

    Example:
        >>> f1_curve([1, 0], [0.9, 0.2])[0].tolist()
        [0.2, 0.9]
    """
    counts = Ranking(y_true, y_score).counts()
    f1 = _f1(counts.tp, counts.fp, counts.positives)
    _defined(f1[0], "F1", "no positives", 0.0)
    return counts.thresholds, np.nan_to_num(f1, nan=0.0)


def confusion_at(y_true: ArrayLike, y_score: ArrayLike, threshold: float) -> dict[str, float]:
    """What calling `score >= threshold` means to a screening programme.

    Returns:
        counts `tp fp fn tn` (int); `sensitivity` = tp/positives, `specificity` = tn/negatives, `recall_rate` =
        share of all breasts called, `ppv` = tp/called. A share of nothing is 0.0, with a warning.

    Example:
        >>> confusion_at([1, 1, 0, 0], [0.9, 0.2, 0.6, 0.1], 0.5)["ppv"]
        0.5
    """
    counts = Ranking(y_true, y_score).counts()
    tp, fp = (int(count) for count in counts.at(threshold))
    positives, negatives = int(counts.positives), int(counts.negatives)
    result: dict[str, float] = {"tp": tp, "fp": fp, "fn": positives - tp, "tn": negatives - fp}
    for name, reason in (
        ("sensitivity", "no positives"),
        ("specificity", "no negatives"),
        ("recall_rate", "no breasts"),
        ("ppv", "nothing is called positive"),
    ):
        result[name] = _defined(at(name, threshold)(counts), name, reason, 0.0)
    return result


# ---- the same metrics on Counts: arrays of shape (…), NaN where undefined ----


def pf1(counts: Counts, beta: float = 1.0) -> np.ndarray:
    """Probabilistic F-beta."""
    # F-beta of precision cTP/(cTP+cFP) and recall cTP/positives, multiplied out: no 0/0 when every score is 0.
    bottom = beta**2 * counts.positives + counts.soft_tp + counts.soft_fp
    return np.where(counts.positives > 0, _divide((1 + beta**2) * counts.soft_tp, bottom), np.nan)


def roc_auc(counts: Counts) -> np.ndarray:
    """ROC-AUC by trapezoids between distinct scores, which counts ties half."""
    tp, fp = _with_zero(counts.tp), _with_zero(counts.fp)
    area = ((fp[..., :-1] - fp[..., 1:]) * (tp[..., :-1] + tp[..., 1:])).sum(axis=-1) / 2
    return _divide(area, counts.positives * counts.negatives)


def average_precision(counts: Counts) -> np.ndarray:
    """Average precision, Σ (recall step) · (precision at its lower end)."""
    precision = np.nan_to_num(_divide(counts.tp, counts.tp + counts.fp), nan=0.0)
    gain = -np.diff(_with_zero(counts.tp), axis=-1)
    return _divide((gain * precision).sum(axis=-1), counts.positives)


def at(name: str, threshold: float) -> Metric:
    """The metric `f1`, `sensitivity`, `specificity`, `recall_rate` or `ppv` of calling score >= threshold."""
    if name not in _AT:
        raise TableError(f"metric at a threshold: got {name!r}, expected one of {', '.join(_AT)}")

    def metric(counts: Counts) -> np.ndarray:
        tp, fp = counts.at(threshold)
        return _AT[name](tp, fp, counts.positives, counts.negatives)

    return metric


def _f1(tp: np.ndarray, fp: np.ndarray, positives: np.ndarray) -> np.ndarray:
    positives = positives[..., None] if tp.ndim > np.ndim(positives) else positives
    return np.where(positives > 0, _divide(2 * tp, tp + fp + positives), np.nan)


_AT: dict[str, Callable[..., np.ndarray]] = {
    "f1": lambda tp, fp, positives, negatives: _f1(tp, fp, positives),
    "sensitivity": lambda tp, fp, positives, negatives: _divide(tp, positives),
    "specificity": lambda tp, fp, positives, negatives: _divide(negatives - fp, negatives),
    "recall_rate": lambda tp, fp, positives, negatives: _divide(tp + fp, positives + negatives),
    "ppv": lambda tp, fp, positives, negatives: _divide(tp, tp + fp),
}


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """`top / bottom`, NaN where bottom is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def _from_the_top(weights: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums of `weights[..., start:]` for every start."""
    return np.cumsum(weights[..., ::-1], axis=-1)[..., ::-1][..., starts]


def _with_zero(counts: np.ndarray) -> np.ndarray:
    """Append the point above the highest score, where nothing is called."""
    return np.concatenate([counts, np.zeros((*counts.shape[:-1], 1))], axis=-1)


def _defined(value: np.ndarray, name: str, reason: str, otherwise: float) -> float:
    """A float, or `otherwise` with a warning when `value` is NaN."""
    if np.isnan(value):
        warnings.warn(f"{name} is not defined ({reason}): {otherwise} returned", UndefinedMetricWarning, stacklevel=3)
        return otherwise
    return float(value)


def _checked(y_true: ArrayLike, y_score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 of shape (N,), or a TableError."""
    labels, scores = np.asarray(y_true, dtype=np.float64), np.asarray(y_score, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise TableError(f"labels and scores: got shapes {labels.shape} and {scores.shape}, expected (N,) twice")
    if not labels.size:
        raise TableError("labels and scores: got none, expected at least one breast")
    if not np.isin(labels, (0, 1)).all():
        wrong = labels[~np.isin(labels, (0, 1))]
        raise TableError(f"labels: got {wrong[0]:g} ({wrong.size} such values), expected 0 or 1")
    if not np.isfinite(scores).all():
        raise TableError(f"scores: got {np.sum(~np.isfinite(scores))} NaN or infinite values, expected finite numbers")
    return labels, scores
