"""A scaled picture → ConvNeXt's feature map, from core layers that are fast on a CPU too.

ConvNeXt (Liu et al., A ConvNet for the 2020s, 2022) as keras.applications has it, with its names and its values. The
stock 7x7 convolutions are grouped `Conv2D` layers, which TensorFlow runs some seven times slower on a CPU than the
`DepthwiseConv2D` layers here: a stock kernel (7, 7, 1, channels) becomes (7, 7, channels, 1).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from rsna_kit.runtime.lazy import require

# Blocks of each stage, and channels of the first; each further stage doubles them.
SIZES = {
    "convnext_tiny": ((3, 3, 9, 3), 96),
    "convnext_small": ((3, 3, 27, 3), 96),
    "convnext_base": ((3, 3, 27, 3), 128),
}
DROP_PATH = 0.2  # stochastic depth (Huang et al. 2016): rate at the last block, growing linearly from 0 at the first
EPSILON = 1e-6  # of every layer normalisation
_SCALE = 1e-6  # where layer scale starts: every block starts as nearly nothing


def build_convnext(name: str, scaled: Any, tap: int) -> Any:
    """Feature map of a scaled picture.

    Args:
        name: key of `SIZES`, and what the names of all layers begin with.
        scaled: Keras tensor float (batch, h, w, channels).
        tap: 32: the last stage, which the paper normalises behind its pooling (`Backbone.pooled_norm`); 16: the third.

    Returns:
        Keras tensor float (batch, h // 32, w // 32, 768) or (batch, h // 16, w // 16, 384); convnext_base has a third
        more channels.
    """
    layers = require("keras", "train").layers
    depths, channels = SIZES[name]
    rates = iter(np.linspace(0.0, DROP_PATH, sum(depths)).tolist())
    tensor = layers.Conv2D(channels, 4, strides=4, name=f"{name}_stem_conv")(scaled)
    tensor = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_stem_layernorm")(tensor)
    for stage in range(4 if tap == 32 else 3):
        if stage > 0:
            norm = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_downsampling_layernorm_{stage - 1}")
            convolution = layers.Conv2D(channels << stage, 2, strides=2, name=f"{name}_downsampling_conv_{stage - 1}")
            tensor = convolution(norm(tensor))
        for block in range(depths[stage]):
            tensor = _block(tensor, next(rates), f"{name}_stage_{stage}_block_{block}")
    return tensor


def _block(tensor: Any, drop: float, name: str) -> Any:
    """7x7 depthwise, normalise, widen fourfold, GELU, narrow, scale, add."""
    layers = require("keras", "train").layers
    channels = tensor.shape[-1]
    inner = layers.DepthwiseConv2D(7, padding="same", name=f"{name}_depthwise_conv")(tensor)
    inner = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_layernorm")(inner)
    inner = layers.Dense(4 * channels, name=f"{name}_pointwise_conv_1")(inner)
    inner = layers.Activation("gelu", name=f"{name}_gelu")(inner)
    inner = layers.Dense(channels, name=f"{name}_pointwise_conv_2")(inner)
    inner = layer_scale()(name=f"{name}_layer_scale")(inner)
    if drop > 0:
        inner = layers.Dropout(drop, noise_shape=(None, 1, 1, 1), name=f"{name}_stochastic_depth")(inner)
    return layers.Add(name=f"{name}_add")([tensor, inner])


@cache
def layer_scale() -> Any:
    """The layer class LayerScale: each channel times a learned factor (Touvron et al., CaiT, 2021)."""
    keras = require("keras", "train")
    base: Any = keras.layers.Layer

    @keras.saving.register_keras_serializable(package="rsna_kit")
    class LayerScale(base):
        """Float (..., channels) to the same shape; its only weight is `gamma` (channels,)."""

        def build(self, input_shape: Any) -> None:
            self.gamma = self.add_weight(
                name="gamma", shape=(input_shape[-1],), initializer=keras.initializers.Constant(_SCALE)
            )

        def call(self, inputs: Any) -> Any:
            return inputs * self.gamma

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

    return LayerScale
