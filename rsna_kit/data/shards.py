"""Prepared folders → pictures by byte range; several that are the parts of one as one. `data.writer` writes them.

A prepared folder holds

    shard-00000.tfrecord   tf.train.Example {image: PNG bytes of uint8 (h, w), image_id: bytes, label: float}
    shard-00000.json       what the shard holds: ids, labels, byte range of every PNG, failed images, sha256
    ...
    table.csv              the training table, only rows that have a picture
    failures.csv           image_id, stage, reason of the others
    manifest.json          written last: image section and fingerprint, counts, sha256 of every file above, and
                           which part of how many it is where `prepare --part` made it

Where pictures are kept as PNG for looking at (`data.save=png`), a shard has no TFRecord file: its byte ranges are
those pictures. Several folders that are the parts of one are opened as one.

Writing TFRecords needs TensorFlow. Reading does not: `read_picture` takes the recorded byte range and decodes it, so
any row is read at random and a machine with JAX alone can train. Everything is written whole or not at all, a shard's
sidecar after the shard, so a run that was killed goes on behind its last whole shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from rsna_kit.config import ImageConfig, image_fingerprint
from rsna_kit.runtime.errors import ShardError, listed
from rsna_kit.runtime.files import read_json, sha256_file

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARD_IMAGES = 256  # images in a shard, at most
_TEXT_COLUMNS = ("patient_id", "image_id", "prediction_id", "laterality", "view", "density")


@dataclass(frozen=True)
class IndexEntry:
    """Where one picture lies: `length` bytes of PNG at `offset` of the file `shard` (a sidecar: below its folder)."""

    image_id: str
    shard: str
    offset: int
    length: int
    label: float


@dataclass(frozen=True)
class Prepared:
    """A prepared folder that has been checked, or several as one; `root` is the first.

    `table` has one row per picture, in the order of the training table; its index is 0..n-1.
    `data_fingerprint` changes whenever a picture, a label or a row of the table does.
    """

    root: Path
    data_fingerprint: str
    image: ImageConfig
    table: pd.DataFrame
    index: dict[str, IndexEntry]


def stored_digest(root: Path, content: Mapping[str, Any]) -> str:
    """sha256 of the file of a shard; of pictures that lie by themselves, one after the other. "" for missing ones."""
    digest = hashlib.sha256()
    try:
        for name in [content["file"]] if content["file"] else [row["shard"] for row in content["images"]]:
            with open(root / name, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    except FileNotFoundError:
        return ""
    return digest.hexdigest()


def open_prepared(where: Path | Sequence[Path], expect: ImageConfig | None = None, verify: bool = True) -> Prepared:
    """Open a prepared folder, or all parts of one as one.

    Args:
        where: the folder; one that holds the folders of all parts; or these folders, in any order.
        expect: the image section the caller will train with, None to take what is there.
        verify: compare the sha256 of every file with the manifest (reads everything once).

    Raises:
        ShardError: no manifest, another image section or format, a missing or damaged file; a part that is missing,
            twice there, or of another table or image section. Names the file.
    """
    folders = [where] if isinstance(where, Path) else list(where)
    if isinstance(where, Path) and not (where / MANIFEST).is_file():
        folders = sorted(path.parent for path in where.glob(f"*/{MANIFEST}")) or folders
    opened = [_open(folder, expect, verify) for folder in folders]
    _check_parts([(one.root, image_fingerprint(one.image), part) for one, part in opened])
    return join([one for one, _ in sorted(opened, key=lambda pair: pair[1].get("number", 1))])


def _check_parts(parts: Sequence[tuple[Path, str, Mapping[str, Any]]]) -> None:
    """Refuse folders that are not all parts of one: root, image fingerprint and what the manifest says of each."""
    first, fingerprint, whole = parts[0]
    roots: dict[int, Path] = {}
    for root, found, part in parts:
        if not part and len(parts) > 1:
            raise ShardError(f"{root}: no part, but a folder of its own, beside others. Name it alone, or parts alone.")
        if found != fingerprint or any(part.get(key) != whole.get(key) for key in ("of", "whole")):
            what = "image section" if found != fingerprint else "table of images or another number of parts"
            raise ShardError(f"{root}: of another {what} than {first}. Prepare all parts alike, and name those alone.")
        if twice := roots.get(number := part.get("number", 1)):
            raise ShardError(f"{root}: part {number} of {part['of']}, as {twice} is. Name each part once.")
        roots[number] = root
    if missing := sorted({*range(1, whole.get("of", 1) + 1)} - set(roots)):
        there = ", ".join(str(roots[number]) for number in sorted(roots))
        raise ShardError(
            f"{there}: part {', '.join(map(str, missing))} of {whole['of']} missing. Prepare what is missing (prepare "
            f"--part {missing[0]}/{whole['of']}), and name all parts, or one folder that holds their folders."
        )


def join(several: Sequence[Prepared]) -> Prepared:
    """Prepared folders of the same image section as one, tables after each other.

    Raises:
        ShardError: two of them share a patient or an image.
    """
    first = several[0]
    if len(several) == 1:
        return first
    for name in ("patient_id", "image_id"):
        seen: dict[str, Path] = {}
        for one in several:
            if shared := sorted(set(one.table[name]) & set(seen)):
                raise ShardError(
                    f"{one.root}: shares {name} {listed(shared, most=3)} with {seen[shared[0]]}. No patient may be in "
                    "two folders: leave them out of one, or give them other names where they are others."
                )
            seen |= dict.fromkeys(one.table[name], one.root)
    prints = "".join(one.data_fingerprint for one in several)
    table = pd.concat([one.table for one in several], ignore_index=True)
    index = {image_id: entry for one in several for image_id, entry in one.index.items()}
    return Prepared(first.root, hashlib.sha256(prints.encode()).hexdigest()[:12], first.image, table, index)


def _open(root: Path, expect: ImageConfig | None, verify: bool) -> tuple[Prepared, dict[str, Any]]:
    """One folder, and what its manifest says of the part that it is."""
    path, again = root / MANIFEST, "Prepare the images again."
    if not path.is_file():
        raise ShardError(f"{path}: no such file. Run prepare first; if it was stopped, run it again to finish.")
    try:
        manifest = read_json(path)
        version, found, digests = (manifest[key] for key in ("format_version", "fingerprint", "sha256"))
        image, part = ImageConfig(**manifest["image"]), dict(manifest.get("part", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: not a manifest of a prepared folder ({error}). {again}") from error
    if version != FORMAT_VERSION:
        raise ShardError(f"{path}: got format version {version}, expected {FORMAT_VERSION}. {again}")
    if found != (wanted := image_fingerprint(image)):
        raise ShardError(
            f"{path}: made by another version of the image recipe (got {found}, expected {wanted}). {again}"
        )
    if expect is not None and image != expect:
        raise ShardError(
            f"{path}: got images made with {image}, expected {expect}. Prepare the images again, or train with the "
            "preset that made them."
        )
    for name, expected in digests.items():
        if not (root / name).is_file():
            raise ShardError(f"{root / name}: missing, but {MANIFEST} names it. Run prepare again: it makes only that.")
        if verify and (digest := sha256_file(root / name)) != expected:
            raise ShardError(
                f"{root / name}: damaged: sha256 is {digest[:12]}..., expected {expected[:12]}... Run prepare again: "
                "it makes only what is damaged."
            )
    index: dict[str, IndexEntry] = {}
    for name in digests:
        if name.startswith("shard-") and name.endswith(".json"):
            content = read_json(root / name)
            if verify and not content["file"] and stored_digest(root, content) != content["sha256"]:
                raise ShardError(f"{root / name}: a picture that it names is missing or damaged. Run prepare again.")
            for row in content["images"]:
                index[row["image_id"]] = IndexEntry(**{**row, "shard": str(root / row["shard"])})
    table = pd.read_csv(root / "table.csv", dtype=dict.fromkeys(_TEXT_COLUMNS, str))
    data_fingerprint = hashlib.sha256("".join(digests.values()).encode()).hexdigest()[:12]
    return Prepared(root, data_fingerprint, image, table, index), part


def read_picture(prepared: Prepared, image_id: str) -> np.ndarray:
    """One picture, read by its byte range.

    Returns:
        uint8 (height, width).

    Raises:
        ShardError: no such image, or bytes that are not a picture of the right size.
    """
    entry = prepared.index.get(image_id)
    if entry is None:
        raise ShardError(f"{prepared.root}: no image {image_id!r} in the shards; it may stand in failures.csv.")
    path = Path(entry.shard)
    with open(path, "rb") as file:
        file.seek(entry.offset)
        content = file.read(entry.length)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if image is None or image.dtype != np.uint8 or image.shape != (prepared.image.height, prepared.image.width):
        raise ShardError(
            f"{path}: image {image_id} at byte {entry.offset} is damaged. Run prepare again: it makes only that shard."
        )
    return image
