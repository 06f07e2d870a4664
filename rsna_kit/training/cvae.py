"""An autoencoder of a map → the two terms of the loss it learns from, and its anomaly score made a logit.

Loss of one picture, in nats for each of the N values of its map, x those of cells in the breast, standardised, and y
their reconstruction:

    1/N * sum_x 1/2 * ((x - y)^2 / v + log(2 pi v))  +  beta/N * 1/2 * sum_latent (m^2 + s^2 - 1 - log s^2)

The first term is the negative log-likelihood of a Gaussian decoder, v the mean squared error of the batch at hand: the
variance that makes the batch most likely (Rybkin et al., Simple and effective VAE training with calibrated decoders,
2021). The second is the Kullback-Leibler divergence of the latent Gaussian from the standard normal one. beta = 1 is
therefore the evidence lower bound (Kingma and Welling, Auto-encoding variational Bayes, 2014) at any size, and other
values are those of Higgins et al. (beta-VAE, 2017). beta grows from 0 linearly over the first three tenths of the
training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rsna_kit.config import PRIOR
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.lazy import require

WARMUP = 0.3  # share of all steps over which beta grows from 0
_SMALLEST_VARIANCE = 1e-6  # of standardised features
CALIBRATION_PICTURES = 512  # more would not move median and deviation by what matters
Predict = Callable[[Sequence[str]], np.ndarray]


def loss_terms(network: Any) -> tuple[Any, Any]:
    """What is trained.

    Args:
        network: of kind "cvae", from `rsna_kit.models.network.build_network`.

    Returns:
        keras.Model that shares its variables, uint8 (B, h, w, 1) → float32 (B, 2), the two terms of the loss above,
        which is their sum; and beta, a Keras variable (1, 1), 1 at first.
    """
    keras = require("keras", "train")
    ops = keras.ops
    weigh = keras.layers.Dense(
        1, use_bias=False, kernel_initializer="ones", trainable=False, dtype="float32", name="beta"
    )
    names = ("latent_mean", "latent_log_variance", "errors", "inside")
    mean, spread, errors, inside = (network.get_layer(name).output for name in names)
    values = math.prod(network.get_layer("features").output.shape[1:])
    variance = ops.maximum(ops.sum(errors) / ops.maximum(ops.sum(inside), 1), _SMALLEST_VARIANCE)
    nats = inside * (errors / variance + ops.log(2 * math.pi * variance))
    likelihood = 0.5 * ops.mean(nats, axis=(1, 2))[:, None]  # errors are means over the channels already
    divergence = 0.5 * ops.sum(ops.square(mean) + ops.exp(spread) - 1 - spread, axis=(1, 2, 3))[:, None]
    terms = ops.concatenate([likelihood, weigh(divergence) / values], axis=-1)
    return keras.Model(network.input, terms, name="cvae_trained"), weigh.kernel


def calibrate(network: Any, predict: Predict, image_ids: Sequence[str]) -> None:
    """Turn anomaly scores into logits: log-odds(prior) + (score - median) / deviation, as weights of the last layer.

    Median and deviation (the range between the quartiles over 1.349, which a normal distribution has) are those of
    healthy training pictures, so no label is used, the order of pictures stays, and a blank one changes nothing.
    The sigmoid of the result is a number in (0, 1) that a threshold can cut and an ensemble can average: an ordinary
    healthy picture gets the share of cancers among the competition's images. It is no probability of cancer.

    Args:
        network: as for `loss_terms`.
        predict: image ids → its logits, float (N,) or (N, 1), in their order.
        image_ids: healthy training pictures; at most `CALIBRATION_PICTURES` of them are scored, evenly spread.

    Raises:
        RsnaKitError: no picture, or a score that is not finite.
    """
    layer = network.get_layer("logit")
    layer.set_weights([np.ones((1, 1), np.float32), np.zeros(1, np.float32)])
    if len(image_ids) == 0:
        raise RsnaKitError("CVAE calibration: got no healthy training picture, expected at least one")
    count = min(len(image_ids), CALIBRATION_PICTURES)
    chosen = [list(image_ids)[int(row)] for row in np.linspace(0, len(image_ids) - 1, count)]
    scores = np.asarray(predict(chosen), np.float64).reshape(count, -1)[:, 0]
    if not np.isfinite(scores).all():
        bad = chosen[int(np.argmin(np.isfinite(scores)))]
        raise RsnaKitError(
            f"CVAE calibration: the score of picture {bad} is not finite, so training has diverged. Lower "
            "train.learning_rate or set train.clip_norm."
        )
    low, median, high = np.quantile(scores, [0.25, 0.5, 0.75]).tolist()
    deviation = (high - low) / 1.349
    slope = 1 / deviation if deviation > 1e-9 * max(abs(median), 1) else 1.0
    offset = math.log(PRIOR / (1 - PRIOR)) - slope * median
    layer.set_weights([np.full((1, 1), slope, np.float32), np.full(1, offset, np.float32)])
