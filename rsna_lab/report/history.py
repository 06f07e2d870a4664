"""The histories of a training → its curves, drawn in the page's own colours: losses and validation metrics by fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rsna_lab.report.charts import Axis, Chart
from rsna_lab.report.drawings import round_up
from rsna_lab.report.page import Section

_APART = 20  # losses that differ by more than this factor, as a CVAE's do, are drawn each on its own scale
_NAMES = {"val_roc_auc": "ROC-AUC", "val_pr_auc": "PR-AUC", "val_pf1": "pF1"}
_STYLES = ("one", "two", "faint")


def training_section(folds: Mapping[str, Sequence[Mapping[str, Any]]], kept: Mapping[str, int]) -> Section:
    """Two charts for each fold.

    Args:
        folds: name → its history, a row per epoch with `epoch`, `loss`, `val_loss` and validation metrics `val_…`;
            None where a number was not finite.
        kept: name → the epoch whose weights were kept.
    """
    figures = []
    for name, history in folds.items():
        for chart, text in _charts(history):
            if name in kept:
                chart.rule(kept[name], "rule")
            title = f"{name}: {text}"
            figures.append(f"<figure>{chart.svg(title, _NOTE)}<figcaption><b>{title}.</b></figcaption></figure>")
    return Section("Training", f'<p class="soft">{_NOTE}</p><div class="charts">{"".join(figures)}</div>')


_NOTE = "By epoch. The dashed upright line is the epoch whose weights were kept."


def _charts(history: Sequence[Mapping[str, Any]]) -> list[tuple[Chart, str]]:
    losses = [(name, label) for name, label in (("loss", "training"), ("val_loss", "validation")) if name in history[0]]
    metrics = [(name, _NAMES.get(name, name)) for name in history[0] if name.startswith("val_") and name != "val_loss"]
    apart = len(losses) == 2 and _largest(history, "loss") > _APART * _largest(history, "val_loss")
    charts = [(_chart(history, [one], "loss"), f"{one[1]} loss") for one in losses] if apart else []
    if not apart and losses:
        charts.append((_chart(history, losses, "loss"), "losses"))
    if metrics:
        charts.append((_chart(history, metrics[: len(_STYLES)], "validation", 1.0), "validation metrics"))
    return charts


def _chart(
    history: Sequence[Mapping[str, Any]], lines: Sequence[tuple[str, str]], label: str, top: float | None = None
) -> Chart:
    epochs = np.array([row["epoch"] for row in history], np.float64)
    top = top or round_up(max(_largest(history, name) for name, _ in lines))
    lowest = min((row[name] for row in history for name, _ in lines if row[name] is not None), default=0.0)
    x = Axis("epoch", float(epochs[0]), float(max(epochs[-1], epochs[0] + 1)))
    chart = Chart(x, Axis(label, 0.0 if lowest >= 0 else -round_up(-lowest), top), top=24)
    for (name, _), style in zip(lines, _STYLES, strict=False):
        values = np.array([np.nan if row[name] is None else row[name] for row in history], np.float64)
        known = ~np.isnan(values)
        if known.any():
            chart.line(epochs[known], values[known], style)
    chart.key([(style, name) for (_, name), style in zip(lines, _STYLES, strict=False)])
    return chart


def _largest(history: Sequence[Mapping[str, Any]], name: str) -> float:
    return max((abs(row[name]) for row in history if row.get(name) is not None), default=0.0)
