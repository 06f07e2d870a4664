"""Training DICOMs → images and TFRecord shards. Resumes behind the last whole shard."""

from __future__ import annotations

import hashlib
import math
import re
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
    from rsna_kit.data.writer import ShardWriter
    from rsna_kit.imaging.stream import Outcome


def prepare(
    where: Path | None,
    out: Path,
    config: Config,
    events: Events,
    limit: int | None = None,
    room: float | None = None,
    part: str = "",
) -> dict[str, Any]:
    """Turn a competition's training DICOMs into images and TFRecord shards.

    Args:
        where: competition folder, None for Kaggle's mounts.
        out: prepared folder; a finished shard in it is kept, whatever stopped the run before.
        config: its image, decode and data sections are used.
        limit: only the first `limit` patients.
        room: bytes that `out` may take in the end; what the disk has left unless given.
        part: "2/3" for the second of three parts of the patients, as even in pictures as whole patients allow; ""
            for all. The parts after each other are the whole table, and `open_prepared` takes them as one.

    Returns:
        Counts and paths, ready for JSON; `ok` is False when more images failed than
        `infer.max_failure_share` allows (the folder is complete all the same).

    Raises:
        UsageError: no such part; or pictures that would not fit, said before the first one is read.
    """
    from rsna_kit.data.shards import SHARD_IMAGES
    from rsna_kit.data.writer import ShardWriter
    from rsna_kit.recipes.images import open_images

    competition = find_competition(where)
    table = read_train(competition.table("train.csv"))
    if limit is not None and limit < 1:
        raise UsageError(f"--limit: got {limit}, expected at least 1 patient")
    if limit is not None:
        table = table[table["patient_id"].isin(table["patient_id"].unique()[:limit])].reset_index(drop=True)
    table, said = _take_part(table, part) if part else (table, {})
    events.say(
        f"prepare: {f'part {part}, ' if part else ''}{len(table)} images of {table['patient_id'].nunique()} patients "
        f"at {config.image.height}x{config.image.width} -> {out}"
    )
    loose = None
    if config.data.save == "png":
        loose = {str(row.image_id): str(_picture_path(Path(), row, "png")) for row in table.itertuples()}
    writer = ShardWriter(out, config.image, table, said, loose)
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
        "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    }


def read_part(part: str) -> tuple[int, int]:
    """Of "2/3" the number, and of how many.

    Raises:
        UsageError: another form, or no such part.
    """
    form = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", part)
    number, of = map(int, form.groups()) if form else (0, 0)
    if not 1 <= number <= of:
        raise UsageError(f"part: got {part!r}, expected one such as 2/3: the second of three")
    return number, of


def _take_part(table: pd.DataFrame, part: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of a part, and what the manifest says of it."""
    number, of = read_part(part)
    counts = table.groupby("patient_id", sort=False).size()
    before = counts.cumsum() - counts
    chosen = counts.index[before * of // len(table) == number - 1]
    if chosen.empty:
        raise UsageError(f"part: got {part}, but {len(counts)} patients make no {of} parts. Use fewer")
    whole = hashlib.sha256("\n".join(table["image_id"]).encode()).hexdigest()[:12]
    return table[table["patient_id"].isin(chosen)], {"number": number, "of": of, "whole": whole}


def _check_room(count: int, config: Config, room: float) -> None:
    """Refuse pictures that would fill the disk after hours."""
    image = config.image
    needed = needed_bytes(count, config)
    if needed <= room:
        return
    scale = (room / needed) ** 0.5
    height, width = (int(side * scale) // 64 * 64 for side in (image.height, image.width))
    parts = math.ceil(needed / (0.9 * room))
    raise UsageError(
        f"{count} pictures of {image.height}x{image.width} take about {needed / 1e9:.3g} GB (data.save="
        f"{config.data.save}), and there is room for {room / 1e9:.3g} GB. They fit in {parts} parts on {parts} disks "
        f"(part 1/{parts} and so on: --part, on Kaggle PART of as many prepare kernels); {height}x{width} would fit "
        f"here: image.height={height} image.width={width}"
    )


def needed_bytes(count: int, config: Config) -> float:
    """What so many pictures take on the disk; JPEGs for looking at take a third of the PNGs they stand beside."""
    from rsna_kit.data.writer import picture_bytes

    return count * picture_bytes(config.image) * (1.3 if config.data.save == "jpeg" else 1.0)


def _is_there(writer: ShardWriter, number: int, rows: pd.DataFrame, out: Path, save: str) -> bool:
    """Whether an earlier run left this shard whole, and its pictures."""
    saved = [_picture_path(out, row, "jpeg") for row in rows.itertuples()] if save == "jpeg" else []
    return writer.complete(number, list(rows["image_id"])) and all(path.is_file() for path in saved)


def _pictures(
    rows: pd.DataFrame,
    outcomes: Iterator[Outcome],
    failures: list[dict[str, str]],
    out: Path,
    save: str,
    progress: Progress,
) -> Iterator[tuple[str, float, bytes]]:
    """The shard's rows; failed images go to `failures`, JPEGs for looking at to `out/images/<patient>/`."""
    from rsna_kit.imaging.render import encode_picture

    for row, outcome in zip(rows.itertuples(), outcomes, strict=False):  # the outcomes go on with the next shard
        progress.advance(kind=outcome.worker)
        if outcome.rendered is None:
            failures.append(outcome.failure())
            continue
        if save == "jpeg":
            write_bytes(_picture_path(out, row, save), encode_picture(outcome.rendered.image, "jpeg"))
        yield outcome.image_id, float(row.cancer), encode_picture(outcome.rendered.image, "png")  # type: ignore[arg-type]


def _picture_path(out: Path, row: Any, save: str) -> Path:
    """Where the picture of this row of the table is kept for looking at."""
    return out / "images" / row.patient_id / f"{row.image_id}.{'jpg' if save == 'jpeg' else 'png'}"
