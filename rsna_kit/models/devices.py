"""Devices that compute networks: which there are, how many pictures fit, and what computes faster, proven first."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import spearmanr

from rsna_kit.models.bundle import Bundle, load_model
from rsna_kit.runtime.errors import one_line, out_of_memory
from rsna_kit.runtime.hardware import cpu_count
from rsna_kit.runtime.lazy import require

GPU_BATCH = 64  # pictures at once on a GPU, to begin with; halved where its memory runs out
TENSOR_CORES = (7, 0)  # compute capability from which a GPU multiplies float16 several times faster than float32
_FEW = 8  # scores that say nothing of an order
Run = Callable[[Any], np.ndarray]  # uint8 (B, h, w, 1), B fixed → float32 (B, C)


class Way(NamedTuple):
    """How to compute a network. Other ways than `FLOAT32` are used where the first batch proves them its equal."""

    name: str
    tolerance: float  # largest difference of a probability
    order: float  # smallest Spearman correlation of the scores
    make: Callable[[Bundle, int], Run]  # for batches of so many rows

    def holds(self, wanted: np.ndarray, got: np.ndarray) -> tuple[bool, str]:
        """Whether these outputs may stand for those of float32, and the figures in words.

        Args:
            wanted, got: float (N, C), raw outputs. Where there are few, or all are alike, order says nothing.
        """
        difference, order = score_difference(wanted, got), 1.0
        told = f"at most {difference:.1e} apart (allowed {self.tolerance:g})"
        scores = expit(wanted[:, 0].astype(np.float64))
        if len(scores) >= _FEW and np.ptp(scores) > self.tolerance and np.isfinite(difference):
            order = float(spearmanr(wanted[:, 0], got[:, 0]).statistic)
            told += f", rank correlation {order:.4f}"
        good = difference <= self.tolerance and order >= self.order
        return good, f"{told}, on the first {len(wanted)} pictures"


# Adding float32 numbers in another order moves probabilities by 1e-7 to 1e-5, bfloat16 moved them by 5e-3, a wrong
# operation by more. float16 moved those of a trained network by 5e-3 at a rank correlation of 0.9998.
FLOAT32 = Way("float32", 0.0, 1.0, lambda bundle, rows: keras_run(load_model(bundle)))
FLOAT16 = Way("float16", 1e-2, 0.99, lambda bundle, rows: keras_run(load_model(bundle, "mixed_float16")))
OPENVINO = Way("openvino", 1e-3, -1.0, lambda bundle, rows: compile_openvino(load_model(bundle), rows))


def find_devices(say: Callable[[str], None]) -> list[str]:
    """TensorFlow's names of the devices that share the work: `GPU:0`, …; without a GPU the logical CPU devices.

    Those are one unless TensorFlow was told to split the CPU. With another backend of Keras there is one device, the
    backend's own, here called `CPU:0`.

    Args:
        say: told of GPUs that are there and cannot be used.
    """
    if require("keras", "train").backend.backend() != "tensorflow":
        return ["CPU:0"]
    config = require("tensorflow", "train").config
    every = config.list_physical_devices("GPU")
    for visible in (every, *([gpu] for gpu in every if len(every) > 1), []):  # one that is broken takes all with it
        try:
            if visible != every:
                config.set_visible_devices(visible, "GPU")
            found = config.list_logical_devices("GPU") if visible else []
            return [one.name.removeprefix("/device:") for one in found or config.list_logical_devices("CPU")]
        except Exception as error:  # whatever a driver says
            say(f"{', '.join(gpu.name.removeprefix('/physical_device:') for gpu in visible)}: {one_line(error)}")
    return ["CPU:0"]


def has_tensor_cores(names: Sequence[str]) -> bool:
    """Whether these are GPUs, every one of which multiplies float16 faster than float32."""
    if not any(name.startswith("GPU") for name in names):
        return False
    config = require("tensorflow", "train").config
    details = [config.experimental.get_device_details(gpu) for gpu in config.get_visible_devices("GPU")]
    return all((one.get("compute_capability") or (0, 0)) >= TENSOR_CORES for one in details)


class Worker:
    """A device that computes one batch at a time, while the next is brought to it.

    Attributes:
        name: as `find_devices` names it.
        rows: pictures computed at once; halved when the device's memory runs out.
        runs: number of a member and name of a `Way` → what computes it here.
        why_left: what failed, once it is no more used.
        pictures, busy_s: how many were scored, and how long that took without any waiting.
    """

    def __init__(self, name: str, rows: int, say: Callable[[str], None]) -> None:
        self.name, self.rows, self._say = name, rows, say
        self.runs: dict[tuple[int, str], Run] = {}
        self.why_left, self.pictures, self.busy_s = "", 0, 0.0
        self._lock = threading.Lock()

    def scope(self) -> AbstractContextManager[Any]:
        """What is made and computed inside is made and computed on this device."""
        if require("keras", "train").backend.backend() != "tensorflow":
            return nullcontext()
        return require("tensorflow", "train").device(self.name)

    def outputs(self, runs: Sequence[Run], images: np.ndarray, flip: bool = False) -> list[np.ndarray]:
        """Raw outputs of each network, with `flip` the mean with those of the pictures upside down.

        Args:
            runs: networks on this device.
            images: uint8 (N, h, w, 1); computed in parts of `rows`, of which the last is padded.

        Returns:
            float64 (N, C) for each of `runs`.
        """
        while True:
            rows = self.rows
            try:
                with self.scope():
                    views = [self._place(view, rows) for view in (images, images[:, ::-1])[: 1 + flip]]
                    with self._lock:
                        begun = time.monotonic()
                        given = [[np.concatenate([run(part) for part in view]) for view in views] for run in runs]
                        self.busy_s += time.monotonic() - begun
                        self.pictures += len(images)
            except Exception as error:
                if rows == 1 or not out_of_memory(error):
                    raise
                if self.rows == rows:  # or another thread has just halved it
                    self.rows = rows // 2
                    self._say(f"{self.name}: too little memory for {rows} pictures at once, {self.rows} from here on")
                continue
            return [np.mean([view[: len(images)].astype(np.float64) for view in views], axis=0) for views in given]

    def _place(self, images: np.ndarray, rows: int) -> list[Any]:
        """Parts of exactly `rows` pictures, so that one shape is traced; on a GPU already in its memory."""
        parts = []
        for start in range(0, len(images), rows):
            part = np.zeros((rows, *images.shape[1:]), np.uint8)
            part[: len(images) - start] = images[start : start + rows]
            on_gpu = self.name.startswith("GPU")
            parts.append(require("tensorflow", "train").convert_to_tensor(part) if on_gpu else part)
        return parts


def keras_run(network: Any) -> Run:
    """Keras itself. Beside a GPU it would have XLA compile the network, which has not been proven: it may not."""
    if require("keras", "train").backend.backend() == "tensorflow":
        network.jit_compile = False
    return lambda pictures: np.asarray(network.predict_on_batch(pictures))


def compile_openvino(network: Any, batch_size: int) -> Run:
    """Convert a Keras network for OpenVINO on the CPU, by way of a SavedModel in a temporary folder.

    It computes in float32: left alone it takes bfloat16 where the CPU has it, which moved scores by 5e-3. OpenVINO's
    own `convert_model` is not used: it reports its use over the network.

    Args:
        network: keras.Model, uint8 (B, h, w, 1) → float32 (B, C); may be dropped afterwards.
        batch_size: rows of every batch that will come; the conversion is for this number alone.

    Raises:
        Exception: whatever the converter raises for an operation that it does not know.
    """
    keras = require("keras", "train")
    core = require("openvino", "runtimes").Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cpu_count()}
    with tempfile.TemporaryDirectory(prefix="rsna-kit-") as folder:
        signature = [keras.InputSpec(shape=(batch_size, *network.input_shape[1:]), dtype="uint8")]
        network.export(folder, format="tf_saved_model", verbose=False, input_signature=signature)
        compiled = core.compile_model(core.read_model(folder), "CPU", settings)
    return lambda pictures: np.array(compiled(pictures)[0])


def score_difference(wanted: np.ndarray, got: np.ndarray) -> float:
    """Largest difference between two answers of one network, as a difference of probabilities; inf where one is NaN.

    Args:
        wanted: float (N, 1), logits, or (N, 2), logits and attentions. A share of a softmax moves by at most a quarter
            of what an attention moves.
        got: of the same shape.

    Example:
        >>> score_difference(np.array([[0.0, 1.0]]), np.array([[0.0, 1.2]]))
        0.05
    """
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    differences = [np.abs(expit(wanted[:, 0]) - expit(got[:, 0])), *(np.abs(wanted - got).T[1:] / 4)]
    largest = float(np.max(differences))
    return round(largest, 12) if np.isfinite(largest) else float("inf")
