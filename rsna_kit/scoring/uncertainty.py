"""Breast scores → an interval for every metric, by resampling patients.

The two breasts of a patient share age, machine and reader, so patients, not breasts, are drawn with replacement
(as many as there are). A resample is a weight per breast: how often its patient was drawn. The interval runs
between the percentiles of the metric over the resamples. It tells how far the number would move with other
patients of the same kind; it knows nothing of other hospitals, other machines or a threshold chosen on the same
data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    if resamples < 1:
        raise UsageError(f"resamples: got {resamples}, expected at least 1")
    if not 0 < level < 1:
        raise UsageError(f"level: got {level}, expected a share between 0 and 1 such as 0.95")
    ranking = Ranking(y_true, y_score)
    codes, patients = _codes(groups, len(ranking.order))
    whole = ranking.counts()
    draws: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(codes))
    for start in range(0, resamples, step):
        weights = np.stack([_draw(rng, patients) for _ in range(min(step, resamples - start))])
        counts = ranking.counts(weights[:, codes])
        for name, metric in metrics.items():
            draws[name].append(metric(counts))
    return {
        name: _interval(float(metric(whole)), np.concatenate(draws[name]), level) for name, metric in metrics.items()
    }


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
