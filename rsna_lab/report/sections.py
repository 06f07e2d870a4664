"""Summaries and breasts → the sections of the page that are numbers, and the page on the disk.

    summary = summarise(breasts, threshold)
    write_report(path, "Out-of-fold", [headline(summary), curve_section(breasts, summary), operating_point(summary)])

Texts from outside are escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.runtime.files import write_text
from rsna_kit.scoring.intervals import shown
from rsna_kit.scoring.metrics import METRICS
from rsna_lab.analysis.subgroups import SHOWN
from rsna_lab.report.charts import curves, forest
from rsna_lab.report.page import Section, page, table

# Chen et al., Radiology, August 2025: 1,537 algorithms of the competition on 5,415 women (10,830 breasts).
YARDSTICK = {
    "median": {"recall_rate": 0.017, "sensitivity": 0.276, "specificity": 0.987, "ppv": 0.369},
    "winner": {"recall_rate": 0.015, "sensitivity": 0.486, "specificity": 0.995, "ppv": 0.646},
}


def write_report(path: Path, title: str, sections: Sequence[Section], subtitle: str = "") -> None:
    """Write the page, whole or not at all. It needs no network."""
    write_text(path, page(title, subtitle, sections))


def headline(summary: Mapping[str, Any]) -> Section:
    """Every metric with its interval, and what an interval means."""
    counts, interval, metrics = summary["counts"], summary["interval"], summary["metrics"]
    tiles: list[str] = []
    more = []
    for name, metric in METRICS.items():
        value, spread = _number(metrics[name]["value"], name), _range(metrics[name], name)
        if not metric.headline:
            more.append([metric.label, value, spread, metric.meaning])
            continue
        tiles.append(
            f'<div class="{"more" if tiles else "first"}"><dt>{escape(metric.label)}</dt>'
            f'<dd class="value">{value}</dd><dd class="range">{spread}</dd></div>'
        )
    percent = f"{100 * interval['level']:g} %"
    return Section(
        "In short",
        f'<dl class="tiles">{"".join(tiles)}</dl>'
        f"<p>{counts['breasts']:,} breasts of {counts['patients']:,} patients, {counts['positives']:,} with cancer "
        f"({100 * counts['prevalence']:.2f} %). A breast is called positive when its score is at least "
        f"{summary['threshold']['value']:.4g}.</p>"
        f'<p class="soft">The range under each number is its {percent} interval: the patients were drawn again at '
        f"random {interval['resamples']:,} times, and {percent} of the results lay in it. It knows nothing of other "
        "hospitals or machines, nor of a threshold chosen on these same breasts. Whether one model is better than "
        "another two ranges do not tell: the models have to be compared on the same patients.</p><details><summary>"
        f"More metrics</summary>{table(['Metric', 'Value', 'Range', 'Meaning'], more, 'More metrics')}</details>",
    )


def curve_section(
    breasts: pd.DataFrame, summary: Mapping[str, Any], probabilities: np.ndarray | None = None
) -> Section:
    """ROC, precision and recall, F1 by threshold, the scores of both classes, and whether they are probabilities.

    Args:
        breasts: as `summary` was made of them.
        summary: as `rsna_kit.scoring.intervals.summarise` makes it.
        probabilities: calibrated scores (N,), if there are any.
    """
    if breasts["cancer"].nunique() < 2:
        return Section("Curves", "<p>All breasts belong to one class, so there is no curve to draw.</p>")
    figures = "".join(curves(breasts, summary["threshold"], probabilities))
    return Section("Curves", f'<div class="charts">{figures}</div>')


def operating_point(summary: Mapping[str, Any], out_of_fold: Mapping[str, float | None] | None = None) -> Section:
    """What the threshold means to a screening programme, beside what the competition's algorithms reached.

    Args:
        summary: as `rsna_kit.scoring.intervals.summarise` makes it.
        out_of_fold: value, low and high of pF1 with each fold called by the threshold that the other folds chose.
    """
    confusion, counts, metrics = summary["confusion"], summary["counts"], summary["metrics"]
    rows = [
        [
            METRICS[name].label,
            f"{_number(metrics[name]['value'], name)}\n{_range(metrics[name], name)}",
            *(_number(reference[name], name) for reference in YARDSTICK.values()),
        ]
        for name in YARDSTICK["median"]
    ]
    honest = ""
    if out_of_fold is not None:
        honest = (
            f"<p>A threshold looks better on the breasts that chose it: with each fold called by the threshold of the "
            f"other folds, pF1 is {shown(out_of_fold)}, not {shown(metrics['pf1_binary'])}.</p>"
        )
    called = confusion["tp"] + confusion["fp"]
    return Section(
        "Operating point",
        table(["", "this run", *YARDSTICK], rows, "This run beside the competition's algorithms")
        + f"<p>{called:,} of {counts['breasts']:,} breasts called: {confusion['tp']:,} of {counts['positives']:,} "
        f"cancers found, {confusion['fn']:,} missed, {confusion['fp']:,} false alarms.</p>{honest}"
        '<p class="soft">Median and winner of the competition’s 1,537 algorithms on 5,415 women: Chen et al., '
        "Radiology 2025. About 2 % of those breasts had cancer; PPV and recall rate move with that share, which "
        f"is here {100 * counts['prevalence']:.2f} %.</p>",
    )


def subgroup_section(rows: pd.DataFrame, metrics: Mapping[str, Mapping[str, float | None]]) -> Section:
    """Every subgroup and fold with its numbers and intervals, and a forest plot of two of them.

    Args:
        rows: as `rsna_lab.analysis.subgroups.subgroups` makes them.
        metrics: of all breasts, as a summary has them.
    """
    if rows.empty:
        return Section("Subgroups", "<p>Nothing is known by which these breasts could be divided.</p>")
    drawn = "".join(forest(rows, metric, metrics[metric]["value"]) for metric in SHOWN[:2])
    body = [
        [
            f"{row['group']} {row['level']}" + ("\nsmall group" if row["small"] else ""),
            f"{row['breasts']:,}",
            f"{row['cancers']:,}",
            *(_two_lines(row[name].as_dict(), name) for name in SHOWN),
        ]
        for row in rows.to_dict("records")
    ]
    body.append(["all", "", "", *(_two_lines(metrics[name], name) for name in SHOWN)])
    head = ["Group", "Breasts", "Cancers", *(METRICS[name].label for name in SHOWN)]
    missing = max(1, round(0.05 * len(rows)))
    expected = "one interval is to be expected" if missing == 1 else f"{missing} intervals are to be expected"
    return Section(
        "Subgroups",
        f'<div class="charts">{drawn}</div>{table(head, body, "Metrics by subgroup, with 95 % intervals")}'
        '<p class="soft">A small group has fewer than 10 cancers, or fewer than 10 breasts without: its numbers say '
        "little. F1 rises with the share of cancers, so compare it only between groups of a like share. "
        f"With {len(rows)} rows, {expected} to lie off the whole by chance alone.</p>",
    )


def provenance(facts: Mapping[str, Any], configuration: Mapping[str, Any] | None = None) -> Section:
    """Where the numbers come from: command, commit, versions, fingerprints. Nested mappings are flattened."""
    body = _list(facts)
    if configuration:
        body += f"<details><summary>Configuration</summary>{_list(configuration)}</details>"
    return Section("Where this comes from", body)


def _number(value: float | None, name: str) -> str:
    """A metric for people: shares in percent, the rest with three decimals, a dash when undefined."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}\u00a0%" if METRICS[name].percent else f"{value:.3f}"


def _range(metric: Mapping[str, float | None], name: str) -> str:
    """`0.461 to 0.552`, or why there is none."""
    if metric["low"] is None:
        return "no interval" if metric["value"] is not None else "not defined on this data"
    return f"{_number(metric['low'], name)} to {_number(metric['high'], name)}"


def _two_lines(metric: Mapping[str, float | None], name: str) -> str:
    return _number(metric["value"], name) + ("" if metric["value"] is None else f"\n{_range(metric, name)}")


def _list(facts: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _flat(facts))
    return f'<dl class="facts">{items}</dl>'


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Names and texts of nested mappings: `packages numpy` → `2.0.2`."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield prefix + str(name), str(value)
