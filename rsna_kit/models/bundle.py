"""A trained network as a folder that can travel: weights, configuration, threshold, and what they are.

    model.weights.h5   plain arrays
    config.json        the whole configuration: the image section says how to make the network's input
    threshold.json     score from which a breast is called positive, and how it was chosen; null before that
    metadata.json      written last: fold, cross-validation score, fingerprints, versions, sha256 of the other files

JSON and arrays only: nothing in a bundle is executed.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsna_kit import __version__
from rsna_kit.config import Config, from_dict, image_fingerprint, to_dict
from rsna_kit.models.classifier import build_classifier
from rsna_kit.models.weights import save_weights
from rsna_kit.runtime.errors import BundleError, UsageError
from rsna_kit.runtime.files import read_json, replacing, sha256_file, write_json
from rsna_kit.runtime.hardware import versions

FORMAT_VERSION = 1
WEIGHTS, CONFIG, THRESHOLD, METADATA = "model.weights.h5", "config.json", "threshold.json", "metadata.json"


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been checked; `threshold` is None until one was chosen."""

    path: Path
    config: Config
    threshold: float | None
    metadata: dict[str, Any]


def write_bundle(
    out: Path,
    model: Any,
    config: Config,
    fold: int,
    threshold: float | None,
    cv: Mapping[str, Any],
    data_fingerprint: str,
) -> None:
    """Write a bundle into `out`; metadata.json comes last, so a bundle that has one is whole.

    Args:
        out: folder.
        model: the Keras model that `build_classifier(config.model, config.image)` made.
        config: what it was trained with.
        fold: number of its validation fold.
        threshold: None when it is chosen later, with `set_threshold`.
        cv: validation metrics, JSON-ready.
        data_fingerprint: of the prepared folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / METADATA).unlink(missing_ok=True)
    save_weights(model, out / WEIGHTS)
    write_json(out / CONFIG, to_dict(config))
    write_json(out / THRESHOLD, {"threshold": threshold, "how": None})
    metadata = {
        "format_version": FORMAT_VERSION,
        "rsna_kit": __version__,
        "commit": _commit(),
        "fold": fold,
        "cv": dict(cv),
        "image_fingerprint": image_fingerprint(config.image),
        "data_fingerprint": data_fingerprint,
        "packages": versions(),
        "sha256": {name: sha256_file(out / name) for name in (WEIGHTS, CONFIG, THRESHOLD)},
    }
    write_json(out / METADATA, metadata)


def set_threshold(bundle_dir: Path, threshold: float, how: Mapping[str, Any] | str) -> None:
    """Store the score from which a breast is called positive.

    metadata.json first admits both thresholds, then only the new one, so the bundle is whole at every moment.

    Args:
        bundle_dir: a bundle.
        threshold: in [0, 1].
        how: how it was chosen, JSON-ready.

    Raises:
        UsageError: a threshold outside [0, 1].
        BundleError: the folder holds no bundle, or a damaged one.
    """
    if not (math.isfinite(threshold) and 0 <= threshold <= 1):
        raise UsageError(f"threshold: got {threshold}, expected a number from 0 to 1")
    metadata, content = open_bundle(bundle_dir).metadata, {"threshold": float(threshold), "how": how}
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
    metadata = _read(path, METADATA)
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(f"{path / METADATA}: got format version {version}, expected {FORMAT_VERSION}. Train again, "
                          f"or use the rsna-kit that made it ({metadata.get('rsna_kit')}).")  # fmt: skip
    digests = metadata.get("sha256", {})
    for name in (WEIGHTS, CONFIG, THRESHOLD):
        if not (path / name).is_file():
            raise BundleError(f"{path / name}: no such file. Copy the whole bundle again.")
        admitted = digests.get(name)
        if sha256_file(path / name) not in (admitted if isinstance(admitted, list) else [admitted]):
            raise BundleError(f"{path / name}: damaged or exchanged: its sha256 is not the one in {METADATA}. "
                              "Copy the whole bundle again.")  # fmt: skip
    try:
        config = from_dict(_read(path, CONFIG))
        threshold = _read(path, THRESHOLD)["threshold"]
    except (UsageError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{path / CONFIG}: {error}. Use the rsna-kit that made it "
                          f"({metadata.get('rsna_kit')}).") from error  # fmt: skip
    expected, found = image_fingerprint(config.image), metadata.get("image_fingerprint")
    if found != expected:
        raise BundleError(f"{path / METADATA}: trained on images of fingerprint {found}, this version makes {expected} "
                          "from the same section. Train again, or use the rsna-kit that made it.")  # fmt: skip
    return Bundle(path, config, threshold, metadata)


def load_model(bundle: Bundle) -> Any:
    """Build the bundle's network and load its weights.

    Returns:
        keras.Model from uint8 (batch, h, w, 1) to logits float32 (batch, 1).

    Raises:
        BundleError: the weights do not fit the network.
    """
    model = build_classifier(bundle.config.model, bundle.config.image)
    path = bundle.path / WEIGHTS
    try:
        model.load_weights(str(path))
    except (ValueError, KeyError, OSError) as error:
        raise BundleError(f"{path}: does not fit {bundle.config.model.backbone}: {error}") from error
    return model


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        content = read_json(path / name)
    except FileNotFoundError as error:
        raise BundleError(
            f"{path / name}: no such file, so {path} is not a whole bundle. Train or copy again."
        ) from error
    except ValueError as error:
        raise BundleError(f"{path / name}: not JSON ({error}). Copy the whole bundle again.") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path / name}: got a {type(content).__name__}, expected an object. Copy the bundle again.")
    return content


def _commit() -> str | None:
    """The commit of the checkout or of the built dataset this package runs from, None where neither is known."""
    root = Path(__file__).resolve().parents[2]
    if (root / "commit.txt").is_file():
        return (root / "commit.txt").read_text().strip()
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
