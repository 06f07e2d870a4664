"""A configuration → the network that travels in a bundle: one picture in, its logit out; and its two halves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rsna_kit.config import Config, ImageConfig, ModelConfig
from rsna_kit.models.backbones import BACKBONES, build_backbone
from rsna_kit.models.cvae import anomaly_head, without_air
from rsna_kit.models.heads import make_head, with_attention
from rsna_kit.runtime.errors import named
from rsna_kit.runtime.lazy import require

# Keras' 0.99 needs some 500 steps to forget the ImageNet statistics; a fold may have 200. With 0.9 the statistics
# follow the last few hundred pictures, and the cosine schedule has made steps small by then.
BATCH_NORM_MOMENTUM = 0.9


def build_network(config: Config, image: ImageConfig) -> Any:
    """The network that travels in a bundle, with random weights, under Keras' global dtype policy.

    Args:
        config: its model and cvae sections are used.
        image: size of the input.

    Returns:
        keras.Model: uint8 (B, h, w, 1) to float32 (B, 1), a logit; for breast-level models (B, 2), logit and attention.

    Raises:
        UsageError: an unknown backbone or pooling of views, or a picture of less than 32 pixels either way.
    """
    if config.model.kind == "cvae":
        return _behind_trunk(config.model, image, partial(anomaly_head, config.cvae), without_air)
    classifier = build_classifier(config.model, image)
    return with_attention(classifier, config.model.view_pool) if config.model.kind == "breast" else classifier


def build_classifier(model: ModelConfig, image: ImageConfig) -> Any:
    """The classifier of single pictures.

    Args:
        model: everything but `kind`, `views`, `view_pool` and `weights` is used.
        image: size of the input.

    Returns:
        keras.Model, named after the backbone: uint8 (B, h, w, 1), values 0..255, scaled inside, to float32 (B, 1), the
        logit of cancer, from the layer `logit`; float32 under a mixed policy too. The layer `features` ends the trunk.
    """
    head = make_head(model, named("model.backbone", model.backbone, BACKBONES).pooled_norm and model.tap == 32)
    return _behind_trunk(model, image, head)


def _behind_trunk(
    model: ModelConfig,
    image: ImageConfig,
    head: Callable[[Any], Any],
    seen: Callable[[Any, Any, int], Any] = lambda picture, features, tap: features,
) -> Any:
    """A picture, its trunk's map as the head is to see it, and what the head makes of that."""
    keras = require("keras", "train")
    picture = keras.Input((image.height, image.width, 1), dtype="uint8", name="picture")
    mapped = seen(picture, build_backbone(model.backbone, picture, model.tap), model.tap)
    features = keras.layers.Identity(name="features")(mapped)
    for layer in keras.Model(picture, features).layers:
        layer.trainable = model.trunk == "train"
    network = keras.Model(picture, head(features), name=model.backbone)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM
    return network


def split_classifier(network: Any, at: str = "features") -> tuple[Any, Any]:
    """The same layers as two models: picture → feature map, and feature map → the network's outputs.

    Args:
        network: from `build_classifier`, or built on one.
        at: "features", where the trunk ends; or "map", behind the layers that the head adds, where pooling begins.

    Returns:
        Two keras.Model that share their weights with `network`: uint8 (B, height, width, 1) to float (B, h, w, c), and
        float (B, h, w, c) to what `network` gives.
    """
    keras = require("keras", "train")
    features = network.get_layer(at).output
    return keras.Model(network.input, features, name="trunk"), keras.Model(features, network.output, name="head")


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Keras' global policy while a network is built: layers made inside compute so, their variables stay float32.

    Args:
        name: as `train.precision`.
    """
    keras = require("keras", "train")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
