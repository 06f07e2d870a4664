"""A trained network ↔ a folder that can travel: weights, configuration, threshold, and what they are.

    model.weights.h5   plain arrays
    config.json        the whole configuration: the image section says how to make the network's input
    threshold.json     score from which a breast is called positive, and how it was chosen; null before that. And what
                       makes the score a probability (`rsna_kit.scoring.calibration`), or null
    metadata.json      written last: fold, cross-validation score, starting weights, fingerprints, versions, sha256 of
                       the other files

JSON and arrays only: nothing in a bundle is executed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from rsna_kit import __version__
from rsna_kit.config import Config, from_dict, image_fingerprint, to_dict
from rsna_kit.models.network import build_network, dtype_policy
from rsna_kit.runtime.errors import BundleError, UsageError, one_line
from rsna_kit.runtime.files import read_json, replacing, sha256_file, write_bytes, write_json
from rsna_kit.runtime.hardware import commit, versions
from rsna_kit.runtime.lazy import require

FORMAT_VERSION = 2  # 1: networks that saw one channel
WEIGHTS, CONFIG, THRESHOLD, METADATA = "model.weights.h5", "config.json", "threshold.json", "metadata.json"
_MOST_INFLATION = 16  # compressed weights shrink by less than 2; a file that claims more is made to fill memory


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been checked; `threshold` is None until one was chosen, `calibration` where there is none."""

    path: Path
    config: Config
    threshold: float | None
    metadata: dict[str, Any]
    calibration: Any = None


def write_bundle(
    out: Path,
    model: Any,
    config: Config,
    fold: int,
    threshold: float | None,
    cv: Mapping[str, Any],
    data_fingerprint: str,
    start: Mapping[str, Any] | None = None,
    trained_on: str = "",
) -> None:
    """Write a bundle into `out`; metadata.json comes last, so a bundle that has one is whole.

    Args:
        out: folder.
        model: the Keras model that `rsna_kit.models.network.build_network(config, config.image)` made.
        config: what it was trained with.
        fold: number of its validation fold.
        threshold: None when it is chosen later, with `set_threshold`.
        cv: validation metrics, JSON-ready.
        data_fingerprint: of the prepared folder.
        start: where the starting weights came from, JSON-ready; empty or None for random ones.
        trained_on: the patients whom it or its start has seen (`competition.seen.digest_patients`); "" for unknown.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / METADATA).unlink(missing_ok=True)
    save_weights(model, out / WEIGHTS)
    write_json(out / CONFIG, to_dict(config))
    write_json(out / THRESHOLD, {"threshold": threshold, "how": None, "calibration": None})
    metadata = {
        "format_version": FORMAT_VERSION,
        "rsna_kit": __version__,
        "commit": commit(),
        "fold": fold,
        "cv": dict(cv),
        "start": dict(start or {}),
        "trained_on": trained_on,
        "image_fingerprint": image_fingerprint(config.image),
        "data_fingerprint": data_fingerprint,
        "packages": versions(),
        "sha256": {name: sha256_file(out / name) for name in (WEIGHTS, CONFIG, THRESHOLD)},
    }
    write_json(out / METADATA, metadata)


class _Memory(io.BytesIO):
    """A file in memory by a name that Keras takes: it looks at the suffix of what `str` gives."""

    def __str__(self) -> str:
        return "model.weights.h5"


def save_weights(model: Any, path: Path) -> None:
    """Write a Keras model's weights to `path` (`*.weights.h5`), whole or not at all; no optimiser's state.

    HDF5 ends the process where a disk is full, so it writes to memory.
    """
    if getattr(model, "optimizer", None) is not None:  # Keras would add it: twice the size of the weights
        model = require("keras", "train").Model(model.inputs, model.outputs)
    memory = _Memory()
    model.save_weights(memory)
    write_bytes(path, memory.getbuffer())


def set_threshold(
    bundle_dir: Path, threshold: float, how: Mapping[str, Any] | str, calibration: Mapping[str, Any] | None = None
) -> None:
    """Store the score from which a breast is called positive, and what makes scores probabilities.

    metadata.json first admits both thresholds, then only the new one, so the bundle is whole at every moment.

    Args:
        bundle_dir: a bundle.
        threshold: in [0, 1].
        how: how it was chosen, JSON-ready.
        calibration: of the scores that the threshold cuts, JSON-ready; None for none.

    Raises:
        UsageError: a threshold outside [0, 1].
        BundleError: the folder holds no bundle, or a damaged one.
    """
    if not is_score(threshold):
        raise UsageError(f"threshold: got {threshold}, expected a number from 0 to 1")
    metadata = open_bundle(bundle_dir).metadata
    content = {"threshold": float(threshold), "how": how, "calibration": calibration}
    with replacing(bundle_dir / THRESHOLD) as temporary:
        write_json(temporary, content)
        digest, old = sha256_file(temporary), sha256_file(bundle_dir / THRESHOLD)
        write_json(bundle_dir / METADATA, metadata | {"sha256": metadata["sha256"] | {THRESHOLD: [old, digest]}})
    write_json(bundle_dir / METADATA, metadata | {"sha256": metadata["sha256"] | {THRESHOLD: digest}})


def open_bundle(path: Path) -> Bundle:
    """Open a bundle and check every file of it.

    Raises:
        BundleError: a file is missing or damaged, the format or the configuration is unknown, or another version
            of the image recipe made the training images. Names the file and what to do.
    """
    metadata = read_object(path / METADATA, f"{path} is not a whole bundle. Train or copy again.")
    version, maker = metadata.get("format_version"), f"the rsna-kit that made it ({metadata.get('rsna_kit')})"
    if version is None:
        raise BundleError(
            f"{path / METADATA}: no format_version, so {path} is no bundle of rsna-kit (a preset of Keras looks like "
            "one). Give bundles that train wrote, and nothing else."
        )
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path / METADATA}: got format version {version}, expected {FORMAT_VERSION}: its network is another one. "
            f"Train again, or use {maker}."
        )
    digests = metadata.get("sha256")
    if not isinstance(digests, dict):
        raise BundleError(f"{path / METADATA}: sha256 is {digests!r}, expected one for each file. Copy it again.")
    for name in (WEIGHTS, CONFIG, THRESHOLD):
        if not (path / name).is_file():
            raise BundleError(f"{path / name}: no such file. Copy the whole bundle again.")
        admitted = digests.get(name)
        if sha256_file(path / name) not in (admitted if isinstance(admitted, list) else [admitted]):
            raise BundleError(
                f"{path / name}: damaged or exchanged: its sha256 is not the one in {METADATA}. Copy the whole bundle "
                "again."
            )
    try:
        config = from_dict(read_object(path / CONFIG, "Copy the whole bundle again."))
    except (UsageError, TypeError, AttributeError) as error:
        raise BundleError(f"{path / CONFIG}: {error}. Use {maker}.") from error
    decision = read_object(path / THRESHOLD, "Copy the whole bundle again.")
    threshold = decision.get("threshold")
    if threshold is not None and not is_score(threshold):
        raise BundleError(
            f"{path / THRESHOLD}: threshold is {threshold!r}, expected a number from 0 to 1, or null. Run train again, "
            "which chooses it."
        )
    expected, found = image_fingerprint(config.image), metadata.get("image_fingerprint")
    if found != expected:
        raise BundleError(
            f"{path / METADATA}: trained on images of fingerprint {found}, this version makes {expected} from the same "
            f"section. Train again, or use {maker}."
        )
    return Bundle(path, config, threshold, metadata, decision.get("calibration"))


def is_score(value: object) -> TypeGuard[int | float]:
    """Whether a value that came out of JSON is a number from 0 to 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1  # NaN is not


def load_model(bundle: Bundle) -> Any:
    """Build the network of a bundle of any kind and load its weights.

    It computes in float32: weights are float32 whatever precision they were trained in.

    Returns:
        keras.Model from uint8 (batch, h, w, 1) to float32 (batch, 1), a logit, or (batch, 2), logit and attention, for
        breast-level bundles.

    Raises:
        BundleError: the weights do not fit the network, belong to a larger one, or hold NaN or infinite numbers; or the
            configuration asks for a network that this version does not know.
    """
    path, kind = bundle.path / WEIGHTS, bundle.config.model.kind
    name = kind if kind == "cvae" else bundle.config.model.backbone
    try:
        held = _count_arrays(path)
        with dtype_policy("float32"):
            model = build_network(bundle.config, bundle.config.image)
        if held > len(model.weights):  # Keras does not mind what it has no place for
            raise ValueError(f"it holds {held} arrays, expected {len(model.weights)}.")
        model.load_weights(str(path))
    except UsageError as error:
        raise BundleError(f"{bundle.path / CONFIG}: {error} Use the rsna-kit that made it.") from error
    except (ValueError, KeyError, OSError, TypeError, RuntimeError) as error:
        raise BundleError(f"{path}: does not fit {name}: {one_line(error)} Copy the whole bundle again.") from error
    for weight in model.weights:
        if not np.isfinite(np.asarray(weight)).all():
            raise BundleError(
                f"{path}: {weight.path} holds NaN or infinite numbers, expected finite ones. Train again."
            )
    return model


def _count_arrays(path: Path) -> int:
    """How many float arrays an HDF5 file holds. HDF5 holds numbers and no code; links out of the file are not followed.

    Raises:
        ValueError: it claims more numbers than it can hold.
        OSError: not HDF5, or truncated.
    """
    h5py = require("h5py", "train")
    arrays: list[Any] = []
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: arrays.append(item) if isinstance(item, h5py.Dataset) else None)
        claimed, size = sum(array.nbytes for array in arrays), path.stat().st_size
        if claimed > _MOST_INFLATION * size:
            raise ValueError(f"{size} bytes that claim to hold {claimed}.")
        return sum(array.dtype.kind == "f" for array in arrays)


def read_object(path: Path, hint: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: its file.
        hint: what to do where it is missing.

    Raises:
        BundleError: it is missing, or no JSON object.
    """
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file. {hint}") from error
    except ValueError as error:
        raise BundleError(f"{path}: not JSON ({error}). Copy the whole folder again.") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path}: got a {type(content).__name__}, expected an object. Copy the whole folder again.")
    return content
