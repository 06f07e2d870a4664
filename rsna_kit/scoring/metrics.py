"""Labels and scores of breasts → the competition's pF1 and its companions, one float each.

`y_true` is 0/1 of shape (N,), `y_score` finite numbers of shape (N,); a breast is called positive when
score >= threshold. Names ending in `_score` mean that higher is better, in `_loss` that lower is.

Every metric is first a function of `Counts` (one table, or R resampled copies of it at once), which is what
`rsna_kit.scoring.uncertainty` takes; the public functions of labels and scores call it. No arithmetic exists twice.

A metric that is not defined (no positives, say) is NaN on `Counts`; the public functions return the value
their docstring names, with an `UndefinedMetricWarning`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring.counts import Counts, Ranking, with_zero

Metric = Callable[[Counts], np.ndarray]


class UndefinedMetricWarning(RuntimeWarning):
    """A metric has no value on this data (one class is absent, nothing is called positive)."""


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


def f1_max_score(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """The highest F1 of all thresholds, which flatters: the threshold is chosen on the breasts that judge it.

    0.0 without positives.

    Example:
        >>> f1_max_score([1, 0, 1, 0], [0.5, 0.5, 0.9, 0.1])
        0.8
    """
    return _defined(f1_max(Ranking(y_true, y_score).counts()), "highest F1", "no positives", 0.0)


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


def sensitivity_at_recall_rate_score(y_true: ArrayLike, y_score: ArrayLike, share: float) -> float:
    """The highest sensitivity of all thresholds that call at most `share` of the breasts. 0.0 without positives.

    Equal scores are called together or not at all. Programmes set the share that they can afford to recall: the
    winner of the competition recalled 0.015 (Chen et al., Radiology 2025).

    Example:
        >>> sensitivity_at_recall_rate_score([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1], 0.5)
        0.5
    """
    metric = sensitivity_at_recall_rate(share)
    return _defined(metric(Ranking(y_true, y_score).counts()), "sensitivity", "no positives", 0.0)


def mean_log_loss(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Mean of -log(the probability given to what came true), scores in [0, 1]; defined for one class too.

    Scores are clipped to [eps, 1 - eps] with eps = 2.2e-16, the resolution of float64, as scikit-learn does: a sure
    and wrong score costs 36.04.

    Example:
        >>> round(mean_log_loss([1, 0], [0.8, 0.4]), 4)
        0.367
    """
    return float(log_loss(Ranking(y_true, y_score).counts()))


def brier_score_loss(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Mean squared difference of label and score, scores in [0, 1]; defined for one class too (Brier 1950).

    Example:
        >>> round(brier_score_loss([1, 0], [0.8, 0.4]), 4)
        0.1
    """
    return float(brier(Ranking(y_true, y_score).counts()))


def confusion_at(y_true: ArrayLike, y_score: ArrayLike, threshold: float) -> dict[str, float]:
    """What calling `score >= threshold` means to a screening programme.

    Returns:
        counts `tp fp fn tn` (int); `sensitivity` = tp/positives, `specificity` = tn/negatives, `recall_rate` =
        share of all breasts called, `ppv` = tp/called, `accuracy` = (tp + tn)/all. A share of nothing is 0.0, with a
        warning.

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
        ("accuracy", "no breasts"),
    ):
        result[name] = _defined(at(name, threshold)(counts), name, reason, 0.0)
    return result


# ---- the same metrics on Counts: arrays of shape (…), NaN where undefined ----


def pf1(counts: Counts, beta: float = 1.0) -> np.ndarray:
    """Probabilistic F-beta."""
    soft_tp = counts.total(lambda labels, scores: labels * np.clip(scores, 0, 1))
    soft_fp = counts.total(lambda labels, scores: (1 - labels) * np.clip(scores, 0, 1))
    # F-beta of precision cTP/(cTP+cFP) and recall cTP/positives, multiplied out: no 0/0 when every score is 0.
    bottom = beta**2 * counts.positives + soft_tp + soft_fp
    return np.where(counts.positives > 0, _divide((1 + beta**2) * soft_tp, bottom), np.nan)


def roc_auc(counts: Counts) -> np.ndarray:
    """ROC-AUC by trapezoids between distinct scores, which counts ties half."""
    tp, fp = with_zero(counts.tp), with_zero(counts.fp)
    area = ((fp[..., :-1] - fp[..., 1:]) * (tp[..., :-1] + tp[..., 1:])).sum(axis=-1) / 2
    return _divide(area, counts.positives * counts.negatives)


def average_precision(counts: Counts) -> np.ndarray:
    """Average precision, Σ (recall step) · (precision at its lower end)."""
    precision = np.nan_to_num(_divide(counts.tp, counts.tp + counts.fp), nan=0.0)
    gain = -np.diff(with_zero(counts.tp), axis=-1)
    return _divide((gain * precision).sum(axis=-1), counts.positives)


def f1_max(counts: Counts) -> np.ndarray:
    """The highest F1 of all thresholds; on a resample, of the threshold that is best there."""
    return _f1(counts.tp, counts.fp, counts.positives).max(axis=-1)


def log_loss(counts: Counts) -> np.ndarray:
    """Mean log-loss, scores clipped to [eps, 1 - eps], eps = 2.2e-16."""
    eps = np.finfo(np.float64).eps

    def cost(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        clipped = np.clip(_probabilities(scores), eps, 1 - eps)
        return -np.log(np.where(labels == 1, clipped, 1 - clipped))

    return _divide(counts.total(cost), counts.positives + counts.negatives)


def brier(counts: Counts) -> np.ndarray:
    """Brier score: mean squared difference of label and score."""
    squares = counts.total(lambda labels, scores: (labels - _probabilities(scores)) ** 2)
    return _divide(squares, counts.positives + counts.negatives)


def sensitivity_at_recall_rate(share: float) -> Metric:
    """The metric: highest sensitivity of all thresholds that call at most `share` of the breasts."""
    if not 0 < share <= 1:
        raise UsageError(f"recall rate: got {share}, expected a share of the breasts such as 0.015")
    return partial(_sensitivity_at_recall_rate, share=share)


def _sensitivity_at_recall_rate(counts: Counts, share: float) -> np.ndarray:
    called = _divide(counts.tp + counts.fp, (counts.positives + counts.negatives)[..., None])
    return _divide(np.where(called <= share, counts.tp, 0).max(axis=-1), counts.positives)


@dataclass(frozen=True)
class At:
    """The metric `name` of calling score >= `threshold`; see `at`."""

    name: str
    threshold: float

    def __call__(self, counts: Counts) -> np.ndarray:
        """Of shape (…)."""
        tp, fp = counts.at(self.threshold)
        return _AT[self.name](tp, fp, counts.positives, counts.negatives)


def at(name: str, threshold: float) -> At:
    """The metric of calling score >= threshold: `f1 sensitivity specificity recall_rate ppv accuracy`."""
    if name not in _AT:
        raise TableError(f"metric at a threshold: got {name!r}, expected one of {', '.join(_AT)}")
    if math.isnan(threshold):
        raise UsageError(f"metric {name}: got threshold NaN, expected a number")
    return At(name, float(threshold))


def thresholds_needed(metrics: Iterable[Metric]) -> list[float] | None:
    """The `thresholds` of a `Ranking` that is to serve these metrics; None when one of them may look at any.

    The metrics of this module need those of `at` and no others. Nothing is known of any other function.

    Example:
        >>> thresholds_needed([roc_auc, at("ppv", 0.3), partial(pf1, beta=2)])
        [0.3]
        >>> thresholds_needed([lambda counts: counts.tp.mean(axis=-1)]) is None
        True
    """
    needed = []
    for metric in metrics:
        if isinstance(metric, At):
            needed.append(metric.threshold)
        elif (metric.func if isinstance(metric, partial) else metric) not in _OF_THE_CURVES:
            return None
    return needed


# Read off the ROC curve or off sums over all breasts: what a reduced Ranking keeps is enough.
_OF_THE_CURVES: tuple[Callable[..., np.ndarray], ...] = (
    pf1, roc_auc, average_precision, f1_max, log_loss, brier, _sensitivity_at_recall_rate,
)  # fmt: skip


def _f1(tp: np.ndarray, fp: np.ndarray, positives: np.ndarray) -> np.ndarray:
    positives = positives[..., None] if tp.ndim > np.ndim(positives) else positives
    return np.where(positives > 0, _divide(2 * tp, tp + fp + positives), np.nan)


_AT: dict[str, Callable[..., np.ndarray]] = {
    "f1": lambda tp, fp, positives, negatives: _f1(tp, fp, positives),
    "sensitivity": lambda tp, fp, positives, negatives: _divide(tp, positives),
    "specificity": lambda tp, fp, positives, negatives: _divide(negatives - fp, negatives),
    "recall_rate": lambda tp, fp, positives, negatives: _divide(tp + fp, positives + negatives),
    "ppv": lambda tp, fp, positives, negatives: _divide(tp, tp + fp),
    "accuracy": lambda tp, fp, positives, negatives: _divide(tp + negatives - fp, positives + negatives),
}


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """`top / bottom`, NaN where bottom is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def _probabilities(scores: np.ndarray) -> np.ndarray:
    """The scores, or a TableError where one cannot be a probability."""
    outside = scores[(scores < 0) | (scores > 1)]
    if outside.size:
        raise TableError(
            f"log-loss and Brier score: got {outside.size} scores outside [0, 1] (first {outside[0]:g}),"
            " expected probabilities"
        )
    return scores


def _defined(value: np.ndarray, name: str, reason: str, otherwise: float) -> float:
    """A float, or `otherwise` with a warning when `value` is NaN."""
    if np.isnan(value):
        warnings.warn(f"{name} is not defined ({reason}): {otherwise} returned", UndefinedMetricWarning, stacklevel=3)
        return otherwise
    return float(value)
