from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rsna_kit.config import ImageConfig, ModelConfig
from rsna_kit.models.classifier import build_classifier, split_classifier

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
    assert model.count_params() == 3_413_729


def test_scaling_is_inside_the_network(model: Any) -> None:
    """Literal: 0, 127 and 255 become -127/128, 0 and 1."""
    values = np.array([0, 127, 255], np.uint8).reshape(1, 1, 3, 1)
    assert np.asarray(model.get_layer("scale")(values)).ravel().tolist() == [-127 / 128, 0.0, 1.0]


def test_weights_files_fit_both_builders(model: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle trained with JAX alone is scored with TensorFlow and keras-cv."""
    path = str(tmp_path / "a.weights.h5")
    model.save_weights(path)
    monkeypatch.setitem(__import__("sys").modules, "keras_cv.models", None)
    other = build_classifier(ModelConfig(), ImageConfig(height=70, width=52))
    assert not any(layer.name.endswith("_pad") for layer in other.layers)
    other.load_weights(path)
    outputs = [np.asarray(network(grey(2, 70, 52), training=False)) for network in (model, other)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("choice", "trainable"), [("train", True), ("frozen", False)])
def test_normalisation_follows_or_stays(choice: str, trainable: bool) -> None:
    network = build_classifier(ModelConfig(batch_norm=choice), SMALL)
    layers = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(layers) == 49
    assert {(layer.trainable, layer.momentum, layer.epsilon) for layer in layers} == {(trainable, 0.9, 1e-3)}


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnetv2_b0", "convnext_tiny"])
def test_a_frozen_trunk_leaves_only_the_head_to_learn(name: str) -> None:
    network = build_classifier(ModelConfig(backbone=name, tap=16, head="conv", pool="gem", trunk="frozen"), SMALL)
    assert [weight.path for weight in network.trainable_weights] == [
        "head_norm/gamma", "head_norm/beta", "head_conv1/kernel", "head_conv1/bias", "head_conv2/kernel",
        "head_conv2/bias", "pool/exponent", "logit/kernel", "logit/bias",
    ]  # fmt: skip


def test_the_smoke_network_is_what_it_was() -> None:
    """Literals of the network whose bundles and figures are published: layers behind the map, and parameters."""
    network = build_classifier(ModelConfig(tap=16, head="conv", pool="avgmax"), SMALL)
    assert network.count_params() == 919_873
    names = [layer.name for layer in network.layers]
    assert names[names.index("block5c_add") + 1 :] == [
        "head_norm", "head_conv1", "head_drop", "head_conv2", "head_max", "head_mean", "head_join", "dropout", "logit",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(),
        ModelConfig(tap=16, head="conv", pool="avgmax"),
        ModelConfig(tap=16, pool="avgmax"),
        ModelConfig(backbone="convnext_tiny", tap=16, head="residual", pool="gem"),
    ],
    ids=lambda model: f"{model.backbone}-{model.head}-{model.pool}",
)
def test_two_halves_make_the_whole(model: ModelConfig) -> None:
    network = build_classifier(model, SMALL, extra=2)
    assert network.output_shape == (None, 3)
    trunk, head = split_classifier(network, model)
    assert trunk.output.shape[1:3] == (64 // model.tap, 32 // model.tap)
    pictures = grey(2, 64, 32)
    expected = np.asarray(network(pictures, training=False))
    found = np.asarray(head(np.asarray(trunk(pictures, training=False)), training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert {id(weight) for weight in network.weights} == {id(weight) for weight in [*trunk.weights, *head.weights]}
