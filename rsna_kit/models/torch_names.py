"""Tensors by PyTorch's names → weights of a network of ours, by its layers' names and in Keras' layout.

Three ways of naming are known: timm's for ConvNeXt, timm's for EfficientNet (also V2 and Lite), and that of the
published EfficientNet-Lite (github.com/lukemelas/EfficientNet-PyTorch).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit.runtime.errors import BundleError

_PARTS = ("weight", "bias", "gamma", "running_mean", "running_var", "p")  # in the order of Keras' own weights
_LITE_BLOCK = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}
_LITE_ENDS = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head", "top_bn": "_bn1"}
_ENDS = {"stem_conv": "conv_stem", "stem_bn": "bn1", "top_conv": "conv_head", "top_bn": "bn2", "logit": "classifier"}
_TOPS = ("_conv_head.", "_bn1.", "conv_head.", "bn2.", "head.norm.")  # what follows the last stage
_CLASSIFIERS = ("_fc.", "classifier.", "head.fc.")
_CONVNEXT = (
    (r"stem_conv", "stem.0"),
    (r"stem_layernorm", "stem.1"),
    (r"downsampling_layernorm_(\d)", "stages.{1}.downsample.0"),
    (r"downsampling_conv_(\d)", "stages.{1}.downsample.1"),
    (r"stage_(\d)_block_(\d+)_depthwise_conv", "stages.{0}.blocks.{1}.conv_dw"),
    (r"stage_(\d)_block_(\d+)_layernorm", "stages.{0}.blocks.{1}.norm"),
    (r"stage_(\d)_block_(\d+)_pointwise_conv_(\d)", "stages.{0}.blocks.{1}.mlp.fc{2}"),
    (r"stage_(\d)_block_(\d+)_layer_scale", "stages.{0}.blocks.{1}"),
    (r"pooled_norm", "head.norm"),
    (r"logit", "head.fc"),
)


def checkpoint_arrays(network: Any, tensors: Mapping[str, np.ndarray], path: Path) -> dict[str, list[np.ndarray]]:
    """The weights of every layer that a checkpoint knows; its counters of batches are left out.

    A classifier of one class, or of two whose difference is taken, becomes the layer `logit`; one of more is left out.
    The only channel of a one-channel stem is shared by the three that ours has.

    Args:
        network: from `network.build_classifier`.
        tensors: as `torch_file.read_tensors` gives them.
        path: for the message.

    Returns:
        Layer name to arrays.

    Raises:
        BundleError: names of another network, or a tensor that has no place in this one.
    """
    layers = [layer for layer in network.layers if layer.weights and layer.name != "scale"]
    modules = _modules([layer.name for layer in layers], set(tensors), network.name)
    left = {name for name in tensors if not name.endswith("num_batches_tracked")}
    arrays: dict[str, list[np.ndarray]] = {}
    for layer in layers:
        module = modules.get(layer.name)
        names = [f"{module}.{part}" for part in _PARTS if f"{module}.{part}" in left] if module else []
        left -= set(names)
        given = [
            _in_keras(tensors[name], tuple(weight.shape)) for name, weight in zip(names, layer.weights, strict=False)
        ]
        if names and not (layer.name == "logit" and len(tensors[names[0]]) > 2):
            arrays[layer.name] = given
    left = {name for name in left if not name.startswith(_CLASSIFIERS)}
    if not {"top_conv", "pooled_norm"} & set(arrays):  # a trunk that ends at stride 16
        last = max(map(_stage, modules.values()))
        left = {name for name in left if not (_stage(name) > last or name.startswith(_TOPS))}
    if left:
        raise BundleError(
            f"{path}: not {network.name}: {len(left)} tensors have no place in it, the first is {min(left)}. Give the "
            "backbone that these are of with model.backbone=NAME."
        )
    return arrays


def _stage(name: str) -> int:
    """Number of the stage, or of the block where stages are not told apart; -1 outside of them."""
    found = re.match(r"(?:_?blocks|stages)\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _modules(layers: Sequence[str], tensors: set[str], name: str) -> dict[str, str]:
    """PyTorch's module of each layer that has one."""
    gem = [tensor.removesuffix(".p") for tensor in tensors if re.search(r"pool\w*\.p$", tensor)]
    pooling = {"pool_gem": gem[0]} if gem else {}
    if "stem.0.weight" in tensors:
        found = {}
        for layer in layers:
            for pattern, module in _CONVNEXT:
                if match := re.fullmatch(f"(?:{name}_)?{pattern}", layer):
                    numbers = [int(number) for number in match.groups()]
                    found[layer] = module.format(*numbers, *(number + 1 for number in numbers[:1]))
        return found | pooling
    lite = "_conv_stem.weight" in tensors
    found = {layer: module for layer, module in (_LITE_ENDS if lite else _ENDS).items() if layer in layers}
    blocks: dict[tuple[int, int], dict[str, str]] = {}  # stage and repeat → part → layer
    for layer in layers:
        if match := re.fullmatch(r"block(\d)(\w)_(\w+)", layer):
            place = int(match[1]) - 1, ord(match[2]) - ord("a")
            blocks.setdefault(place, {})[match[3].replace("dwconv2", "dwconv")] = layer
    for number, ((stage, repeat), parts) in enumerate(blocks.items()):
        for part, layer in parts.items():
            if lite:
                found[layer] = f"_blocks.{number}.{_LITE_BLOCK[part]}"
            else:
                found[layer] = f"blocks.{stage}.{repeat}.{_timm_part(part, set(parts))}"
    return found | pooling


def _timm_part(part: str, kinds: set[str]) -> str:
    """What timm calls a part of a block that has parts of these kinds: normalisations are counted."""
    if part.startswith("se_"):
        return f"se.conv_{part.removeprefix('se_')}"
    there = [name for name in ("expand_bn", "bn", "project_bn") if name in kinds]
    if part in there:
        return f"bn{there.index(part) + 1}"
    if part == "dwconv":
        return "conv_dw"
    if part == "expand_conv":
        return "conv_pw" if "dwconv" in kinds else "conv_exp"
    if len(kinds & {"expand_conv", "dwconv"}) == 0:
        return "conv"
    return "conv_pwl" if "expand_conv" in kinds else "conv_pw"


def _in_keras(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor in Keras' layout; `shape` is that of our weight."""
    array = tensor.astype(np.float32)
    if array.ndim == 4 and len(shape) == 2:  # a 1x1 convolution in the place of a dense layer
        array = array[:, :, 0, 0]
    if array.ndim == 2:
        if shape[-1] == 1 and len(array) == 2:
            array = array[1:] - array[:1]
        return array.T
    if array.ndim == 1:
        return array[1:] - array[:1] if shape == (1,) and len(array) == 2 else array
    if array.ndim == 4:  # (out, in, h, w) to (h, w, in, out); depthwise (channels, 1, h, w) to (h, w, channels, 1)
        depthwise = len(shape) == 4 and shape[3] == 1 and array.shape[1] == 1 and shape[2] == len(array)
        array = array.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
        if len(shape) == 4 and array.shape[2] == 1 and shape[2] == 3:
            array = np.repeat(array / 3, 3, axis=2)
    return array
