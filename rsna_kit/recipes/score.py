"""Scores and truth → pF1 and its companions with intervals, as JSON and as a page with pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit import __version__
from rsna_kit.competition.paths import Competition, find_competition
from rsna_kit.competition.tables import read_test, read_train
from rsna_kit.config import ImageConfig
from rsna_kit.report.sections import (
    Case,
    cases,
    curves,
    headline,
    operating_point,
    pictures,
    provenance,
    write_report,
)  # fmt: skip
from rsna_kit.runtime.errors import ImageError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_json, write_json
from rsna_kit.scoring.breasts import read_predictions
from rsna_kit.scoring.summary import notable, summarise
from rsna_kit.scoring.threshold import Threshold, choose_threshold

_CASE_IMAGE = ImageConfig(height=420, width=210)
_TOLD = ("pf1_binary", "pf1", "roc_auc", "pr_auc", "sensitivity", "specificity", "recall_rate", "ppv")


def score(
    predictions: Sequence[Path],
    events: Events,
    out: Path | None = None,
    truth: Path | None = None,
    threshold: float | None = None,
    case_pictures: Path | None = None,
    model: Path | None = None,
) -> dict[str, Any]:
    """Score one or more files of predictions.

    Args:
        predictions: CSV files as `rsna_kit.scoring.breasts.read_predictions` takes them. The threshold is chosen
            on the first and applied to all: put the out-of-fold scores first, the test after them.
        out: folder for `scores.json` and `report.html`; None writes nothing.
        truth: labels of the files that have no column `cancer`.
        threshold: use this one instead of choosing.
        case_pictures: competition folder whose mammograms illustrate the last file's cases.
        model: folder written by `train`; its curves and provenance join the page.

    Returns:
        `threshold` and, per file, the summary of `rsna_kit.report.sections.summarise`; ready for JSON.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"--threshold: got {threshold}, expected a number from 0 to 1")
    if out is None and (case_pictures is not None or model is not None):
        raise UsageError("--pictures and --model belong on a page: give its folder with --out")
    tables = {path: read_predictions(path, _labels(path, truth)) for path in predictions}
    rule: float | Threshold
    if threshold is None:
        first = tables[predictions[0]]
        rule = choose_threshold(first["cancer"], first["score"])
        value = rule.value
    else:
        rule = value = threshold
    summaries = {}
    for path, breasts in tables.items():
        summary = summarise(breasts, rule if path == predictions[0] else value)
        summaries[str(path)] = summary
        _tell(str(path), summary, events)
    result: dict[str, Any] = {"ok": True, "threshold": value, "files": summaries}
    if out is not None:
        sections = []
        for path, breasts in tables.items():
            summary = summaries[str(path)]
            parts = [headline(summary), curves(breasts, summary), operating_point(summary)]
            name = "/".join(path.parts[-2:])
            sections += [dataclasses.replace(part, title=f"{name}: {part.title}") for part in parts]
        if case_pictures is not None:
            sections.append(cases(_cases(tables[predictions[-1]], value, find_competition(case_pictures))))
        if model is not None:
            drawn = [(path.read_bytes(), path.parent.name) for path in sorted(model.glob("fold*/curves.png"))]
            sections.append(pictures("Training", drawn))
        sections.append(provenance(_provenance(predictions, truth, model)))
        write_json(out / "scores.json", result)
        title = "Out-of-fold and test scores" if len(predictions) > 1 else "Scores"
        write_report(out / "report.html", title, sections, ", ".join(map(str, predictions)))
        events.say(f"page: {out / 'report.html'}")
        result["report"] = str(out / "report.html")
    return result


def _labels(path: Path, truth: Path | None) -> Path | None:
    """The truth file where `path` does not carry scores and labels itself (a submission's `cancer` is its score)."""
    try:
        columns = set(pd.read_csv(path, nrows=0).columns)
    except (OSError, ValueError):
        return None  # read_predictions says what is wrong with the file
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
    for metric in _TOLD:
        value, low, high = (summary["metrics"][metric][key] for key in ("value", "low", "high"))
        text = "undefined" if value is None else f"{value:.3f}"
        if low is not None:
            text += f"  [{low:.3f}, {high:.3f}]"
        events.say(f"  {metric:<12} {text}")


def _cases(breasts: pd.DataFrame, threshold: float, competition: Competition) -> dict[str, list[Case]]:
    """The notable breasts with up to two of their images side by side."""
    split, table = _images(competition, breasts)
    groups: dict[str, list[Case]] = {}
    for name, rows in notable(breasts, threshold).items():
        groups[name] = []
        for row in rows.itertuples():
            images = table[table["prediction_id"] == row.prediction_id].sort_values("view").head(2)
            drawn = _draw(competition.files(split, images))
            if drawn is not None:
                caption = f"{row.prediction_id} ({', '.join(images['view'])})"
                groups[name].append(Case(drawn, caption, float(row.score), int(row.cancer)))  # type: ignore[arg-type]
    return groups


def _images(competition: Competition, breasts: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The split that holds the scored breasts, and its table."""
    for split, path, read in (("test", competition.test_csv, read_test), ("train", competition.train_csv, read_train)):
        if path is not None:
            table = read(path)
            if table["prediction_id"].isin(breasts["prediction_id"]).any():
                return split, table
    raise UsageError(f"--pictures {competition.root}: none of its breasts is among the last file's predictions")


def _draw(files: Sequence[tuple[str, Path]]) -> np.ndarray | None:
    from rsna_kit.imaging.render import read_image

    drawn = []
    for image_id, path in files:
        try:
            drawn.append(read_image(path, image_id, _CASE_IMAGE).image)
        except ImageError:
            continue
    return np.hstack(drawn) if drawn else None


def _provenance(predictions: Sequence[Path], truth: Path | None, model: Path | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"rsna_kit": __version__, "predictions": ", ".join(map(str, predictions))}
    if truth is not None:
        facts["truth"] = str(truth)
    for path in sorted(model.glob("bundles/*/metadata.json")) if model is not None else []:
        metadata = read_json(path)
        metadata.pop("sha256", None)
        facts[path.parent.name] = metadata
    return facts
