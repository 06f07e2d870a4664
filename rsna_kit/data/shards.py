"""Pictures to TFRecord shards, and back by byte range.

A prepared folder holds

    shard-00000.tfrecord   tf.train.Example {image: PNG bytes of uint8 (h, w), image_id: bytes, label: float}
    shard-00000.json       what the shard holds: ids, labels, byte range of every PNG, failed images, sha256
    ...
    table.csv              the training table, only rows that have a picture
    failures.csv           image_id, stage, reason of the others
    manifest.json          written last: image section and fingerprint, counts, sha256 of every file above

Writing needs TensorFlow. Reading does not: `read_picture` takes the recorded byte range and decodes it, so any
row is read at random and a machine with JAX alone can train. Everything is written whole or not at all, a shard's
sidecar after the shard, so a run that was killed goes on behind its last whole shard.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from rsna_kit.config import ImageConfig, image_fingerprint
from rsna_kit.runtime.errors import ShardError
from rsna_kit.runtime.files import read_json, sha256_file, write_bytes, write_csv, write_json
from rsna_kit.runtime.lazy import require

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARD_IMAGES = 256  # images in a shard, at most
_TEXT_COLUMNS = ("patient_id", "image_id", "prediction_id", "laterality", "view", "density")
_RECORD_HEAD = 12  # a TFRecord frames its payload: uint64 length, uint32 CRC before it, uint32 CRC behind it
_RECORD_TAIL = 4


@dataclass(frozen=True)
class IndexEntry:
    """Where one picture lies: `length` bytes of PNG at `offset` of the file `shard`."""

    image_id: str
    shard: str
    offset: int
    length: int
    label: float


@dataclass(frozen=True)
class Prepared:
    """A prepared folder that has been checked.

    `table` has one row per picture, in the order of the training table; its index is 0..n-1.
    `data_fingerprint` changes whenever a picture, a label or a row of the table does.
    """

    root: Path
    data_fingerprint: str
    image: ImageConfig
    table: pd.DataFrame
    index: dict[str, IndexEntry]


def write_shard(path: Path, rows: Iterable[tuple[str, float, bytes]]) -> list[IndexEntry]:
    """Write one TFRecord file, whole or not at all.

    Args:
        path: the file.
        rows: image id, label and PNG bytes of each picture.

    Returns:
        Where each picture lies, in the given order.
    """
    tensorflow = require("tensorflow", "train")
    entries, end = [], 0
    memory = f"ram://{path.name}"  # TensorFlow knows no path that is not UTF-8, and no short word for a full disk
    try:
        with tensorflow.io.TFRecordWriter(memory) as writer:
            for image_id, label, picture in rows:
                example = _example(tensorflow, image_id, label, picture)
                offset = end + _RECORD_HEAD + example.index(picture)
                entries.append(IndexEntry(image_id, path.name, offset, len(picture), float(label)))
                writer.write(example)
                end += _RECORD_HEAD + len(example) + _RECORD_TAIL
        with tensorflow.io.gfile.GFile(memory, "rb") as written:
            write_bytes(path, written.read())
    finally:
        tensorflow.io.gfile.remove(memory)
    return entries


def _example(tensorflow: Any, image_id: str, label: float, picture: bytes) -> bytes:
    train = tensorflow.train
    features = {
        "image": train.Feature(bytes_list=train.BytesList(value=[picture])),
        "image_id": train.Feature(bytes_list=train.BytesList(value=[image_id.encode()])),
        "label": train.Feature(float_list=train.FloatList(value=[label])),
    }
    example = train.Example(features=train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


class ShardWriter:
    """Writes a prepared folder shard by shard and resumes behind what is there.

    Args:
        root: the prepared folder.
        image: the image section that made the pictures.
        table: the training table; `finish` stores its rows that have a picture.
    """

    def __init__(self, root: Path, image: ImageConfig, table: pd.DataFrame) -> None:
        self._root, self._image, self._table = root, image, table
        self._labels = dict(zip(table["image_id"], table["cancer"], strict=True))
        self._fingerprint = image_fingerprint(image)
        self._sidecars: dict[int, dict[str, Any]] = {}

    def complete(self, number: int, expected_ids: Sequence[str]) -> bool:
        """Whether shard `number` is there, undamaged, of this image section, and holds exactly these images.

        A shard with failed images is not complete: the files may have been mended since.
        """
        sidecar, shard = self._root / _name(number, "json"), self._root / _name(number, "tfrecord")
        if not (sidecar.is_file() and shard.is_file()):
            return False
        try:
            content = read_json(sidecar)
            ids = [row["image_id"] for row in content["images"]] + [row["image_id"] for row in content["failures"]]
            same = content["fingerprint"] == self._fingerprint and content["format_version"] == FORMAT_VERSION
            labels = {row["image_id"]: row["label"] for row in content["images"]}
        except (ValueError, KeyError, TypeError):
            return False
        same = same and sorted(ids) == sorted(expected_ids) and not content["failures"]
        same = same and all(self._labels.get(image_id) == label for image_id, label in labels.items())
        if not same or sha256_file(shard) != content["sha256"]:
            return False
        self._sidecars[number] = content
        return True

    def write(self, number: int, rows: Iterable[tuple[str, float, bytes]], failures: Sequence[dict[str, str]]) -> None:
        """Write shard `number` and then its sidecar.

        Args:
            number: 0, 1, 2, ...
            rows: image id, label, PNG bytes; may be a generator.
            failures: image_id, stage, reason of images without a picture; read after `rows` is exhausted.
        """
        path = self._root / _name(number, "tfrecord")
        entries = write_shard(path, rows)
        content = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self._fingerprint,
            "file": path.name,
            "sha256": sha256_file(path),
            "images": [dataclasses.asdict(entry) for entry in entries],
            "failures": list(failures),
        }
        write_json(path.with_suffix(".json"), content)
        self._sidecars[number] = content

    def finish(self) -> dict[str, Any]:
        """Write table.csv, failures.csv and, last, manifest.json; return the manifest.

        Raises:
            ShardError: an image of the table is in no shard, or in two.
        """
        sidecars = [self._sidecars[number] for number in sorted(self._sidecars)]
        pictured = [row["image_id"] for sidecar in sidecars for row in sidecar["images"]]
        failures = [row for sidecar in sidecars for row in sidecar["failures"]]
        known = sorted(pictured + [row["image_id"] for row in failures])
        if known != sorted(self._table["image_id"]):
            raise ShardError(
                f"{self._root}: {len(known)} images in shards, expected the {len(self._table)} of the table"
            )
        table = self._table[self._table["image_id"].isin(set(pictured))]
        write_csv(self._root / "table.csv", table)
        write_csv(self._root / "failures.csv", pd.DataFrame(failures, columns=["image_id", "stage", "reason"]))
        names = [_name(number, kind) for number in sorted(self._sidecars) for kind in ("tfrecord", "json")]
        manifest = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self._fingerprint,
            "image": dataclasses.asdict(self._image),
            "images": len(pictured),
            "positives": int((table["cancer"] == 1).sum()),
            "failed": len(failures),
            "shards": len(sidecars),
            "sha256": {name: sha256_file(self._root / name) for name in [*names, "table.csv", "failures.csv"]},
        }
        write_json(self._root / MANIFEST, manifest)
        for path in self._root.glob("shard-[0-9][0-9][0-9][0-9][0-9].*"):
            if path.name not in names:  # of an earlier, larger run
                path.unlink()
        return manifest


def _name(number: int, kind: str) -> str:
    return f"shard-{number:05d}.{kind}"


def open_prepared(root: Path, expect: ImageConfig | None = None, verify: bool = True) -> Prepared:
    """Open a prepared folder.

    Args:
        root: the folder.
        expect: the image section the caller will train with, None to take what is there.
        verify: compare the sha256 of every file with the manifest (reads everything once).

    Raises:
        ShardError: no manifest, another image section or format, a missing or damaged file. Names the file.
    """
    path, again = root / MANIFEST, "Prepare the images again."
    if not path.is_file():
        raise ShardError(f"{path}: no such file. Run prepare first; if it was stopped, run it again to finish.")
    try:
        manifest = read_json(path)
        version, found, digests = (manifest[key] for key in ("format_version", "fingerprint", "sha256"))
        image = ImageConfig(**manifest["image"])
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
            for row in read_json(root / name)["images"]:
                index[row["image_id"]] = IndexEntry(**row)
    table = pd.read_csv(root / "table.csv", dtype=dict.fromkeys(_TEXT_COLUMNS, str))
    content = "".join(digests.values())
    return Prepared(root, hashlib.sha256(content.encode()).hexdigest()[:12], image, table, index)


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
    path = prepared.root / entry.shard
    with open(path, "rb") as file:
        file.seek(entry.offset)
        content = file.read(entry.length)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if image is None or image.dtype != np.uint8 or image.shape != (prepared.image.height, prepared.image.width):
        raise ShardError(
            f"{path}: image {image_id} at byte {entry.offset} is damaged. Run prepare again: it makes only that shard."
        )
    return image
