"""Breast scores → an interval for every metric, by resampling patients.

The two breasts of a patient share age, machine and reader, so patients, not breasts, are drawn with replacement
(as many as there are). A resample is a weight per breast: how often its patient was drawn. The interval runs
between the percentiles of the metric over the resamples. It tells how far the number would move with other
patients of the same kind; it knows nothing of other hospitals, other machines or a threshold chosen on the same
data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring.metrics import Metric, Ranking

_CELLS = 2_000_000  # breasts x resamples counted at once: 16 MB an array, whatever the table's length


@dataclass(frozen=True)
class Interval:
    """A value and its percentile interval; NaN stands for "not defined on this data"."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """Ready for JSON: what is not defined becomes None."""
        fields = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(number) else number for name, number in fields.items()}


def bootstrap(
    y_true: ArrayLike,
    y_score: ArrayLike,
    groups: ArrayLike,
    metrics: Mapping[str, Metric],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Intervals of several metrics from the same resamples.

    Args:
        y_true: 0/1 of shape (N,).
        y_score: finite, of shape (N,).
        groups: patient ids of shape (N,).
        metrics: name → a function of `Counts`, e.g. `{"auc": metrics.roc_auc, "ppv": metrics.at("ppv", 0.3)}`.
        resamples: number of draws, at least 1.
        seed: the same seed gives the same intervals.
        level: coverage, 0.95 for the 2.5th to the 97.5th percentile.

    A resample on which a metric is not defined (no positives drawn) does not count for that metric.

    Example:
        >>> from rsna_kit.scoring.metrics import roc_auc
        >>> bootstrap([0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8], list("abcd"), {"auc": roc_auc}, resamples=20)["auc"].low
        1.0
    """
    ranking = Ranking(y_true, y_score)
    draws = _resampled([ranking], groups, metrics, resamples, seed, level)[0]
    whole = ranking.counts()
    return {name: _interval(float(metric(whole)), draws[name], level) for name, metric in metrics.items()}


def paired(
    y_true: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike,
    metrics: Mapping[str, Metric],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Intervals of the differences second - first of two models on the same breasts.

    Every resample draws the same patients for both models, so what makes a patient easy or hard for both cancels.
    The arguments are those of `bootstrap`, with two columns of scores.

    Example:
        >>> from rsna_kit.scoring.metrics import roc_auc
        >>> scores = [0.1, 0.9, 0.2, 0.8]
        >>> paired([0, 1, 0, 1], scores, scores, list("abcd"), {"auc": roc_auc}, resamples=20)["auc"].high
        0.0
    """
    rankings = [Ranking(y_true, first), Ranking(y_true, second)]
    before, after = _resampled(rankings, groups, metrics, resamples, seed, level)
    whole = [ranking.counts() for ranking in rankings]
    return {
        name: _interval(float(metric(whole[1]) - metric(whole[0])), after[name] - before[name], level)
        for name, metric in metrics.items()
    }


def _resampled(
    rankings: Sequence[Ranking],
    groups: ArrayLike,
    metrics: Mapping[str, Metric],
    resamples: int,
    seed: int,
    level: float,
) -> list[dict[str, np.ndarray]]:
    """Every metric of every resample, for each ranking: the same patients are drawn for all of them."""
    if resamples < 1:
        raise UsageError(f"resamples: got {resamples}, expected at least 1")
    if not 0 < level < 1:
        raise UsageError(f"level: got {level}, expected a share between 0 and 1 such as 0.95")
    codes, patients = _codes(groups, len(rankings[0].order))
    draws: list[dict[str, list[np.ndarray]]] = [{name: [] for name in metrics} for _ in rankings]
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(codes))
    for start in range(0, resamples, step):
        weights = np.stack([_draw(rng, patients) for _ in range(min(step, resamples - start))])
        for ranking, drawn in zip(rankings, draws, strict=True):
            counts = ranking.counts(weights[:, codes])
            for name, metric in metrics.items():
                drawn[name].append(metric(counts))
    return [{name: np.concatenate(values) for name, values in drawn.items()} for drawn in draws]


def _codes(groups: ArrayLike, length: int) -> tuple[np.ndarray, int]:
    """Patient ids as 0 … patients-1, one per breast, and the number of patients."""
    ids = np.asarray(groups)
    if ids.shape != (length,):
        raise TableError(f"groups: got shape {ids.shape}, expected one patient id for each of {length} breasts")
    names, codes = np.unique(ids.astype(str), return_inverse=True)
    return codes, len(names)


def _draw(rng: np.random.Generator, patients: int) -> np.ndarray:
    """How often each patient is drawn; one resample at a time, so that the chunk size cannot change the draws."""
    return np.bincount(rng.integers(0, patients, size=patients), minlength=patients)


def _interval(value: float, draws: np.ndarray, level: float) -> Interval:
    """Percentiles of the defined draws."""
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or not draws.size:
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
