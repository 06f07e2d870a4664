"""LiteRT and OpenVINO against Keras: same weights and pictures, same outputs; what cannot work is said at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rsna_kit.config import Config
from rsna_kit.models.classifier import build_classifier
from rsna_kit.models.ensemble import score_difference
from rsna_kit.models.runtimes import RUNTIMES, TOLERANCE, check_runtime, compile_for
from rsna_kit.models.weights import load_start
from rsna_kit.runtime.errors import MissingDependencyError, UsageError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf

PACKAGES = {"litert": "ai_edge_litert", "openvino": "openvino"}
BATCH = 2


def pictures(height: int, width: int, count: int = BATCH) -> np.ndarray:
    """Smooth blobs with noise, dark at the right as a mammogram is."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    blobs = [
        np.exp(-((rows - row) ** 2 + columns**2) / (2 * (width / 2) ** 2)) for row in rng.uniform(0, height, count)
    ]
    noisy = 180 * np.stack(blobs) * rng.uniform(0.8, 1.2, (count, height, width))
    return noisy.clip(0, 255).astype(np.uint8)[..., None]


def small_network() -> Any:
    """A picture to a logit and an attention, as breast-level models give, in a second instead of twenty."""
    picture = keras.Input((16, 8, 1), dtype="uint8", name="picture")
    tensor = keras.layers.Rescaling(1 / 128, offset=-1)(picture)
    tensor = keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="gelu")(tensor)
    tensor = keras.layers.LayerNormalization()(keras.layers.DepthwiseConv2D(3, padding="same")(tensor))
    return keras.Model(picture, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(tensor)))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outputs_are_those_of_keras_in_every_column(runtime: str, capsys: pytest.CaptureFixture[str]) -> None:
    if runtime in PACKAGES:
        pytest.importorskip(PACKAGES[runtime])
    keras.utils.set_random_seed(4)
    network, batch = small_network(), pictures(16, 8, 3)
    run = compile_for(runtime, network, 3)
    wanted = np.asarray(network(batch))
    for rows in (batch, batch[::-1].copy()):
        got = run(rows)
        assert (got.shape, got.dtype) == ((3, 2), np.float32)
        np.testing.assert_allclose(got, np.asarray(network(rows)), atol=1e-5)
    first = run(batch)
    run(np.zeros_like(batch))
    np.testing.assert_allclose(first, wanted, atol=1e-5)  # an answer is not overwritten by the next
    assert np.ptp(wanted, axis=0).min() > 1e-2  # or a constant would pass
    assert capsys.readouterr().out == ""  # stdout belongs to results


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "convnext_tiny"])
def test_real_networks_score_as_in_keras(tiny: Config, backbone: str) -> None:
    """With weights as trained ones are: ImageNet's, or for ConvNeXt random ones with layer scales that count."""
    for package in PACKAGES.values():
        pytest.importorskip(package)
    keras.utils.set_random_seed(5)
    lite = backbone == "efficientnet_lite0"
    model = replace(tiny.model, backbone=backbone, weights="imagenet" if lite else "none")
    network = build_classifier(model, tiny.image)
    if lite:
        load_start(network, model)
    for layer in network.layers:
        if "layer_scale" in layer.name:
            layer.set_weights([np.full(layer.weights[0].shape, 0.3, np.float32)])
    kernel = network.get_layer("logit").kernel
    kernel.assign(np.asarray(kernel) * 3)
    batch = pictures(tiny.image.height, tiny.image.width)
    wanted = np.asarray(network(batch))
    assert abs(wanted[0, 0] - wanted[1, 0]) > 0.01  # pictures, not only the bias, make the logits
    differences = {
        runtime: score_difference(wanted, compile_for(runtime, network, BATCH)(batch)) for runtime in PACKAGES
    }
    print(f"{backbone}: logits {wanted.ravel().round(3).tolist()}, {differences}")
    assert max(differences.values()) < 1e-5 < TOLERANCE


@pytest.mark.parametrize(("runtime", "module"), [("litert", "ai_edge_litert.interpreter"), ("openvino", "openvino")])
def test_a_missing_package_names_the_extra_and_the_wheels(
    monkeypatch: pytest.MonkeyPatch, runtime: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"rsna-kit\[runtimes\]'.*attach the wheels dataset"):
        check_runtime(runtime)


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(UsageError, match=r"infer\.runtime: got 'onnx', expected one of keras, litert, openvino"):
        check_runtime("onnx")


def test_on_another_backend_only_keras_computes() -> None:
    pytest.importorskip("jax")
    pytest.importorskip("openvino")
    code = (
        "import json\n"
        "from rsna_kit.models.runtimes import check_runtime\n"
        "from rsna_kit.runtime.errors import UsageError\n"
        "check_runtime('keras')\n"
        "try: check_runtime('openvino')\n"
        "except UsageError as error: print(json.dumps(str(error)))"
    )
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout).startswith("infer.runtime: got 'openvino' with Keras on jax;")
