"""A feature map → logits: added layers, pooling, dropout and one dense layer for each kind of output.

The layers of a head have fixed names, so the same head can be applied again to feature maps that were computed before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from rsna_kit.config import ModelConfig
from rsna_kit.runtime.lazy import require

_CONV = ("head_norm", "head_conv1", "head_drop", "head_conv2")
_BLOCKS = ("head_block1", "head_block2")
_CHANNELS = 128


def head_layers(model: ModelConfig, extra: int) -> dict[str, Any]:
    """The head's layers by name, not yet built.

    `conv` and `residual` look at neighbourhoods of the map: a lesion covers a few cells of it at 1/16, and the maximum
    finds the worst of them where an average over the picture would drown it. From the pooling on all is float32, also
    under a mixed policy: a sum over a map leaves the range of float16.

    Args:
        model: its head, pool and dropout are used.
        extra: how many further outputs.
    """
    layers = require("keras", "train").layers
    made = [layers.Dropout(model.dropout, dtype="float32", name="dropout")]
    made += [layers.Dense(1, dtype="float32", name="logit")]
    made += [*_added(layers, model), *_pooling(layers, model.pool)]
    if extra:
        made += [layers.Dense(extra, dtype="float32", name="extra")]
        made += [layers.Concatenate(dtype="float32", name="outputs")]
    return {layer.name: layer for layer in made}


def first_layer(model: ModelConfig) -> str:
    """Name of the layer that sees the feature map first."""
    added = {"linear": "head_max" if model.pool == "avgmax" else "pool", "conv": "head_norm"}
    return added.get(model.head, "head_block1_norm1")


def apply_head(model: ModelConfig, features: Any, layer: Callable[[str], Any], extra: int) -> Any:
    """Feature map float (batch, h, w, c) to float32 (batch, 1 + extra), through layers that `layer` finds by name."""
    tensor = features
    if model.head == "conv":
        for name in _CONV:
            tensor = layer(name)(tensor)
    elif model.head == "residual":
        for name in _BLOCKS:
            tensor = _residual(tensor, name, layer)
        tensor = layer("head_relu")(layer("head_norm")(tensor))
    if model.pool == "avgmax":
        tensor = layer("head_join")([layer("head_max")(tensor), layer("head_mean")(tensor)])
    else:
        tensor = layer("pool")(tensor)
    tensor = layer("dropout")(tensor)
    logit = layer("logit")(tensor)
    return layer("outputs")([logit, layer("extra")(tensor)]) if extra else logit


def _added(layers: Any, model: ModelConfig) -> Iterator[Any]:
    if model.head == "conv":
        yield layers.BatchNormalization(name="head_norm")
        yield layers.Conv2D(128, 3, padding="same", activation="relu", name="head_conv1")
        yield layers.SpatialDropout2D(model.dropout, name="head_drop")
        yield layers.Conv2D(64, 3, padding="same", activation="relu", name="head_conv2")
    elif model.head == "residual":
        yield layers.Conv2D(_CHANNELS, 1, use_bias=False, name="head_block1_shortcut")
        for name in _BLOCKS:
            for number in (1, 2):
                yield layers.BatchNormalization(name=f"{name}_norm{number}")
                yield layers.ReLU(name=f"{name}_relu{number}")
                yield layers.Conv2D(
                    _CHANNELS,
                    3,
                    padding="same",
                    use_bias=False,
                    kernel_initializer="he_normal",
                    name=f"{name}_conv{number}",
                )
            yield layers.Add(name=f"{name}_add")
        yield layers.BatchNormalization(name="head_norm")
        yield layers.ReLU(name="head_relu")


def _residual(tensor: Any, name: str, layer: Callable[[str], Any]) -> Any:
    """A pre-activation block: norm, ReLU, convolution, twice (He et al., Identity mappings, 2016).

    The first block narrows the map, so its shortcut is a 1x1 convolution, which sees the activated map as in the paper.
    """
    inner = layer(f"{name}_relu1")(layer(f"{name}_norm1")(tensor))
    shortcut = layer(f"{name}_shortcut")(inner) if name == _BLOCKS[0] else tensor
    inner = layer(f"{name}_conv1")(inner)
    inner = layer(f"{name}_conv2")(layer(f"{name}_relu2")(layer(f"{name}_norm2")(inner)))
    return layer(f"{name}_add")([shortcut, inner])


def _pooling(layers: Any, pool: str) -> Iterator[Any]:
    if pool == "avg":
        yield layers.GlobalAveragePooling2D(dtype="float32", name="pool")
    elif pool == "max":
        yield layers.GlobalMaxPooling2D(dtype="float32", name="pool")
    elif pool == "gem":
        yield generalised_mean()(dtype="float32", name="pool")
    else:
        yield layers.GlobalMaxPooling2D(dtype="float32", name="head_max")
        yield layers.GlobalAveragePooling2D(dtype="float32", name="head_mean")
        yield layers.Concatenate(dtype="float32", name="head_join")


@cache
def generalised_mean() -> Any:
    """The layer class GeneralisedMean (GeM; Radenović et al., Fine-tuning CNN image retrieval, 2018)."""
    keras = require("keras", "train")
    base: Any = keras.layers.Layer
    ops = keras.ops

    @keras.saving.register_keras_serializable(package="rsna_kit")
    class GeneralisedMean(base):
        """Float (batch, h, w, channels) to (batch, channels): mean(max(x, 1e-6) ** p) ** (1 / p).

        The exponent p is learned for all channels together from 3 on, and never less than 1, where this is the
        average; as p grows it becomes the maximum. The largest value is taken out of the mean, so neither a power nor
        its root leaves the range of float32.
        """

        def build(self, input_shape: Any) -> None:
            self.exponent = self.add_weight(name="exponent", shape=(), initializer=keras.initializers.Constant(3.0))

        def call(self, inputs: Any) -> Any:
            exponent = ops.maximum(self.exponent, 1.0)
            values = ops.maximum(inputs, 1e-6)
            largest = ops.stop_gradient(ops.max(values, axis=(1, 2), keepdims=True))
            mean = ops.mean((values / largest) ** exponent, axis=(1, 2))
            return largest[:, 0, 0] * mean ** (1 / exponent)

        def compute_output_shape(self, input_shape: Any) -> Any:
            return (input_shape[0], input_shape[-1])

    return GeneralisedMean
