from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsna_kit.config import ImageConfig, ModelConfig
from rsna_kit.models.backbones import build_backbone
from rsna_kit.models.network import build_classifier
from rsna_kit.runtime.errors import UsageError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf


def picture(height: int = 64, width: int = 32) -> Any:
    return keras.Input((height, width, 1), dtype="uint8")


def grey(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 1), np.uint8)


def randomise(network: Any) -> None:
    """Weights and statistics of no special value, so that a layer left out or swapped shows."""
    rng = np.random.default_rng(1)
    for weight in network.weights:
        name = weight.path.rpartition("/")[2]
        if "kernel" in name:
            inputs = weight.shape[:2] if weight.shape[-1] == 1 else weight.shape[:-1]  # depthwise: its channel alone
            weight.assign(rng.normal(0, 1.5, weight.shape) / np.sqrt(np.prod(inputs)))
        elif name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif "seed" not in name:
            weight.assign(rng.normal(0, 0.1, weight.shape))


def test_an_unknown_backbone_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"model.backbone: got 'convnext_tiy'.*Did you mean 'convnext_tiny'\?"):
        build_backbone("convnext_tiy", None)


def test_pictures_that_are_too_small_and_other_strides_are_refused() -> None:
    with pytest.raises(UsageError, match="got 64 and 31, convnext_tiny needs at least 32 pixels"):
        build_backbone("convnext_tiny", picture(64, 31))
    with pytest.raises(UsageError, match=r"model.tap: got 8, expected 32 or 16"):
        build_backbone("convnext_tiny", picture(), tap=8)


@pytest.mark.parametrize(
    ("name", "tap", "shape"),
    [
        ("convnext_tiny", 32, (2, 1, 768)),
        ("convnext_tiny", 16, (4, 2, 384)),
        ("efficientnet_b0", 16, (5, 3, 112)),
        ("efficientnetv2_b0", 16, (5, 3, 112)),
        ("efficientnet_lite0", 16, (5, 3, 112)),
        ("efficientnet_lite2", 16, (5, 3, 120)),
        ("efficientnet_lite2", 32, (3, 2, 1280)),
    ],
)
def test_the_map_has_the_stride_that_was_asked_for(name: str, tap: int, shape: tuple[int, int, int]) -> None:
    """Literals for a picture of 70x47: ConvNeXt does not pad, so its maps are rounded down."""
    assert build_backbone(name, picture(70, 47), tap).shape == (None, *shape)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficientnet_lite0", [[-127 / 128] * 3, [0] * 3, [1] * 3]),
        ("efficientnetv2_s", [[-1] * 3, [-1 / 128] * 3, [127 / 128] * 3]),
        ("convnext_tiny", [[-2.1179, -2.0357, -1.8044], [0.0569, 0.1877, 0.4091], [2.2489, 2.4286, 2.64]]),
    ],
)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_scaling_is_inside_the_network(name: str, expected: list[list[float]], policy: str) -> None:
    """Literals: what the stem sees of the grey values 0, 127 and 255; ImageNet's are those of every tutorial."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        inputs = picture(32, 32)
        network = keras.Model(inputs, build_backbone(name, inputs, 16))
    finally:
        keras.config.set_dtype_policy(before)
    stem = keras.Model(inputs, network.get_layer("scale").output)
    pictures = np.tile(np.array([0, 127, 255], np.uint8).reshape(3, 1, 1, 1), (1, 32, 32, 1))
    np.testing.assert_allclose(np.asarray(stem(pictures))[:, 5, 5], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("convnext_tiny", 0.2 / 17, 0.2),  # 18 blocks, from 0 to the whole rate
        ("efficientnetv2_b0", 0.2 * 2 / 21, 0.2 * 20 / 21),  # 21 blocks; the first two change the width
        ("efficientnet_lite1", 0.2 * 2 / 21, 0.2 * 19 / 21),  # 21 blocks; the first two and the last change the width
    ],
)
def test_stochastic_depth_grows_from_block_to_block(name: str, first: float, last: float) -> None:
    """Literals; a block that changes the width has nothing to skip."""
    inputs = picture()
    layers = keras.Model(inputs, build_backbone(name, inputs)).layers
    rates = [layer.rate for layer in layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (pytest.approx(first), pytest.approx(last))
    assert {layer.noise_shape for layer in layers if isinstance(layer, keras.layers.Dropout)} == {(None, 1, 1, 1)}


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("convnext_tiny", "mixed_float16"),
        ("efficientnetv2_b0", "mixed_bfloat16"),
        ("efficientnet_lite0", "float32"),
    ],
)
def test_a_step_is_finite_and_a_copy_scores_alike(name: str, policy: str, tmp_path: Path) -> None:
    """Built twice in one process: numbers that Keras puts into names must not matter."""
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
import json, sys, numpy as np
from rsna_kit.config import ImageConfig, ModelConfig
from rsna_kit.models.network import build_classifier
scores = {}
for name in sys.argv[2:]:
    network = build_classifier(ModelConfig(backbone=name, tap=16), ImageConfig(height=32, width=32))
    network.load_weights(f"{sys.argv[1]}/{name}.weights.h5")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    scores[name] = np.asarray(network(pictures, training=False)).ravel().tolist()
print(json.dumps(scores))
"""


@pytest.mark.slow
def test_jax_scores_as_tensorflow_does(tmp_path: Path) -> None:
    """The same weights files in a process of its own; the other backbones: scripts/prove-backbones."""
    pytest.importorskip("jax")
    names, expected = ["convnext_tiny"], {}
    for name in names:
        network = build_classifier(ModelConfig(backbone=name, tap=16), ImageConfig(height=32, width=32))
        randomise(network)
        kernel = network.get_layer("logit").kernel
        kernel.assign(kernel / np.ptp(np.asarray(network(grey(2, 32, 32), training=False))))  # scores 1 apart
        network.save_weights(tmp_path / f"{name}.weights.h5")
        expected[name] = np.asarray(network(grey(2, 32, 32), training=False)).ravel().tolist()
    run = subprocess.run(
        [sys.executable, "-c", JAX, str(tmp_path), *names],
        env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    for name in names:
        assert abs(expected[name][0] - expected[name][1]) == pytest.approx(1, abs=1e-3)
        assert found[name] == pytest.approx(expected[name], abs=1e-4)
