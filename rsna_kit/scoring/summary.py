"""Scored breasts → every metric with its interval, ready for JSON, and the breasts that are worth a look."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError, did_you_mean
from rsna_kit.scoring.metrics import (
    Metric,
    Ranking,
    at,
    average_precision,
    brier,
    f1_max,
    log_loss,
    pf1,
    roc_auc,
    sensitivity_at_recall_rate,
)  # fmt: skip
from rsna_kit.scoring.threshold import Threshold
from rsna_kit.scoring.uncertainty import bootstrap

SHARES = ("sensitivity", "specificity", "recall_rate", "ppv")
RECALL_RATE = 0.015  # of the competition's winner (Chen et al., Radiology, August 2025)


def summarise(
    breasts: pd.DataFrame,
    threshold: float | Threshold,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric of the breasts with its interval by patient, ready for JSON.

    Args:
        breasts: `prediction_id` (unique), `patient_id`, `cancer` (0/1), `score` (in [0, 1]).
        threshold: the decision rule; a `Threshold` also records its plateau.

    Returns:
        `counts` (breasts, patients, positives, prevalence), `metrics` (name → value, low, high; None where
        undefined, e.g. without positives; `sensitivity_at_winners_recall_rate` is that of calling 1.5 %), `confusion`
        (tp, fp, fn, tn), `threshold` (value, quantile and, from a `Threshold`, f1, low, high), `interval` (level,
        resamples, seed).

    Raises:
        TableError: a missing column, a repeated breast, or a value that is not what the columns promise.
    """
    _check_breasts(breasts)
    labels, scores = breasts["cancer"].to_numpy(), breasts["score"].to_numpy(dtype=np.float64)
    rule = asdict(threshold) if isinstance(threshold, Threshold) else {"value": float(threshold)}
    value = rule["value"]
    rule.setdefault("quantile", float(np.mean(scores < value)))
    metrics: dict[str, Metric] = {
        "pf1": pf1,
        "pf1_binary": at("f1", value),
        "roc_auc": roc_auc,
        "pr_auc": average_precision,
    }
    metrics |= {name: at(name, value) for name in (*SHARES, "accuracy")}
    metrics |= {"sensitivity_at_winners_recall_rate": sensitivity_at_recall_rate(RECALL_RATE), "f1_max": f1_max,
                "log_loss": log_loss, "brier": brier}  # fmt: skip
    intervals = bootstrap(labels, scores, breasts["patient_id"], metrics, resamples, seed, level)
    counts = Ranking(labels, scores).counts()
    tp, fp = (int(count) for count in counts.at(value))
    positives = int(counts.positives)
    return {
        "counts": {
            "breasts": len(breasts),
            "patients": int(breasts["patient_id"].nunique()),
            "positives": positives,
            "prevalence": positives / len(breasts),
        },
        "metrics": {name: interval.as_dict() for name, interval in intervals.items()},
        "confusion": {"tp": tp, "fp": fp, "fn": positives - tp, "tn": int(counts.negatives) - fp},
        "threshold": rule,
        "interval": {"level": level, "resamples": resamples, "seed": seed},
    }


def notable(breasts: pd.DataFrame, threshold: float, count: int = 4) -> dict[str, pd.DataFrame]:
    """The breasts to look at: cancers found (highest), cancers missed (lowest), false alarms (highest scores)."""
    ordered = breasts.sort_values("score", kind="stable")
    cancer, called = ordered["cancer"] == 1, ordered["score"] >= threshold
    return {
        "Cancers found, surest first": ordered[cancer & called].iloc[::-1].head(count),
        "Cancers missed, lowest score first": ordered[cancer & ~called].head(count),
        "False alarms, highest score first": ordered[~cancer & called].iloc[::-1].head(count),
    }


def _check_breasts(breasts: pd.DataFrame) -> None:
    """Refuse a frame that is not one row per breast with everything the metrics need."""
    known = [str(column) for column in breasts.columns]
    for name in ("prediction_id", "patient_id", "cancer", "score"):
        if name not in known:
            raise TableError(f"breasts: no column {name!r}, got {', '.join(known)}.{did_you_mean(name, known)}")
    repeated = breasts["prediction_id"][breasts["prediction_id"].duplicated()]
    if len(repeated):
        raise TableError(
            f"breasts: {repeated.iloc[0]} stands there twice ({len(repeated)} repeated rows), expected once"
        )
    outside = breasts["prediction_id"][~breasts["score"].between(0, 1)]
    if len(outside):
        raise TableError(
            f"breasts: the score of {outside.iloc[0]} ({len(outside)} such rows) is NaN or outside [0, 1]."
        )
