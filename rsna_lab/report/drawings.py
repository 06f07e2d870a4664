"""Labels and scores → the pictures of a report: ROC, precision and recall, F1 by threshold, scores, reliability."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rsna_kit.scoring.metrics import Counts, Ranking
from rsna_lab.report.charts import HEIGHT, Axis, Chart, picture

_BINS = 40
RELIABILITY = (
    "Each point is a tenth of the breasts, or as near to it as equal scores allow, with its 95 % interval. On the "
    "dotted diagonal the score is the probability of cancer; below it the model claims too much, above it too little."
)


@dataclass(frozen=True)
class Drawing:
    """An <svg> with its title and a sentence on how to read it."""

    title: str
    text: str
    svg: str


def drawings(labels: np.ndarray, scores: np.ndarray, rule: Mapping[str, float]) -> list[Drawing]:
    """The four that tell cancer from the rest, for data with both classes.

    Args:
        labels: 0/1 of shape (N,).
        scores: in [0, 1], of shape (N,).
        rule: `value` of the threshold, and `low` and `high` of its plateau if it has one.
    """
    counts = Ranking(labels, scores).counts()
    return [
        _roc(counts, rule["value"]),
        _precision_recall(counts, rule["value"]),
        _f1_by_threshold(counts, rule),
        _histograms(labels, scores, rule["value"]),
    ]


def reliability_drawing(title: str, bins: pd.DataFrame) -> Drawing:
    """The share of cancers against the mean score, bin by bin.

    Args:
        title: what the scores are.
        bins: as `rsna_kit.scoring.calibration.reliability` makes them: `mean_score`, `share`, `share_low`,
            `share_high`.
    """
    top = round_up(max(float(bins["mean_score"].max()), float(bins["share_high"].max())))
    chart = Chart(Axis("mean score", 0.0, top), Axis("share with cancer", 0.0, top))
    chart.line(np.array([0.0, top]), np.array([0.0, top]), "chance")
    chart.line(bins["mean_score"].to_numpy(), bins["share"].to_numpy(), "one")
    for row in bins.to_dict("records"):
        chart.whisker(row["mean_score"], row["share_low"], row["share_high"])
        chart.point(row["mean_score"], row["share"])
    return Drawing(title, RELIABILITY, chart.svg(title, RELIABILITY))


def _roc(counts: Counts, threshold: float) -> Drawing:
    tp, fp = counts.at(threshold)
    chart = Chart(Axis("false positive rate"), Axis("sensitivity"))
    chart.line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "chance")
    chart.line(np.r_[counts.fp, 0] / counts.negatives, np.r_[counts.tp, 0] / counts.positives, "one")
    chart.dot(fp / counts.negatives, tp / counts.positives, f"threshold {threshold:.3g}")
    text = "Cancers found against healthy breasts called. The dotted diagonal is chance; the dot is the threshold."
    return Drawing("ROC curve", text, chart.svg("ROC curve", text))


def _precision_recall(counts: Counts, threshold: float) -> Drawing:
    tp, fp = counts.at(threshold)
    prevalence = counts.positives / (counts.positives + counts.negatives)
    chart = Chart(Axis("sensitivity (recall)"), Axis("PPV (precision)"))
    chart.line(np.array([0.0, 1.0]), np.array([prevalence, prevalence]), "chance")
    chart.line(counts.tp / counts.positives, counts.tp / (counts.tp + counts.fp), "one")
    if tp + fp > 0:
        chart.dot(tp / counts.positives, tp / (tp + fp), f"threshold {threshold:.3g}")
    text = "How many calls are cancers, against how many cancers are found. The dotted line is chance."
    return Drawing("Precision and recall", text, chart.svg("Precision and recall", text))


def _f1_by_threshold(counts: Counts, rule: Mapping[str, float]) -> Drawing:
    f1 = 2 * counts.tp / (counts.tp + counts.fp + counts.positives)
    chart = Chart(_score_axis(counts.thresholds, "threshold"), Axis("F1", 0.0, round_up(float(f1.max()))))
    text = "F1 of calling everything from the threshold up. The dashed line is the threshold in use."
    if "low" in rule and "high" in rule:
        chart.band(rule["low"], rule["high"], "band")
        text += " The band is its plateau: thresholds that the noise of F1 cannot tell from the best."
    chart.line(counts.thresholds, f1, "one", step=True)
    # A threshold above every score calls nothing; it is drawn at the right end.
    chart.rule(min(rule["value"], chart.x.high), "rule")
    return Drawing("F1 by threshold", text, chart.svg("F1 by threshold", text))


def _histograms(labels: np.ndarray, scores: np.ndarray, threshold: float) -> Drawing:
    """Two panels under each other with one x axis: 2 % of positives would vanish in a shared count."""
    axis = _score_axis(scores, "score")
    edges = np.linspace(axis.low, axis.high, _BINS + 1)
    body = ""
    places = ((1, "with cancer", "bar-two", 14.0, 124.0), (0, "without", "bar-one", 144.0, HEIGHT - 44.0))
    for label, name, style, top, bottom in places:
        members = scores[labels == label]
        shares = np.histogram(members, edges)[0] / len(members)
        chart = Chart(axis, Axis("share", 0.0, round_up(float(shares.max()))), top, bottom)
        chart.bars(edges, shares, style)
        chart.rule(min(threshold, axis.high), "rule")
        chart.text(388, top + 12, f"{len(members):,} {name}", left=True)
        body += chart.body(x_axis=label == 0)
    text = "Share of breasts at each score: with cancer above, without below. The dashed line is the threshold."
    return Drawing("Scores", text, picture(body, "Scores", text))


def _score_axis(scores: np.ndarray, label: str) -> Axis:
    """From 0 to a round number above the highest score."""
    return Axis(label, 0.0, round_up(float(scores.max())))


def round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8, 10 times a power of ten; 1 for 0.

    Example:
        >>> round_up(0.43)
        0.5
    """
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        round(factor * power, 12) for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if factor * power >= value - 1e-12
    )
