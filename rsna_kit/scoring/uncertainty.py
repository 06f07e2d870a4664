"""Breast scores → an interval for every metric, by resampling patients.

The two breasts of a patient share age, machine and reader, so patients, not breasts, are drawn with replacement
(as many as there are). A resample is a weight per patient: how often she was drawn. The interval tells how far the
number would move with other patients of the same kind; it knows nothing of other hospitals, other machines or a
threshold chosen on the same data.

Two ways to read an interval off the resamples:

* `percentile`: between the 2.5th and the 97.5th percentile of the metric. Simple, and right where the resamples lie
  around the value symmetrically.
* `bca`, bias-corrected and accelerated (Efron, J. Am. Stat. Assoc. 82 (1987) 171; DiCiccio & Efron, Stat. Sci. 11
  (1996) 189): other percentiles, moved by the share of resamples below the value (bias) and by the skewness of the
  metric when one patient is left out (acceleration). The table is counted once more for every patient: as long as
  one resample each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring.counts import Ranking
from rsna_kit.scoring.metrics import Metric, thresholds_needed

METHODS = ("percentile", "bca")
_CELLS = 2_000_000  # breasts x resamples counted at once: 16 MB an array, whatever the table's length
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A value and its interval; NaN stands for "not defined on this data"."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def as_dict(self) -> dict[str, float | None]:
        """Value, low and high, ready for JSON: what is not defined becomes None."""
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
    method: str = "percentile",
) -> dict[str, Interval]:
    """Intervals of several metrics from the same resamples.

    Args:
        y_true: 0/1 of shape (N,).
        y_score: finite, of shape (N,).
        groups: patient ids of shape (N,), none missing.
        metrics: name → a function of `Counts`, e.g. `{"auc": metrics.roc_auc, "ppv": metrics.at("ppv", 0.3)}`. Those
            of `rsna_kit.scoring.metrics` are counted at the few thresholds that they need; with a function of your
            own among them every distinct score is counted, which takes longer.
        resamples: number of draws, at least 1.
        seed: the same seed gives the same intervals.
        level: coverage, 0.95 for the 2.5th to the 97.5th percentile.
        method: `percentile` or `bca`.

    A resample on which a metric is not defined (no positives drawn) does not count for that metric, and neither does
    a left-out patient without whom it is not. `bca` gives the percentile interval where its correction is infinite:
    all resamples lie on one side of the value. When leaving out a patient changes nothing the acceleration is 0. With
    a single patient there is nothing to resample: low and high are NaN.

    Raises:
        TableError: labels, scores or patient ids that are none.
        UsageError: resamples, level or method that cannot be.

    Example:
        >>> from rsna_kit.scoring.metrics import roc_auc
        >>> bootstrap([0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8], list("abcd"), {"auc": roc_auc}, resamples=20)["auc"].low
        1.0
    """
    return _intervals(y_true, [y_score], groups, metrics, resamples, seed, level, method)


def paired(
    y_true: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike,
    metrics: Mapping[str, Metric],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    method: str = "percentile",
) -> dict[str, Interval]:
    """Intervals of the differences second - first of two models on the same breasts.

    Every resample draws the same patients for both models, so what makes a patient easy or hard for both cancels.
    Models that rank the breasts alike differ in ROC-AUC by exactly 0, with an interval from 0 to 0.
    The arguments are those of `bootstrap`, with two columns of scores.

    Example:
        >>> from rsna_kit.scoring.metrics import roc_auc
        >>> scores = [0.1, 0.9, 0.2, 0.8]
        >>> paired([0, 1, 0, 1], scores, scores, list("abcd"), {"auc": roc_auc}, resamples=20)["auc"].high
        0.0
    """
    return _intervals(y_true, [first, second], groups, metrics, resamples, seed, level, method)


def _intervals(
    y_true: ArrayLike,
    columns: Sequence[ArrayLike],
    groups: ArrayLike,
    metrics: Mapping[str, Metric],
    resamples: int,
    seed: int,
    level: float,
    method: str,
) -> dict[str, Interval]:
    """Of every metric of one column of scores, or of its difference between two."""
    if resamples < 1:
        raise UsageError(f"resamples: got {resamples}, expected at least 1")
    if not 0 < level < 1:
        raise UsageError(f"level: got {level}, expected a share between 0 and 1 such as 0.95")
    if method not in METHODS:
        raise UsageError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    codes, patients = _codes(groups, np.size(y_true))
    thresholds = thresholds_needed(metrics.values())
    rankings = [Ranking(y_true, scores, codes, thresholds) for scores in columns]
    whole = _values(rankings, metrics, [np.ones((1, patients))])
    if patients == 1:
        return {name: Interval(float(whole[name][0]), math.nan, math.nan, level) for name in metrics}
    step = max(1, _CELLS // len(codes))
    draws = _values(rankings, metrics, _drawn(patients, resamples, seed, step))
    left_out = _values(rankings, metrics, _left_out(patients, step)) if method == "bca" else {}
    return {name: _interval(float(whole[name][0]), draws[name], left_out.get(name), level) for name in metrics}


def _values(
    rankings: Sequence[Ranking], metrics: Mapping[str, Metric], chunks: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
    """Every metric, or its difference between two rankings, for every row of every chunk of weights."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    for weights in chunks:
        counts = [ranking.counts(weights) for ranking in rankings]
        for name, metric in metrics.items():
            first, *second = (metric(count) for count in counts)
            found[name].append(second[0] - first if second else first)
    return {name: np.concatenate(values) for name, values in found.items()}


def _codes(groups: ArrayLike, length: int) -> tuple[np.ndarray, int]:
    """Patient ids as 0 … patients-1, one per breast, and the number of patients."""
    ids = np.asarray(groups)
    if ids.shape != (length,):
        raise TableError(f"groups: got shape {ids.shape}, expected one patient id for each of {length} breasts")
    missing = int(pd.isna(ids).sum())
    if missing:
        raise TableError(f"groups: {missing} of {length} patient ids are missing, expected one for each breast")
    names, codes = np.unique(ids.astype(str), return_inverse=True)
    return codes, len(names)


def _drawn(patients: int, resamples: int, seed: int, step: int) -> Iterator[np.ndarray]:
    """How often each patient is drawn, `step` resamples at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, step):
        weights = np.empty((min(step, resamples - start), patients))
        for row in weights:  # one after the other, so that the chunk size cannot change the draws
            row[:] = np.bincount(rng.integers(0, patients, size=patients), minlength=patients)
        yield weights


def _left_out(patients: int, step: int) -> Iterator[np.ndarray]:
    """Every patient once, but for one: the jackknife, `step` patients at a time."""
    for start in range(0, patients, step):
        weights = np.ones((min(step, patients - start), patients))
        rows = np.arange(len(weights))
        weights[rows, start + rows] = 0
        yield weights


def _interval(value: float, draws: np.ndarray, left_out: np.ndarray | None, level: float) -> Interval:
    """Quantiles of the defined draws: percentile, or with the values of `left_out` BCa."""
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or not draws.size:
        return Interval(value, math.nan, math.nan, level)
    tails = ((1 - level) / 2, (1 + level) / 2)
    if left_out is not None:
        tails = _corrected(tails, value, draws, left_out[~np.isnan(left_out)])
    low, high = np.quantile(draws, tails)
    return Interval(value, float(low), float(high), level)


def _corrected(
    tails: tuple[float, float], value: float, draws: np.ndarray, left_out: np.ndarray
) -> tuple[float, float]:
    """The shares of the draws below the ends of the BCa interval; `tails` as they are where it has none."""
    below = float(np.mean(draws < value) + np.mean(draws <= value)) / 2
    if not 0 < below < 1:
        return tails
    bias, acceleration = _NORMAL.inv_cdf(below), _acceleration(left_out)
    moved = [bias + _NORMAL.inv_cdf(tail) for tail in tails]
    if any(acceleration * z >= 1 for z in moved):  # beyond the pole, where the order of quantiles turns round
        return tails
    low, high = (_NORMAL.cdf(bias + z / (1 - acceleration * z)) for z in moved)
    return low, high


def _acceleration(left_out: np.ndarray) -> float:
    """A sixth of the skewness of the values with one patient left out, turned round; 0 where they are all equal."""
    if left_out.size < 2 or np.ptp(left_out) <= 1e-14 * np.abs(left_out).max():
        return 0.0
    away = left_out.mean() - left_out
    return float((away**3).sum() / (6 * (away**2).sum() ** 1.5))


def wilson(shares: ArrayLike, trials: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of shares of independent trials (J. Am. Stat. Assoc. 22, 1927), for where nothing can be drawn.

    Args:
        shares: float (N,) in [0, 1]; NaN stays NaN.
        trials: (N,), at least 1.

    Returns:
        lower and upper ends, float64 (N,) in [0, 1].

    Example:
        >>> [float(end.round(3)) for end in wilson(0.5, 10)]
        [0.237, 0.763]
    """
    share, count = np.asarray(shares, np.float64), np.asarray(trials, np.float64)
    z = _NORMAL.inv_cdf((1 + level) / 2)
    shrink = 1 + z**2 / count
    middle = (share + z**2 / (2 * count)) / shrink
    reach = z / shrink * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return np.clip(middle - reach, 0, 1), np.clip(middle + reach, 0, 1)
