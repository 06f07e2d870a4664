"""Devices that share the scoring: two logical CPU devices stand for two GPUs, and each may fail."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import logit

from rsna_kit.config import Config
from rsna_kit.models import devices, ensemble
from rsna_kit.models.bundle import Bundle
from rsna_kit.models.devices import FLOAT16, OPENVINO, find_devices, has_tensor_cores
from rsna_kit.models.ensemble import Ensemble
from rsna_kit.models.members import Member
from rsna_kit.runtime.errors import BundleError

keras = pytest.importorskip("keras")
tensorflow = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

PICTURES = np.random.default_rng(3).integers(0, 200, (7, 8, 4, 1), np.uint8)
MEMBER = Member(Bundle(Path("bundle"), Config(), 0.5, {}), 1.0)


def means(pictures: np.ndarray) -> np.ndarray:
    return pictures.mean(axis=(1, 2, 3), keepdims=True)[:, 0, 0] / 255


def scores(pictures: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-means(pictures)))


def use(monkeypatch: pytest.MonkeyPatch, **networks: Any) -> None:
    """Functions of pictures in the place of networks, by precision."""
    made = {name: SimpleNamespace(predict_on_batch=run) for name, run in networks.items()}
    monkeypatch.setattr(devices, "load_model", lambda bundle, precision="float32": made[precision])


def test_float16_that_overflows_in_mid_run_is_left_for_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(pictures: np.ndarray) -> np.ndarray:
        return np.where(pictures.max(axis=(1, 2, 3))[:, None] == 255, np.nan, means(pictures))

    use(monkeypatch, float32=means, mixed_float16=half)
    monkeypatch.setattr(ensemble, "has_tensor_cores", lambda names: True)
    said = list[str]()
    bright = np.full_like(PICTURES, 255)
    batches = [(n, pictures) for n, pictures in enumerate((PICTURES, bright, PICTURES))]
    given = list(Ensemble([MEMBER], 4, say=said.append).stream(batches))
    assert [tag for tag, _ in given] == [0, 1, 2]
    for (_, pictures), (_, scored) in zip(batches, given, strict=True):
        np.testing.assert_allclose(scored, scores(pictures), atol=1e-6)
    assert said[-1] == "bundle: float16 gave what is not finite, float32 scores from here on"
    use(monkeypatch, float32=half)
    with pytest.raises(BundleError, match="bundle: its network's output is not finite"):
        Ensemble([MEMBER], 4).score(bright)


@pytest.mark.parametrize(
    "error",
    [
        tensorflow.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345 bytes."),
    ],
)
@pytest.mark.parametrize("fit", [1, 3, 0])
def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch, error: Exception, fit: int) -> None:
    rows = list[int]()

    def small(pictures: np.ndarray) -> np.ndarray:
        rows.append(len(pictures))
        if len(pictures) > fit:
            raise error
        return means(pictures)

    use(monkeypatch, float32=small)
    said = list[str]()
    made = Ensemble([MEMBER], 4, say=said.append)
    if not fit:
        with pytest.raises(type(error)):
            made.score(PICTURES)
        return
    for _ in range(2):
        np.testing.assert_allclose(made.score(PICTURES), scores(PICTURES), atol=1e-6)
    halved = [4, 2] if fit == 3 else [4, 2, 1]
    assert [line for line in said if "memory" in line] == [
        f"CPU:0: too little memory for {many} pictures at once, {fewer} from here on"
        for many, fewer in pairwise(halved)
    ]
    assert set(rows[len(halved) - 1 :]) == {halved[-1]}  # one shape, the last part is padded


def test_a_way_that_mixes_up_the_order_does_not_hold() -> None:
    """Half of the scores 0.006 up, the other half 0.006 down: within 0.01, and nothing is where it was."""
    wanted = logit(0.5 + np.linspace(0, 0.012, 20))[:, None]
    mixed = np.roll(wanted, 10, axis=0)
    good, said = FLOAT16.holds(wanted, mixed)
    assert not good
    assert "rank correlation -0.5" in said
    assert FLOAT16.holds(wanted, wanted + 1e-3)[0]
    assert FLOAT16.holds(wanted[:4], mixed[[0, 1, 2, 3]])[0]  # few: the difference alone
    assert FLOAT16.holds(np.zeros((20, 1)), np.full((20, 1), 0.03))[0]  # all alike
    assert not OPENVINO.holds(wanted, wanted + 5e-3)[0]


class Gpus:
    """TensorFlow's configuration of a machine with GPUs, some of which are broken."""

    def __init__(self, broken: set[str], capability: tuple[int, int] = (7, 5), count: int = 2) -> None:
        self.visible = [SimpleNamespace(name=f"/physical_device:GPU:{n}") for n in range(count)]
        self.broken, self.every = broken, list(self.visible)
        self.experimental = SimpleNamespace(get_device_details=lambda gpu: {"compute_capability": capability})

    def list_physical_devices(self, kind: str) -> list[Any]:
        return self.every

    def get_visible_devices(self, kind: str) -> list[Any]:
        return self.visible

    def set_visible_devices(self, gpus: list[Any], kind: str) -> None:
        self.visible = gpus

    def list_logical_devices(self, kind: str) -> list[Any]:
        if kind == "GPU" and (bad := self.broken & {gpu.name[-1] for gpu in self.visible}):
            raise RuntimeError(f"CUDA_ERROR_UNKNOWN on {', '.join(sorted(bad))}")
        names = ["CPU:0"] if kind == "CPU" else [f"GPU:{n}" for n, _ in enumerate(self.visible)]
        return [SimpleNamespace(name=f"/device:{name}") for name in names]


@pytest.mark.parametrize(
    ("broken", "found", "lines"),
    [(set(), ["GPU:0", "GPU:1"], 0), ({"0"}, ["GPU:0"], 2), ({"1"}, ["GPU:0"], 1), ({"0", "1"}, ["CPU:0"], 3)],
)
def test_a_gpu_that_is_there_and_cannot_be_used_costs_itself(
    monkeypatch: pytest.MonkeyPatch, broken: set[str], found: list[str], lines: int
) -> None:
    """TensorFlow then gives none at all, so each is tried alone; the one that works is its GPU:0."""
    said = list[str]()
    monkeypatch.setattr(tensorflow, "config", Gpus(broken))
    assert find_devices(said.append) == found
    assert len(said) == lines
    assert all("CUDA_ERROR_UNKNOWN on" in line for line in said)


@pytest.mark.parametrize(("capability", "fast"), [((6, 0), False), ((7, 0), True), ((7, 5), True), ((9, 0), True)])
def test_float16_is_tried_where_tensor_cores_are(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool
) -> None:
    monkeypatch.setattr(tensorflow, "config", Gpus(set(), capability))
    assert has_tensor_cores(["GPU:0", "GPU:1"]) is fast
    assert not has_tensor_cores(["CPU:0"])


TWO = """
import io, json, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from toy_networks import add_backbone
add_backbone()
from rsna_kit.config import InferConfig
from rsna_kit.models import ensemble
from rsna_kit.models.devices import Worker
from rsna_kit.recipes.infer import infer
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.events import Events

outputs, done = Worker.outputs, []
def failing(self, runs, images, flip=False):
    done.append(self.name)
    if self.name in broken and len(done) > start:
        raise RuntimeError("the device fell off the bus")
    return outputs(self, runs, images, flip)
Worker.outputs = failing
real = ensemble.has_tensor_cores
found = {{}}
for name, devices, half, broken, start in [
    ("one", "one", False, [], 0), ("two", "auto", False, [], 0), ("killed", "auto", False, ["CPU:1"], 5),
    ("unusable", "auto", False, ["CPU:0"], 0), ("half", "auto", True, [], 0), ("half one", "one", True, [], 0),
    ("all", "auto", False, ["CPU:0", "CPU:1"], 5)]:
    talk, out = io.StringIO(), Path({out!r}) / name
    done.clear()
    ensemble.has_tensor_cores = lambda names: half
    settings = InferConfig(batch_size=4, devices=devices)
    try:
        infer(Path({competition!r}), out, [Path({bundle!r})], settings, Events(stream=talk), Clock())
    except RuntimeError as error:
        talk.write(f"raised: {{error}}")
    found[name] = {{"talk": talk.getvalue(), "used": sorted(set(done))}}
    found[name] |= {{file.stem: file.read_text() for file in out.glob("*.csv")}}
print(json.dumps(found))
"""


def table(found: dict[str, Any]) -> tuple[list[str], np.ndarray]:
    rows = [line.split(",") for line in found["image_scores"].split()[1:]]
    return [row[0] for row in rows], np.array([float(row[1]) for row in rows])


def test_one_device_or_two_and_one_that_dies_give_the_same_submission(
    phantom: Path, bundle: Path, tmp_path: Path
) -> None:
    """In float32 to 1e-6, in float16 (which a CPU computes if it is told to) to what was allowed of it."""
    tests = str(Path(__file__).parent)
    code = TWO.format(tests=tests, out=str(tmp_path), competition=str(phantom / "hidden"), bundle=str(bundle))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout)
    ids, alone = table(found["one"])
    for name, tolerance in (("two", 1e-6), ("killed", 1e-6), ("unusable", 1e-6), ("half", 1e-2), ("half one", 1e-2)):
        assert table(found[name])[0] == ids
        np.testing.assert_allclose(table(found[name])[1], alone, atol=tolerance)
    np.testing.assert_allclose(table(found["half"])[1], table(found["half one"])[1], atol=1e-6)
    for name in ("two", "killed", "unusable"):
        assert found[name]["submission"] == found["one"]["submission"]
    assert np.ptp(alone) > 1e-4  # or all would agree
    assert (found["one"]["used"], found["two"]["used"]) == (["CPU:0"], ["CPU:0", "CPU:1"])
    assert "scoring on CPU:0 (4 at once), CPU:1 (4 at once)" in found["two"]["talk"]
    assert "CPU:1 is not used any more: the device fell off the bus" in found["killed"]["talk"]
    assert "CPU:0 cannot be used: the device fell off the bus\nscoring on CPU:1" in found["unusable"]["talk"]
    assert "float16 scores as float32 does: at most" in found["half"]["talk"]
    assert "float16" not in found["two"]["talk"]
    assert found["all"]["talk"].endswith("raised: the device fell off the bus")
    assert "0.0211676964" in found["all"]["submission"]  # the prior stands
    assert found["all"]["talk"].count("is not used any more") == 2
