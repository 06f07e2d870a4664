"""Scores, truth and pictures → one HTML page that needs nothing but itself."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit import __version__
from rsna_kit.config import ImageConfig
from rsna_kit.recipes.score import Scored, as_json, score_files
from rsna_kit.runtime.errors import RsnaKitError, UsageError, one_line
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_json, sha256_file, write_json
from rsna_kit.runtime.hardware import commit, versions
from rsna_kit.scoring.calibration import out_of_fold
from rsna_kit.scoring.intervals import bootstrap
from rsna_kit.scoring.threshold import can_cross_fit, with_calls
from rsna_lab.analysis.subgroups import UNKNOWN, breast_facts, subgroups
from rsna_lab.recipes.album import Album, competition_albums, draw_maps, prepared_album, views
from rsna_lab.report.cards import Card, View, card_section, notable, worth_showing
from rsna_lab.report.page import Section, pictures
from rsna_lab.report.sections import (
    curve_section,
    headline,
    operating_point,
    provenance,
    subgroup_section,
    write_report,
)

PAGE = "report.html"
_CASE_IMAGE = ImageConfig(height=512, width=256)
_BYTES, _CARDS = 4_700_000, 3_500_000  # of all sections, and of the cards among them: a page stays under 5 MB


@dataclass(frozen=True)
class _File:
    """A file of predictions with what is known of its images.

    `facts` are those of `breast_facts`, by prediction_id, without columns where nothing is known. `scorer` is the
    folder whose networks gave the scores.
    """

    scored: Scored
    album: Album | None
    facts: pd.DataFrame
    image_scores: Mapping[str, float]
    scorer: Path | None


def report(
    predictions: Sequence[Path],
    out: Path,
    events: Events,
    truth: Path | None = None,
    threshold: float | None = None,
    competition: Path | None = None,
    prepared: Path | None = None,
) -> dict[str, Any]:
    """Score files of predictions and make one page of them.

    Args:
        predictions: as `rsna_kit.recipes.score.score` takes them. Of folders that `train` or `blend` wrote, curves,
            epochs, provenance and maps join the page. Where the first is such a folder, files after it that have no
            folds are taken to be scored by its networks, all together.
        out: folder for `report.html` and `scores.json`.
        events: progress.
        truth: labels of the files that have no column `cancer`.
        threshold: use this one instead of choosing.
        competition: its DICOM files illustrate the files that score its breasts, its tables tell the subgroups.
        prepared: folder written by `prepare`: the same, without a DICOM file.

    Returns:
        What `score` returns, and `report`, the page; ready for JSON.

    Raises:
        UsageError: a competition or a prepared folder that holds none of the breasts.
    """
    scored = score_files(predictions, events, truth, threshold)
    files = _join(predictions, scored, competition, prepared)
    runs = [path for path in predictions if path.is_dir()]
    sections = []
    for file in files:
        part = file.scored.name if len(files) > 1 else ""
        sections += [replace(section, part=part) for section in _numbers(file)]
    given = {"truth": truth, "pictures": competition, "prepared": prepared}
    last = [*_training(runs), _provenance(scored, runs, given)]
    taken = sum(len(section.body.encode(errors="replace")) for section in (*sections, *last))
    cards = (card for row in zip_longest(*(_cards(file, len(files) > 1, events) for file in files)) for card in row)
    total, room = sum(len(one.breasts) for one in scored), min(_CARDS, _BYTES - taken)
    sections.append(card_section((card for card in cards if card is not None), total, room))
    names = ", ".join(str(one.path) for one in scored)
    title = " and ".join(run.resolve().name for run in runs)
    title = f"Validation report of {title}" if runs else "Validation report"
    write_report(out / PAGE, title, [*sections, *last], names)
    write_json(out / "scores.json", as_json(scored))
    size = (out / PAGE).stat().st_size
    events.say(f"page: {out / PAGE} ({size / 1e6:.1f} MB)", kind="report", path=str(out / PAGE), bytes=size)
    return as_json(scored) | {"report": str(out / PAGE)}


def _join(
    predictions: Sequence[Path], scored: Sequence[Scored], competition: Path | None, prepared: Path | None
) -> list[_File]:
    """What is known of each file: the first of the given folders that holds its breasts."""
    first = predictions[0] if predictions[0].is_dir() else None
    configuration = {} if first is None else _configuration(first)
    image = ImageConfig(**configuration["image"]) if configuration else _CASE_IMAGE
    albums = {
        "--prepared": [prepared_album(prepared)] if prepared is not None else [],
        "--pictures": competition_albums(competition, image) if competition is not None else [],
    }
    for option, found in albums.items():
        if found and not any(album.holds(one.breasts) for album in found for one in scored):
            folder = prepared if option == "--prepared" else competition
            raise UsageError(
                f"{option} {folder}: none of its breasts is among the predictions. Give the folder that was scored."
            )
    files = []
    for given, one in zip(predictions, scored, strict=True):
        album = next((album for found in albums.values() for album in found if album.holds(one.breasts)), None)
        table = album.table if album is not None else one.rows
        facts = pd.DataFrame(index=one.breasts["prediction_id"])
        if table is not None and "prediction_id" in table.columns:
            facts = breast_facts(table[table["prediction_id"].isin(one.breasts["prediction_id"])])
        image_scores = {}
        if {"image_id", "score"} <= set(one.rows.columns):
            image_scores = dict(zip(one.rows["image_id"], one.rows["score"].astype(float), strict=True))
        scorer = given if given.is_dir() else None if "fold" in one.breasts.columns else first
        files.append(_File(one, album, facts, image_scores, scorer))
    return files


def _numbers(file: _File) -> list[Section]:
    """The sections that need no picture."""
    breasts, summary, facts = file.scored.breasts, file.scored.summary, file.facts
    labels, scores = breasts["cancer"].to_numpy(), breasts["score"].to_numpy(np.float64)
    honest, probabilities = None, None
    if "fold" in breasts.columns and can_cross_fit(labels, breasts["fold"].to_numpy()):
        honest = bootstrap(with_calls(breasts)[0], ["pf1_binary"])["pf1_binary"].as_dict()
        probabilities = out_of_fold(labels, scores, breasts["fold"])
    elif "probability" in file.scored.rows.columns and len(file.scored.rows) == len(breasts):
        by_breast = file.scored.rows.set_index("prediction_id")["probability"].astype(float)
        probabilities = by_breast[breasts["prediction_id"]].to_numpy()
    if "fold" in breasts.columns:
        facts = facts.reindex(breasts["prediction_id"]).fillna(UNKNOWN)
        facts = pd.DataFrame({"fold": breasts["fold"].astype(str).to_numpy()}, index=facts.index).join(facts)
    called = breasts.assign(called=(scores >= file.scored.threshold).astype("int8"))
    return [
        headline(summary),
        curve_section(breasts, summary, probabilities),
        operating_point(summary, honest),
        subgroup_section(subgroups(called, facts), summary["metrics"]),
    ]


def _training(runs: Sequence[Path]) -> list[Section]:
    """The curves that a training drew of every fold."""
    sections = []
    for run in runs:
        drawn = [(path.read_bytes(), path.parent.name) for path in sorted(run.glob("fold*/curves.png"))]
        if drawn:
            sections.append(replace(pictures("Training", drawn), part=run.name if len(runs) > 1 else ""))
    return sections


def _configuration(run: Path) -> dict[str, Any]:
    """Of a run that `train` wrote; empty for a blend, whose members have one each."""
    path = run / "config.json"
    configuration: dict[str, Any] = read_json(path) if path.is_file() else {}
    return configuration


def _cards(file: _File, several: bool, events: Events) -> Iterator[Card]:
    """The breasts of a file in the order of their worth, the notable ones with maps."""
    threshold = file.scored.threshold
    breasts = file.scored.breasts.iloc[worth_showing(file.scored.breasts, threshold)]
    ids = breasts["prediction_id"].tolist()
    facts = file.facts.reindex(ids).fillna(UNKNOWN).to_dict("records")
    shown = iter([[]] * len(ids)) if file.album is None else views(file.album, ids, file.image_scores)
    first = list(islice(shown, len(notable(breasts, threshold))))
    maps = _maps(file, breasts, first, events)
    for row, known, seen in zip(breasts.to_dict("records"), facts, chain(first, shown), strict=True):
        texts = {"predictions": file.scored.name} if several else {}
        texts |= {"fold": str(row["fold"])} if "fold" in row else {}
        known.pop("number of images", None)
        texts |= {str(name): text for name, text in known.items() if text != UNKNOWN}
        drawn = []
        for image_id, name, picture in seen:
            drawn.append(View(picture, name))
            drawn += [View(*maps[image_id])] if image_id in maps else []
        score = float(row["score"])
        yield Card(row["prediction_id"], score, int(row["cancer"]), score >= threshold, texts, drawn)


def _maps(
    file: _File, breasts: pd.DataFrame, seen: Sequence[Sequence[tuple[str, str, np.ndarray | None]]], events: Events
) -> dict[str, tuple[np.ndarray, str]]:
    """As `draw_maps` gives them, of the pictures that were seen of the first breasts; none is no error."""
    folds = breasts["fold"].tolist() if "fold" in breasts.columns else [None] * len(breasts)
    asked = [(image_id, picture, fold) for own, fold in zip(seen, folds, strict=False) for image_id, _, picture in own]
    shown = {image_id: picture for image_id, picture, _ in asked if picture is not None}
    if file.scorer is None or file.album is None or not shown:
        return {}
    try:
        of_image = {image_id: fold for image_id, _, fold in asked}
        return draw_maps(file.scorer, shown, of_image, file.album.image, events)
    except RsnaKitError as error:
        events.say(f"no maps: {one_line(error)}")
        return {}


def _provenance(scored: Sequence[Scored], runs: Sequence[Path], given: Mapping[str, Path | None]) -> Section:
    program = Path(sys.argv[0]).name.replace("__main__.py", "rsna-kit")
    facts: dict[str, Any] = {
        "command": shlex.join([program, *sys.argv[1:]]),
        "rsna_kit": __version__,
        "commit": commit() or "not known",
        "predictions": {str(one.path): f"sha256 {sha256_file(one.path)[:12]}" for one in scored},
    }
    facts |= {name: str(path) for name, path in given.items() if path is not None}
    facts["packages"] = versions()
    for path in (path for run in runs for path in sorted(run.glob("bundles/*/metadata.json"))):
        metadata = read_json(path)
        digest = metadata.pop("sha256", {}).get("model.weights.h5", "")
        kept = {
            name: metadata[name]
            for name in ("commit", "start", "image_fingerprint", "data_fingerprint")
            if metadata.get(name)
        }
        name = path.parent.name if len(runs) == 1 else f"{path.parents[2].name} {path.parent.name}"
        facts[name] = kept | {"weights": f"sha256 {digest[:12]}"}
    if len(runs) == 1:
        return provenance(facts, _configuration(runs[0]))
    return provenance(facts, {run.name: _configuration(run) for run in runs})
