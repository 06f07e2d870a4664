from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rsna_kit.config import ImageConfig, ModelConfig
from rsna_kit.models.classifier import build_backbone, build_classifier, lite0_from_layers
from rsna_kit.runtime.errors import UsageError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf


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
    grey = np.array([0, 127, 255], np.uint8).reshape(1, 1, 3, 1)
    assert np.asarray(model.get_layer("scale")(grey)).ravel().tolist() == [-127 / 128, 0.0, 1.0]


@pytest.mark.parametrize("size", [(64, 32), (70, 52), (33, 47)])
def test_both_builders_make_the_same_network(size: tuple[int, int]) -> None:
    """Twin: keras-cv pads by hand where core layers say "same"; odd and even sizes must agree."""
    pytest.importorskip("keras_cv")
    inputs = [keras.Input((*size, 1)) for _ in range(2)]
    first = keras.Model(inputs[0], build_backbone("efficientnet_lite0", inputs[0]))
    second = keras.Model(inputs[1], lite0_from_layers(inputs[1]))
    names = [layer.name for layer in first.layers if not layer.name.endswith("_pad")]
    assert names[1:] == [layer.name for layer in second.layers][1:]
    rng = np.random.default_rng(0)
    weights = [np.abs(rng.normal(0.1, 0.3, weight.shape)).astype(np.float32) for weight in first.weights]
    for network in (first, second):
        network.set_weights(weights)
    picture = rng.normal(size=(1, *size, 1)).astype(np.float32)
    outputs = [np.asarray(network(picture, training=False)) for network in (first, second)]
    assert outputs[0].shape[1:3] == (-(-size[0] // 32), -(-size[1] // 32))
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


def test_weights_files_fit_both_builders(model: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle trained with JAX alone is scored with TensorFlow and keras-cv."""
    path = str(tmp_path / "a.weights.h5")
    model.save_weights(path)
    monkeypatch.setitem(__import__("sys").modules, "keras_cv.models", None)
    other = build_classifier(ModelConfig(), ImageConfig(height=70, width=52))
    assert not any(layer.name.endswith("_pad") for layer in other.layers)
    other.load_weights(path)
    picture = np.random.default_rng(0).integers(0, 256, (2, 70, 52, 1), np.uint8)
    outputs = [np.asarray(network(picture, training=False)) for network in (model, other)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("choice", "trainable"), [("train", True), ("frozen", False)])
def test_normalisation_follows_or_stays(choice: str, trainable: bool) -> None:
    network = build_classifier(ModelConfig(batch_norm=choice), ImageConfig(height=64, width=32))
    layers = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(layers) == 49
    assert {(layer.trainable, layer.momentum, layer.epsilon) for layer in layers} == {(trainable, 0.9, 1e-3)}


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model.backbone: got 'resnet'"):
        build_backbone("resnet", None)
