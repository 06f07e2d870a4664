"""The map of a frozen trunk → a convolutional variational autoencoder of it: anomaly logit, errors of its cells.

It learns from pictures without cancer only. What it has not seen it reconstructs badly, so a cell's error tells how
unusual the tissue there is (An and Cho, Variational autoencoder based anomaly detection, 2015). Errors of pixels tell
abnormal films from normal ones no better than chance; errors of the features of a network that has seen lesions do
better (docs/results.md; as Shi, Yang and Qi, DFR: Deep feature reconstruction for unsupervised anomaly segmentation,
2021). How it learns: `rsna_kit.training.cvae`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rsna_kit.config import CvaeConfig
from rsna_kit.runtime.lazy import require

AIR = 8  # mean grey value, 0..255, up to which a cell shows air
_SMALLEST = 1e-6  # error: a map that is reconstructed perfectly still has a logarithm
_LOG_VARIANCE = 10.0


def without_air(picture: Any, features: Any, centres: tuple[tuple[float, float], tuple[float, float]]) -> Any:
    """The map with 0 in every channel of each cell that shows air; so a map alone says where the breast is.

    Args:
        picture: uint8 (B, h, w, 1), air 0.
        features: float (B, h', w', c), the map of a trunk.
        centres: where its cells look, as `rsna_kit.models.network.cell_centres` gives them.
    """
    ops = require("keras", "train").ops
    sizes = zip(features.shape[1:3], picture.shape[1:3], centres, strict=True)
    down, across = (_averages(cells, pixels, *places) for cells, pixels, places in sizes)
    grey = ops.einsum("yi,bij,xj->byx", down, ops.cast(picture[..., 0], "float32"), across)
    return features * ops.cast(grey > AIR, features.dtype)[..., None]


def _averages(cells: int, pixels: int, centre: float, step: float) -> np.ndarray:
    """Weights, float32 (cells, pixels), of the mean over what lies at most half a step from a cell's centre."""
    first, pixel = centre - step / 2 + step * np.arange(cells)[:, None], np.arange(pixels)
    share = np.clip(np.minimum(pixel + 1, first + step) - np.maximum(pixel, first), 0, 1)
    return (share / np.maximum(share.sum(axis=1, keepdims=True), 1)).astype(np.float32)


def anomaly_head(config: CvaeConfig, features: Any) -> Any:
    """The autoencoder behind a trunk; its errors are float32.

    Features are standardised channel by channel, by the mean and variance of a batch's cells in the breast while it
    learns and their moving averages afterwards. It decodes the mean of the latent distribution; in training the latent
    is sampled, with a seeded generator. The score is that of the worst cell: a lesion fills one or two. Cells beside
    air are left out: every autoencoder blurs the skin line.

    Args:
        config: channels of the latent, and between it and the map.
        features: Keras tensor float (B, h', w', c) from `without_air`.

    Returns:
        Keras tensor float32 (B, 1), the calibrated anomaly score as a logit. The layer `errors` gives each cell's mean
        squared standardised error, float32 (B, h', w'), 0 in air; `cells` the same, 0 also beside air.
    """
    keras = require("keras", "train")
    layers, ops = keras.layers, keras.ops
    rows, columns, channels = features.shape[1:]
    inside = layers.Identity(dtype="float32", name="inside")(ops.cast(ops.any(features != 0, axis=-1), "float32"))
    normalise = layers.BatchNormalization(center=False, scale=False, dtype="float32", name="standardise")
    standard = normalise(features, mask=inside) * inside[..., None]

    hidden = layers.Conv2D(config.filters, 3, padding="same", activation="relu", name="encoder")(standard)
    latent = functools.partial(layers.Conv2D, config.latent, 3, 2, padding="same", dtype="float32")
    mean = latent(name="latent_mean")(hidden)
    # Zero at first: every latent starts with variance 1, and so with a KL term that is finite.
    spread = latent(kernel_initializer="zeros", name="latent_spread")(hidden)
    spread = ops.clip(spread, -_LOG_VARIANCE, _LOG_VARIANCE)  # exp() stays finite
    spread = layers.Identity(dtype="float32", name="latent_log_variance")(spread)
    sampled = _sample_layer()(name="sample", dtype="float32")([mean, spread])
    # A kernel of 4 with stride 2 covers every cell equally often: no checkerboard (Odena et al., 2016).
    grown = layers.Conv2DTranspose(config.filters, 4, 2, padding="same", activation="relu", name="decoder")(sampled)
    drawn = layers.Conv2D(channels, 3, padding="same", dtype="float32", name="reconstruction")(grown)

    squared = ops.mean(ops.square(drawn[:, :rows, :columns] - standard), axis=-1)
    errors = layers.Identity(dtype="float32", name="errors")(squared * inside)
    away = -ops.max_pool(-inside[..., None], 3, strides=1, padding="same")[..., 0]  # the picture's edge is no skin
    away = ops.where(ops.any(away > 0, axis=(1, 2), keepdims=True), away, inside)  # a breast of a few cells is all rim
    cells = layers.Identity(dtype="float32", name="cells")(errors * away)
    # The logarithm: a few pictures have many times the error of the others, and a sigmoid would lose their order.
    score = ops.log(ops.maximum(ops.max(cells, axis=(1, 2)), _SMALLEST))[:, None]
    identity = {"kernel_initializer": "ones", "bias_initializer": "zeros", "trainable": False, "dtype": "float32"}
    return layers.Dense(1, name="logit", **identity)(score)


@functools.cache
def _sample_layer() -> Any:
    """The layer's class; Keras is not there when this module is imported."""
    keras = require("keras", "train")
    ops = keras.ops

    class Sample(keras.layers.Layer):  # type: ignore[name-defined]
        """Mean and log variance → a sample of that Gaussian in training, else the mean."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.seeds = keras.random.SeedGenerator()  # follows keras.utils.set_random_seed

        def call(self, inputs: Any, training: bool = False) -> Any:
            mean, spread = inputs
            if not training:
                return mean
            return mean + ops.exp(0.5 * spread) * keras.random.normal(ops.shape(mean), dtype="float32", seed=self.seeds)

    return Sample
