"""A bundle (a folder that can travel) → its network, checked: weights, configuration, threshold, what they are.

    model.weights.h5   plain arrays
    config.json        the whole configuration: the image section says how to make the network's input
    threshold.json     score from which a breast is called positive, and how it was chosen; null before that. And what
                       makes the score a probability (`rsna_kit.scoring.calibration`), or null
    metadata.json      written last: fold, cross-validation score, starting weights, fingerprints, versions, sha256 of
                       the other files

JSON and arrays only: nothing in a bundle is executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from rsna_kit.config import Config, from_dict, image_fingerprint
from rsna_kit.models.network import build_network, dtype_policy
from rsna_kit.runtime.errors import BundleError, UsageError, one_line, sentence
from rsna_kit.runtime.files import read_json, sha256_file
from rsna_kit.runtime.lazy import require

FORMAT_VERSION = 3  # 1: networks that saw one channel; 2: without their scaling of grey values
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
        raise BundleError(f"{path / CONFIG}: {sentence(error)} Use {maker}.") from error
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


def load_model(bundle: Bundle, precision: str = "float32") -> Any:
    """Build the network of a bundle of any kind and load its weights, float32 whatever precision trained or computes.

    Args:
        bundle: from `open_bundle`.
        precision: Keras' dtype policy that it computes by, such as "mixed_float16".

    Returns:
        keras.Model from uint8 (batch, h, w, 1) to float32 (batch, 1), a logit, or (batch, 2), logit and attention, for
        breast-level bundles.

    Raises:
        BundleError: the weights do not fit the network, belong to a larger one, or hold NaN or infinite numbers; or the
            configuration asks for a network that this version does not know.
    """
    path, name = bundle.path / WEIGHTS, bundle.config.model.backbone
    try:
        held = _count_arrays(path)
        with dtype_policy(precision):
            model = build_network(bundle.config, bundle.config.image)
        if held > len(model.weights):  # Keras does not mind what it has no place for
            raise ValueError(f"it holds {held} arrays, expected {len(model.weights)}.")
        model.load_weights(str(path))
    except UsageError as error:
        raise BundleError(f"{bundle.path / CONFIG}: {sentence(error)} Use the rsna-kit that made it.") from error
    except (ValueError, KeyError, OSError, TypeError, RuntimeError) as error:
        advice = "Copy the whole bundle again, or use the rsna-kit that made it."
        raise BundleError(f"{path}: does not fit {name}: {sentence(one_line(error))} {advice}") from error
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
