"""Labels, scores and calls of breasts → the competition's pF1 and its companions. A metric is one entry of METRICS.

Every metric is a function of `Counts`: of one table, or of R resampled copies of it at once, which is what makes the
bootstrap of `rsna_kit.scoring.intervals` fast. Whatever stands in METRICS is in scores.json, on the report's page and
known to `compare`.

A metric whose name ends in `_loss` is better when it is lower; one that ends in `_rate` is neither good nor bad; of all
others higher is better. One that is not defined (no positives, say) is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from rsna_kit.runtime.errors import TableError

RECALL_RATE = 0.015  # of the competition's winner (Chen et al., Radiology, August 2025)


@dataclass(frozen=True)
class Counts:
    """What metrics are read off: of one table, or with a second axis of R weighted copies of it.

    `labels`, `scores` and `called` (N,) are the table; `called` is NaN where nothing was decided. `tp` and `fp`
    (T, …), float64, count the positives and negatives at or above each corner of the ROC curve, from the one that calls
    everything to the one that calls nothing: the scores of positives, the next score above each, and the two ends.
    Between two corners only negatives are added, so no other threshold has a higher F1 or precision.
    """

    labels: np.ndarray
    scores: np.ndarray
    called: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    total: Callable[[np.ndarray], np.ndarray]  # numbers of all breasts (N,) → their sum (…)

    @property
    def positives(self) -> np.ndarray:
        """Positives in all, of shape (…)."""
        return self.tp[0]

    @property
    def negatives(self) -> np.ndarray:
        """Negatives in all, of shape (…)."""
        return self.fp[0]


class Ranking:
    """A table that is sorted once, ready to be counted with any weights.

    Args:
        y_true: 0/1 of shape (N,).
        y_score: finite, of shape (N,).
        called: 0/1 of shape (N,), whether a breast is called positive; None where nothing is decided.
        groups: int of shape (N,), 0 … G-1: which weight a row has. None: every row has its own, so G = N.

    Raises:
        TableError: labels or scores that are none.
    """

    def __init__(
        self, y_true: ArrayLike, y_score: ArrayLike, called: ArrayLike | None = None, groups: np.ndarray | None = None
    ) -> None:
        self.labels, self.scores = checked(y_true, y_score)
        self.called = np.full(len(self.labels), np.nan) if called is None else np.asarray(called, np.float64)
        self._groups = np.arange(len(self.labels)) if groups is None else groups
        distinct = np.unique(self.scores)
        has_positive = np.isin(distinct, self.scores[self.labels == 1])
        corners = distinct[has_positive | np.r_[True, has_positive[:-1]]]
        # Of each row, the highest corner at or below its score; in the last row of the matrix nothing is called.
        place = np.searchsorted(corners, self.scores, side="right") - 1
        self._size = int(self._groups.max()) + 1
        shape = (len(corners) + 1, self._size)
        self._positives = sparse.csr_array((self.labels, (place, self._groups)), shape=shape)
        self._negatives = sparse.csr_array((1 - self.labels, (place, self._groups)), shape=shape)

    def counts(self, weights: ArrayLike | None = None) -> Counts:
        """Count with `weights` of shape (G,) or (G, R); None counts each row once."""
        given = np.ones(self._size) if weights is None else np.asarray(weights, np.float64)

        def from_the_top(members: sparse.csr_array) -> np.ndarray:
            return np.cumsum((members @ given)[::-1], axis=0)[::-1]

        def total(values: np.ndarray) -> np.ndarray:
            return np.bincount(self._groups, weights=values, minlength=self._size) @ given

        tp, fp = from_the_top(self._positives), from_the_top(self._negatives)
        return Counts(self.labels, self.scores, self.called, tp, fp, total)


def checked(y_true: ArrayLike, y_score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores as float64 of shape (N,).

    Raises:
        TableError: they are none.
    """
    labels, scores = np.asarray(y_true, dtype=np.float64), np.asarray(y_score, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise TableError(f"labels and scores: got shapes {labels.shape} and {scores.shape}, expected (N,) twice")
    if not labels.size:
        raise TableError("labels and scores: got none, expected at least one breast")
    wrong = labels[~np.isin(labels, (0, 1))]
    if wrong.size:
        raise TableError(f"labels: got {wrong[0]:g} ({wrong.size} such values), expected 0 or 1")
    if not np.isfinite(scores).all():
        raise TableError(f"scores: got {np.sum(~np.isfinite(scores))} NaN or infinite values, expected finite numbers")
    return labels, scores


def pf1(counts: Counts) -> np.ndarray:
    """The competition's probabilistic F1: of cTP = Σp over positives and cFP = Σp over negatives, p cut to [0, 1]."""
    chances = np.clip(counts.scores, 0, 1)
    # F1 of precision cTP / (cTP + cFP) and recall cTP / positives, multiplied out: no 0/0 when every score is 0.
    pf1 = _divide(2 * counts.total(counts.labels * chances), counts.positives + counts.total(chances))
    return np.where(counts.positives > 0, pf1, np.nan)


def f1(counts: Counts) -> np.ndarray:
    """F1 of the calls, which is what pF1 gives a submission of 0 and 1."""
    f1 = _divide(2 * counts.total(counts.labels * counts.called), counts.positives + counts.total(counts.called))
    return np.where(counts.positives > 0, f1, np.nan)


def roc_auc(counts: Counts) -> np.ndarray:
    """ROC-AUC by trapezoids between corners, which counts ties half."""
    steps, heights = -np.diff(counts.fp, axis=0), counts.tp[:-1] + counts.tp[1:]
    return _divide((steps * heights).sum(axis=0) / 2, counts.positives * counts.negatives)


def average_precision(counts: Counts) -> np.ndarray:
    """Average precision, Σ (recall step) · (precision at its lower end), equal scores taken as one step."""
    precision = np.nan_to_num(_divide(counts.tp, counts.tp + counts.fp))[:-1]
    return _divide((-np.diff(counts.tp, axis=0) * precision).sum(axis=0), counts.positives)


def f1_max(counts: Counts) -> np.ndarray:
    """The highest F1 of all thresholds; on a resample, of the threshold that is best there."""
    best = _divide(2 * counts.tp, counts.tp + counts.fp + counts.positives).max(axis=0)
    return np.where(counts.positives > 0, best, np.nan)


def sensitivity_at_winners_recall(counts: Counts) -> np.ndarray:
    """The highest sensitivity of all thresholds that call at most 1.5 % of the breasts."""
    called = _divide(counts.tp + counts.fp, counts.positives + counts.negatives)
    return _divide(np.where(called <= RECALL_RATE, counts.tp, 0).max(axis=0), counts.positives)


def log_loss(counts: Counts) -> np.ndarray:
    """Mean of -log(the probability given to what came true), scores cut to [2.2e-16, 1 - 2.2e-16]."""
    outside = counts.scores[(counts.scores < 0) | (counts.scores > 1)]
    if outside.size:
        raise TableError(f"log-loss: got {outside.size} scores outside [0, 1] (first {outside[0]:g})")
    eps = np.finfo(np.float64).eps
    chances = np.clip(counts.scores, eps, 1 - eps)
    return _mean(counts, -np.log(np.where(counts.labels == 1, chances, 1 - chances)))


@dataclass(frozen=True)
class Metric:
    """One number that judges a table.

    `measure` takes `Counts` and gives an array of shape (…). People see `label` and `meaning`; a `headline` metric
    stands at the top of what they see, a `percent` one is a share of breasts.
    """

    measure: Callable[[Counts], np.ndarray]
    label: str
    meaning: str = ""
    headline: bool = False
    percent: bool = False


def _share(of: Callable[[Counts], tuple[np.ndarray, np.ndarray]], label: str, meaning: str) -> Metric:
    return Metric(lambda counts: _divide(*of(counts)), label, meaning, headline=True, percent=True)


METRICS: Mapping[str, Metric] = {
    "pf1_binary": Metric(f1, "pF1 of the 0/1 submission", "F1 of the calls", headline=True),
    "pf1": Metric(pf1, "pF1 of the raw scores", "what submitting the scores themselves would give", headline=True),
    "roc_auc": Metric(roc_auc, "ROC-AUC", "how often a cancer is above a healthy breast", headline=True),
    "pr_auc": Metric(average_precision, "PR-AUC", "average precision", headline=True),
    "sensitivity": _share(lambda c: (c.total(c.labels * c.called), c.positives), "Sensitivity", "cancers called"),
    "specificity": _share(
        lambda c: (c.total((1 - c.labels) * (1 - c.called)), c.negatives), "Specificity", "healthy breasts not called"
    ),
    "recall_rate": _share(lambda c: (c.total(c.called), c.positives + c.negatives), "Recall rate", "breasts called"),
    "ppv": _share(lambda c: (c.total(c.labels * c.called), c.total(c.called)), "PPV", "cancers among the called"),
    "accuracy": Metric(
        lambda c: _mean(c, np.where(np.isnan(c.called), np.nan, c.called == c.labels)),
        "Accuracy",
        "calling nothing reaches 1 less the share of cancers",
    ),
    "sensitivity_at_winners_recall": Metric(
        sensitivity_at_winners_recall, "Sensitivity at 1.5 % called", "calling as many as the winner did"
    ),
    "f1_max": Metric(f1_max, "Highest F1", "of all thresholds: flatters"),
    "log_loss": Metric(log_loss, "Log-loss", "of the scores as probabilities, lower is better"),
}


def measure(name: str, y_true: ArrayLike, y_score: ArrayLike, called: ArrayLike | None = None) -> float:
    """One of METRICS of one table, NaN where it is not defined; the arguments are those of `Ranking`.

    Example:
        >>> round(measure("pf1", [1, 0], [0.8, 0.4]), 4)
        0.7273
    """
    return float(METRICS[name].measure(Ranking(y_true, y_score, called).counts()))


def f1_curve(y_true: ArrayLike, y_score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """F1 at every distinct score: `(thresholds, f1)`, thresholds ascending, both of shape (T,); 0 without positives.

    Between two neighbours F1 is that of the upper one, since a breast is called when score >= threshold.

    Example:
        >>> f1_curve([1, 0], [0.9, 0.2])[0].tolist()
        [0.2, 0.9]
    """
    labels, scores = checked(y_true, y_score)
    order = np.argsort(scores, kind="stable")
    thresholds, starts = np.unique(scores[order], return_index=True)
    tp = np.cumsum(labels[order][::-1])[::-1][starts]
    return thresholds, 2 * tp / (len(labels) - starts + labels.sum())


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """`top / bottom`, NaN where bottom is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def _mean(counts: Counts, values: np.ndarray) -> np.ndarray:
    """The mean over all breasts of numbers of shape (N,)."""
    return _divide(counts.total(values), counts.positives + counts.negatives)
