"""A model section and a picture size → the classifier, uint8 (batch, h, w, 1) to one logit, and its two halves."""

from __future__ import annotations

from typing import Any

from rsna_kit.config import ImageConfig, ModelConfig
from rsna_kit.models.backbones import build_backbone
from rsna_kit.models.heads import apply_head, first_layer, head_layers
from rsna_kit.runtime.lazy import require

# Keras' 0.99 needs some 500 steps to forget the ImageNet statistics; a fold may have 200. With 0.9 the statistics
# follow the last few hundred pictures, and the cosine schedule has made steps small by then. `batch_norm="frozen"`
# trains 1.8 times faster on a CPU, but learned less on CBIS-DDSM masses (128x128, AUC 0.65 against 0.69 after 5 epochs
# at 3e-4) and collapsed to one constant score at 1e-3.
BATCH_NORM_MOMENTUM = 0.9


def build_classifier(model: ModelConfig, image: ImageConfig, extra: int = 0) -> Any:
    """Build the classifier with random weights, under Keras' global dtype policy.

    Args:
        model: everything but `kind`, `views`, `view_pool` and `weights`, which are the affair of
            `rsna_kit.training.learner` and `rsna_kit.models.weights`.
        image: size of the input.
        extra: how many further outputs for auxiliary targets.

    Returns:
        keras.Model, named after the backbone.

    Input shape:
        uint8 (batch, height, width, 1), values 0..255; scaled inside.

    Output shape:
        float32 (batch, 1 + extra): column 0 is the logit of cancer, from the layer `logit`; the others come from the
        layer `extra` on the same pooled features. float32 under a mixed policy too.

    Raises:
        UsageError: an unknown backbone, or a picture of less than 32 pixels either way.
    """
    keras = require("keras", "train")
    layers = keras.layers
    picture = keras.Input((image.height, image.width, 1), dtype="uint8", name="picture")
    made = head_layers(model, extra)
    features = build_backbone(model.backbone, picture, model.tap, model.drop_path)
    network = keras.Model(picture, apply_head(model, features, made.__getitem__, extra), name=model.backbone)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM
        if layer.name not in made:
            batch_norm = isinstance(layer, layers.BatchNormalization) and model.batch_norm == "frozen"
            layer.trainable = model.trunk == "train" and not batch_norm
    return network


def split_classifier(network: Any, model: ModelConfig) -> tuple[Any, Any]:
    """The same layers as two models: picture → feature map, and feature map → the network's outputs.

    Args:
        network: from `build_classifier(model, ...)`.
        model: the same section.

    Returns:
        Two keras.Model that share their weights with `network`: uint8 (batch, height, width, 1) to float
        (batch, h, w, channels), and float (batch, h, w, channels) to float32 (batch, 1 + extra).
    """
    keras = require("keras", "train")
    tap = network.get_layer(first_layer(model)).input
    features = keras.Input(tap.shape[1:], name="features")
    outputs = apply_head(model, features, network.get_layer, network.output.shape[-1] - 1)
    return keras.Model(network.input, tap, name="trunk"), keras.Model(features, outputs, name="head")
