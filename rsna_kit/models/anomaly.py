"""Reconstruction errors → one anomaly score a picture, inside the breast, and its calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rsna_kit.config import PRIOR
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.lazy import require

AIR = 0.5 / 255  # a reduced pixel up to here is air
_HOLES = 5  # dark spots inside the breast that are narrower than this, in reduced pixels, belong to it
_RIM = 2  # reduced pixels along the skin that are left out
_SMALLEST = 1e-6  # of a mean standardised error: a picture that is reconstructed perfectly still has a logarithm
CALIBRATION_PICTURES = 512  # more would not move mean and deviation by what matters


def inside_breast(reduced: Any) -> Any:
    """Where the score looks: not the air, and not the skin line, which every autoencoder blurs.

    Holes are closed (a dilation, then an erosion), then a rim of two pixels is taken off. The picture's border is
    no rim: the breast goes on behind the chest wall.

    Args:
        reduced: float32 (B, h, w, 1) in [0, 1], air 0.

    Returns:
        float32 (B, h, w, 1) of 0 and 1. A picture without an inside (blank, or a breast of a few pixels) is 1
        everywhere: its score is that of the whole picture.
    """
    ops = require("keras", "train").ops
    tissue = ops.cast(reduced > AIR, "float32")
    grown = ops.max_pool(tissue, _HOLES, strides=1, padding="same")
    inside = -ops.max_pool(-grown, _HOLES + 2 * _RIM, strides=1, padding="same")
    some = ops.max(inside, axis=(1, 2, 3), keepdims=True) > 0
    return ops.where(some, inside, ops.ones_like(inside))


def anomaly_score(standardised: Any, inside: Any) -> Any:
    """How unlikely a picture is: the logarithm of its mean squared error, in units of the decoder's variance.

    The logarithm, because a few pictures have many times the error of the others: their scores would saturate, and they
    alone would set the deviation that `calibration` divides by.

    Args:
        standardised: squared error of each pixel over the variance, float32 (B, h, w, 1); twice its nats.
        inside: weights of the pixels, (B, h, w, 1).

    Returns:
        float32 (B, 1): log(sum inside * standardised / sum inside), at least log(1e-6).
    """
    ops = require("keras", "train").ops
    mean = ops.sum(inside * standardised, axis=(1, 2)) / ops.sum(inside, axis=(1, 2))
    return ops.log(ops.maximum(mean, _SMALLEST))


def calibration(predict: Callable[[Sequence[str]], np.ndarray], image_ids: Sequence[str]) -> tuple[float, float]:
    """Slope and offset that turn anomaly scores into logits: log-odds(prior) + (score - mean) / deviation.

    Mean and deviation are those of healthy training pictures, so no label is used and the order of pictures stays.
    The sigmoid of the result is a number in (0, 1) that a threshold can cut and an ensemble can average: an ordinary
    healthy picture gets the share of cancers among the competition's images. It is no probability of cancer.

    Args:
        predict: image ids → anomaly scores, float (N,) or (N, 1), in their order.
        image_ids: healthy training pictures; at most `CALIBRATION_PICTURES` of them are scored, evenly spread.

    Returns:
        slope, offset. The slope is 1 where all scores are equal.

    Raises:
        RsnaKitError: no picture, or a score that is not finite.
    """
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
    mean, deviation = float(scores.mean()), float(scores.std())
    slope = 1 / deviation if deviation > 1e-9 * max(abs(mean), 1) else 1.0
    return slope, math.log(PRIOR / (1 - PRIOR)) - slope * mean
