"""A loaded Keras network → the same network in a CPU runtime, LiteRT or OpenVINO: a function from pictures to outputs.

Both runtimes read what Keras exports for a fixed batch (a SavedModel in a temporary folder), and compute in float32:
OpenVINO would take bfloat16 where the CPU has it, which moved scores by 5e-3. LiteRT is the runtime that was called
TensorFlow Lite. OpenVINO's own `convert_model` is not used: it reports its use over the network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.hardware import cpu_count
from rsna_kit.runtime.lazy import require

RUNTIMES = ("keras", "litert", "openvino")
# Largest difference of a probability from Keras' that is still believed. Adding float32 numbers in another order moves
# probabilities by 1e-7 to 1e-5, bfloat16 moved them by 5e-3, a wrong operation by more: this tells them apart.
TOLERANCE = 1e-3
Run = Callable[[np.ndarray], np.ndarray]  # uint8 (B, h, w, 1), B fixed → float32 (B, C)


def compile_for(runtime: str, network: Any, batch_size: int) -> Run:
    """Convert a network for a runtime, or leave it to Keras.

    Args:
        runtime: one of RUNTIMES.
        network: keras.Model, uint8 (B, h, w, 1) → float32 (B, C).
        batch_size: rows of every batch that will come; the conversion is for this number alone.

    Returns:
        A function of uint8 (batch_size, h, w, 1). It keeps what it needs: `network` may be dropped, except for Keras.

    Raises:
        UsageError, MissingDependencyError: what `check_runtime` says.
        Exception: whatever the converter raises for an operation that it does not know.
    """
    check_runtime(runtime)
    if runtime == "keras":
        return lambda pictures: np.asarray(network.predict_on_batch(pictures))
    keras = require("keras", "train")
    shape = (batch_size, *network.input_shape[1:])
    with tempfile.TemporaryDirectory(prefix="rsna-kit-") as folder:
        signature = [keras.InputSpec(shape=shape, dtype="uint8")]
        network.export(folder, format="tf_saved_model", verbose=False, input_signature=signature)
        return _litert(Path(folder)) if runtime == "litert" else _openvino(Path(folder))


def check_runtime(runtime: str) -> None:
    """Refuse a runtime that cannot work here, before any work is done.

    Raises:
        UsageError: an unknown runtime, or Keras runs on a backend other than TensorFlow.
        MissingDependencyError: the package is not installed; names the extra and the wheels dataset.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"infer.runtime: got {runtime!r}, expected one of {', '.join(RUNTIMES)}")
    if runtime == "keras":
        return
    require("ai_edge_litert.interpreter" if runtime == "litert" else "openvino", "runtimes")
    backend = require("keras", "train").backend.backend()
    if backend != "tensorflow":
        raise UsageError(
            f"infer.runtime: got {runtime!r} with Keras on {backend}; its networks are exported by TensorFlow alone. "
            "Use --set infer.runtime=keras, or KERAS_BACKEND=tensorflow."
        )


def _litert(exported: Path) -> Run:
    tensorflow = require("tensorflow", "train")
    interpreter_class = require("ai_edge_litert.interpreter", "runtimes").Interpreter
    content = tensorflow.lite.TFLiteConverter.from_saved_model(str(exported)).convert()
    interpreter = interpreter_class(model_content=content, num_threads=cpu_count())
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(pictures: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given, pictures)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(made))

    return run


def _openvino(exported: Path) -> Run:
    core = require("openvino", "runtimes").Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cpu_count()}
    compiled = core.compile_model(core.read_model(str(exported)), "CPU", settings)
    return lambda pictures: np.array(compiled(pictures)[0])
