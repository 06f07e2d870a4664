"""Folds, threshold rules and pools with their numbers → sections that are tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from rsna_lab.report.page import Section, table

_FOLD = {"roc_auc": "ROC-AUC", "pr_auc": "PR-AUC", "f1": "F1 at the threshold"}
_RULES = {
    "plateau": "middle of the plateau (in use)",
    "argmax": "highest F1",
    "quantile": "same share called",
    "expected_f1": "highest expected F1, calibrated",
}
_POOLS = {
    "mean": "mean (in use)",
    "max": "maximum",
    "noisy_or": "noisy-or",
    "trimmed_mean": "trimmed mean",
    "top2": "mean of the two highest",
}


def fold_section(rows: pd.DataFrame, whole: Mapping[str, float | None], epochs: Mapping[str, int]) -> Section:
    """Each fold's numbers.

    Args:
        rows: of `rsna_lab.analysis.subgroups.subgroups` with the one fact `fold`.
        whole: metric → its value on all breasts.
        epochs: fold → the epoch whose weights were kept.
    """
    head = ["Fold", "Breasts", "Cancers", *_FOLD.values(), *(["Epoch kept"] if epochs else [])]
    body = [
        [str(row["level"]), f"{row['breasts']:,}", f"{row['cancers']:,}", *(_with_range(row, name) for name in _FOLD),
         *([str(epochs.get(str(row["level"]), "–"))] if epochs else [])]
        for row in rows.to_dict("records")
    ]  # fmt: skip
    sums = [f"{rows[name].sum():,}" for name in ("breasts", "cancers")]
    body.append(["all", *sums, *(_number(whole.get(name)) for name in _FOLD), *([""] if epochs else [])])
    note = (
        '<p class="soft">Under each number its 95 % interval by patient. Folds differ by chance: with a hundred '
        "cancers in a fold, F1 moves by 0.04 from one fold to the next (one standard deviation).</p>"
    )
    return Section("Folds", table(head, body, "Metrics by fold, each scored by the network that did not see it") + note)


def threshold_section(
    nested: Mapping[str, Mapping[str, float]], halves: pd.DataFrame | None, sites: pd.DataFrame | None,
    prevalences: pd.DataFrame | None,
) -> Section | None:  # fmt: skip
    """How far a threshold that is chosen on some breasts holds on others; None where nothing is known of it.

    Args:
        nested: rule → `chosen` (F1 on the breasts that chose), `f1` (chosen on the other folds), `loss` (between them).
        halves: as `rsna_kit.scoring.rules.halves` makes it.
        sites: as `rsna_kit.scoring.rules.site_thresholds` makes it.
        prevalences: as `rsna_kit.scoring.rules.prevalence_table` makes it.
    """
    tables = []
    if nested:
        rows = [[_rule(name), *(_number(row[key]) for key in ("chosen", "f1", "loss"))]
                for name, row in nested.items()]  # fmt: skip
        head = ["Rule", "F1 where it was chosen", "F1 by the other folds", "Lost"]
        tables.append(table(head, rows, "Each fold called by the threshold that the other folds chose"))
    if halves is not None:
        rows = [[_rule(row["rule"]), _with_range(row, "f1"), _with_range(row, "loss"),
                 "" if row["rule"] == "plateau" else _with_range(row, "gain")]
                for row in halves.to_dict("records")]  # fmt: skip
        head = ["Rule", "F1 on the other half", "Below the best threshold there", "Against the plateau"]
        caption = "Chosen on one half of the patients, applied to the other: mean and 95 % range over random halves"
        tables.append(table(head, rows, caption))
    if sites is not None:
        sites = sites.rename(columns={"low": "threshold_low", "high": "threshold_high"})
        rows = [[str(row["site"]), f"{row['breasts']:,}", f"{row['cancers']:,}", _with_range(row, "threshold")]
                for row in sites.to_dict("records")]  # fmt: skip
        caption = "The threshold that each site would choose for itself, and how far other patients would move it"
        tables.append(table(["Site", "Breasts", "Cancers", "Threshold"], rows, caption))
    if prevalences is not None:
        rows = [[_percent(row["prevalence"], 2), *(_number(row[key]) for key in ("f1", "best_f1", "best_threshold")),
                 _percent(row["called"], 2), _number(row["pf1"])]
                for row in prevalences.to_dict("records")]  # fmt: skip
        head = [
            "Share of cancers",
            "F1 at the threshold",
            "Best F1",
            "Its threshold",
            "It calls",
            "pF1 of probabilities",
        ]
        tables.append(table(head, rows, "What to expect where the share of cancers is another, all else being equal"))
    if not tables:
        return None
    note = (
        '<p class="soft">A threshold chosen on these breasts looks a little better on them than it will be: that is '
        "what is lost. F1 where a rule was chosen is no reason to choose it; the other columns are.</p>"
    )
    return Section("Will the threshold hold?", "".join(tables) + note)


def pool_section(rows: Mapping[str, Mapping[str, Any]]) -> Section:
    """Ways to make one score of the images of a breast.

    Args:
        rows: pool → metric → an interval, as `rsna_kit.scoring.breasts.compare_pools` makes them.
    """
    shown = ("roc_auc", "roc_auc - mean", "pf1_binary", "pf1_binary - mean")
    body = [[_POOLS.get(name, name), *(_interval(row.get(key)) for key in shown)] for name, row in rows.items()]
    head = ["Pool", "ROC-AUC", "minus the mean’s", "F1 at its own threshold", "minus the mean’s"]
    note = (
        '<p class="soft">Under each number its 95 % interval by patient. A difference whose interval holds 0 is no '
        "evidence for another pool.</p>"
    )
    return Section("From images to a breast", table(head, body, "Pools of the images of a breast") + note)


def _rule(name: str) -> str:
    """A rule in words; `plateau by site` is one of them with a threshold for each site."""
    base, by, site = name.partition(" by ")
    return _RULES.get(base, base) + by + site


def _with_range(row: Mapping[Any, Any], name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return _number(value) + ("" if math.isnan(low) else f"\n{_number(low)} to {_number(high)}")


def _interval(found: Any) -> str:
    """An `rsna_kit.scoring.uncertainty.Interval`, or nothing."""
    return "" if found is None else _with_range({"x": found.value, "x_low": found.low, "x_high": found.high}, "x")


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")  # and no −0.000


def _percent(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f}\u00a0%"
