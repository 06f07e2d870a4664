"""Losses against twins in numpy and against Keras' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rsna_kit.config import TrainConfig
from rsna_kit.runtime.errors import UsageError
from rsna_kit.training.losses import LOSSES, TARGETS_WEIGHT, build_loss, focal_cross_entropy

keras = pytest.importorskip("keras")
tensorflow = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

NAN = np.nan
RNG = np.random.default_rng(0)
CANCER = RNG.integers(0, 2, (64, 1)).astype(np.float32)
LOGITS = RNG.normal(0, 4, (64, 1)).astype(np.float32)


def twin(targets: np.ndarray, logits: np.ndarray, gamma: int = 0) -> np.ndarray:
    """Cross-entropy of each cell by its definition, in float64, with the focal factor."""
    share = 1 / (1 + np.exp(-logits.astype(np.float64)))
    right = targets * share + (1 - targets) * (1 - share)
    return -(targets * np.log(share) + (1 - targets) * np.log(1 - share)) * (1 - right) ** gamma


def gradient(loss: Callable[[Any, Any], Any], targets: np.ndarray, logits: np.ndarray) -> np.ndarray:
    variable = tensorflow.Variable(logits)
    with tensorflow.GradientTape() as tape:
        total = tensorflow.reduce_sum(loss(tensorflow.constant(targets), variable))
    return np.asarray(tape.gradient(total, variable))


def test_the_default_is_keras_binary_cross_entropy_to_the_bit() -> None:
    own = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.05, reduction=None)
    loss = build_loss(TrainConfig())
    np.testing.assert_array_equal(np.asarray(loss(CANCER, LOGITS)), np.asarray(own(CANCER, LOGITS)))
    np.testing.assert_array_equal(gradient(loss, CANCER, LOGITS), gradient(own, CANCER, LOGITS))


def test_focal_is_keras_focal_cross_entropy_and_the_papers() -> None:
    """By hand: p = 0.9 for a cancer: -log(0.9) (1 - 0.9)^2; p = 0.9 for a healthy one: -log(0.1) 0.9^2."""
    loss = build_loss(TrainConfig(loss="focal", label_smoothing=0.0))
    two = np.full((2, 1), np.log(9.0), np.float32)
    np.testing.assert_allclose(np.asarray(loss(np.array([[1.0], [0.0]]), two)), [0.00105361, 1.86509398], rtol=1e-5)
    logits = np.clip(LOGITS, -8, 8)
    got = np.asarray(loss(CANCER, logits))
    np.testing.assert_allclose(got, twin(CANCER, logits, 2)[:, 0], rtol=2e-4, atol=1e-6)
    own = keras.losses.BinaryFocalCrossentropy(gamma=2.0, from_logits=True, reduction=None)
    np.testing.assert_allclose(got, np.asarray(own(CANCER, logits)), rtol=1e-3, atol=1e-6)


def test_a_loss_of_ones_own_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "brier", lambda y, z: keras.ops.square(y - keras.ops.sigmoid(z)))
    loss = build_loss(TrainConfig(loss="brier", label_smoothing=0.0, cancer_weight=3))
    got = np.asarray(loss(np.array([[1.0], [0.0]], np.float32), np.zeros((2, 1), np.float32)))
    np.testing.assert_allclose(got, [0.75, 0.25])
    with pytest.raises(UsageError, match=r"train.loss: got 'brire', expected one of bce, focal, brier.* 'brier'"):
        build_loss(TrainConfig(loss="brire"))


def test_an_answer_that_is_far_off_is_still_corrected() -> None:
    """Keras' own gives no gradient for a logit of 30, and none of either is NaN where the answer is perfect."""
    logits = np.array([[30.0], [-30.0], [30.0], [-30.0], [100.0]], np.float32)
    wrong = np.array([[0.0], [1.0], [1.0], [0.0], [1.0]], np.float32)
    slope = gradient(focal_cross_entropy, wrong, logits)[:, 0]
    np.testing.assert_allclose(slope, [1, -1, 0, 0, 0], atol=1e-4)


def test_soft_positives_and_smoothing() -> None:
    """0.9 for a cancer, then 10 % of both go to the middle: 0.86 and 0.05."""
    loss = build_loss(TrainConfig(soft_positive=0.9, label_smoothing=0.1))
    got = np.asarray(loss(CANCER, LOGITS))
    np.testing.assert_allclose(got, twin(np.where(CANCER == 1, 0.86, 0.05), LOGITS)[:, 0], rtol=1e-5)


def test_the_weight_of_a_cancer() -> None:
    """Five times the loss of a cancer, that of a healthy picture as it is, a half mixed one in between."""
    targets, logits = np.array([[1.0], [0.0], [0.5]], np.float32), np.array([[-1.0], [0.5], [2.0]], np.float32)
    loss = build_loss(TrainConfig(cancer_weight=5, label_smoothing=0.0))
    expected = twin(targets, logits)[:, 0] * [5, 1, 3]
    np.testing.assert_allclose(np.asarray(loss(targets, logits)), expected, rtol=1e-5)


def test_further_targets_are_a_mean_over_those_that_are_there() -> None:
    targets = np.array([[1, 1, 0, NAN], [0, NAN, 1, 1], [0, NAN, NAN, NAN], [1, 0, 0, 1]], np.float32)
    logits = RNG.normal(0, 2, (4, 4)).astype(np.float32)
    loss = build_loss(TrainConfig(label_smoothing=0.0, cancer_weight=2, loss="focal"))
    further = np.array([np.nanmean(row) if i != 2 else 0.0 for i, row in enumerate(twin(targets, logits)[:, 1:])])
    expected = twin(targets[:, 0], logits[:, 0], 2) * [2, 1, 1, 2] + TARGETS_WEIGHT * further
    np.testing.assert_allclose(np.asarray(loss(targets, logits)), expected, rtol=1e-4)


def test_a_missing_target_has_no_gradient_and_spoils_none() -> None:
    targets = np.array([[1, NAN, 0], [0, NAN, NAN], [NAN, 1, 1]], np.float32)
    logits = RNG.normal(0, 2, (3, 3)).astype(np.float32)
    slope = gradient(build_loss(TrainConfig(soft_positive=0.9)), targets, logits)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(slope == 0, np.isnan(targets))


def test_a_logit_that_is_not_a_number_is_not_hidden() -> None:
    """Training stops at such a loss."""
    loss = np.asarray(build_loss(TrainConfig())(CANCER[:2], np.array([[NAN], [1.0]], np.float32)))
    assert np.isnan(loss).tolist() == [True, False]
