"""A feature map → the logit of cancer: added layers, pooling, dropout, one dense layer; and how views are pooled.

Each view of a breast gives a logit and an attention, and the breast's logit is their sum weighted by the softmax of the
attention over the views that are there. That is attention-based multiple-instance learning (Ilse, Tomczak and Welling,
Attention-based deep multiple instance learning, 2018) with a linear classifier: the logit of the weighted mean of
features is the weighted mean of logits. So views can be scored one by one, and `rsna_kit.scoring.breasts.to_breasts`
gives from those scores what was trained, for any number of views. With the attention 0 everywhere it is the mean of
logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from rsna_kit.config import ModelConfig
from rsna_kit.models.convnext import EPSILON
from rsna_kit.runtime.errors import named
from rsna_kit.runtime.lazy import require

_CHANNELS = 128  # of a residual block


def make_head(model: ModelConfig, normalised: bool = False) -> Callable[[Any], Any]:
    """The head's layers, made at once: made before the trunk, a seed gives the same head behind any trunk.

    From the pooling on all is float32, also under a mixed policy: a sum over a map leaves the range of float16.

    Args:
        model: its head, pool and dropout are used.
        normalised: whether what was pooled is normalised over its channels, as ConvNeXt does.

    Returns:
        From a feature map, Keras tensor float (B, h, w, c), to the logit, float32 (B, 1), of the layer `logit`. The
        layer `map` gives what is pooled.

    Raises:
        UsageError: an unknown head or pool.
    """
    build, pools = named("model.head", model.head, HEADS), named("model.pool", model.pool, POOLS)
    layers = _keras().layers
    dropout = layers.Dropout(model.dropout, dtype="float32", name="dropout")
    logit = layers.Dense(1, dtype="float32", name="logit")
    added = build(layers, model.dropout)
    pooling = [make(dtype="float32", name=name) for make, name in pools(layers)]
    norm = layers.LayerNormalization(epsilon=EPSILON, dtype="float32", name="pooled_norm") if normalised else None

    def head(features: Any) -> Any:
        for layer in added:
            features = layer(features)
        features = layers.Identity(name="map")(features)
        pooled = [pool(features) for pool in pooling]
        joined = layers.Concatenate(dtype="float32", name="head_join")(pooled) if len(pooled) > 1 else pooled[0]
        return logit(dropout(norm(joined) if norm else joined))

    return head


def _convolutions(layers: Any, dropout: float) -> list[Callable[[Any], Any]]:
    return [
        layers.BatchNormalization(name="head_norm"),
        layers.Conv2D(128, 3, padding="same", activation="relu", name="head_conv1"),
        layers.SpatialDropout2D(dropout, name="head_drop"),
        layers.Conv2D(64, 3, padding="same", activation="relu", name="head_conv2"),
    ]


def _residual_blocks(layers: Any, dropout: float) -> list[Callable[[Any], Any]]:
    blocks = [partial(_residual, name="head_block1"), partial(_residual, name="head_block2")]
    return [*blocks, layers.BatchNormalization(name="head_norm"), layers.ReLU(name="head_relu")]


def _residual(tensor: Any, name: str) -> Any:
    """A pre-activation block: norm, ReLU, convolution, twice (He et al., Identity mappings, 2016).

    One that narrows the map has a 1x1 convolution as shortcut, which sees the activated map as in the paper.
    """
    layers = _keras().layers
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


# Layers that a head adds before the pooling: (keras.layers, dropout) → layers. `conv` and `residual` look at
# neighbourhoods of the map: a lesion covers a few cells of it at 1/16, and the maximum finds the worst of them where an
# average over the picture would drown it.
HEADS: Mapping[str, Callable[[Any, float], list[Callable[[Any], Any]]]] = {
    "linear": lambda layers, dropout: [],
    "conv": _convolutions,
    "residual": _residual_blocks,
}


@cache
def _generalized_mean() -> Any:
    """The layer's class; Keras is not there when this module is imported."""
    keras = _keras()

    class GeneralizedMean(keras.layers.Layer):  # type: ignore[name-defined]
        """Float (B, h, w, c) to (B, c): the mean of the p-th powers, its p-th root, p learned from 3 on.

        Radenovic, Tolias and Chum, Fine-tuning CNN image retrieval with no human annotation, 2018.
        """

        def build(self, shape: Any) -> None:
            self.p = self.add_weight(shape=(1,), initializer=keras.initializers.Constant(3.0), name="p")

        def call(self, maps: Any) -> Any:
            powers = keras.ops.power(keras.ops.maximum(maps, 1e-6), self.p)
            return keras.ops.power(keras.ops.mean(powers, axis=(1, 2)), 1 / self.p)

        def compute_output_shape(self, shape: Any) -> Any:
            return shape[0], shape[-1]

    return GeneralizedMean


# Layers that pool a map, with their names, from keras.layers; what several give is joined.
POOLS: Mapping[str, Callable[[Any], Sequence[tuple[Callable[..., Any], str]]]] = {
    "avg": lambda layers: [(layers.GlobalAveragePooling2D, "pool")],
    "max": lambda layers: [(layers.GlobalMaxPooling2D, "pool")],
    "avgmax": lambda layers: [(layers.GlobalMaxPooling2D, "head_max"), (layers.GlobalAveragePooling2D, "head_mean")],
    "gem": lambda layers: [(_generalized_mean(), "pool_gem")],
}
# How the views of a breast are pooled: (logit (B, 1), the features that it is made of (B, c)) → attention float (B, 1).
# To add one, add its line; training, bundles and scoring know of nothing but the attention.
POOLINGS: Mapping[str, Callable[[Any, Any], Any]] = {
    "attention": lambda logit, features: _keras().layers.Dense(1, dtype="float32", name="attention")(features),
    "mean": lambda logit, features: _keras().ops.zeros_like(logit),
}


def with_attention(classifier: Any, pooling: str) -> Any:
    """The network that scores one view of a breast; it is what a bundle holds.

    Args:
        classifier: uint8 (B, h, w, 1) to float32 (B, 1), from a layer `logit`.
        pooling: one of `POOLINGS`.

    Returns:
        keras.Model: uint8 (B, h, w, 1) to float32 (B, 2), logit and attention.

    Raises:
        UsageError: an unknown pooling.
    """
    attention = named("model.view_pool", pooling, POOLINGS)(classifier.output, classifier.get_layer("logit").input)
    columns = _keras().layers.Concatenate(name="columns", dtype="float32")([classifier.output, attention])
    return _keras().Model(classifier.input, columns, name=classifier.name)


def _keras() -> Any:
    return require("keras", "train")
