"""Subgroups with their metrics → one table that is a forest plot: every interval drawn, with its numbers beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from rsna_lab.report.page import Section, framed

_SHOWN = {"roc_auc": "ROC-AUC", "sensitivity": "Sensitivity", "specificity": "Specificity", "f1": "F1"}
_WIDTH, _HEIGHT, _EDGE = 112, 18, 6  # of an interval's drawing; the marks keep off its edges


def subgroup_section(rows: pd.DataFrame, whole: Mapping[str, float | None]) -> Section:
    """The table.

    Args:
        rows: as `rsna_lab.analysis.subgroups.subgroups` makes them.
        whole: metric → its value on all breasts, a dashed line in every cell.
    """
    title = "Subgroups"
    if rows.empty:
        return Section(title, "<p>Nothing is known by which these breasts could be divided.</p>")
    scales = {name: _scale(rows, name, whole.get(name)) for name in _SHOWN}
    head = "".join(f'<th scope="col">{label}</th>' for label in ("Group", "Breasts", "Cancers"))
    head += "".join(
        f'<th scope="col" class="drawn">{label}{_axis(scales[name])}</th>' for name, label in _SHOWN.items()
    )
    body = ""
    for group, members in groupby(rows.to_dict("records"), lambda row: row["group"]):
        heading = escape(str(group).capitalize())
        body += f'<tr><th scope="colgroup" colspan="{3 + len(_SHOWN)}">{heading}</th></tr>'
        body += "".join(_row({str(key): value for key, value in row.items()}, scales, whole) for row in members)
    notes = (
        '<p class="soft">Dot and line: value and 95 % interval by patient. Dashed: all breasts. A hollow diamond marks '
        "a small group: fewer than 10 cancers, or fewer than 10 breasts without. Its numbers say little, "
        "and its line is cut where the column ends. "
        "F1 rises with the share of cancers, so compare it only between groups of a like share. "
        f"With {len(rows)} rows, {_expected(len(rows))} to lie off the whole by chance alone.</p>"
    )
    return Section(title, framed(head, body, "Metrics by subgroup, with 95 % intervals", "forest") + notes)


def _expected(rows: int) -> str:
    """How many of independent 95 % intervals miss."""
    missing = max(1, round(0.05 * rows))
    return "one interval is to be expected" if missing == 1 else f"{missing} intervals are to be expected"


def _row(row: Mapping[str, Any], scales: Mapping[str, tuple[float, float]], whole: Mapping[str, float | None]) -> str:
    small = "<br><small>small group</small>" if row["small"] else ""
    cells = "".join(f'<td class="drawn">{_cell(row, name, scales[name], whole.get(name))}</td>' for name in _SHOWN)
    return (
        f'<tr><th scope="row">{escape(str(row["level"]))}{small}</th><td>{row["breasts"]:,}</td>'
        f"<td>{row['cancers']:,}</td>{cells}</tr>"
    )


def _cell(row: Mapping[str, Any], name: str, scale: tuple[float, float], whole: float | None) -> str:
    """A metric's drawing and its numbers, or why there are none."""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if math.isnan(value):
        return f"<small>{_why(row, name)}</small>"
    spread = "no interval" if math.isnan(low) else f"{low:.3f} to {high:.3f}"
    drawing = _drawing(np.array([low, value, high]), scale, whole, row["small"])
    return f"{drawing}{value:.3f} <small>{spread}</small>"


def _why(row: Mapping[str, Any], name: str) -> str:
    """What a metric would need and this group does not have."""
    missing = [("cancers", row["cancers"]), ("healthy breasts", row["breasts"] - row["cancers"])]
    needed = {"specificity": missing[1:], "sensitivity": missing[:1]}.get(name, missing)
    absent = [what for what, count in needed if not count]
    return f"none: no {' and no '.join(absent)}" if absent else "not defined"


def _drawing(points: np.ndarray, scale: tuple[float, float], whole: float | None, small: bool) -> str:
    """Whisker and mark on the column's scale. The numbers stand under it, so screen readers may pass it by."""
    across = _EDGE + (_WIDTH - 2 * _EDGE) * (points - scale[0]) / (scale[1] - scale[0])
    low, _, high = np.clip(across, 0, _WIDTH).tolist()
    middle = float(np.clip(across[1], _EDGE, _WIDTH - _EDGE))
    half = _HEIGHT / 2
    parts = []
    if whole is not None:
        at = _EDGE + (_WIDTH - 2 * _EDGE) * (whole - scale[0]) / (scale[1] - scale[0])
        parts.append(f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{_HEIGHT}"/>')
    if not math.isnan(low):
        parts.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{half:g}" y2="{half:g}"/>')
    if small:
        corners = (
            f"{middle - 5:.1f},{half:g} {middle:.1f},{half - 5:g} {middle + 5:.1f},{half:g} {middle:.1f},{half + 5:g}"
        )
        parts.append(f'<polygon class="hollow" points="{corners}"/>')
    else:
        parts.append(f'<circle class="point" cx="{middle:.1f}" cy="{half:g}" r="4"/>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def _axis(scale: tuple[float, float]) -> str:
    """The two ends of a column's scale."""
    parts = f'<line class="axis" x1="{_EDGE}" x2="{_WIDTH - _EDGE}" y1="15" y2="15"/>'
    for end, across in zip(scale, (_EDGE, _WIDTH - _EDGE), strict=True):
        anchor = "start" if across == _EDGE else "end"
        parts += f'<line class="axis" x1="{across}" x2="{across}" y1="12" y2="18"/>'
        parts += f'<text x="{across}" y="10" text-anchor="{anchor}">{end:g}</text>'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{parts}</svg>'


def _scale(rows: pd.DataFrame, name: str, whole: float | None) -> tuple[float, float]:
    """A column's ends: from the tenth below its lowest number to the tenth above its highest, small groups apart."""
    large = rows[~rows["small"].astype(bool)]
    columns = [name, f"{name}_low", f"{name}_high"]
    numbers: Sequence[float] = (large if len(large) else rows)[columns].to_numpy(np.float64).ravel().tolist()
    known = [number for number in (*numbers, math.nan if whole is None else whole) if not math.isnan(number)]
    if not known:
        return 0.0, 1.0
    low, high = math.floor(10 * min(known)) / 10, math.ceil(10 * max(known)) / 10
    return (low, high) if high > low else (max(low - 0.1, 0.0), min(high + 0.1, 1.0))
