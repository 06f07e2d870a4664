"""Mammograms and bundles → pictures of where the scores come from: pairs of PNG, maps, a table and one page."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rsna_kit import __version__
from rsna_kit.competition.paths import Competition, find_competition
from rsna_kit.competition.tables import read_test, read_train
from rsna_kit.config import DecodeConfig, ImageConfig, InferConfig
from rsna_kit.runtime.errors import UsageError, did_you_mean
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_bytes, write_csv

if TYPE_CHECKING:
    from rsna_kit.imaging.render import Rendered
    from rsna_kit.imaging.stream import ImageStream
    from rsna_kit.models.ensemble import Ensemble

TOP, PAGE = 20, "index.html"
_GAP = 4  # black columns between the mammogram and its map
_MEANING = (
    "Left the mammogram as the model sees it, right the same with the map over it: purple is weak, yellow is the "
    "picture's strongest, a ring is the peak. A map shows where the score comes from. It does not show that there is a "
    "lesion, nor that the score is right; docs/results.md says how often the peak falls in a known lesion."
)


def explain(
    where: Path | None,
    out: Path,
    bundle_paths: Sequence[Path],
    settings: InferConfig,
    events: Events,
    *,
    images: Sequence[str] = (),
    top: int = TOP,
    split: str | None = None,
    decode: DecodeConfig | None = None,
    about: str = "",
) -> dict[str, Any]:
    """Score mammograms and show what in the highest scoring ones made for cancer.

    Writes to `out`: `pictures/<image_id>.png` (the mammogram beside its map), `maps/<image_id>.png` (the map alone, on
    the model's grid, 16 bits, 65535 its maximum), `explain.csv` (scores, peaks in rows and columns of the full picture,
    the box that the model saw), `failures.csv` and `index.html`, which needs nothing but itself.

    Args:
        where: competition folder, None for Kaggle's mounts.
        out: folder to write.
        bundle_paths: bundles, folders of bundles or of an `ensemble.json`, as `infer` takes them; of several, the
            weighted mean of their normalised maps is shown.
        settings: all but its tta is used.
        events: progress, with the time that is left.
        images: these pictures; empty: the `top` highest scores of the split.
        top: how many.
        split: "train" or "test"; None takes the table that is there, the test table where both are.
        decode: that section of the configuration.
        about: a sentence about the networks, for the page.

    Returns:
        Counts, paths and the pictures with scores and peaks, ready for JSON; `ok` is False when more than
        `max_failure_share` of the pictures could not be used, each of which costs no other.

    Raises:
        UsageError: an id that the table does not have, nothing to show.
        BundleError: no bundle, or bundles of different image sections.
    """
    from rsna_kit.models.ensemble import Ensemble
    from rsna_kit.models.members import common_image, open_members
    from rsna_kit.recipes.images import open_stream
    from rsna_lab.analysis.explain import build_explainer

    decode = decode or DecodeConfig()
    if decode.backend != "threads":
        raise UsageError(f"decode.backend: got {decode.backend!r}, explain decodes in threads of its own process")
    competition = find_competition(where)
    split, table = _table(competition, split, images, top)
    chosen = open_members(bundle_paths, events.say)
    bundles = [member.bundle for member in chosen.members]
    image = common_image(bundles)
    explain_pictures, method = build_explainer(chosen.members)
    how = (settings.runtime, settings.devices, settings.precision)
    ensemble = Ensemble(chosen.members, settings.batch_size, chosen.tta, *how, events.say)
    events.say(f"explain: {len(table)} pictures of {competition.root} ({split}), {len(bundles)} bundles")

    outcomes = open_stream(list(competition.files(split, table)), image, decode, events)
    failures: list[dict[str, str]] = []
    scored = _score(table, outcomes, ensemble, settings.batch_size, failures, events)
    worth = list(scored) if images else heapq.nlargest(top, scored, key=lambda one: one[0])
    drawn: list[tuple[dict[str, Any], np.ndarray]] = []
    with events.progress(len(worth), "explain") as progress:
        for one in worth:
            drawn.append(_draw(out, *one, explain_pictures(one[2].image[None, ..., None])[0], image))
            progress.advance()
    paths = [str(bundle.path) for bundle in bundles]
    said = {"competition": str(competition.root), "split": split, "method": method, "bundles": ", ".join(paths)}
    _write(out, drawn, failures, said, f" The scores are of {about}." if about else "")
    return {
        "ok": bool(drawn) and len(failures) <= settings.max_failure_share * len(table),
        "page": str(out / PAGE),
        "scored": len(table) - len(failures),
        "failed": len(failures),
        "explained": len(drawn),
        **said,
        "bundles": paths,
        "pictures": [facts for facts, _ in drawn],
    }


def _table(competition: Competition, split: str | None, images: Sequence[str], top: int) -> tuple[str, pd.DataFrame]:
    """The split and its rows, all or those asked for, in the order asked for."""
    if top < 1:
        raise UsageError(f"--top: got {top}, expected at least 1 picture")
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
    table: pd.DataFrame,
    outcomes: ImageStream,
    ensemble: Ensemble,
    batch_size: int,
    failures: list[dict[str, str]],
    events: Events,
) -> Iterator[tuple[float, pd.Series, Rendered]]:
    """Score, row and picture of all that can be used; the others go to `failures`."""
    numbers = {image_id: number for number, image_id in enumerate(table["image_id"])}
    with outcomes, events.progress(len(table), "score") as progress:
        while batch := list(islice(outcomes, batch_size)):
            failures += [outcome.failure() for outcome in batch if outcome.rendered is None]
            good = [(outcome.image_id, outcome.rendered) for outcome in batch if outcome.rendered is not None]
            if good:
                columns = ensemble.score(np.stack([rendered.image for _, rendered in good])[..., None])
                parts = [part.weight * columns[:, ensemble.columns.index(part.score)] for part in ensemble.parts]
                for (image_id, rendered), score in zip(good, np.sum(parts, axis=0), strict=True):
                    yield float(score), table.iloc[numbers[image_id]], rendered
            progress.advance(len(batch))
    if failures:
        events.say(f"{len(failures)} of {len(table)} pictures could not be used: failures.csv names them")


def _draw(
    out: Path, score: float, row: pd.Series, rendered: Rendered, heat: np.ndarray, image: ImageConfig
) -> tuple[dict[str, Any], np.ndarray]:
    """Write a mammogram beside its map, and the map; right breasts are turned back to face left.

    Returns:
        Its row of explain.csv, ready for JSON, and the figure for the page.
    """
    from rsna_kit.imaging.render import encode_picture
    from rsna_lab.analysis.explain import draw_map, peak, point_in_picture

    picture, box, point = rendered.image, rendered.box, peak(heat, rendered.image)
    place = (None, None) if point is None else point_in_picture(*point, box, image)
    facts: dict[str, Any] = {
        name: str(row[name]) for name in ("image_id", "patient_id", "prediction_id", "laterality", "view")
    }
    facts |= {"score": score} | ({"cancer": int(row["cancer"])} if "cancer" in row.index else {})
    facts |= {"peak_row": place[0], "peak_column": place[1]}
    facts |= {name: int(getattr(box, name)) for name in ("top", "left", "bottom", "right")} | {"mirrored": box.flip}
    alone = np.rint(heat * 65535).astype(np.uint16)
    if box.flip:
        picture, heat = picture[:, ::-1], heat[:, ::-1]
    plain = np.repeat(picture[..., None], 3, axis=2)
    figure = np.hstack([plain, np.zeros((len(plain), _GAP, 3), np.uint8), draw_map(picture, heat)])
    for folder, content in (("maps", alone), ("pictures", figure[..., ::-1])):  # OpenCV writes blue first
        write_bytes(out / folder / f"{row['image_id']}.png", encode_picture(np.ascontiguousarray(content), "png"))
    return facts, figure


def _caption(facts: dict[str, Any]) -> str:
    truth = {0: ", no cancer", 1: ", cancer"}.get(facts.get("cancer", -1), "")
    nothing = ", nothing in it speaks for cancer" if facts["peak_row"] is None else ""
    breast = facts["prediction_id"].replace(facts["image_id"], "")  # an image whose side is not known is one by itself
    of = f" ({' '.join(filter(None, [breast, facts['view']]))})" if breast or facts["view"] else ""
    return f"{facts['image_id']}{of}: score {facts['score']:.3f}{truth}{nothing}"


def _write(
    out: Path,
    drawn: Sequence[tuple[dict[str, Any], np.ndarray]],
    failures: Sequence[dict[str, str]],
    said: dict[str, str],
    about: str,
) -> None:
    """The tables and the page."""
    from rsna_lab.report.page import Section, pictures
    from rsna_lab.report.sections import provenance, write_report

    write_csv(out / "explain.csv", pd.DataFrame([facts for facts, _ in drawn]))
    write_csv(out / "failures.csv", pd.DataFrame(failures, columns=["image_id", "stage", "reason"]))
    sections = [
        Section("How to read this", f"<p>{_MEANING}{about}</p>"),
        pictures("Pictures", [(figure, _caption(facts)) for facts, figure in drawn]),
        provenance({"rsna_kit": __version__, **said}),
    ]
    under = f"{len(drawn)} mammograms, {said['method']}"
    write_report(out / PAGE, "Where the scores come from", sections, under)
