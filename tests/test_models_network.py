from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rsna_kit.config import Config, ImageConfig, ModelConfig, with_overrides
from rsna_kit.models.network import build_classifier, split_classifier

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf

SMALL = ImageConfig(height=64, width=32)


def grey(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 1), np.uint8)


@pytest.fixture(scope="module")
def model() -> Any:
    keras.utils.set_random_seed(0)
    return build_classifier(ModelConfig(), ImageConfig(height=70, width=52))


def test_input_and_output_are_as_promised(model: Any) -> None:
    assert (model.input_shape, model.input.dtype) == ((None, 70, 52, 1), "uint8")
    assert (model.output_shape, model.output.dtype) == ((None, 1), "float32")
    assert model.count_params() == 3_414_305 + 6  # Lite0 as published, its 1000 classes replaced by one; scaling
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {(layer.trainable, layer.momentum, layer.epsilon) for layer in norms} == {(True, 0.9, 1e-3)}


def test_a_frozen_trunk_leaves_only_the_head_to_learn() -> None:
    network = build_classifier(
        ModelConfig(backbone="efficientnetv2_b0", tap=16, head="conv", pool="avgmax", trunk="frozen"), SMALL
    )
    assert [weight.path for weight in network.trainable_weights] == [
        "head_norm/gamma",
        "head_norm/beta",
        "head_conv1/kernel",
        "head_conv1/bias",
        "head_conv2/kernel",
        "head_conv2/bias",
        "logit/kernel",
        "logit/bias",
    ]
    trunk, _ = split_classifier(network)  # without stochastic depth, or it would score other maps than it learned
    pictures = grey(2, 64, 32)
    np.testing.assert_array_equal(np.asarray(trunk(pictures, training=True)), np.asarray(trunk(pictures)))


@pytest.mark.parametrize(("head", "tap"), [("linear", 32), ("residual", 16)])
def test_two_halves_make_the_whole(tiny: Config, head: str, tap: int) -> None:
    network = build_classifier(with_overrides(tiny, [f"model.head={head}", f"model.tap={tap}"]).model, SMALL)
    trunk, top = split_classifier(network)
    assert trunk.output.shape[1:3] == (64 // tap, 32 // tap)
    pictures = grey(2, 64, 32)
    expected = np.asarray(network(pictures, training=False))
    found = np.asarray(top(np.asarray(trunk(pictures, training=False)), training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert {id(weight) for weight in network.weights} == {id(weight) for weight in [*trunk.weights, *top.weights]}
