"""A trained network → a bundle, the folder that `models/bundle.py` reads; each file whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsna_kit import __version__
from rsna_kit.config import Config, image_fingerprint, to_dict
from rsna_kit.models.bundle import CONFIG, FORMAT_VERSION, METADATA, THRESHOLD, WEIGHTS, is_score, open_bundle
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.files import replacing, sha256_file, write_bytes, write_json
from rsna_kit.runtime.hardware import commit, versions
from rsna_kit.runtime.lazy import require


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
        trained_on: the patients whom it or its start has seen (`competition.folds.digest_patients`); "" for unknown.
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
