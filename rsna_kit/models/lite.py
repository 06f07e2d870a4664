"""A scaled picture → EfficientNet-Lite's feature map by keras-cv, and its published checkpoints by the same names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit.runtime.errors import BundleError
from rsna_kit.runtime.lazy import require

# github.com/tensorflow/tpu, models/official/efficientnet/lite: no squeeze-excite, ReLU6. Stem and top are not scaled in
# width, nor the first and the last stage in depth.
COEFFICIENTS = {  # width, depth
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
DROP_PATH = 0.2  # stochastic depth (Huang et al. 2016): block i of n drops DROP_PATH * i / n
_STAGES: dict[str, list[int]] = {
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
    "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
    "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
    "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
    "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
}
_TORCH_BLOCK = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}


def build_lite(name: str, scaled: Any, tap: int) -> Any:
    """Feature map of a scaled picture.

    Args:
        name: key of `COEFFICIENTS`.
        scaled: Keras tensor float (batch, h, w, channels).
        tap: 32: after the last activation; 16: the last sum of the fifth stage.

    Returns:
        Keras tensor float (batch, ceil(h / 32), ceil(w / 32), 1280), or (batch, ceil(h / 16), ceil(w / 16), 112;
        lite2: 120).
    """
    width, depth = COEFFICIENTS[name]
    made = require("keras_cv.models", "train").EfficientNetLiteBackbone(
        include_rescaling=False,
        width_coefficient=width,
        depth_coefficient=depth,
        # keras-cv divides by the number of blocks of Lite0
        drop_connect_rate=DROP_PATH * sum(_STAGES["stackwise_num_repeats"]) / sum(repeats(name)),
        input_tensor=scaled,
        **_STAGES,
    )
    last = "top_activation" if tap == 32 else f"{_block_name(4, repeats(name)[4] - 1)}add"
    # `made.output` belongs to a clone of the graph; the layer's first call belongs to ours.
    return made.get_layer(last).output


def repeats(name: str) -> list[int]:
    """Blocks of each of the seven stages."""
    first, *middle, final = _STAGES["stackwise_num_repeats"]
    return [first, *(math.ceil(count * COEFFICIENTS[name][1]) for count in middle), final]


def _block_name(stage: int, repeat: int) -> str:
    return f"block{stage + 1}{chr(ord('a') + repeat)}_"


def lite_arrays(tensors: Mapping[str, np.ndarray], name: str, path: Path) -> dict[str, list[np.ndarray]]:
    """A published checkpoint as weights of our layers; its 1000 classes and its counters of batches are left out.

    Args:
        tensors: as `torch_file.read_tensors` gives them.
        name: key of `COEFFICIENTS`.
        path: for the message.

    Returns:
        Layer name to arrays, in Keras' layout and order.

    Raises:
        BundleError: a tensor is missing or left over.
    """
    left = {key for key in tensors if not key.startswith("_fc.") and not key.endswith(".num_batches_tracked")}
    arrays: dict[str, list[np.ndarray]] = {}
    for ours, theirs in _torch_names(name):
        convolution = "conv" in theirs
        for part in ("weight",) if convolution else ("weight", "bias", "running_mean", "running_var"):
            key = f"{theirs}.{part}"
            if key not in left:
                raise BundleError(f"{path}: not {name}: it has no tensor {key}. Attach the file of {name}.")
            left.remove(key)
            array = tensors[key]
            if convolution:  # (out, in, h, w) -> (h, w, in, out); depthwise (channels, 1, h, w) -> (h, w, channels, 1)
                array = array.transpose((2, 3, 0, 1) if "depthwise" in theirs else (2, 3, 1, 0))
            arrays.setdefault(ours, []).append(array)
    if left:
        raise BundleError(f"{path}: not {name}: {len(left)} tensors have no place in it, first {min(left)}")
    return arrays


def _torch_names(name: str) -> Iterator[tuple[str, str]]:
    """Keras layer and torch module of each convolution and normalisation."""
    yield from (("stem_conv", "_conv_stem"), ("stem_bn", "_bn0"), ("top_conv", "_conv_head"), ("top_bn", "_bn1"))
    blocks = [_block_name(stage, repeat) for stage, count in enumerate(repeats(name)) for repeat in range(count)]
    for number, block in enumerate(blocks):
        for ours, theirs in _TORCH_BLOCK.items():
            if number > 0 or not ours.startswith("expand"):  # the first block does not expand
                yield block + ours, f"_blocks.{number}.{theirs}"
