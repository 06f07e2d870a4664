"""Summaries, breasts and pictures → one HTML page that shows them.

The page is a list of sections; each builder here makes one, and `write_report` puts any list of them on paper:

    summary = summarise(breasts, threshold)
    write_report(path, "Out-of-fold", [headline(summary), curves(breasts, summary), operating_point(summary)])

Texts from outside are escaped here; pictures are embedded, so that the page stays one file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.runtime.files import write_text
from rsna_kit.scoring.metrics import Ranking
from rsna_kit.scoring.summary import SHARES
from rsna_lab.report.drawings import RELIABILITY, Drawing, drawings, reliability_drawing
from rsna_lab.report.embed import embedded
from rsna_lab.report.page import Section, page, table

# Chen et al., Radiology, August 2025: 1,537 algorithms of the competition on 5,415 women (10,830 breasts).
YARDSTICK = {
    "median": {"recall_rate": 0.017, "sensitivity": 0.276, "specificity": 0.987, "ppv": 0.369},
    "winner": {"recall_rate": 0.015, "sensitivity": 0.486, "specificity": 0.995, "ppv": 0.646},
}
_NAMES = {
    "pf1_binary": "pF1 of the 0/1 submission",
    "pf1": "pF1 of the raw scores",
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "recall_rate": "Recall rate",
    "ppv": "PPV",
}
_MORE = {
    "sensitivity_at_winners_recall_rate": ("Sensitivity at 1.5 % called", "calling as many as the winner did"),
    "f1_max": ("Highest F1", "of all thresholds: flatters"),
    "accuracy": ("Accuracy", "calling nothing reaches 1 less the share of cancers"),
    "log_loss": ("Log-loss", "of the scores as probabilities, lower is better"),
    "brier": ("Brier score", "of the scores as probabilities, lower is better"),
}


def write_report(path: Path, title: str, sections: Sequence[Section], subtitle: str = "") -> None:
    """Write the page, whole or not at all. It needs no network."""
    write_text(path, page(title, subtitle, sections))


# ---- sections ----


def headline(summary: Mapping[str, Any]) -> Section:
    """The numbers with their intervals, and what an interval means."""
    counts, interval = summary["counts"], summary["interval"]
    tiles = []
    for position, (name, label) in enumerate(_NAMES.items()):
        metric = summary["metrics"][name]
        tiles.append(
            f'<div class="{"first" if position == 0 else "more"}"><dt>{label}</dt><dd class="value">'
            f'{_number(metric["value"], name)}</dd><dd class="range">{_range(metric, name)}</dd></div>'
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
        "another two ranges do not tell: the models have to be compared on the same patients.</p>"
        f"<details><summary>More metrics</summary>{_more(summary['metrics'])}</details>",
    )


def curves(breasts: pd.DataFrame, summary: Mapping[str, Any]) -> Section:
    """ROC, precision and recall, F1 by threshold with its plateau, and the scores of both classes."""
    labels, scores = breasts["cancer"].to_numpy(), breasts["score"].to_numpy(dtype=np.float64)
    if labels.min() == labels.max():
        return Section("Curves", "<p>All breasts belong to one class, so there is no curve to draw.</p>")
    rule = summary["threshold"]
    figures = "".join(map(_figure, drawings(labels, scores, rule)))
    return Section("Curves", f'<div class="charts">{figures}</div>{_threshold_table(labels, scores)}')


def reliability_section(columns: Mapping[str, tuple[pd.DataFrame, float]]) -> Section:
    """Whether a score is a probability.

    Args:
        columns: what they are → the bins as `rsna_kit.scoring.calibration.reliability` makes them, and the expected
            calibration error.
    """
    figures, tables = "", ""
    head = ["Scores", "Breasts", "Cancers", "Mean score", "Share with cancer"]
    for name, (bins, error) in columns.items():
        drawing = reliability_drawing(name, bins)
        note = f"<b>{escape(name)}.</b> Expected calibration error {error:.4f}."
        figures += f"<figure>{drawing.svg}<figcaption>{note}</figcaption></figure>"
        rows = [
            [f"{row['low']:.4g} to {row['high']:.4g}", f"{row['breasts']:,}", f"{row['cancers']:,}",
             f"{row['mean_score']:.4f}", f"{row['share']:.4f}\n{row['share_low']:.4f} to {row['share_high']:.4f}"]
            for row in bins.to_dict("records")
        ]  # fmt: skip
        tables += table(head, rows, f"{name}, with 95 % intervals of the share")
    return Section(
        "Is the score a probability?",
        f'<div class="charts">{figures}</div><p class="soft">{RELIABILITY} The expected calibration error is the mean '
        "distance from the diagonal over all breasts. It moves no decision by a threshold, but the pF1 of raw scores "
        f"and every rule that reads them as probabilities.</p><details><summary>In numbers</summary>{tables}</details>",
    )


def operating_point(summary: Mapping[str, Any]) -> Section:
    """What the threshold means to a screening programme, beside what the competition's algorithms reached."""
    confusion, counts = summary["confusion"], summary["counts"]
    rows = [
        [
            _NAMES[name],
            f"{_number(summary['metrics'][name]['value'], name)}\n{_range(summary['metrics'][name], name)}",
            *(f"{100 * reference[name]:.1f}\u00a0%" for reference in YARDSTICK.values()),
        ]
        for name in ("recall_rate", *(name for name in SHARES if name != "recall_rate"))
    ]
    called = confusion["tp"] + confusion["fp"]
    return Section(
        "Operating point",
        table(["", "this run", *YARDSTICK], rows, "This run beside the competition's algorithms")
        + f"<p>{called:,} of {counts['breasts']:,} breasts called: {confusion['tp']:,} of {counts['positives']:,} "
        f"cancers found, {confusion['fn']:,} missed, {confusion['fp']:,} false alarms.</p>"
        '<p class="soft">Median and winner of the competition’s 1,537 algorithms on 5,415 women: Chen et al., '
        "Radiology 2025. About 2 % of those breasts had cancer; PPV and recall rate move with that share, which "
        f"is here {100 * counts['prevalence']:.2f} %.</p>",
    )


def pictures(title: str, images: Iterable[tuple[bytes, str]]) -> Section:
    """PNG or JPEG files with a caption each, such as the training curves."""
    figures = "".join(
        f'<figure class="wide"><img src="{embedded(content)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for content, caption in images
    )
    return Section(title, f'<div class="charts">{figures}</div>')


def provenance(facts: Mapping[str, Any], configuration: Mapping[str, Any] | None = None) -> Section:
    """Where the numbers come from: command, commit, versions, fingerprints. Nested mappings are flattened."""
    body = _list(facts)
    if configuration:
        body += f"<details><summary>Configuration</summary>{_list(configuration)}</details>"
    return Section("Where this comes from", body)


# ---- parts ----


def _more(metrics: Mapping[str, Mapping[str, float | None]]) -> str:
    rows = [[label, _number(metrics[name]["value"], name), _range(metrics[name], name), meaning]
            for name, (label, meaning) in _MORE.items()]  # fmt: skip
    return table(["Metric", "Value", "Range", "Meaning"], rows, "More metrics")


def _figure(drawing: Drawing) -> str:
    return f"<figure>{drawing.svg}<figcaption><b>{drawing.title}.</b> {drawing.text}</figcaption></figure>"


def _number(value: float | None, name: str) -> str:
    """A metric for people: shares in percent, the rest with three decimals, a dash when undefined."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}\u00a0%" if name in SHARES else f"{value:.3f}"


def _range(metric: Mapping[str, float | None], name: str) -> str:
    """`0.461 to 0.552`, or why there is none."""
    if metric["low"] is None:
        return "not defined on this data"
    return f"{_number(metric['low'], name)} to {_number(metric['high'], name)}"


def _threshold_table(labels: np.ndarray, scores: np.ndarray) -> str:
    """What other thresholds would do: the highest that call 0.5 % to 10 % of all breasts."""
    counts = Ranking(labels, scores).counts()
    called = counts.tp + counts.fp
    rows = []
    for share in (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1):
        index = min(int(np.searchsorted(-called, -share * len(labels))), len(called) - 1)
        tp, fp, value = counts.tp[index], counts.fp[index], counts.thresholds[index]
        f1 = 2 * tp / (tp + fp + counts.positives)
        shares = (called[index] / len(labels), tp / counts.positives, 1 - fp / counts.negatives, tp / called[index])
        rows.append([f"{value:.4g}", *(f"{100 * number:.1f}\u00a0%" for number in shares), f"{f1:.3f}"])
    rows = [row for position, row in enumerate(rows) if row not in rows[:position]]
    head = ["Threshold", "Recall rate", "Sensitivity", "Specificity", "PPV", "F1"]
    return f"<details><summary>Other thresholds</summary>{table(head, rows, 'Other thresholds')}</details>"


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
