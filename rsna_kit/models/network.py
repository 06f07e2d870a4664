"""A configuration → the network that travels in a bundle: one picture in, its logit out; its halves and cells."""

from __future__ import annotations

import math
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
        head = partial(anomaly_head, config.cvae)
        masked = lambda trunk: without_air(trunk.input, trunk.output, cell_centres(trunk))  # noqa: E731
        return _behind_trunk(config.model, image, head, masked)
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
    seen: Callable[[Any], Any] = lambda trunk: trunk.output,
) -> Any:
    """A picture, its trunk's map as the head is to see it, and what the head makes of that."""
    keras = require("keras", "train")
    picture = keras.Input((image.height, image.width, 1), dtype="uint8", name="picture")
    trunk = keras.Model(picture, build_backbone(model.backbone, picture, model.tap))
    features = keras.layers.Identity(name="features")(seen(trunk))
    for layer in trunk.layers:
        layer.trainable = model.trunk == "train"
        if model.trunk == "frozen" and isinstance(layer, keras.layers.Dropout):
            layer.rate = 0  # stochastic depth: a trunk that does not learn answers as it will when it scores
    network = keras.Model(picture, head(features), name=model.backbone)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM
    return network


def split_classifier(network: Any, at: str = "features") -> tuple[Any, Any]:
    """The same layers as two models: picture → feature map, and feature map → the network's outputs.

    Args:
        network: from `build_network`, or built on one.
        at: "features", where the trunk ends; or "map", behind the layers that the head adds, where pooling begins.

    Returns:
        Two keras.Model that share their weights with `network`: uint8 (B, height, width, 1) to float (B, h, w, c), and
        float (B, h, w, c) to what `network` gives.
    """
    keras = require("keras", "train")
    features = network.get_layer(at).output
    return keras.Model(network.input, features, name="trunk"), keras.Model(features, network.output, name="head")


def cell_centres(trunk: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the cells of a feature map look: the centres of their receptive fields.

    "Same" padding of an even picture at stride 2 pads the far side alone, so each such layer looks half a step further
    down and right. After five, the centre of the first cell lies at pixel 31.5, not 16: half a cell, as much as a
    lesion. The arithmetic is Araujo, Norris and Sim's ("Computing Receptive Fields of Convolutional Neural Networks",
    Distill 2019).

    Args:
        trunk: keras.Model, picture (B, h, w, 1) → features (B, h', w', c), whose strided layers form one path.

    Returns:
        For rows and for columns: centre of the first cell, in pixels from the picture's edge, and the step from one
        cell to the next.
    """
    return _centre(trunk, 0), _centre(trunk, 1)


def _centre(trunk: Any, axis: int) -> tuple[float, float]:
    pixels, cells = trunk.input.shape[1 + axis], trunk.output.shape[1 + axis]
    size, centre, step = pixels, 0.5, 1
    for layer in trunk.layers:
        kernel, stride, before, total = 1, 1, 0, 0
        if type(layer).__name__ == "ZeroPadding2D":
            before, total = layer.padding[axis][0], sum(layer.padding[axis])
        elif hasattr(layer, "strides") and len(layer.strides) == 2:
            stride = layer.strides[axis]
            kernel = (layer.kernel_size if hasattr(layer, "kernel_size") else layer.pool_size)[axis]
            if layer.padding == "same":
                if stride == 1:
                    continue  # it keeps the size and moves nothing; one inside a branch must not be counted
                total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
                before = total // 2
        centre += ((kernel - 1) / 2 - before) * step
        size, step = (size + total - kernel) // stride + 1, step * stride
    if size == cells:
        return centre, float(step)
    return pixels / cells / 2, pixels / cells  # branches with strides of their own: the middles of equal cells


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
