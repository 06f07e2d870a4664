"""Packages that others installed and settings that others made: imported where used, looked at when a run begins."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from rsna_kit.runtime.errors import MissingDependencyError, UsageError, one_line

_HEAVY = ("keras", "tensorflow")  # seconds to import: whoever needs them does, behind `check_surroundings`
_LEAST = {"numpy": (2, 0), "pandas": (2, 2), "pydicom": (3, 0)}  # as pyproject.toml; others fail by themselves
_KERAS = {"backend": ("tensorflow", "jax"), "image_data_format": ("channels_last",), "floatx": ("float32",)}


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of rsna-kit installs it.

    Args:
        module: dotted module name, e.g. `"tensorflow"`.
        extra: the extra in pyproject.toml that brings it, e.g. `"train"`.

    Raises:
        MissingDependencyError: the module cannot be imported, whatever its import raised; the cause is chained.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and module.startswith(str(error.name))
        advice = (
            f"Install it with: pip install 'rsna-kit[{extra}]' — or, on Kaggle, attach the wheels dataset."
            if absent
            else f"It is installed; python -c 'import {module}' shows what ails it."
        )
        raise MissingDependencyError(f"{module} cannot be imported ({one_line(error)}). {advice}") from error


@functools.cache
def absence(module: str) -> str:
    """Why a module cannot be imported, or is too old for this library; "" when it can be used.

    An import that fails for whatever reason is an absence, and so is a package that lies before the right one on the
    path. Keras and TensorFlow are looked for only: their import takes seconds.
    """
    spec = importlib.util.find_spec(module)
    if spec is None:
        return "not installed"
    if module in _HEAVY:
        return ""
    try:
        found = importlib.import_module(module)
    except Exception as error:
        return f"the import of {spec.origin} fails: {one_line(error)}"
    version = str(getattr(found, "__version__", ""))
    least = _LEAST.get(module, ())
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < least:
        expected = ".".join(map(str, least))
        return f"version {version} in {Path(str(found.__file__)).parent}, expected {expected} or newer"
    return ""


def settle() -> None:
    """What every run begins with: libraries keep their advice to themselves, and no name of a file is unprintable."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # TensorFlow counts the traces of all networks together, because Keras' functions have one source: from the fifth
    # network on, each traced once, it warns of retracing.
    logging.getLogger("tensorflow").addFilter(_is_no_advice_on_tracing)
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")  # as standard error does anyway


def check_surroundings(modules: Iterable[str]) -> dict[str, str]:
    """See before any work whether what the environment brings lets `modules` be used.

    Returns:
        module → why it cannot be used, empty when all of them can.

    Raises:
        UsageError: a setting of Keras or TensorFlow under which this library does not work; names it and the values
            that do.
    """
    modules = list(modules)
    if "keras" in modules:
        _check_keras()
    return {module: why for module in modules if (why := absence(module))}


def _is_no_advice_on_tracing(record: logging.LogRecord) -> bool:
    return "triggered tf.function retracing" not in str(record.msg)


def _check_keras() -> None:
    """Read what Keras would read; its own import answers a wrong value with a traceback or not at all."""
    if os.environ.get("TF_USE_LEGACY_KERAS", "0").lower() in ("1", "true"):
        raise UsageError("TF_USE_LEGACY_KERAS is set, and Keras 2 cannot run these networks. Unset it.")
    home = Path.home() if os.access(Path.home(), os.W_OK) else Path("/tmp")
    path = Path(os.environ.get("KERAS_HOME") or home / ".keras") / "keras.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = {}
    where = dict.fromkeys(_KERAS, str(path))
    if os.environ.get("KERAS_BACKEND"):
        said, where["backend"] = {**said, "backend": os.environ["KERAS_BACKEND"]}, "KERAS_BACKEND"
    for name, good in _KERAS.items():
        if said.get(name, good[0]) not in good:
            raise UsageError(f"{where[name]}: {name} is {said[name]!r}, expected {' or '.join(good)}. Change it there.")
