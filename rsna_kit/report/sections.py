"""Summaries, breasts and pictures → one HTML page that shows them.

The page is a list of sections; each builder here makes one, and `write_report` puts any list of them on paper:

    summary = summarise(breasts, threshold)
    write_report(path, "Out-of-fold", [headline(summary), curves(breasts, summary), operating_point(summary)])

Texts from outside are escaped here; pictures are embedded, so that the page stays one file.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.report.drawings import drawings
from rsna_kit.report.page import Section, page, table
from rsna_kit.runtime.errors import TableError
from rsna_kit.runtime.files import replacing
from rsna_kit.runtime.lazy import require
from rsna_kit.scoring.metrics import Ranking
from rsna_kit.scoring.summary import SHARES, notable, summarise

# This module is the door to reports: who writes one needs no other import.
__all__ = [
    "Case", "Section", "cases", "curves", "headline", "notable", "operating_point", "pictures", "provenance",
    "summarise", "write_report",
]  # fmt: skip

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
_LONGEST_SIDE = 420  # pixels of a case's picture; twenty-four of them stay far below 5 MB


@dataclass(frozen=True)
class Case:
    """A picture worth showing: uint8 (h, w), the score and truth of its breast, and a caption."""

    picture: np.ndarray
    caption: str
    score: float
    cancer: int


def write_report(path: Path, title: str, sections: Sequence[Section], subtitle: str = "") -> None:
    """Write the page, whole or not at all. It needs no network and no script."""
    with replacing(path) as temporary:
        temporary.write_text(page(title, subtitle, sections), encoding="utf-8")


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
        f"random {interval['resamples']:,} times, and {percent} of the results lay in it. Two results whose ranges "
        "overlap widely are no evidence of a difference. The range knows nothing of other hospitals or machines, nor "
        "of a threshold chosen on these same breasts.</p>",
    )


def curves(breasts: pd.DataFrame, summary: Mapping[str, Any]) -> Section:
    """ROC, precision and recall, F1 by threshold with its plateau, and the scores of both classes."""
    labels, scores = breasts["cancer"].to_numpy(), breasts["score"].to_numpy(dtype=np.float64)
    if labels.min() == labels.max():
        return Section("Curves", "<p>All breasts belong to one class, so there is no curve to draw.</p>")
    rule = summary["threshold"]
    figures = "".join(
        f"<figure>{drawing.svg}<figcaption><b>{drawing.title}.</b> {drawing.text}</figcaption></figure>"
        for drawing in drawings(labels, scores, rule)
    )
    return Section("Curves", f'<div class="charts">{figures}</div>{_threshold_table(labels, scores)}')


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
        table(["", "this run", *YARDSTICK], rows, "Operating point beside the published one")
        + f"<p>{called:,} of {counts['breasts']:,} breasts called: {confusion['tp']:,} of {counts['positives']:,} "
        f"cancers found, {confusion['fn']:,} missed, {confusion['fp']:,} false alarms.</p>"
        '<p class="soft">Median and winner of the competition’s 1,537 algorithms on 5,415 women: Chen et al., '
        "Radiology 2025. About 2 % of those breasts had cancer; PPV and recall rate move with that share, which "
        f"is here {100 * counts['prevalence']:.2f} %.</p>",
    )


def cases(groups: Mapping[str, Sequence[Case]]) -> Section:
    """Pictures by group, e.g. of the breasts that `notable` names."""
    parts = []
    for name, members in groups.items():
        figures = "".join(_case(case) for case in members)
        body = f'<div class="cases">{figures}</div>' if figures else '<p class="soft">None.</p>'
        parts.append(f"<h3>{escape(name)}</h3>{body}")
    return Section("Cases", "".join(parts))


def pictures(title: str, images: Iterable[tuple[bytes, str]]) -> Section:
    """PNG or JPEG files with a caption each, such as the training curves."""
    figures = "".join(
        f'<figure class="wide"><img src="{_data_uri(content)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for content, caption in images
    )
    return Section(title, f'<div class="charts">{figures}</div>')


def provenance(facts: Mapping[str, Any]) -> Section:
    """Where the numbers come from: command, commit, versions, fingerprints. Nested mappings are flattened."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _flat(facts))
    return Section("Where this comes from", f'<dl class="facts">{items}</dl>')


# ---- parts ----


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


def _case(case: Case) -> str:
    """One picture, shrunk and embedded as JPEG."""
    cv2 = require("cv2", "train")
    image = case.picture
    if image.dtype != np.uint8 or image.ndim != 2:
        raise TableError(
            f"case {case.caption!r}: got a {image.dtype} picture of shape {image.shape}, expected uint8 (h, w)"
        )
    shrink = _LONGEST_SIDE / max(image.shape)
    if shrink < 1:
        size = [max(1, round(side * shrink)) for side in image.shape[::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    truth = "cancer" if case.cancer else "no cancer"
    text = f"{case.caption}: score {case.score:.3f}, {truth}"
    return (
        f'<figure><img src="{_data_uri(content)}" alt="{escape("Mammogram " + text)}" width="{image.shape[1]}"'
        f' height="{image.shape[0]}"><figcaption>{escape(text)}</figcaption></figure>'
    )


def _data_uri(content: bytes) -> str:
    """PNG or JPEG bytes as the source of an <img>."""
    kind = {b"\x89P": "png", b"\xff\xd8": "jpeg"}.get(content[:2])
    if kind is None:
        raise TableError(f"picture: got bytes that start with {content[:4]!r}, expected a PNG or JPEG file")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Names and texts of nested mappings: `packages numpy` → `2.0.2`."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield prefix + str(name), str(value)
