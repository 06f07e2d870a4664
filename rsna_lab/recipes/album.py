"""Scored breasts → their pictures, from a prepared folder or from DICOM files, and maps of what made for cancer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_kit.competition.paths import find_competition
from rsna_kit.competition.tables import read_test, read_train
from rsna_kit.config import ImageConfig
from rsna_kit.runtime.errors import ImageError, ShardError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.hardware import cpu_count

_AHEAD = 64  # breasts whose pictures are read ahead
_MOST_VIEWS = 4  # of a breast on a card


@dataclass(frozen=True)
class Album:
    """The images of a competition or of a prepared folder.

    `table` has a row per image, as train.csv or test.csv; `read` gives uint8 (h, w) of `image`, or None for a file that
    cannot be read.
    """

    table: pd.DataFrame
    image: ImageConfig
    read: Callable[[str], np.ndarray | None]

    def holds(self, breasts: pd.DataFrame) -> bool:
        """Whether any of the breasts is here."""
        return bool(breasts["prediction_id"].isin(self.table["prediction_id"]).any())


def prepared_album(folder: Path) -> Album:
    """The pictures of a folder that `prepare` wrote.

    Raises:
        ShardError: it is not whole.
    """
    from rsna_kit.data.shards import open_prepared, read_picture

    prepared = open_prepared(folder, verify=False)

    def read(image_id: str) -> np.ndarray | None:
        try:
            return read_picture(prepared, image_id)
        except ShardError:
            return None

    return Album(prepared.table, prepared.image, read)


def competition_albums(folder: Path, image: ImageConfig) -> list[Album]:
    """The test and the training pictures of a competition folder, rendered as `image` says."""
    competition = find_competition(folder)
    tables = (("test", competition.test_csv, read_test), ("train", competition.train_csv, read_train))
    albums = []
    for split, path, reader in tables:
        if path is not None:
            table = reader(path)
            albums.append(Album(table, image, partial(_read_dicom, dict(competition.files(split, table)), image)))
    return albums


def _read_dicom(paths: Mapping[str, Path], image: ImageConfig, image_id: str) -> np.ndarray | None:
    from rsna_kit.imaging.render import read_image

    try:
        return read_image(paths[image_id], image_id, image).image
    except ImageError:
        return None


def views(
    album: Album, ids: Sequence[str], scores: Mapping[str, float]
) -> Iterator[list[tuple[str, str, np.ndarray | None]]]:
    """The pictures of each breast, side by side by view; read ahead by threads.

    Args:
        album: where they are.
        ids: prediction_ids, N.
        scores: of images, where they are known.

    Yields:
        N lists of image_id, name (`CC 0.81`) and picture, at most four; empty for a breast that is not there.
    """
    rows = album.table[album.table["prediction_id"].isin(ids)].sort_values("view", kind="stable")
    images = {breast: members.head(_MOST_VIEWS) for breast, members in rows.groupby("prediction_id")}

    def read(breast: str) -> list[tuple[str, str, np.ndarray | None]]:
        if breast not in images:
            return []
        pairs = zip(images[breast]["image_id"], images[breast]["view"].fillna(""), strict=True)
        known = {one: f" {scores[one]:.2f}" if one in scores else "" for one in images[breast]["image_id"]}
        return [(image_id, f"{view}{known[image_id]}".strip(), album.read(image_id)) for image_id, view in pairs]

    with ThreadPoolExecutor(cpu_count()) as pool:
        for start in range(0, len(ids), _AHEAD):
            yield from pool.map(read, ids[start : start + _AHEAD])


def draw_maps(
    run: Path,
    pictures: Mapping[str, np.ndarray],
    folds: Mapping[str, int | None],
    image: ImageConfig,
    events: Events,
) -> dict[str, tuple[np.ndarray, str]]:
    """The picture with a map over it, by the networks that gave the score.

    Args:
        run: folder that `train` or `blend` wrote.
        pictures: image_id → uint8 (h, w).
        folds: image_id → the fold whose networks scored it, None for all networks together.
        image: the section that the pictures were rendered with.
        events: told what is left out.

    Returns:
        image_id → uint8 (h, w, 3), and what the map is, such as "Grad-CAM".

    Raises:
        UsageError: pictures of another image section than the bundles'.
        BundleError: no bundle, or one that is damaged.
    """
    from rsna_kit.models.members import common_image, open_members
    from rsna_lab.analysis.explain import build_explainer, draw_map

    members = open_members([run], lambda line: None).members
    if common_image([member.bundle for member in members]) != image:
        raise UsageError(f"{run} was trained on other images than these, which are of {image}")
    drawn = {}
    for fold in dict.fromkeys(folds[image_id] for image_id in pictures):
        asked = [member for member in members if fold is None or member.bundle.metadata["fold"] == fold]
        if not asked:
            events.say(f"maps: no bundle of fold {fold} in {run}, its pictures go without")
            continue
        explain, method = build_explainer(asked)
        for image_id, picture in pictures.items():
            if folds[image_id] == fold:
                drawn[image_id] = draw_map(picture, explain(picture[None, ..., None])[0]), method
    return drawn
