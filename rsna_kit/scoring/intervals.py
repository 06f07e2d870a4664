"""Scored breasts → every metric with its interval, by resampling patients.

The two breasts of a patient share age, machine and reader, so patients, not breasts, are drawn with replacement
(as many as there are). A resample is a weight per patient: how often she was drawn. The interval lies between the
2.5th and the 97.5th percentile of the metric over the resamples. It tells how far the number would move with other
patients of the same kind; it knows nothing of other hospitals, other machines or a threshold chosen on the same data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError, UsageError, did_you_mean
from rsna_kit.scoring.metrics import METRICS, Ranking
from rsna_kit.scoring.threshold import Threshold

LEVEL = 0.95  # coverage: from the 2.5th to the 97.5th percentile
_CELLS = 300_000  # patients x resamples drawn at once: 2.4 MB an array, which stays in the processor's cache


@dataclass(frozen=True)
class Interval:
    """A value and its interval; NaN stands for "not defined on this data"."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """Value, low and high, ready for JSON: what is not defined becomes None."""
        fields = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(number) else number for name, number in fields.items()}


def bootstrap(
    breasts: pd.DataFrame,
    metrics: Iterable[str] = METRICS,
    resamples: int = 1000,
    seed: int = 0,
    against: pd.DataFrame | None = None,
) -> dict[str, Interval]:
    """95 % intervals of several metrics, or of their differences between two models, from the same resamples.

    Every resample draws the same patients for both models, so what makes a patient easy or hard for both cancels, and
    a difference can be clear although the intervals of the two values overlap. A resample on which a metric is not
    defined (no positives drawn) does not count for that metric. With a single patient there is nothing to resample:
    low and high are NaN.

    Args:
        breasts: `patient_id`, `cancer` (0/1), `score` and, for metrics of the calls, `called` (0/1).
        metrics: names of METRICS.
        resamples: number of draws, at least 1.
        seed: the same seed gives the same intervals.
        against: another model on the same breasts, row by row: the intervals are those of breasts - against.

    Raises:
        TableError: labels, scores or patient ids that are none.
        UsageError: an unknown metric, or no resamples.

    Example:
        >>> breasts = pd.DataFrame({"patient_id": list("abcd"), "cancer": [0, 1, 0, 1], "score": [0.1, 0.9, 0.2, 0.8]})
        >>> bootstrap(breasts, ["roc_auc"], resamples=20)["roc_auc"].low
        1.0
    """
    tables = [breasts] if against is None else [against, breasts]
    names = list(metrics)
    for name in names:
        if name not in METRICS:
            known = f"expected some of {', '.join(METRICS)}.{did_you_mean(name, METRICS)}"
            raise UsageError(f"metric: got {name!r}, {known}")
    if resamples < 1:
        raise UsageError(f"resamples: got {resamples}, expected at least 1")
    missing = int(tables[0]["patient_id"].isna().sum())
    if missing:
        raise TableError(f"patients: {missing} of {len(tables[0])} ids are missing, expected one for each breast")
    owners, codes = np.unique(tables[0]["patient_id"].to_numpy().astype(str), return_inverse=True)
    patients = len(owners)
    rankings = [Ranking(table["cancer"], table["score"], table.get("called"), codes) for table in tables]

    def measure(weights: np.ndarray) -> np.ndarray:
        """Of shape (metrics, …)."""
        counted = [ranking.counts(weights) for ranking in rankings]
        values = [np.array([METRICS[name].measure(counts) for name in names]) for counts in counted]
        return values[-1] - values[0] if len(values) == 2 else values[0]

    rng, drawn, step = np.random.default_rng(seed), [], max(1, _CELLS // patients)
    for start in range(0, resamples if patients > 1 else 0, step):
        weights = np.empty((min(step, resamples - start), patients))
        for row in weights:  # one after the other, so that the step cannot change the draws
            row[:] = np.bincount(rng.integers(0, patients, size=patients), minlength=patients)
        drawn.append(measure(weights.T.copy()))
    found = {}
    for number, (name, value) in enumerate(zip(names, measure(np.ones(patients)), strict=True)):
        defined = np.concatenate([draws[number] for draws in drawn]) if drawn else np.empty(0)
        defined = defined[~np.isnan(defined)]
        low, high = (math.nan, math.nan)
        if defined.size and not math.isnan(value):
            low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        found[name] = Interval(float(value), low, high)
    return found


def summarise(breasts: pd.DataFrame, threshold: float | Threshold, resamples: int = 1000) -> dict[str, Any]:
    """Every metric of the breasts with its interval by patient, ready for JSON.

    Args:
        breasts: one row a breast, `patient_id`, `cancer` (0/1), `score` (in [0, 1]), as
            `rsna_kit.scoring.predictions.read_predictions` gives them.
        threshold: the decision rule; a `Threshold` also records its plateau.
        resamples: as for `bootstrap`.

    Returns:
        `counts` (breasts, patients, positives, prevalence), `metrics` (name → value, low, high; None where
        undefined, e.g. without positives), `confusion` (tp, fp, fn, tn), `threshold` (value, quantile and, from a
        `Threshold`, f1, low, high), `interval` (level, resamples, seed).

    Raises:
        TableError: labels, scores or patient ids that are none.
    """
    rule = asdict(threshold) if isinstance(threshold, Threshold) else {"value": float(threshold)}
    called = (breasts["score"] >= rule["value"]).astype("int8")
    rule.setdefault("quantile", float(1 - called.mean()))
    intervals = bootstrap(breasts.assign(called=called), METRICS, resamples)
    cancer = breasts["cancer"] == 1
    confusion = {
        "tp": cancer & (called == 1),
        "fp": ~cancer & (called == 1),
        "fn": cancer & (called == 0),
        "tn": ~cancer & (called == 0),
    }
    return {
        "counts": {
            "breasts": len(breasts),
            "patients": int(breasts["patient_id"].nunique()),
            "positives": int(cancer.sum()),
            "prevalence": float(cancer.mean()),
        },
        "metrics": {name: interval.as_dict() for name, interval in intervals.items()},
        "confusion": {name: int(rows.sum()) for name, rows in confusion.items()},
        "threshold": rule,
        "interval": {"level": LEVEL, "resamples": resamples, "seed": 0},
    }


def shown(interval: Mapping[str, Any], sign: str = "") -> str:
    """`0.712 [0.655, 0.770]` of a value, low and high as JSON has them; with "+" as sign `+0.012 [-0.008, +0.031]`."""
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    if value is None:
        return "not defined"
    return f"{value:{sign}.3f}" + ("" if low is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]")
