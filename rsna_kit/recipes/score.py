"""Scores and truth → pF1 and its companions with intervals, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rsna_kit.competition.rows import read_rows
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_json
from rsna_kit.scoring.intervals import shown, summarise
from rsna_kit.scoring.metrics import METRICS
from rsna_kit.scoring.predictions import read_predictions
from rsna_kit.scoring.threshold import Threshold, choose_threshold


@dataclass(frozen=True)
class Scored:
    """A file of predictions.

    `breasts` as `read_predictions` gives them, `rows` the file itself as text, `summary` as `summarise` makes it.
    """

    path: Path
    breasts: pd.DataFrame
    rows: pd.DataFrame
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        """The file and its folder."""
        return "/".join(self.path.parts[-2:])

    @property
    def threshold(self) -> float:
        """From which score a breast is called positive."""
        return float(self.summary["threshold"]["value"])


def score(
    predictions: Sequence[Path],
    events: Events,
    out: Path | None = None,
    truth: Path | None = None,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Score one or more files of predictions.

    Args:
        predictions: CSV files as `rsna_kit.scoring.predictions.read_predictions` takes them, or folders that `train` or
            `blend` wrote, which stand for their `oof.csv`. The threshold is chosen on the first and applied to all: put
            the out-of-fold scores first, the test after them.
        out: folder for `scores.json`; None writes nothing.
        truth: labels of the files that have no column `cancer`.
        threshold: use this one instead of choosing.

    Returns:
        `threshold` and, per file, the summary of `rsna_kit.scoring.intervals.summarise`; ready for JSON.
    """
    scored = score_files(predictions, events, truth, threshold)
    result = as_json(scored)
    if out is not None:
        write_json(out / "scores.json", result)
    return result


def score_files(
    predictions: Sequence[Path], events: Events, truth: Path | None = None, threshold: float | None = None
) -> list[Scored]:
    """Read and summarise every file; the arguments are those of `score`."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"--threshold: got {threshold}, expected a number from 0 to 1")
    if truth is not None and all(_labels(_file(given), truth) is None for given in predictions):
        raise UsageError(
            f"--truth {truth}: every file has labels of its own, so it would not be used. Leave it out, or take the "
            "column 'cancer' out of the files that it should label."
        )
    rule: float | Threshold | None = threshold
    scored = []
    for given in predictions:
        path, breasts = read_breasts(given, truth)
        if rule is None:
            rule = choose_threshold(breasts["cancer"], breasts["score"])
        summary = summarise(breasts, rule)
        rule = summary["threshold"]["value"]  # its plateau is of the first file
        _tell(str(path), summary, events)
        scored.append(Scored(path, breasts, read_rows(path).frame, summary))
    return scored


def read_breasts(given: Path, truth: Path | None = None) -> tuple[Path, pd.DataFrame]:
    """A file of predictions, or a folder that stands for its `oof.csv` → the file and its breasts."""
    path = _file(given)
    return path, read_predictions(path, _labels(path, truth))


def short_names(models: Sequence[Path]) -> list[str]:
    """Of each file or folder its own name, with as much of what lies above it as tells all apart."""
    paths = [path.resolve() for path in models]
    paths = [path if path.is_dir() else path.with_suffix("") for path in paths]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in models]  # the same name with two suffixes


def as_json(scored: Sequence[Scored]) -> dict[str, Any]:
    """What `score` returns."""
    files = {str(one.path): one.summary for one in scored}
    return {"ok": True, "threshold": scored[0].threshold, "files": files}


def _file(given: Path) -> Path:
    return given / "oof.csv" if given.is_dir() else given


def _labels(path: Path, truth: Path | None) -> Path | None:
    """The truth file where `path` does not carry scores and labels itself (a submission's `cancer` is its score)."""
    columns = set(read_rows(path).columns)
    if {"score", "cancer"} <= columns:
        return None
    if truth is None and "cancer" not in columns:
        raise UsageError(f"{path}: no column 'cancer'. Give the labels with --truth FILE (prediction_id,cancer).")
    return truth


def _tell(name: str, summary: Mapping[str, Any], events: Events) -> None:
    counts = summary["counts"]
    events.say(
        f"{name}: {counts['breasts']} breasts of {counts['patients']} patients, {counts['positives']} with cancer"
    )
    for metric in (metric for metric, one in METRICS.items() if one.headline):
        events.say(f"  {metric:<12} {shown(summary['metrics'][metric])}")
