from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rsna_kit.models.backbones import build_backbone
from rsna_kit.models.convnext import layer_scale

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf


@pytest.mark.slow
def test_feature_maps_equal_those_of_the_stock_network() -> None:
    """Twin: keras.applications' grouped convolutions, with transposed depthwise kernels. 40 is no multiple of 32."""
    inputs = keras.Input((64, 40, 1), dtype="uint8")
    network = keras.Model(inputs, build_backbone("convnext_tiny", inputs))
    stock = keras.applications.ConvNeXtTiny(
        include_top=False, weights=None, input_shape=(64, 40, 1), include_preprocessing=False
    )
    rng = np.random.default_rng(0)
    there = dict(_named(stock))
    for layer in network.layers:
        if not layer.weights or isinstance(layer, keras.layers.Dropout):
            continue
        values = [rng.normal(0.0, 0.5, w.shape) / np.sqrt(max(np.prod(w.shape[:-1]), 4)) for w in layer.weights]
        layer.set_weights(values)
        if layer.name.endswith("_depthwise_conv"):
            values[0] = values[0].transpose(0, 1, 3, 2)
        there.pop("last" if layer.name == "convnext_tiny_head_layernorm" else layer.name).set_weights(values)
    assert not there
    picture = rng.integers(0, 256, (1, 64, 40, 1), np.uint8)
    found = np.asarray(network(picture, training=False))
    expected = np.asarray(stock((picture - np.float32(128)) / 128, training=False))
    assert found.shape == (1, 2, 1, 768)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def _named(model: Any) -> Any:
    """Every layer with weights, those inside nested models too; the last normalisation as `last`."""
    for layer in model.layers:
        if isinstance(layer, keras.Sequential):
            yield from _named(layer)
        elif layer.weights and "stochastic" not in layer.name:
            yield ("last" if layer.name.startswith("layer_normalization") else layer.name), layer


def test_layer_scale_multiplies_each_channel() -> None:
    layer = layer_scale()()
    assert np.asarray(layer(np.ones((1, 2, 2, 3), np.float32))).ravel().tolist() == [np.float32(1e-6)] * 12
    layer.gamma.assign([1.0, 2.0, -3.0])
    assert np.asarray(layer(np.full((1, 1, 1, 3), 2.0, np.float32))).ravel().tolist() == [2.0, 4.0, -6.0]


def test_a_dropped_block_leaves_the_picture_as_it_was() -> None:
    """In training a block is left out for a whole picture or kept and weighed up; at inference it is always kept."""
    network = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Dropout(0.5, noise_shape=(None, 1, 1, 1))])
    ones = np.ones((64, 2, 2, 1), np.float32)
    kept = np.asarray(network(ones, training=True)).reshape(64, 4)
    assert (kept == kept[:, :1]).all()
    assert set(kept[:, 0].tolist()) == {0.0, 2.0}
    assert (np.asarray(network(ones, training=False)) == 1).all()
