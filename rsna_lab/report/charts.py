"""Scored breasts → curves, histograms and intervals as inline SVG by matplotlib, in the page's own colours.

The charts are drawn in the light scheme's colours on no ground; the page's style sheet exchanges them for those of the
dark scheme (`rsna_lab.report.style`). Nothing is told by colour alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from rsna_kit.runtime.lazy import require
from rsna_kit.scoring.metrics import METRICS, f1_curve
from rsna_lab.report.style import LIGHT

_INK, _SOFT, _ONE, _TWO = (LIGHT[name] for name in ("ink", "soft", "one", "two"))
_WIDTH, _HEIGHT = 4.6, 3.4  # inches
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), _INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), _SOFT),
}


def chart(title: str, text: str, draw: Callable[[Any], None], height: float = _HEIGHT) -> str:
    """A figure of the page: what `draw` draws on matplotlib's axes, its title and a sentence on how to read it.

    Both are texts that become HTML here; the content security policy of the page forbids style attributes, so they
    become presentation attributes.
    """
    matplotlib = require("matplotlib", "train")
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = require("matplotlib.figure", "train").Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=unsaid)
    svg = file.getvalue()[file.getvalue().index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[^"]*_\d+"', "", svg)  # of groups; charts of one page would share them
    svg = re.sub(r'style="([^"]*)"', lambda found: _attributes(found[1]), svg)
    said = escape(f"{title}. {text}")
    top = re.search(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', svg)
    assert top is not None
    svg = f'<svg viewBox="{top[1]}" role="img" aria-label="{said}">{svg[top.end() :]}'
    return f"<figure>{svg}<figcaption><b>{escape(title)}.</b> {escape(text)}</figcaption></figure>"


def _attributes(style: str) -> str:
    pairs = (declaration.split(":", 1) for declaration in style.split(";"))
    return " ".join(f'{name.strip()}="{value.strip()}"' for name, value in pairs if name.strip() != "font-family")


def curves(breasts: pd.DataFrame, rule: Mapping[str, float], probabilities: np.ndarray | None) -> Iterator[str]:
    """The charts that tell cancer from the rest, for data with both classes.

    Args:
        breasts: `cancer` (0/1) and `score` in [0, 1].
        rule: `value` of the threshold, and `low` and `high` of its plateau if it has one.
        probabilities: calibrated scores (N,), if there are any.
    """
    measure = require("sklearn.metrics", "train")
    labels, scores = breasts["cancer"].to_numpy(), breasts["score"].to_numpy(np.float64)
    called = scores >= rule["value"]
    found, top = called[labels == 1].mean(), max(float(scores.max()), 1e-6)

    def roc(axes: Any) -> None:
        wrong, right, _ = measure.roc_curve(labels, scores)
        axes.plot([0, 1], [0, 1], ":", color=_SOFT, linewidth=1)
        axes.plot(wrong, right, color=_ONE)
        axes.plot(called[labels == 0].mean(), found, "o", color=_TWO)
        axes.set(xlabel="false positive rate", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.02))

    def precision_recall(axes: Any) -> None:
        precision, recall, _ = measure.precision_recall_curve(labels, scores)
        axes.axhline(labels.mean(), linestyle=":", color=_SOFT, linewidth=1)
        axes.plot(recall[:-1], precision[:-1], color=_ONE)
        if called.any():
            axes.plot(found, labels[called].mean(), "o", color=_TWO)
        axes.set(xlabel="sensitivity (recall)", ylabel="PPV (precision)", xlim=(0, 1), ylim=(0, 1.02))

    def f1_by_threshold(axes: Any) -> None:
        thresholds, f1 = f1_curve(labels, scores)
        if {"low", "high"} <= rule.keys():
            axes.axvspan(rule["low"], rule["high"], color=_ONE, alpha=0.2, linewidth=0)
        axes.step(thresholds, f1, where="pre", color=_ONE)  # between two scores F1 is that of the upper one
        axes.axvline(min(rule["value"], top), linestyle="--", color=_INK, linewidth=1.2)
        axes.set(xlabel="threshold", ylabel="F1", xlim=(0, top), ylim=(0, None))

    def histogram(axes: Any) -> None:
        edges = np.linspace(0, top, 41)
        for label, name, colour, style in ((0, "without cancer", _ONE, "-"), (1, "with cancer", _TWO, "--")):
            shares = np.histogram(scores[labels == label], edges)[0] / (labels == label).sum()
            axes.stairs(shares, edges, color=colour, linestyle=style, label=name, linewidth=1.6)
        axes.axvline(min(rule["value"], top), linestyle="--", color=_INK, linewidth=1.2)
        axes.set(xlabel="score", ylabel="share of the breasts", xlim=(0, top), ylim=(0, None))
        axes.legend()

    def reliability(axes: Any) -> None:
        columns = {"raw": (scores, _ONE, "o-")}
        columns |= {} if probabilities is None else {"calibrated": (probabilities, _TWO, "s--")}
        highest = 0.0
        for name, (values, colour, style) in columns.items():
            tenth = (pd.Series(values).rank(method="min") - 1) * 10 // len(values)  # equal scores stay together
            bins = pd.DataFrame({"score": values, "cancer": labels}).groupby(tenth)
            means, counts = bins.mean(), bins["cancer"].agg(["sum", "size"])
            ends = [binomtest(int(k), int(n)).proportion_ci(method="wilson") for k, n in counts.to_numpy()]
            reach = np.abs(np.array(ends).T - means["cancer"].to_numpy())
            axes.errorbar(means["score"], means["cancer"], reach, fmt=style, color=colour, label=name, linewidth=1.2)
            highest = max(highest, means.max().max())
        axes.plot([0, highest], [0, highest], ":", color=_SOFT, linewidth=1)
        axes.set(xlabel="mean score", ylabel="share with cancer", xlim=(0, None), ylim=(0, None))
        axes.legend(loc="upper left")

    dot = "the dot is the threshold in use."
    yield chart("ROC curve", f"Cancers found against healthy breasts called. Dotted is chance; {dot}", roc)
    yield chart(
        "Precision and recall",
        f"How many calls are cancers against how many cancers are found; {dot}",
        precision_recall,
    )
    band = (
        " The band is its plateau: thresholds that the noise of F1 cannot tell from the best." if "low" in rule else ""
    )
    yield chart(
        "F1 by threshold", f"Calling everything from there up. Dashed is the one in use.{band}", f1_by_threshold
    )
    yield chart("Scores", "How the breasts of each class are spread. The upright line is the threshold.", histogram)
    told = (
        "Tenths of the breasts, with 95 % intervals. On the dotted line the score is the probability of cancer; below "
    )
    yield chart("Reliability", told + "it the model claims too much, above it too little.", reliability)


def forest(rows: pd.DataFrame, metric: str, whole: float | None) -> str:
    """A metric and its interval of every subgroup under each other.

    Args:
        rows: as `rsna_lab.analysis.subgroups.subgroups` makes them.
        metric: one of its columns.
        whole: the metric of all breasts, a dashed line.
    """
    rows = rows[[not np.isnan(one.value) for one in rows[metric]]].iloc[::-1]

    def draw(axes: Any) -> None:
        for place, row in enumerate(rows.to_dict("records")):
            one, small = row[metric], row["small"]
            axes.plot([one.low, one.high], [place, place], color=_ONE, linewidth=1.6)
            axes.plot(one.value, place, "D" if small else "o", color=_ONE, fillstyle="none" if small else "full")
        if whole is not None:
            axes.axvline(whole, linestyle="--", color=_INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [f"{row['group']} {row['level']}" for row in rows.to_dict("records")])
        axes.set(xlabel=METRICS[metric].label, ylim=(-0.7, len(rows) - 0.3))
        axes.grid(axis="y", visible=False)

    text = "Value and 95 % interval by patient of every subgroup. Dashed is all breasts; hollow is a small group."
    return chart(f"{METRICS[metric].label} by subgroup", text, draw, height=0.9 + 0.22 * len(rows))
