from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsna_kit.config import ModelConfig
from rsna_kit.models.heads import apply_head, first_layer, generalised_mean, head_layers

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf

MAPS = np.random.default_rng(0).normal(size=(3, 4, 2, 6)).astype(np.float32)


def head(model: ModelConfig, extra: int = 0) -> Any:
    keras.utils.set_random_seed(0)
    features = keras.Input(MAPS.shape[1:])
    return keras.Model(features, apply_head(model, features, head_layers(model, extra).__getitem__, extra))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("avg", MAPS.mean(axis=(1, 2))),
        ("max", MAPS.max(axis=(1, 2))),
        ("avgmax", np.concatenate([MAPS.max(axis=(1, 2)), MAPS.mean(axis=(1, 2))], axis=1)),
        ("gem", np.cbrt((np.maximum(MAPS.astype(np.float64), 1e-6) ** 3).mean(axis=(1, 2)))),
    ],
)
def test_pooling(pool: str, expected: np.ndarray) -> None:
    """Twin in NumPy, up to the pooled features."""
    network = head(ModelConfig(pool=pool))
    pooled = keras.Model(network.input, network.get_layer("dropout").input)
    np.testing.assert_allclose(np.asarray(pooled(MAPS)), expected, rtol=1e-5, atol=1e-6)


def test_generalised_mean_by_hand() -> None:
    """Literal: of 1 and 3 with exponent 2, sqrt(5); below exponent 1 it stays the average."""
    layer = generalised_mean()()
    values = np.array([1.0, 3.0], np.float32).reshape(1, 2, 1, 1)
    layer(values)
    for exponent, expected in ((2.0, 5**0.5), (1.0, 2.0), (0.2, 2.0), (500.0, 3.0 * 0.5 ** (1 / 500))):
        layer.exponent.assign(exponent)
        assert np.asarray(layer(values)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("values", [np.zeros((1, 8, 8, 2)), np.full((1, 8, 8, 2), 1e4), MAPS[:1] * 1e3])
def test_generalised_mean_learns_from_any_map(values: np.ndarray) -> None:
    """Gradients stay finite where a naive power leaves float32: 1e-6 ** 12 is 0, 1e4 ** 12 is infinite."""
    tf = pytest.importorskip("tensorflow")
    layer = generalised_mean()()
    maps = tf.constant(values, tf.float32)
    layer(maps)
    layer.exponent.assign(12.0)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        pooled = layer(maps)
    gradients = tape.gradient(pooled, [maps, layer.exponent.value])
    assert all(np.isfinite(gradient).all() for gradient in (pooled, *gradients))


def test_generalised_mean_learns_its_exponent() -> None:
    """The gradient against a difference quotient."""
    tf = pytest.importorskip("tensorflow")
    layer = generalised_mean()()
    layer(MAPS)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(MAPS))
    gradient = tape.gradient(total, layer.exponent.value)
    sums = []
    for exponent in (3.01, 2.99):
        layer.exponent.assign(exponent)
        sums.append(np.asarray(layer(MAPS), np.float64).sum())
    assert float(gradient) == pytest.approx((sums[0] - sums[1]) / 0.02, rel=1e-2)
    assert float(gradient) > 0.1


def test_the_convolutional_head_is_built_of_these_layers() -> None:
    """Literal: names and order, which the weights of earlier bundles follow."""
    names = [layer.name for layer in head(ModelConfig(head="conv", pool="avgmax")).layers[1:]]
    assert names == [
        "head_norm", "head_conv1", "head_drop", "head_conv2", "head_max", "head_mean", "head_join", "dropout", "logit",
    ]  # fmt: skip
    assert [layer.name for layer in head(ModelConfig()).layers[1:]] == ["pool", "dropout", "logit"]


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
    centre = {name: np.asarray(network.get_layer(name).kernel)[1, 1] for name in (
        "head_block1_conv1", "head_block1_conv2", "head_block2_conv1", "head_block2_conv2")}  # fmt: skip
    first = normalised(MAPS, "head_block1_norm1")
    shortcut = first @ np.asarray(network.get_layer("head_block1_shortcut").kernel)[0, 0]
    inner = normalised(first @ centre["head_block1_conv1"], "head_block1_norm2") @ centre["head_block1_conv2"]
    tensor = shortcut + inner
    inner = normalised(tensor, "head_block2_norm1") @ centre["head_block2_conv1"]
    tensor = tensor + normalised(inner, "head_block2_norm2") @ centre["head_block2_conv2"]
    pooled = normalised(tensor, "head_norm").mean(axis=(1, 2))
    kernel, bias = (np.asarray(w) for w in network.get_layer("logit").weights)
    np.testing.assert_allclose(np.asarray(network(MAPS)), pooled @ kernel + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "conv", "residual"])
@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "gem"])
def test_every_head_learns_saves_and_reloads(kind: str, pool: str, tmp_path: Path) -> None:
    model = ModelConfig(head=kind, pool=pool)
    network, copy = head(model), head(model)
    assert network.layers[1].name == first_layer(model) or kind == "residual"
    network.compile(keras.optimizers.SGD(0.1), keras.losses.BinaryCrossentropy(from_logits=True), run_eagerly=True)
    start = [np.array(weight) for weight in network.trainable_weights]
    network.train_on_batch(MAPS, np.array([[0], [1], [1]], np.float32))
    for before, weight in zip(start, network.trainable_weights, strict=True):
        assert np.isfinite(weight).all(), weight.path
        assert not np.array_equal(before, weight), f"{weight.path} did not learn"
    network.save_weights(tmp_path / "a.weights.h5")
    copy.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(np.asarray(copy(MAPS)), np.asarray(network(MAPS)))


def test_further_outputs_stand_behind_the_logit() -> None:
    network = head(ModelConfig(), extra=2)
    assert network.output_shape == (None, 3)
    outputs = np.asarray(network(MAPS))
    pooled = MAPS.mean(axis=(1, 2))
    for name, columns in (("logit", outputs[:, :1]), ("extra", outputs[:, 1:])):
        kernel, bias = (np.asarray(w) for w in network.get_layer(name).weights)
        np.testing.assert_allclose(columns, pooled @ kernel + bias, rtol=1e-5, atol=1e-6)


def test_pooling_is_float32_under_a_mixed_policy() -> None:
    """Literal: 1024 cells of 100 add up to more than float16 holds."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        features = keras.Input((32, 32, 1))
        for pool in ("avg", "max", "avgmax", "gem"):
            model = ModelConfig(pool=pool)
            network = keras.Model(features, apply_head(model, features, head_layers(model, 0).__getitem__, 0))
            pooled = keras.Model(features, network.get_layer("dropout").input)
            values = np.asarray(pooled(np.full((1, 32, 32, 1), 100, np.float16)))
            assert (values.dtype, network.output.dtype) == (np.float32, "float32")
            np.testing.assert_allclose(values, 100, rtol=1e-5)
    finally:
        keras.config.set_dtype_policy(before)
