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
from rsna_kit.models.backbones import BACKBONES, build_backbone
from rsna_kit.models.classifier import build_classifier
from rsna_kit.models.lite import lite_from_layers, repeats
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


def test_the_registry_names_every_family_and_size() -> None:
    assert list(BACKBONES) == [
        "convnext_tiny", "convnext_small",
        "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4",
        "efficientnetv2_b0", "efficientnetv2_b1", "efficientnetv2_b2", "efficientnetv2_b3", "efficientnetv2_s",
        "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2",
    ]  # fmt: skip
    assert [name for name, found in BACKBONES.items() if found.plane] == list(BACKBONES)[2:11]


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
    [("efficientnet_lite0", [[-127 / 128], [0], [1]]), ("efficientnetv2_s", [[-1], [-1 / 128], [127 / 128]])]
    + [(name, [[-1, 1], [-1 / 128, 1], [127 / 128, 1]]) for name in ("efficientnet_b0", "efficientnetv2_b0")],
)
def test_scaling_is_inside_the_network(name: str, expected: list[list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Literals: what the stem sees for the grey values 0, 127 and 255."""
    seen = {}

    def build(scaled: Any, tap: int, drop_path: float) -> Any:
        seen["stem"] = scaled
        return scaled

    entry = BACKBONES[name]
    fake = type(entry)(entry.family, entry.stock, entry.centre, entry.plane, build)
    monkeypatch.setattr("rsna_kit.models.backbones.BACKBONES", {name: fake})
    inputs = picture(32, 32)
    build_backbone(name, inputs)
    pictures = np.tile(np.array([0, 127, 255], np.uint8).reshape(3, 1, 1, 1), (1, 32, 32, 1))
    stem = np.asarray(keras.Model(inputs, seen["stem"])(pictures))
    assert stem[:, 5, 5].tolist() == expected


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnetv2_b0"])
def test_the_copy_computes_what_the_stock_network_computes(name: str) -> None:
    """Twin: keras.applications' own graph with the same weights, by layer name. An odd and an even side."""
    inputs = picture(45, 64)
    network = keras.Model(inputs, build_backbone(name, inputs))
    randomise(network)
    scaled = network.get_layer("picture_and_ones").output
    options = {"include_preprocessing": False} if "v2" in name else {}
    stock = getattr(keras.applications, BACKBONES[name].stock)(
        include_top=False, weights=None, input_tensor=keras.Input(scaled.shape[1:]), **options
    )
    taken = [layer for layer in stock.layers if layer.weights and "normalization" not in layer.name]
    for layer in taken:
        layer.set_weights(network.get_layer(layer.name).get_weights())
    assert sum(len(layer.weights) for layer in taken) == sum("seed" not in w.path for w in network.weights)
    values = np.asarray(keras.Model(inputs, scaled)(grey(2, 45, 64)))
    expected = np.asarray(stock([values if options else values * 255], training=False))
    found = np.asarray(network(grey(2, 45, 64), training=False))
    assert np.std(expected, axis=0).mean() > 0.05 * np.abs(expected).mean()  # it tells pictures apart
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    rates = [
        {layer.name: layer.rate for layer in each.layers if isinstance(layer, keras.layers.Dropout)}
        for each in (network, stock)
    ]
    assert rates[0] == pytest.approx(rates[1])


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("convnext_tiny", 0.5 / 17, 0.5),  # 18 blocks, from 0 to the whole rate
        ("efficientnetv2_b0", 0.5 * 2 / 21, 0.5 * 20 / 21),  # 21 blocks; the first two change the width
        ("efficientnet_lite1", 0.5 * 2 / 21, 0.5 * 19 / 21),  # 21 blocks; the first two and the last change the width
    ],
)
def test_stochastic_depth_grows_from_block_to_block(name: str, first: float, last: float) -> None:
    """Literals; a block that changes the width has nothing to skip."""
    inputs = picture()
    layers = keras.Model(inputs, build_backbone(name, inputs, 32, drop_path=0.5)).layers
    rates = [layer.rate for layer in layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (pytest.approx(first), pytest.approx(last))
    assert {layer.noise_shape for layer in layers if isinstance(layer, keras.layers.Dropout)} == {(None, 1, 1, 1)}


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0", "efficientnet_lite0"])
def test_no_stochastic_depth_when_it_is_switched_off(name: str) -> None:
    inputs = picture()
    layers = keras.Model(inputs, build_backbone(name, inputs, 16, drop_path=0.0)).layers
    assert not [layer.name for layer in layers if isinstance(layer, keras.layers.Dropout) and layer.rate > 0]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("efficientnet_lite0", (64, 32)),
        ("efficientnet_lite0", (70, 52)),
        ("efficientnet_lite0", (33, 47)),
        ("efficientnet_lite1", (33, 64)),
        ("efficientnet_lite2", (33, 64)),
    ],
)
def test_both_lite_builders_make_the_same_network(name: str, size: tuple[int, int]) -> None:
    """Twin: keras-cv pads by hand where core layers say "same"; odd and even sizes must agree."""
    pytest.importorskip("keras_cv")
    inputs = [picture(*size), keras.Input((*size, 1))]
    ends = [build_backbone(name, inputs[0], 32, 0.3), lite_from_layers(name, inputs[1], 32, 0.3)]
    first, second = (keras.Model(*pair) for pair in zip(inputs, ends, strict=True))
    layers = [layer for layer in first.layers if not layer.name.endswith("_pad")][2:]  # without input and scale
    assert [layer.name for layer in layers] == [layer.name for layer in second.layers[1:]]
    for ours, theirs in zip(second.layers[1:], layers, strict=True):
        assert getattr(ours, "rate", 0) == pytest.approx(getattr(theirs, "rate", 0))
    randomise(first)
    second.set_weights(first.get_weights())
    pictures = grey(1, *size)
    found = np.asarray(second((pictures - np.float32(127)) / 128, training=False))
    expected = np.asarray(first(pictures, training=False))
    assert expected.shape[1:3] == (-(-size[0] // 32), -(-size[1] // 32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_lite_grows_in_depth_but_for_its_first_and_last_stage() -> None:
    """Literals of the published models (tensorflow/tpu, efficientnet_lite_builder)."""
    assert repeats("efficientnet_lite0") == [1, 2, 2, 3, 3, 4, 1]
    assert repeats("efficientnet_lite1") == [1, 3, 3, 4, 4, 5, 1]
    assert repeats("efficientnet_lite2") == [1, 3, 3, 4, 4, 5, 1]


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("convnext_tiny", "float32"),
        ("convnext_tiny", "mixed_float16"),
        ("efficientnet_b0", "mixed_float16"),
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
from rsna_kit.models.classifier import build_classifier
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
