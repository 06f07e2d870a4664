"""The state of a fold in training → one file that is whole or absent → the same state again, after its checks.

`checkpoint.npz` holds arrays and one JSON text, nothing that is executed: groups of arrays (weights, optimiser,
averages, seeds, the best epoch's weights) under `<group>-<number>`, and under `state` what is plain: format,
fingerprint of the training, sha256 of the arrays, and the fields that were given. One file, because two could be of
two moments.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.config import Config, DecodeConfig, InferConfig, TrainConfig, to_dict
from rsna_kit.runtime.errors import BundleError
from rsna_kit.runtime.files import write_bytes

FORMAT_VERSION = 1
_STATE = "state"
Groups = Mapping[str, Sequence[np.ndarray]]


@dataclass(frozen=True)
class Checkpoint:
    """What `save_checkpoint` was given."""

    groups: dict[str, list[np.ndarray]]
    fields: dict[str, Any]


def save_checkpoint(path: Path, fingerprint: str, groups: Groups, fields: Mapping[str, Any]) -> int:
    """Write a checkpoint; whatever happens meanwhile, `path` holds the old one or the new one.

    Args:
        path: the file, ends in .npz.
        fingerprint: of the training, see `training_fingerprint`.
        groups: arrays of any numeric dtype, by group, in order.
        fields: plain values, JSON-ready.

    Returns:
        Its size in bytes. While it is written the old one is there too.
    """
    state = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint, "sha256": _digest(groups)}
    text = json.dumps({**state, "groups": {name: len(group) for name, group in groups.items()}, "fields": dict(fields)})
    arrays = {f"{name}-{number}": array for name, group in groups.items() for number, array in enumerate(group)}
    memory = io.BytesIO()  # a ZIP file that meets a full disk complains twice more while it is taken down
    np.savez(memory, **{_STATE: np.frombuffer(text.encode(), np.uint8)}, **arrays)
    write_bytes(path, memory.getbuffer())
    return len(memory.getbuffer())


def load_checkpoint(path: Path, fingerprint: str, like: Groups) -> Checkpoint:
    """Read a checkpoint and check all of it.

    Args:
        path: the file.
        fingerprint: of the training that wants to go on.
        like: groups whose shapes and dtypes must be the same, array by array.

    Raises:
        BundleError: cut off, damaged, of another format or another training; says which.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            state = json.loads(file[_STATE].tobytes())
            names = {name: range(int(count)) for name, count in state["groups"].items()}
            groups = {name: [file[f"{name}-{number}"] for number in numbers] for name, numbers in names.items()}
        version, found, sha256, fields = (state[k] for k in ("format_version", "fingerprint", "sha256", "fields"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: damaged or no checkpoint ({error})") from error
    if version != FORMAT_VERSION:
        raise BundleError(f"{path}: got format version {version}, expected {FORMAT_VERSION}")
    if sha256 != _digest(groups):
        raise BundleError(f"{path}: damaged, the sha256 of its arrays is not the one it was written with")
    if found != fingerprint:
        raise BundleError(f"{path}: of another configuration, other data or other starting weights")
    for name, arrays in like.items():
        if [_kind(array) for array in arrays] != [_kind(array) for array in groups.get(name, [])]:
            raise BundleError(f"{path}: its {name} are those of another network or optimiser")
    return Checkpoint(groups, fields)


def decisive(config: Config) -> Config:
    """The configuration with everything at its default that the result of a training does not depend on.

    That is what concerns decoding and inference, how shards are cut and saved, how often checkpoints are written, and
    how many devices share a batch (which changes the result no more than another device would).
    """
    plain = Config()
    data = dataclasses.replace(config.data, save=plain.data.save, shard_images=plain.data.shard_images)
    default = TrainConfig()
    train = dataclasses.replace(config.train, checkpoint_minutes=default.checkpoint_minutes, devices=default.devices)
    return dataclasses.replace(config, data=data, train=train, decode=DecodeConfig(), infer=InferConfig())


def training_fingerprint(config: Config, data: str, rows: pd.DataFrame, fold: int, start: Mapping[str, Any]) -> str:
    """Hex digits that change whenever the result of a fold's training may change.

    Args:
        config: see `decisive`.
        data: fingerprint of the prepared folder.
        rows: training and validation rows; image_id, cancer and fold.
        fold: number of the validation fold.
        start: provenance of the starting weights.
    """
    table = [rows["image_id"].tolist(), rows["cancer"].astype(int).tolist(), (rows["fold"] == fold).tolist()]
    content = [FORMAT_VERSION, to_dict(decisive(config)), data, table, fold, start.get("sha256")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _kind(array: np.ndarray) -> tuple[tuple[int, ...], str]:
    return tuple(array.shape), str(array.dtype)


def _digest(groups: Groups) -> str:
    """Over names, shapes, dtypes and bytes of all arrays."""
    digest = hashlib.sha256()
    for name, arrays in sorted(groups.items()):
        for array in arrays:
            digest.update(f"{name} {_kind(array)}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
