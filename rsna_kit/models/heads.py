"""A feature map → the logit of cancer: added layers, pooling, dropout and one dense layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rsna_kit.config import ModelConfig
from rsna_kit.runtime.lazy import require

_CHANNELS = 128  # of a residual block


def make_head(model: ModelConfig) -> Callable[[Any], Any]:
    """The head's layers, made at once: made before the trunk, a seed gives the same head behind any trunk.

    The heads `conv` and `residual` look at neighbourhoods of the map: a lesion covers a few cells of it at 1/16, and
    the maximum finds the worst of them where an average over the picture would drown it. From the pooling on all is
    float32, also under a mixed policy: a sum over a map leaves the range of float16.

    Args:
        model: its head, pool and dropout are used.

    Returns:
        From a feature map, Keras tensor float (B, h, w, c), to the logit, float32 (B, 1), of the layer `logit`.
    """
    layers = require("keras", "train").layers
    dropout = layers.Dropout(model.dropout, dtype="float32", name="dropout")
    logit = layers.Dense(1, dtype="float32", name="logit")
    added: list[Callable[[Any], Any]] = []
    if model.head == "conv":
        added += [
            layers.BatchNormalization(name="head_norm"),
            layers.Conv2D(128, 3, padding="same", activation="relu", name="head_conv1"),
            layers.SpatialDropout2D(model.dropout, name="head_drop"),
            layers.Conv2D(64, 3, padding="same", activation="relu", name="head_conv2"),
        ]
    elif model.head == "residual":
        added += [partial(_residual, name="head_block1"), partial(_residual, name="head_block2")]
        added += [layers.BatchNormalization(name="head_norm"), layers.ReLU(name="head_relu")]
    pools = {
        "avg": [layers.GlobalAveragePooling2D(dtype="float32", name="pool")],
        "max": [layers.GlobalMaxPooling2D(dtype="float32", name="pool")],
        "avgmax": [
            layers.GlobalMaxPooling2D(dtype="float32", name="head_max"),
            layers.GlobalAveragePooling2D(dtype="float32", name="head_mean"),
        ],
    }[model.pool]

    def head(features: Any) -> Any:
        for layer in added:
            features = layer(features)
        pooled = [pool(features) for pool in pools]
        joined = layers.Concatenate(dtype="float32", name="head_join")(pooled) if len(pooled) > 1 else pooled[0]
        return logit(dropout(joined))

    return head


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
