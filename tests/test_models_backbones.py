from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsna_kit.config import CvaeConfig, ImageConfig, ModelConfig
from rsna_kit.models.backbones import BACKBONES, HALVES, IMAGENET, LITE, Backbone, Scaling, build_backbone
from rsna_kit.models.convnext import SIZES
from rsna_kit.models.cvae import anomaly_head
from rsna_kit.models.network import build_classifier
from rsna_kit.runtime.errors import UsageError
from rsna_kit.training.cvae import loss_terms

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf


def picture(height: int = 64, width: int = 32) -> Any:
    return keras.Input((height, width, 1), dtype="uint8")


def grey(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 1), np.uint8)


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model.backbone: got 'convnext_tiy'.*Did you mean 'convnext_tiny'\?"):
        build_backbone("convnext_tiy", None)
    with pytest.raises(UsageError, match="got 64 and 31, convnext_tiny needs at least 32 pixels"):
        build_backbone("convnext_tiny", picture(64, 31))


@pytest.mark.parametrize(
    ("name", "tap", "shape", "rate"),
    [
        ("convnext_tiny", 16, (4, 2, 384), 0.2 * 14 / 17),
        ("efficientnet_b0", 16, (5, 3, 112), 0.2 * 10 / 16),
        ("efficientnet_lite2", 32, (3, 2, 1280), 0.2 * 19 / 21),  # the last block changes the width: nothing to skip
    ],
)
def test_the_map_has_the_stride_that_was_asked_for(name: str, tap: int, shape: tuple[int, ...], rate: float) -> None:
    """Literals for a picture of 70x47 (ConvNeXt does not pad: rounded down), and the last block's stochastic depth."""
    inputs = picture(70, 47)
    network = keras.Model(inputs, build_backbone(name, inputs, tap))
    assert network.output.shape == (None, *shape)
    drops = [layer for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    rates = [layer.rate for layer in drops]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(rate)
    assert {layer.noise_shape for layer in drops} == {(None, 1, 1, 1)}


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (LITE, [[-127 / 128] * 3, [0] * 3, [1] * 3]),
        (HALVES, [[-1] * 3, [-1 / 128] * 3, [127 / 128] * 3]),
        (IMAGENET, [[-2.1179, -2.0357, -1.8044], [0.0569, 0.1877, 0.4091], [2.2489, 2.4286, 2.64]]),
    ],
)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_backbone_is_one_line_and_scaling_is_done_for_it(
    scaling: Scaling, expected: list[list[float]], policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Literals: what its stem sees of the grey values 0, 127 and 255; ImageNet's are those of every tutorial."""
    mine = Backbone(lambda scaled, tap: keras.layers.AveragePooling2D(tap)(scaled), scaling)
    monkeypatch.setitem(BACKBONES, "mine", mine)  # type: ignore[arg-type]
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        network = build_classifier(ModelConfig(backbone="mine"), ImageConfig(height=32, width=32))
    finally:
        keras.config.set_dtype_policy(before)
    pictures = np.tile(np.array([0, 127, 255], np.uint8).reshape(3, 1, 1, 1), (1, 32, 32, 1))
    assert network(pictures).shape == (3, 1)
    stem = keras.Model(network.input, network.get_layer("scale").output)
    np.testing.assert_allclose(np.asarray(stem(pictures))[:, 5, 5], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "policy"),
    [("convnext_tiny", "mixed_float16"), ("efficientnetv2_b0", "mixed_bfloat16")],
)
def test_a_step_is_finite_and_a_copy_scores_alike(
    name: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built twice in one process: numbers that Keras puts into names must not matter."""
    monkeypatch.setitem(SIZES, "convnext_tiny", ((1, 1, 1, 1), 96))  # one block of each stage will do
    image, model = ImageConfig(height=32, width=32), ModelConfig(backbone=name, tap=16)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        network, copy = build_classifier(model, image), build_classifier(model, image)
    finally:
        keras.config.set_dtype_policy(before)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(1e-3)
    if policy == "mixed_float16":  # Keras' usual scale of 2 ** 15 leaves out a step or two until it has come down
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64)
    network.compile(optimizer, loss, run_eagerly=True)
    start = np.asarray(network.get_layer("logit").kernel).copy()
    assert np.isfinite(network.train_on_batch(grey(2, 32, 32), np.array([[0], [1]], np.float32)))
    assert not np.array_equal(start, network.get_layer("logit").kernel)
    assert all(np.isfinite(weight).all() for weight in network.get_weights())
    network.save_weights(tmp_path / "a.weights.h5")
    copy.load_weights(tmp_path / "a.weights.h5")
    outputs = [each(grey(2, 32, 32), training=False) for each in (network, copy)]
    assert {keras.backend.standardize_dtype(output.dtype) for output in outputs} == {"float32"}
    np.testing.assert_array_equal(*map(np.asarray, outputs))


JAX = """
import json, sys, keras, numpy as np
from rsna_kit.config import CvaeConfig, ImageConfig, ModelConfig
from rsna_kit.models.convnext import SIZES
from rsna_kit.models.cvae import anomaly_head
from rsna_kit.models.network import build_classifier
from rsna_kit.training.cvae import loss_terms
SIZES["convnext_tiny"] = (1, 1, 1, 1), 96
network = build_classifier(ModelConfig(backbone="convnext_tiny", tap=16), ImageConfig(height=32, width=32))
features = keras.Input((4, 3, 5), name="features")
cvae = keras.Model(features, anomaly_head(CvaeConfig(filters=2, latent=3), features))
maps = np.random.default_rng(1).normal(size=(2, 4, 3, 5)).astype(np.float32)
pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
network.load_weights(sys.argv[1])
cvae.load_weights(sys.argv[2])
whole = keras.Model(features, [cvae.output, loss_terms(cvae)[0].output])
found = [network.predict_on_batch(pictures), *whole.predict_on_batch(maps)]
print(json.dumps([np.ravel(outputs).tolist() for outputs in found]))
"""


@pytest.mark.slow
def test_jax_scores_as_tensorflow_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights files in a process of its own: a classifier, an autoencoder and its loss."""
    pytest.importorskip("jax")
    keras.utils.set_random_seed(2)
    monkeypatch.setitem(SIZES, "convnext_tiny", ((1, 1, 1, 1), 96))  # one block of each stage will do
    network = build_classifier(ModelConfig(backbone="convnext_tiny", tap=16), ImageConfig(height=32, width=32))
    for layer in network.layers:
        if "layer_scale" in layer.name:  # as trained ones are: every block counts
            layer.gamma.assign(np.full(layer.gamma.shape, 0.3))
    kernel = network.get_layer("logit").kernel
    kernel.assign(kernel / np.ptp(np.asarray(network(grey(2, 32, 32), training=False))))  # scores 1 apart
    features = keras.Input((4, 3, 5), name="features")
    cvae = keras.Model(features, anomaly_head(CvaeConfig(filters=2, latent=3), features))
    maps = np.random.default_rng(1).normal(size=(2, 4, 3, 5)).astype(np.float32)
    files = [str(tmp_path / f"{name}.weights.h5") for name in "ab"]
    for model, file in zip((network, cvae), files, strict=True):
        model.save_weights(file)
    scored = [network(grey(2, 32, 32), training=False), cvae(maps), loss_terms(cvae)[0](maps)]
    expected = [np.asarray(outputs).ravel().tolist() for outputs in scored]
    quickly = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-c", JAX, *files]
    run = subprocess.run(command, env=os.environ | quickly, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert abs(expected[0][0] - expected[0][1]) == pytest.approx(1, abs=1e-3)
    for got, wanted in zip(json.loads(run.stdout.splitlines()[-1]), expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-4)
