"""The state of a fold in training ↔ one file that is whole or absent, checked before it is believed.

`checkpoint.npz` holds arrays and one JSON text, nothing that is executed: groups of arrays (weights, optimiser,
seeds, losses, the best epoch's weights) under `<group>-<number>`, and under `state` what is plain: format, fingerprint
of the training, and the fields that were given. One file, because two could be of two moments.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.config import Config, DecodeConfig, InferConfig, to_dict
from rsna_kit.runtime.errors import BundleError
from rsna_kit.runtime.files import write_bytes
from rsna_kit.runtime.hardware import versions

FORMAT_VERSION = 2
_PACKAGES = "packages"
# What may change a training's numbers: OpenCV 5 moves a quarter of the pixels of a rotation by up to 5 levels.
_DECISIVE = ("numpy", "opencv-python-headless", "albumentations", "keras", "tensorflow", "tensorflow-cpu", "jax")
_STATE = "state"
Groups = Mapping[str, Sequence[np.ndarray]]


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
    counts = {name: len(group) for name, group in groups.items()}
    state = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint, "groups": counts}
    state["fields"] = {**fields, _PACKAGES: versions(_DECISIVE)}
    text = json.dumps(state)
    arrays = {f"{name}-{number}": array for name, group in groups.items() for number, array in enumerate(group)}
    memory = io.BytesIO()  # a ZIP file that meets a full disk complains twice more while it is taken down
    np.savez(memory, **{_STATE: np.frombuffer(text.encode(), np.uint8)}, **arrays)
    write_bytes(path, memory.getbuffer())
    return len(memory.getbuffer())


def load_checkpoint(path: Path, fingerprint: str, like: Groups) -> tuple[dict[str, list[np.ndarray]], dict[str, Any]]:
    """Read a checkpoint and check all of it; every array has a CRC-32 in the file.

    Args:
        path: the file.
        fingerprint: of the training that wants to go on.
        like: groups whose shapes and dtypes must be the same, array by array.

    Returns:
        The groups and the fields that `save_checkpoint` was given, for `other_versions` too.

    Raises:
        BundleError: cut off, damaged, of another format or another training; says which.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            state = json.loads(file[_STATE].tobytes())
            version, found, counts, fields = (state[k] for k in ("format_version", "fingerprint", "groups", "fields"))
            groups = {name: [file[f"{name}-{n}"] for n in range(int(count))] for name, count in counts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: damaged or no checkpoint ({error})") from error
    if version != FORMAT_VERSION:
        raise BundleError(f"{path}: got format version {version}, expected {FORMAT_VERSION}")
    if found != fingerprint:
        raise BundleError(f"{path}: of another configuration, other data or other starting weights")
    for name, arrays in like.items():
        if [(a.shape, a.dtype) for a in arrays] != [(a.shape, a.dtype) for a in groups.get(name, [])]:
            raise BundleError(f"{path}: its {name} are those of another network or optimiser")
    return groups, fields


def other_versions(fields: Mapping[str, Any]) -> str:
    """What to say of a checkpoint that other versions of packages wrote, "" where they are the same."""
    then, now = fields[_PACKAGES], versions(_DECISIVE)
    other = ", ".join(f"{name} {then[name]} (now {now.get(name)})" for name in then if then[name] != now.get(name))
    return (
        f"the checkpoint was made with {other}: the result is not the one that either alone would give" if other else ""
    )


def decisive(config: Config) -> Config:
    """The configuration with everything at its default that the result of a training does not depend on.

    That is what concerns decoding and inference, which pictures are kept beside the shards, the budget (what it came to
    counts, epochs and data.negatives), and how many devices and parts share a batch (which changes the result no more
    than another device would).
    """
    plain = Config()
    data = dataclasses.replace(config.data, save=plain.data.save)
    free = {name: getattr(plain.train, name) for name in ("devices", "accumulate", "hours")}
    train = dataclasses.replace(config.train, **free)
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
