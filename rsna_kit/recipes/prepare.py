"""Training DICOMs → images and TFRecord shards. Resumes behind the last whole shard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any

import pandas as pd

from rsna_kit.competition.paths import find_competition
from rsna_kit.competition.tables import read_train
from rsna_kit.config import Config
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.events import Events, Progress
from rsna_kit.runtime.files import write_bytes

if TYPE_CHECKING:
    from rsna_kit.data.shards import ShardWriter
    from rsna_kit.imaging.stream import Outcome


# PNG, from 42 mammograms of ten machines: 0.37 at 2048x1024 to 0.41 at 1024x512; the competition's take less.
_BYTES_A_PIXEL = 0.41


def prepare(
    where: Path | None,
    out: Path,
    config: Config,
    events: Events,
    limit: int | None = None,
    room: float | None = None,
) -> dict[str, Any]:
    """Turn a competition's training DICOMs into images and TFRecord shards.

    Args:
        where: competition folder, None for Kaggle's mounts.
        out: prepared folder; a finished shard in it is kept, whatever stopped the run before.
        config: its image, decode and data sections are used.
        limit: only the first `limit` patients.
        room: bytes that `out` may take in the end; what the disk has left unless given.

    Returns:
        Counts and paths, ready for JSON; `ok` is False when more images failed than
        `infer.max_failure_share` allows (the folder is complete all the same).

    Raises:
        UsageError: pictures of that size would not fit, said before the first one is read.
    """
    from rsna_kit.data.shards import SHARD_IMAGES, ShardWriter
    from rsna_kit.recipes.images import open_images

    competition = find_competition(where)
    table = read_train(competition.table("train.csv"))
    if limit is not None and limit < 1:
        raise UsageError(f"--limit: got {limit}, expected at least 1 patient")
    if limit is not None:
        table = table[table["patient_id"].isin(table["patient_id"].unique()[:limit])].reset_index(drop=True)
    events.say(
        f"prepare: {len(table)} images of {table['patient_id'].nunique()} patients "
        f"at {config.image.height}x{config.image.width} -> {out}"
    )
    writer = ShardWriter(out, config.image, table)
    shards = [table.iloc[start : start + SHARD_IMAGES] for start in range(0, len(table), SHARD_IMAGES)]
    left = [number for number, rows in enumerate(shards) if not _is_there(writer, number, rows, out, config.data.save)]
    files = [file for number in left for file in competition.files("train", shards[number])]
    if len(files) < len(table):
        events.say(f"resuming: {len(table) - len(files)} images are done")
    out.mkdir(parents=True, exist_ok=True)
    _check_room(len(table) if room else len(files), config, room or disk_usage(out).free)
    images = open_images(files, config.image, config.decode, events)
    with closing(images) as outcomes, events.progress(len(files), "prepare") as progress:
        for number in left:
            failures: list[dict[str, str]] = []
            pictures = _pictures(shards[number], outcomes, failures, out, config.data.save, progress)
            writer.write(number, pictures, failures)
    manifest = writer.finish()
    if manifest["failed"]:
        events.say(f"{manifest['failed']} of {len(table)} images could not be used: {out / 'failures.csv'}")
    return {
        "ok": manifest["failed"] <= config.infer.max_failure_share * len(table),
        "out": str(out),
        "fingerprint": manifest["fingerprint"],
        **{key: manifest[key] for key in ("images", "positives", "failed", "shards")},
    }


def _check_room(count: int, config: Config, room: float) -> None:
    """Refuse pictures that would fill the disk after hours."""
    image, save = config.image, config.data.save
    copies = {"none": 1.0, "jpeg": 1.3, "png": 2.0}[save]  # shards, and pictures beside them
    needed = count * image.height * image.width * _BYTES_A_PIXEL * copies
    if needed <= room:
        return
    scale = (room / needed) ** 0.5
    height, width = (int(side * scale) // 64 * 64 for side in (image.height, image.width))
    raise UsageError(
        f"{count} pictures of {image.height}x{image.width} take about {needed / 1e9:.3g} GB (data.save={save}), and "
        f"there is room for {room / 1e9:.3g} GB. {height}x{width} would fit: image.height={height} "
        f"image.width={width}; data.save=none keeps no pictures beside the shards"
    )


def _is_there(writer: ShardWriter, number: int, rows: pd.DataFrame, out: Path, save: str) -> bool:
    """Whether an earlier run left this shard whole, and its pictures."""
    saved = [_picture_path(out, row, save) for row in rows.itertuples()]
    whole = writer.complete(number, list(rows["image_id"]))
    return whole and all(path is None or path.is_file() for path in saved)


def _pictures(
    rows: pd.DataFrame,
    outcomes: Iterator[Outcome],
    failures: list[dict[str, str]],
    out: Path,
    save: str,
    progress: Progress,
) -> Iterator[tuple[str, float, bytes]]:
    """The shard's rows; failed images go to `failures`, pictures also to `out/images/<patient>/`."""
    from rsna_kit.imaging.render import encode_picture

    for row, outcome in zip(rows.itertuples(), outcomes, strict=False):  # the outcomes go on with the next shard
        progress.advance(kind=outcome.worker)
        if outcome.rendered is None:
            failures.append(outcome.failure())
            continue
        png = encode_picture(outcome.rendered.image, "png")
        path = _picture_path(out, row, save)
        if path is not None:
            write_bytes(path, png if save == "png" else encode_picture(outcome.rendered.image, "jpeg"))
        yield outcome.image_id, float(row.cancer), png  # type: ignore[arg-type]


def _picture_path(out: Path, row: Any, save: str) -> Path | None:
    """Where the picture of this row of the table is kept for looking at, None when it is not."""
    if save == "none":
        return None
    return out / "images" / row.patient_id / f"{row.image_id}.{'jpg' if save == 'jpeg' else 'png'}"
