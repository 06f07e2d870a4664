"""The same breasts scored by several models → what each is worth, and which differences are more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import pandas as pd

from rsna_kit.runtime.errors import TableError
from rsna_kit.scoring.intervals import LEVEL, Interval, bootstrap, shown
from rsna_kit.scoring.metrics import METRICS

USUAL = ("roc_auc", "pr_auc", "pf1_binary")
RESAMPLES = 2000
EFFECT = 0.02  # a difference that would be worth something


def in_common(tables: Mapping[str, pd.DataFrame], alike: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """The breasts that every table has, in the order of the first.

    Args:
        tables: name → `prediction_id` (each once), `patient_id`, `cancer` and further columns.
        alike: further columns in which the tables have to agree.

    Raises:
        TableError: no common breast, or another patient or label for one of them in two tables.
    """
    name, first = next(iter(tables.items()))
    shared = first["prediction_id"]
    for table in tables.values():
        shared = shared[shared.isin(table["prediction_id"])]
    if shared.empty:
        raise TableError(f"{', '.join(tables)}: no breast in common. Nothing was compared.")
    cut = {other: table.set_index("prediction_id").loc[shared].reset_index() for other, table in tables.items()}
    for other, table in cut.items():
        for column in ("patient_id", "cancer", *alike):
            differ = table.loc[(table[column] != cut[name][column]).to_numpy(), "prediction_id"]
            if len(differ):
                raise TableError(
                    f"{name} and {other}: {len(differ)} breasts (first: {differ.iloc[0]}) have another {column} in "
                    "each. Nothing was compared."
                )
    return cut


def compare(
    models: Mapping[str, pd.DataFrame], reference: str, metrics: Sequence[str] = USUAL
) -> dict[str, dict[str, dict[str, Any]]]:
    """What each model is worth, and its paired difference to one of them.

    Args:
        models: name → breasts as `in_common` gives them, with `score` and `called`.
        reference: the model that the others are compared with.
        metrics: names of METRICS.

    Returns:
        name → `metrics` (name → value, low, high) and, but for the reference, `differences` (name → the same, with
        `verdict` and `cancers_needed`); ready for JSON.

    Raises:
        UsageError: an unknown metric.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, breasts in models.items():
        worth = bootstrap(breasts, metrics, RESAMPLES)
        found[name] = {"metrics": {metric: interval.as_dict() for metric, interval in worth.items()}}
        if name == reference:
            continue
        cancers = int(breasts["cancer"].sum())
        found[name]["differences"] = {
            metric: {
                **interval.as_dict(),
                "verdict": verdict(metric, interval),
                "cancers_needed": cancers_needed(interval, cancers),
            }
            for metric, interval in bootstrap(breasts, metrics, RESAMPLES, against=models[reference]).items()
        }
    return found


def verdict(metric: str, difference: Interval) -> str:
    """`better` or `worse` where the interval leaves out 0 (`higher` or `lower` for a rate), else `not told apart`.

    Example:
        >>> verdict("log_loss", Interval(0.02, 0.006, 0.035))
        'worse'
    """
    if not (difference.low > 0 or difference.high < 0):
        return "not told apart"
    if metric.endswith("_rate"):
        return "higher" if difference.low > 0 else "lower"
    return "better" if (difference.low > 0) != metric.endswith("_loss") else "worse"


def cancers_needed(difference: Interval, cancers: int, effect: float = EFFECT, power: float = 0.8) -> int | None:
    """How many cancers it takes until a true difference of `effect` is found with probability `power`.

    Half the width of the interval, divided by the normal quantile of its level, is the standard error with the cancers
    there are; it shrinks with the square root of their number. A two-sided test of 5 % finds `effect` when it is
    z(0.975) + z(power) standard errors (Hanley & McNeil, Radiology 148 (1983) 839). It holds for two models as alike
    as these: the more two models agree on what is hard, the fewer cancers tell them apart.

    Returns:
        a whole number, rounded up; None where the interval has no width.

    Example:
        >>> cancers_needed(Interval(0.012, -0.008, 0.031), cancers=492)
        956
    """
    if not difference.high > difference.low:
        return None
    z = NormalDist().inv_cdf
    standard_error = (difference.high - difference.low) / 2 / z((1 + LEVEL) / 2)
    return math.ceil(cancers * ((z(0.975) + z(power)) * standard_error / effect) ** 2)


def markdown(compared: Mapping[str, Mapping[str, Mapping[str, Any]]], reference: str) -> str:
    """A table for people: a row for each model, of each metric its value, its difference and the verdict."""
    measured = list(compared[reference]["metrics"])
    heads = [head for metric in measured for head in (METRICS[metric].label, f"less {reference}", "")]
    lines = [f"| {' | '.join(['model', *heads])} |", "|---" * (len(heads) + 1) + "|"]
    for name, row in compared.items():
        cells = [name]
        for metric in measured:
            apart = row.get("differences", {}).get(metric)
            told = ["", ""] if apart is None else [shown(apart, "+"), apart["verdict"]]
            cells += [shown(row["metrics"][metric]), *told]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
