"""A classifier whose every number is chosen, and a picture with one bright lesion; for any backend of Keras."""

from __future__ import annotations

from typing import Any

import numpy as np

from rsna_kit.models import backbones

SIZE = (64, 32)


def toy_backbone(scaled: Any, stride: int) -> Any:
    """Five layers in the place of a hundred: what is about plumbing builds and traces a tenth of the time."""
    import keras

    for number in range(stride.bit_length() - 1):
        scaled = keras.layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name=f"conv{number}")(scaled)
        scaled = keras.layers.ReLU(name=f"relu{number}")(keras.layers.BatchNormalization(name=f"norm{number}")(scaled))
    return scaled


def add_backbone() -> None:
    """Let this process know `model.backbone=toy`."""
    vars(backbones)["BACKBONES"]["toy"] = backbones.Backbone(toy_backbone)


def toy_network(kernel: tuple[float, float], columns: int = 1) -> Any:
    """Cells of 8 x 8 hold their mean grey, and 1; the logit is `kernel` times the means of these over the picture."""
    import keras

    layers = keras.layers
    picture = keras.Input((*SIZE, 1), dtype="uint8", name="picture")
    grey = layers.AveragePooling2D(8)(layers.Rescaling(1 / 255)(picture))
    convolution = layers.Conv2D(2, 1, name="features")
    cells = layers.Identity(name="map")(convolution(grey))
    pooled = layers.Dropout(0.5, name="dropout")(layers.GlobalAveragePooling2D(name="pool")(cells))
    outputs = layers.Dense(1, name="logit", use_bias=False)(pooled)
    if columns > 1:
        outputs = layers.Concatenate(name="columns")([outputs, keras.ops.zeros_like(outputs)])
    model = keras.Model(picture, outputs)
    convolution.set_weights([np.array([[[[1.0, 0.0]]]], np.float32), np.array([0.0, 1.0], np.float32)])
    model.get_layer("logit").set_weights([np.array(kernel, np.float32)[:, None]])
    return model


def toy_mammogram(row: int = 40, column: int = 8) -> np.ndarray:
    """uint8 (1, 64, 32, 1): tissue of 51 in 24 columns, a lesion of 8 x 8 as bright as can be, air."""
    picture = np.full(SIZE, 51, np.uint8)
    picture[row : row + 8, column : column + 8] = 255
    picture[:, 24:] = 0
    return picture[None, ..., None]
