from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsna_kit.config import ModelConfig
from rsna_kit.models.heads import make_head

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf

MAPS = np.random.default_rng(0).normal(size=(3, 4, 2, 6)).astype(np.float32)


def head(model: ModelConfig) -> Any:
    keras.utils.set_random_seed(0)
    features = keras.Input(MAPS.shape[1:])
    return keras.Model(features, make_head(model)(features))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("avg", MAPS.mean(axis=(1, 2))),
        ("max", MAPS.max(axis=(1, 2))),
        ("avgmax", np.concatenate([MAPS.max(axis=(1, 2)), MAPS.mean(axis=(1, 2))], axis=1)),
    ],
)
def test_pooling(pool: str, expected: np.ndarray) -> None:
    """Twin in NumPy, up to the pooled features."""
    network = head(ModelConfig(pool=pool))
    pooled = keras.Model(network.input, network.get_layer("dropout").input)
    np.testing.assert_allclose(np.asarray(pooled(MAPS)), expected, rtol=1e-5, atol=1e-6)


def test_the_residual_head_computes_two_pre_activation_blocks() -> None:
    """Twin in NumPy with 1x1-like kernels (only the centre tap is not zero)."""
    network = head(ModelConfig(head="residual"))
    rng = np.random.default_rng(3)

    def normalised(values: np.ndarray, name: str) -> np.ndarray:
        gamma, beta, mean, variance = (np.asarray(w) for w in network.get_layer(name).weights)
        return np.maximum((values - mean) / np.sqrt(variance + 1e-3) * gamma + beta, 0)

    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.weights])
        if layer.name.endswith(("conv1", "conv2")):
            kernel = np.zeros(layer.kernel.shape, np.float32)
            kernel[1, 1] = rng.normal(0, 0.1, kernel.shape[2:])
            layer.set_weights([kernel])
    names = [f"head_block{block}_conv{number}" for block in (1, 2) for number in (1, 2)]
    centre = {name: np.asarray(network.get_layer(name).kernel)[1, 1] for name in names}
    first = normalised(MAPS, "head_block1_norm1")
    shortcut = first @ np.asarray(network.get_layer("head_block1_shortcut").kernel)[0, 0]
    inner = normalised(first @ centre["head_block1_conv1"], "head_block1_norm2") @ centre["head_block1_conv2"]
    tensor = shortcut + inner
    inner = normalised(tensor, "head_block2_norm1") @ centre["head_block2_conv1"]
    tensor = tensor + normalised(inner, "head_block2_norm2") @ centre["head_block2_conv2"]
    pooled = normalised(tensor, "head_norm").mean(axis=(1, 2))
    kernel, bias = (np.asarray(w) for w in network.get_layer("logit").weights)
    np.testing.assert_allclose(np.asarray(network(MAPS)), pooled @ kernel + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "pool"), [("linear", "avg"), ("conv", "avgmax"), ("residual", "max")])
def test_every_head_learns_saves_and_reloads(kind: str, pool: str, tmp_path: Path) -> None:
    model = ModelConfig(head=kind, pool=pool)
    network, copy = head(model), head(model)
    network.compile(keras.optimizers.SGD(0.1), keras.losses.BinaryCrossentropy(from_logits=True), run_eagerly=True)
    start = [np.array(weight) for weight in network.trainable_weights]
    network.train_on_batch(MAPS, np.array([[0], [1], [1]], np.float32))
    for before, weight in zip(start, network.trainable_weights, strict=True):
        assert np.isfinite(weight).all(), weight.path
        assert not np.array_equal(before, weight), f"{weight.path} did not learn"
    network.save_weights(tmp_path / "a.weights.h5")
    copy.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(np.asarray(copy(MAPS)), np.asarray(network(MAPS)))


def test_pooling_is_float32_under_a_mixed_policy() -> None:
    """Literal: 1024 cells of 100 add up to more than float16 holds."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        features = keras.Input((32, 32, 1))
        for pool in ("avg", "max", "avgmax"):
            model = ModelConfig(pool=pool)
            network = keras.Model(features, make_head(model)(features))
            pooled = keras.Model(features, network.get_layer("dropout").input)
            values = np.asarray(pooled(np.full((1, 32, 32, 1), 100, np.float16)))
            assert (values.dtype, network.output.dtype) == (np.float32, "float32")
            np.testing.assert_allclose(values, 100, rtol=1e-5)
    finally:
        keras.config.set_dtype_policy(before)
