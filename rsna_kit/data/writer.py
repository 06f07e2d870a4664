"""Pictures → TFRecord shards of a prepared folder (`data.shards` says what is in one), whole or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.config import ImageConfig, image_fingerprint
from rsna_kit.data.shards import FORMAT_VERSION, MANIFEST, IndexEntry, stored_digest
from rsna_kit.runtime.errors import ShardError
from rsna_kit.runtime.files import read_json, sha256_file, write_bytes, write_csv, write_json
from rsna_kit.runtime.lazy import require

_RECORD_HEAD = 12  # a TFRecord frames its payload: uint64 length, uint32 CRC before it, uint32 CRC behind it
_RECORD_TAIL = 4
# Bytes of PNG a pixel, by pixels a picture: of 42 mammograms of ten machines. The competition's own take a tenth less.
_DENSITY = {1024 * 512: 0.408, 1280 * 640: 0.395, 1536 * 768: 0.390, 2048 * 1024: 0.372}


def picture_bytes(image: ImageConfig) -> float:
    """Bytes that a picture of this size takes as PNG, by the measurements above."""
    pixels = image.height * image.width
    return float(pixels * np.interp(pixels, list(_DENSITY), list(_DENSITY.values())))


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
        table: the training table, or a part of it; `finish` stores its rows that have a picture.
        part: what the manifest says of the part: its `number` from 1, `of` how many, and a digest of the `whole`.
        loose: image id → where its PNG lies, relative to `root`; None writes TFRecords.
    """

    def __init__(
        self,
        root: Path,
        image: ImageConfig,
        table: pd.DataFrame,
        part: Mapping[str, Any] | None = None,
        loose: Mapping[str, str] | None = None,
    ) -> None:
        self._root, self._image, self._table, self._part, self._loose = root, image, table, part, loose
        self._labels = dict(zip(table["image_id"], table["cancer"], strict=True))
        self._fingerprint = image_fingerprint(image)
        self._sidecars: dict[int, dict[str, Any]] = {}

    def complete(self, number: int, expected_ids: Sequence[str]) -> bool:
        """Whether shard `number` is there, undamaged, of this image section, and holds exactly these images.

        A shard with failed images is not complete: the files may have been mended since.
        """
        try:
            content = read_json(self._root / _name(number, "json"))
            ids = [row["image_id"] for row in content["images"]] + [row["image_id"] for row in content["failures"]]
            same = content["fingerprint"] == self._fingerprint and content["format_version"] == FORMAT_VERSION
            labels = {row["image_id"]: row["label"] for row in content["images"]}
            same = same and bool(content["file"]) is (self._loose is None)
        except (OSError, ValueError, KeyError, TypeError):
            return False
        same = same and sorted(ids) == sorted(expected_ids) and not content["failures"]
        same = same and all(self._labels.get(image_id) == label for image_id, label in labels.items())
        if not same or stored_digest(self._root, content) != content["sha256"]:
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
        path, entries = self._root / _name(number, "tfrecord"), []
        if self._loose is None:
            entries = write_shard(path, rows)
        else:
            for image_id, label, picture in rows:
                entries.append(IndexEntry(image_id, self._loose[image_id], 0, len(picture), float(label)))
                write_bytes(self._root / self._loose[image_id], picture)
        content = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self._fingerprint,
            "file": path.name if self._loose is None else "",
            "images": [dataclasses.asdict(entry) for entry in entries],
            "failures": list(failures),
        }
        content["sha256"] = stored_digest(self._root, content)
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
        kinds = ("json",) if self._loose is not None else ("tfrecord", "json")
        names = [_name(number, kind) for number in sorted(self._sidecars) for kind in kinds]
        manifest = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self._fingerprint,
            "image": dataclasses.asdict(self._image),
            "images": len(pictured),
            "positives": int((table["cancer"] == 1).sum()),
            "failed": len(failures),
            "shards": len(sidecars),
            **({"part": dict(self._part)} if self._part else {}),
            "sha256": {name: sha256_file(self._root / name) for name in [*names, "table.csv", "failures.csv"]},
        }
        write_json(self._root / MANIFEST, manifest)
        for path in self._root.glob("shard-[0-9][0-9][0-9][0-9][0-9].*"):
            if path.name not in names:  # of an earlier, larger run
                path.unlink()
        return manifest


def _name(number: int, kind: str) -> str:
    return f"shard-{number:05d}.{kind}"
