"""Batches → batches whose pictures and targets are mixed in pairs: MixUp and CutMix, on the device.

Keras' own layers do it; what they need to be told is here. They draw from a generator that goes on from step to step,
so its state is set anew for each batch. With the dtype of a mixed-precision policy they fail (MixUp on TensorFlow
multiplies float32 by float16) or return NaN (CutMix counts pixels in float16), so they always compute in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from rsna_kit.config import DataConfig
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.lazy import require

MIX_SHARE = 0.5  # of the batches
MIXUP_ALPHA = 0.2  # Beta(0.2, 0.2): mostly one of the two pictures; Zhang et al. use 0.1 to 0.4 for ImageNet
CUTMIX_ALPHA = 1.0  # Beta(1, 1): every size of rectangle alike, as Yun et al.
Mixer = Callable[[Any, Any, Any, int], tuple[Any, Any, Any]]


def build_mixer(data: DataConfig, seed: int, kind: str = "image", share: float = MIX_SHARE) -> Mixer | None:
    """What `data.mix` does to a batch; None where it does nothing.

    The result is called with images uint8 (B, h, w, 1), targets float32 (B, K), weights float32 (B,) and the number
    of the step (at least 0), and returns the same three, with the same shapes and dtypes:

    * `share` of the steps are mixed; the others get back what they gave. Which ones, by which of the two with
      `"both"`, and how, depends on (seed, step) and on Keras' backend, and on nothing else.
    * MixUp (Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018): the weighted mean of a picture and
      another of the batch. CutMix (Yun et al., CutMix, 2019): a rectangle of the other picture, pasted at its place;
      Keras keeps it inside the picture, where the paper cuts it off at the border. Pictures are rounded to uint8.
    * With shares a and 1 - a of two samples, the weight is a w + (1 - a) w', the targets are
      (a w t + (1 - a) w' t') / that, which is a t + (1 - a) t' when the weights are equal. A loss that is linear in its
      targets, as cross-entropy is, then equals a w loss(t) + (1 - a) w' loss(t'): a cancer keeps its weight, and a
      row of weight 0 counts for nothing.
    * A target that is NaN (missing) in either of the two is missing in the mixture.

    Args:
        data: `mix` is used.
        seed: of the training.
        kind: `model.kind`. Only pictures are mixed: the mixture of two breasts has views that no breast has, and
            that of two healthy breasts is not the healthy breast that an anomaly detector learns.
        share: of the steps, in [0, 1].

    Raises:
        UsageError: another kind than `"image"` with a `mix`.
    """
    if data.mix == "none":
        return None
    if kind != "image":
        raise UsageError(
            f'data.mix: got "{data.mix}" for model.kind "{kind}", expected "none": only pictures are mixed'
        )
    keras = require("keras", "train")
    layers = []
    if data.mix in ("mixup", "both"):
        layers.append(keras.layers.MixUp(alpha=MIXUP_ALPHA, seed=0, dtype="float32"))
    if data.mix in ("cutmix", "both"):
        # One number would be the upper end of a range that alpha itself is drawn from.
        layers.append(keras.layers.CutMix(factor=(CUTMIX_ALPHA, CUTMIX_ALPHA), seed=0, dtype="float32"))

    def mix(images: Any, targets: Any, weights: Any, step: int) -> tuple[Any, Any, Any]:
        draw = np.random.default_rng([seed, step])
        if draw.random() >= share:
            return images, targets, weights
        layer = layers[int(draw.integers(len(layers)))]
        layer.generator.state.assign(draw.integers(0, 2**31, 2))
        return _mixed(keras, layer, images, targets, weights)

    return mix


def _mixed(keras: Any, layer: Any, images: Any, targets: Any, weights: Any) -> tuple[Any, Any, Any]:
    """Weights travel as one more label, and the targets multiplied by them."""
    ops = keras.ops
    images, targets = ops.convert_to_tensor(images), ops.convert_to_tensor(targets, "float32")
    weights = ops.convert_to_tensor(weights, "float32")[:, None]
    labels = ops.concatenate([targets * weights, weights], axis=1)
    with warnings.catch_warnings():
        # JAX has no int64, which MixUp asks for, and says so at every call.
        warnings.filterwarnings("ignore", message=".*dtype int64.*", category=UserWarning)
        mixed = layer({"images": images, "labels": labels}, training=True)
    images = ops.cast(ops.round(mixed["images"]), "uint8")
    sums, weights = mixed["labels"][:, :-1], mixed["labels"][:, -1:]
    targets = ops.where(weights > 0, sums / ops.where(weights > 0, weights, 1.0), targets)
    return images, targets, weights[:, 0]
