"""What moves the weights: decay where it belongs, clipping, the schedule, the average, devices that share a batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rsna_kit.config import Config, TrainConfig, with_overrides
from rsna_kit.models.network import dtype_policy
from rsna_kit.runtime.errors import RsnaKitError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.training import steps
from rsna_kit.training.steps import Replicas, build_optimizer, build_schedule, settle_precision

keras = pytest.importorskip("keras")
tensorflow = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf


def network() -> Any:
    """One dense layer, normalisation and a scale of one number, as GeM's exponent is."""
    inputs = keras.Input((3,))
    return keras.Model(inputs, keras.layers.BatchNormalization(momentum=0.5)(keras.layers.Dense(2)(inputs)))


def step(model: Any, train: TrainConfig, gradient: float, replicas: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights before and after one step in which every gradient is `gradient`."""
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, 2.0))
    before = {variable.name: np.array(variable) for variable in model.trainable_variables}
    optimizer = build_optimizer(model, train, replicas)
    gradients = [keras.ops.full(variable.shape, gradient) for variable in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)
    return before, {variable.name: np.array(variable) for variable in model.trainable_variables}


@pytest.mark.parametrize(("name", "kernel"), [("adamw", 2 - 2 * 0.1 * 0.5), ("sgd", 2 - 2 * 0.1 * 0.5), ("adam", 2.0)])
def test_only_kernels_decay(name: str, kernel: float) -> None:
    """Without a gradient only the decay moves: w - w * rate * decay."""
    _, after = step(network(), TrainConfig(optimizer=name, learning_rate=0.1, weight_decay=0.5), 0.0)
    np.testing.assert_allclose(after["kernel"], kernel, rtol=1e-6)
    for other in ("bias", "gamma", "beta"):
        np.testing.assert_array_equal(after[other], 2.0)


def test_sgd_is_nesterovs() -> None:
    """First step from rest: rate * (1 + momentum) * gradient."""
    _, after = step(network(), TrainConfig(optimizer="sgd", learning_rate=0.1, weight_decay=0.0), 1.0)
    np.testing.assert_allclose(after["bias"], 2 - 0.1 * 1.9, rtol=1e-6)


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_gradient_of_all_variables_together_is_clipped(replicas: int) -> None:
    """12 numbers of 1 are sqrt(12) long; cut to 0.5 of them together."""
    train = TrainConfig(optimizer="sgd", learning_rate=1.0, weight_decay=0.0, clip_norm=0.5)
    before, after = step(network(), train, 1.0, replicas)
    moved = np.concatenate([(before[name] - after[name]).ravel() for name in before]) / 1.9
    np.testing.assert_allclose(moved, 0.5 / replicas / np.sqrt(12), rtol=1e-5)


def test_the_learning_rate_rises_and_falls() -> None:
    rate = build_schedule(1e-3, 100)
    rates = [rate(step) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 1e-4, rtol=1e-5)
    np.testing.assert_allclose(rates[9:], 5e-4 * (1 + np.cos(np.pi * np.arange(91) / 91)), rtol=1e-4, atol=1e-9)
    assert build_schedule(1e-3, 3)(0) == pytest.approx(1e-3)


def test_the_average_is_the_exponential_one_and_goes_where_keras_puts_it() -> None:
    model = network()
    optimizer = build_optimizer(model, TrainConfig(optimizer="sgd", learning_rate=0.1, weight_decay=0.0, ema=0.5))
    variables, expected = model.trainable_variables, None
    for gradient in (1.0, -2.0, 3.0):
        optimizer.apply([keras.ops.full(variable.shape, gradient) for variable in variables], variables)
        kernel = np.array(model.layers[1].kernel)
        expected = kernel if expected is None else 0.5 * expected + 0.5 * kernel
    optimizer.finalize_variable_values(variables)
    np.testing.assert_allclose(np.array(model.layers[1].kernel), expected, rtol=1e-5)


def test_precision_is_put_back() -> None:
    with dtype_policy("mixed_bfloat16"):
        assert keras.layers.Dense(1).compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"
    with pytest.raises(ZeroDivisionError), dtype_policy("mixed_float16"):
        1 / 0  # noqa: B018
    assert keras.config.dtype_policy().name == "float32"


BATCHES = with_overrides(Config(), ["train.batch_size=8", "infer.batch_size=8", "train.precision=float32"])


@pytest.mark.parametrize(
    ("capabilities", "settings", "precision"),
    [
        ([], [], "float32"),
        ([(7, 5), (7, 5)], [], "mixed_float16"),
        ([(7, 5), (6, 0)], [], "float32"),
        ([None], [], "float32"),
        ([(9, 0)], ["model.kind=cvae"], "float32"),
        ([(9, 0)], ["train.precision=mixed_bfloat16"], "mixed_bfloat16"),
    ],
)
def test_auto_is_half_precision_where_all_gpus_have_tensor_cores(
    capabilities: list[Any], settings: list[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"GPU:{number}" for number in range(len(capabilities))] or ["CPU:0"]
    monkeypatch.setattr(steps, "find_devices", lambda say: names)
    monkeypatch.setattr(tensorflow.config, "get_visible_devices", lambda kind: capabilities)
    details = {"get_device_details": lambda gpu: {"compute_capability": gpu} if gpu else {}}
    monkeypatch.setattr(tensorflow.config, "experimental", SimpleNamespace(**details))
    assert settle_precision(with_overrides(Config(), settings), print).train.precision == precision


def test_parts_that_a_batch_cannot_be_cut_into_are_refused() -> None:
    with pytest.raises(UsageError, match=r"train.accumulate: got 3, expected what divides train.batch_size=8"):
        Replicas(with_overrides(BATCHES, ["train.accumulate=3"]), Events())


class Full:
    """A model for which no device has memory."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def reset_metrics(self) -> None:
        pass

    make_train_function = reset_metrics

    def train_function(self, batches: Any) -> None:
        raise self.error

    predict_on_batch = train_function


def test_too_little_memory_says_what_to_try() -> None:
    replicas, batch = Replicas(BATCHES, Events()), np.zeros((8, 64, 32, 1), np.uint8)
    full = Full(tensorflow.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"))
    wanted = (
        r"train.batch_size=8: efficientnet_lite0 in float32, a batch \(8, 64, 32, 1\). Try .*batch_size=4, or .*"
        r"accumulate=2, or .*mixed_float16"
    )
    with pytest.raises(RsnaKitError, match=wanted):
        replicas.train_step(full, batch, batch, batch)
    jax = Full(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345 bytes."))
    with pytest.raises(RsnaKitError, match=r"infer.batch_size=1: .* Prepare smaller images"):
        replicas.predict(jax, batch[:1])
    with pytest.raises(RuntimeError, match="something else"):
        replicas.train_step(Full(RuntimeError("INTERNAL: something else")), batch, batch, batch)


TWO = """
import contextlib, io, json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
import pytest
from toy_learner import use_toys
from toy_pictures import write_toys
from rsna_kit.config import TrainConfig, with_overrides
from rsna_kit.training.fit import Trainer
from rsna_kit.training.steps import Replicas, build_optimizer
from rsna_kit.config import preset
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.events import Events

use_toys(pytest.MonkeyPatch(), batch_norm=False)
config = with_overrides(preset("smoke"), [
    "image.height=64", "image.width=32", "train.epochs=2", "train.batch_size=8", "train.learning_rate=1e-2",
    "train.ema=0.5", "infer.batch_size=15", "model.weights=none", "model.trunk=train"])
prepared = write_toys(Path({out!r}), config.image, 80)
table = prepared.table.assign(fold=np.arange(80) % 2)
found = {{}}
for name in ("one 1", "one 4", "auto 1", "auto 2", "auto 4"):
    talk, (devices, parts) = io.StringIO(), name.split()
    settings = [f"train.devices={{devices}}", f"train.accumulate={{parts}}"]
    trainer = Trainer(prepared, with_overrides(config, settings), Events(stream=talk))
    fold = Path({out!r}) / name
    result = trainer.train_fold(table, 0, fold, Clock())
    found[name] = [row["loss"] for row in result.history] + [row["val_loss"] for row in result.history]
    found[name + " scores"], found[name + " talk"] = result.scores["score"].tolist(), talk.getvalue()
again = trainer.train_fold(table, 0, fold, Clock())
found["resumed"] = again.scores.equals(result.scores)

# What each device sees, and an overflow on the second one alone.
for parts in (1, 2):
    small = with_overrides(config, ["train.batch_size=4", "infer.batch_size=3", f"train.accumulate={{parts}}"])
    replicas = Replicas(small, Events(stream=io.StringIO()))
    with replicas.scope():
        inputs = keras.Input((1,))
        model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
        optimizer = build_optimizer(model, TrainConfig(precision="mixed_float16", optimizer="sgd", weight_decay=0.0), 2)
        model.compile(optimizer=optimizer, loss=lambda targets, outputs: outputs[:, 0], auto_scale_loss=False)
    model.set_weights([np.ones((1, 1))])
    ones, row = np.ones((4, 1), "float32"), found.setdefault(f"parts {{parts}}", {{}})
    for name, last in (("loss", 10), ("overflow", np.inf)):
        batch = np.array([[1], [2], [3], [last]], "float32")
        row[name] = float(replicas.train_step(model, batch, ones, np.ones(4, "float32")))
        row[name + " moved"] = float(model.get_weights()[0][0, 0])
    row["scale"] = float(np.array(optimizer.dynamic_scale))
    row["predicted"] = replicas.predict(model, np.arange(3, dtype="float32")[:, None]).tolist()
found["odd"] = Replicas(with_overrides(small, ["train.batch_size=5", "train.accumulate=1"]), Events()).count
print(json.dumps(found))
"""


@pytest.mark.slow
def test_two_devices_share_a_batch(tmp_path: Path) -> None:
    """With two logical CPU devices, at once or in parts: the losses of one, and no step where one of them overflows."""
    code = TWO.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    for name in ("one 4", "auto 1", "auto 2", "auto 4"):
        np.testing.assert_allclose(found[name], found["one 1"], atol=1e-4)
        np.testing.assert_allclose(found[name + " scores"], found["one 1 scores"], atol=1e-3)
    assert "2 devices, each takes 4 of a batch of 8" in found["auto 1 talk"]
    assert "2 devices, each takes 1 of a batch of 2" in found["auto 4 talk"]
    assert found["resumed"]
    for parts in (1, 2):
        row = found[f"parts {parts}"]
        assert row["loss"] == 4.0
        assert row["loss moved"] == pytest.approx(1 - 3e-4 * 1.9 * 4.0, rel=1e-5)
        assert row["overflow moved"] == row["loss moved"]
        assert row["scale"] == 2.0**14
        np.testing.assert_allclose(np.ravel(row["predicted"]), np.arange(3) * row["loss moved"], rtol=1e-2)  # float16
    assert found["odd"] == 1


EIGHT = """
import io, json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import numpy as np
import pytest
from toy_learner import use_toys
from toy_pictures import write_toys
from rsna_kit.config import preset, with_overrides
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.training.fit import Trainer

use_toys(pytest.MonkeyPatch(), batch_norm=False)
config = with_overrides(preset("smoke"), [
    "image.height=64", "image.width=32", "train.epochs=2", "train.batch_size=8", "train.learning_rate=1e-2",
    "train.ema=0.5", "infer.batch_size=15", "model.weights=none", "model.trunk=train"])
prepared, found = write_toys(Path({out!r}), config.image, 80), {{}}
table = prepared.table.assign(fold=np.arange(80) % 2)
for devices in ("one", "auto"):
    trainer = Trainer(prepared, with_overrides(config, [f"train.devices={{devices}}"]), Events(stream=io.StringIO()))
    result = trainer.train_fold(table, 0, Path({out!r}) / devices, Clock())
    found[devices] = [row["loss"] for row in result.history] + [row["val_loss"] for row in result.history]
found["spread"] = len(trainer.model.trainable_variables[0].value.sharding.device_set)
found["resumed"] = trainer.train_fold(table, 0, Path({out!r}) / devices, Clock()).scores.equals(result.scores)
try:
    Trainer(prepared, with_overrides(config, ["train.accumulate=2"]), Events(stream=io.StringIO()))
except UsageError as error:
    found["parts"] = str(error)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_jax_shares_a_batch_among_eight_devices(tmp_path: Path) -> None:
    """Simulated ones: the losses of one, averaged weights and resuming included; batches in parts are refused."""
    pytest.importorskip("jax")
    code = EIGHT.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    flags = {
        "KERAS_BACKEND": "jax",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **flags})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    np.testing.assert_allclose(found["auto"], found["one"], atol=1e-4)
    assert (found["spread"], found["resumed"]) == (8, True)
    assert "Keras' TensorFlow backend, not jax" in found["parts"]
