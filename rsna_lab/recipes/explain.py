"""Mammograms and bundles → pictures of where the scores come from: pairs of PNG, maps, a table and one page."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd

from rsna_kit import __version__
from rsna_kit.competition.paths import Competition, find_competition
from rsna_kit.competition.tables import read_test, read_train
from rsna_kit.config import DecodeConfig, ImageConfig, InferConfig
from rsna_kit.recipes.infer import open_members
from rsna_kit.runtime.errors import UsageError, did_you_mean
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import replacing

if TYPE_CHECKING:
    from rsna_kit.imaging.render import Rendered
    from rsna_kit.imaging.stream import ImageStream
    from rsna_kit.models.ensemble import Ensemble
    from rsna_kit.models.members import Member
    from rsna_lab.analysis.explain import Explainer

TOP = 20
_PAGE_HEIGHT = 560  # rows of a picture on the page; the files are as large as what the model sees
_GAP = 4  # black columns between the mammogram and its map
_MEANING = (
    "Left the mammogram as the model sees it, right the same with the map over it: purple is weak, yellow is the "
    "picture's strongest, a ring is the peak. A map shows where the score comes from. It does not show that there is a "
    "lesion, nor that the score is right; scripts/pointing-game measures how often the peak falls in a known lesion."
)


@dataclass(frozen=True)
class _Scored:
    """A picture, its row in the table and its score."""

    row: int
    score: float
    rendered: Rendered


def explain(
    where: Path | None, out: Path, bundle_paths: Sequence[Path], settings: InferConfig, events: Events, *,
    images: Sequence[str] = (), top: int = TOP, method: str | None = None, split: str | None = None,
    decode: DecodeConfig | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score mammograms and show what in the highest scoring ones made for cancer.

    Writes to `out`: `pictures/<image_id>.png` (the mammogram beside its map), `maps/<image_id>.png` (the map alone, on
    the model's grid, 16 bits, 65535 its maximum), `explain.csv` (scores, peaks in rows and columns of the full picture,
    the box that the model saw), `failures.csv` and `index.html`, which needs nothing but itself.

    Args:
        where: competition folder, None for Kaggle's mounts.
        out: folder to write.
        bundle_paths: bundles, folders of bundles or of an `ensemble.json`, as `infer` takes them; of several, the
            weighted mean of their normalised maps is shown.
        settings: its batch_size and max_failure_share are used.
        events: progress, with the time that is left.
        images: these pictures; empty: the `top` highest scores of the split.
        top: how many.
        method: `grad-cam`, `occlusion` or `error`; None: errors for a CVAE, Grad-CAM for all others.
        split: "train" or "test"; None takes the table that is there, the test table where both are.
        decode: the decode section of the configuration.

    Returns:
        Counts, paths and the pictures with their scores and peaks, ready for JSON; `ok` is False when more than
        `max_failure_share` of the pictures could not be used. A picture that cannot be used costs no other.

    Raises:
        UsageError: an id that the table does not have, a method that the model does not have, nothing to show.
        BundleError: no bundle, or bundles of different image sections.
    """
    from rsna_kit.models.ensemble import Ensemble
    from rsna_kit.models.members import common_image
    from rsna_kit.recipes.images import open_stream
    from rsna_lab.analysis.explain import build_explainer, combine

    decode = decode or DecodeConfig()
    if decode.backend != "threads":
        raise UsageError(f"decode.backend: got {decode.backend!r}, explain decodes in threads of its own process")
    if top < 1:
        raise UsageError(f"--top: got {top}, expected at least 1 picture")
    competition = find_competition(where)
    split, table = _table(competition, split, images)
    chosen = open_members(bundle_paths, events)
    members, weights = chosen.members, [member.weight for member in chosen.members]
    image = common_image([member.bundle for member in members])
    explainers = [build_explainer(member.bundle, method, settings.batch_size) for member in members]
    ensemble = Ensemble(members, settings.batch_size, chosen.tta)
    events.say(f"explain: {len(table)} pictures of {competition.root} ({split}), {len(members)} bundles")

    outcomes = open_stream(list(competition.files(split, table)), image, decode, events)
    failures: list[dict[str, str]] = []
    scored = _score(table, outcomes, ensemble, settings.batch_size, failures, events)
    worth = list(scored) if images else heapq.nlargest(top, scored, key=lambda one: one.score)
    shown, figures = [], []
    with events.progress(len(worth), "explain") as progress:
        for one in worth:
            batch = one.rendered.image[None, ..., None]
            heat = combine([explainer(batch) for explainer in explainers], weights)[0]
            row = table.iloc[one.row]
            facts = _facts(row, one, heat, image)
            figure = _figure(one.rendered, heat)
            _write_picture(out / "pictures" / f"{row['image_id']}.png", _captioned(figure, _caption(facts)), "png")
            _write_picture(out / "maps" / f"{row['image_id']}.png", np.rint(heat * 65535).astype(np.uint16), "png")
            figures.append((_for_page(figure), _caption(facts)))
            shown.append(facts)
            progress.advance()

    _write_csv(out / "explain.csv", pd.DataFrame(shown))
    _write_csv(out / "failures.csv", pd.DataFrame(failures, columns=["image_id", "stage", "reason"]))
    if failures:
        events.say(f"{len(failures)} of {len(table)} pictures could not be used: {out / 'failures.csv'}")
    _write_page(out / "index.html", figures, competition, split, members, explainers)
    return {
        "ok": bool(shown) and len(failures) <= settings.max_failure_share * len(table),
        "page": str(out / "index.html"),
        "split": split,
        "scored": len(table) - len(failures),
        "failed": len(failures),
        "explained": len(shown),
        "method": _methods(explainers),
        "bundles": [str(member.bundle.path) for member in members],
        "pictures": shown,
    }


def _table(competition: Competition, split: str | None, images: Sequence[str]) -> tuple[str, pd.DataFrame]:
    """The split and its rows, all or those asked for, in the order asked for."""
    split = split or ("test" if competition.test_csv is not None else "train")
    table = (read_train if split == "train" else read_test)(competition.table(f"{split}.csv"))
    if not images:
        return split, table
    known = dict(zip(table["image_id"], range(len(table)), strict=True))
    for image_id in images:
        if image_id not in known:
            raise UsageError(f"--images {image_id}: not in {split}.csv.{did_you_mean(image_id, known)}")
    return split, table.iloc[[known[image_id] for image_id in dict.fromkeys(images)]].reset_index(drop=True)


def _score(
    table: pd.DataFrame, outcomes: ImageStream, ensemble: Ensemble, batch_size: int, failures: list[dict[str, str]],
    events: Events,
) -> Iterator[_Scored]:  # fmt: skip
    """Every picture that can be used, with its score; the others go to `failures`."""
    numbers = {image_id: number for number, image_id in enumerate(table["image_id"])}
    with outcomes, events.progress(len(table), "score") as progress:
        while batch := list(islice(outcomes, batch_size)):
            failures += [outcome.failure() for outcome in batch if outcome.rendered is None]
            good = [(outcome.image_id, outcome.rendered) for outcome in batch if outcome.rendered is not None]
            if good:
                columns = ensemble.score(np.stack([rendered.image for _, rendered in good])[..., None])
                parts = [part.weight * columns[:, ensemble.columns.index(part.score)] for part in ensemble.parts]
                scores = np.sum(parts, axis=0)
                for (image_id, rendered), score in zip(good, scores, strict=True):
                    yield _Scored(numbers[image_id], float(score), rendered)
            progress.advance(len(batch))


def _facts(row: pd.Series, one: _Scored, heat: np.ndarray, image: ImageConfig) -> dict[str, Any]:
    """A row of explain.csv, ready for JSON."""
    from rsna_lab.analysis.explain import peak
    from rsna_lab.analysis.overlay import point_in_picture

    facts = {name: str(row[name]) for name in ("image_id", "patient_id", "prediction_id", "laterality", "view")}
    point, box = peak(heat, one.rendered.image), one.rendered.box
    place = (None, None) if point is None else point_in_picture(*point, box, image)
    cancer = {"cancer": int(row["cancer"])} if "cancer" in row.index else {}
    edges = {name: int(getattr(box, name)) for name in ("top", "left", "bottom", "right")}
    return {**facts, "score": one.score, **cancer, "peak_row": place[0], "peak_column": place[1], **edges,
            "mirrored": box.flip}  # fmt: skip


def _caption(facts: dict[str, Any]) -> str:
    truth = {0: ", no cancer", 1: ", cancer"}.get(facts.get("cancer", -1), "")
    nothing = ", nothing in it speaks for cancer" if facts["peak_row"] is None else ""
    side = f"{facts['laterality']} {facts['view']}".strip()
    return f"{facts['image_id']} ({side}): score {facts['score']:.3f}{truth}{nothing}"


def _figure(rendered: Rendered, heat: np.ndarray) -> np.ndarray:
    """uint8 (h, 2w + gap, 3): the mammogram, and the map over it; right breasts are turned back to face left."""
    from rsna_lab.analysis.explain import peak
    from rsna_lab.analysis.overlay import draw_map, draw_peak

    picture = rendered.image
    point = peak(heat, picture)
    if rendered.box.flip:
        picture, heat = picture[:, ::-1], heat[:, ::-1]
        point = None if point is None else (point[0], picture.shape[1] - 1 - point[1])
    drawn = draw_map(picture, heat)
    drawn = drawn if point is None else draw_peak(drawn, *point)
    plain = np.repeat(picture[..., None], 3, axis=2)
    return np.hstack([plain, np.zeros((len(plain), _GAP, 3), np.uint8), drawn])


def _captioned(figure: np.ndarray, text: str) -> np.ndarray:
    """The figure with a line of text under it, as large as its width allows."""
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    scale = min(1.0, 0.97 * figure.shape[1] / width)
    strip = np.zeros((max(12, round(40 * scale)), figure.shape[1], 3), np.uint8)
    place = (2, len(strip) - max(3, round(12 * scale)))
    cv2.putText(strip, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (220, 220, 220), 1, cv2.LINE_AA)
    return np.vstack([figure, strip])


def _for_page(figure: np.ndarray) -> bytes:
    from rsna_kit.imaging.render import encode_picture

    shrink = _PAGE_HEIGHT / len(figure)
    if shrink < 1:
        figure = cv2.resize(figure, (round(figure.shape[1] * shrink), _PAGE_HEIGHT), interpolation=cv2.INTER_AREA)
    return encode_picture(np.ascontiguousarray(figure[..., ::-1]), "jpeg")


def _write_picture(path: Path, picture: np.ndarray, fmt: str) -> None:
    from rsna_kit.imaging.render import encode_picture

    picture = np.ascontiguousarray(picture[..., ::-1]) if picture.ndim == 3 else picture  # OpenCV writes blue first
    with replacing(path) as temporary:
        temporary.write_bytes(encode_picture(picture, fmt))


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def _methods(explainers: Sequence[Explainer]) -> str:
    names = {"GradCam": "grad-cam", "Occlusion": "occlusion", "ErrorMap": "error"}
    return " and ".join(dict.fromkeys(names[type(explainer).__name__] for explainer in explainers))


def _write_page(
    path: Path, figures: Sequence[tuple[bytes, str]], competition: Competition, split: str, members: Sequence[Member],
    explainers: Sequence[Explainer],
) -> None:  # fmt: skip
    from rsna_lab.report.cases import pictures
    from rsna_lab.report.page import Section
    from rsna_lab.report.sections import provenance, write_report

    folders = ", ".join(str(member.bundle.path) for member in members)
    facts = {"rsna_kit": __version__, "competition": str(competition.root), "split": split,
             "method": _methods(explainers), "bundles": folders}  # fmt: skip
    sections = [
        Section("How to read this", f"<p>{_MEANING}</p>"),
        pictures("Pictures", figures),
        provenance(facts),
    ]
    write_report(path, "Where the scores come from", sections, f"{len(figures)} mammograms, {_methods(explainers)}")
