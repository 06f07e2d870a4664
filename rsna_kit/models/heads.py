"""A feature map → the logit of cancer: added layers, pooling, dropout and one dense layer."""

from __future__ import annotations

from typing import Any

from rsna_kit.config import ModelConfig
from rsna_kit.runtime.lazy import require

_CHANNELS = 128  # of a residual block


def build_head(model: ModelConfig, features: Any) -> Any:
    """The logit of a feature map.

    The heads `conv` and `residual` look at neighbourhoods of the map: a lesion covers a few cells of it at 1/16, and
    the maximum finds the worst of them where an average over the picture would drown it. From the pooling on all is
    float32, also under a mixed policy: a sum over a map leaves the range of float16.

    Args:
        model: its head, pool and dropout are used.
        features: Keras tensor float (B, h, w, c).

    Returns:
        Keras tensor float32 (B, 1), from the layer `logit`.
    """
    layers = require("keras", "train").layers
    tensor = features
    if model.head == "conv":
        tensor = layers.BatchNormalization(name="head_norm")(tensor)
        tensor = layers.Conv2D(128, 3, padding="same", activation="relu", name="head_conv1")(tensor)
        tensor = layers.SpatialDropout2D(model.dropout, name="head_drop")(tensor)
        tensor = layers.Conv2D(64, 3, padding="same", activation="relu", name="head_conv2")(tensor)
    elif model.head == "residual":
        tensor = _residual(_residual(tensor, "head_block1"), "head_block2")
        tensor = layers.ReLU(name="head_relu")(layers.BatchNormalization(name="head_norm")(tensor))
    if model.pool == "avgmax":
        largest = layers.GlobalMaxPooling2D(dtype="float32", name="head_max")(tensor)
        mean = layers.GlobalAveragePooling2D(dtype="float32", name="head_mean")(tensor)
        tensor = layers.Concatenate(dtype="float32", name="head_join")([largest, mean])
    else:
        pools = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
        tensor = pools[model.pool](dtype="float32", name="pool")(tensor)
    tensor = layers.Dropout(model.dropout, dtype="float32", name="dropout")(tensor)
    return layers.Dense(1, dtype="float32", name="logit")(tensor)


def _residual(tensor: Any, name: str) -> Any:
    """A pre-activation block: norm, ReLU, convolution, twice (He et al., Identity mappings, 2016).

    One that narrows the map has a 1x1 convolution as shortcut, which sees the activated map as in the paper.
    """
    layers = require("keras", "train").layers
    inner, shortcut = tensor, tensor
    for number in (1, 2):
        inner = layers.BatchNormalization(name=f"{name}_norm{number}")(inner)
        inner = layers.ReLU(name=f"{name}_relu{number}")(inner)
        if number == 1 and tensor.shape[-1] != _CHANNELS:
            shortcut = layers.Conv2D(_CHANNELS, 1, use_bias=False, name=f"{name}_shortcut")(inner)
        inner = layers.Conv2D(
            _CHANNELS, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv{number}"
        )(inner)
    return layers.Add(name=f"{name}_add")([shortcut, inner])
