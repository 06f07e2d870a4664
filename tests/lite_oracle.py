"""EfficientNet-Lite in NumPy, straight from the checkpoint's tensor names: slow, and independent of Keras.

Written from the network's description (stem 3x3/2; inverted residuals without squeeze-excite; ReLU6; TensorFlow's
"same" padding; batch normalisation with epsilon 1e-3), in PyTorch's layout: (channels, height, width), kernels
(out, in, h, w).
"""

from __future__ import annotations

import numpy as np

Tensors = dict[str, np.ndarray]
STAGES = ((1, 1), (2, 6), (2, 6), (2, 6), (1, 6), (2, 6), (1, 6))  # stride, expansion
REPEATS = {
    "efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
    "efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}


def features(scaled: np.ndarray, tensors: Tensors, name: str) -> np.ndarray:
    """Pooled features (1280,) of a scaled picture (3, h, w)."""
    values = relu6(normalised(convolved(scaled, tensors["_conv_stem.weight"], 2), tensors, "_bn0"))
    number = 0
    for repeats, (stride, expansion) in zip(REPEATS[name], STAGES, strict=True):
        for repeat in range(repeats):
            values = block(values, tensors, f"_blocks.{number}.", stride if repeat == 0 else 1, expansion)
            number += 1
    values = relu6(normalised(convolved(values, tensors["_conv_head.weight"], 1), tensors, "_bn1"))
    return values.mean(axis=(1, 2))


def block(values: np.ndarray, tensors: Tensors, name: str, stride: int, expansion: int) -> np.ndarray:
    inner = values
    if expansion > 1:
        inner = relu6(normalised(convolved(inner, tensors[name + "_expand_conv.weight"], 1), tensors, name + "_bn0"))
    inner = depthwise(inner, tensors[name + "_depthwise_conv.weight"], stride)
    inner = relu6(normalised(inner, tensors, name + "_bn1"))
    inner = normalised(convolved(inner, tensors[name + "_project_conv.weight"], 1), tensors, name + "_bn2")
    return inner + values if inner.shape == values.shape and stride == 1 else inner


def windows(values: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """(channels, h', w', kernel, kernel) under "same" padding: the odd row and column go behind."""
    widths = []
    for size in values.shape[1:]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        widths.append((total // 2, total - total // 2))
    padded = np.pad(values, [(0, 0), *widths])
    return np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]


def convolved(values: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    return np.einsum(
        "chwij,ocij->ohw", windows(values, weight.shape[2], stride), weight.astype(np.float64), optimize=True
    )


def depthwise(values: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    return np.einsum("chwij,cij->chw", windows(values, weight.shape[2], stride), weight[:, 0].astype(np.float64))


def normalised(values: np.ndarray, tensors: Tensors, name: str) -> np.ndarray:
    weight, bias, mean, variance = (
        tensors[f"{name}.{part}"].astype(np.float64)[:, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (values - mean) / np.sqrt(variance + 1e-3) * weight + bias


def relu6(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 6)
