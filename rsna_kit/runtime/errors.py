"""Every error the kit raises on purpose, as one tree.

    RsnaKitError                 something the person can act on (exit code 1)
    ├── UsageError               a wrong option or config key (exit code 2)
    ├── MissingDependencyError   a package that is not installed
    ├── TableError               train.csv, test.csv, sample_submission.csv, a predictions file
    ├── SubmissionError          rows missing, extra, duplicate, NaN or outside [0, 1]
    ├── ShardError               a prepared folder that is broken or made by another config
    ├── BundleError              weights that are broken, foreign or of another config
    └── ImageError               one image that cannot be used; has a `stage` for failures.csv
        ├── HeaderError          stage "header"
        ├── DecodeError          stage "decode"
        └── RenderError          stage "render"

A message says what came, what was expected, which file, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class RsnaKitError(ValueError):
    """Base of all deliberate errors."""

    exit_code = 1


class UsageError(RsnaKitError):
    """A wrong option, argument or config key."""

    exit_code = 2


class MissingDependencyError(RsnaKitError, ImportError):
    """A package that the chosen path needs is not installed."""


class TableError(RsnaKitError):
    """A table with a missing column, a bad value or a duplicate id."""


class SubmissionError(RsnaKitError):
    """Predictions that would not score: rows missing, extra, duplicate, NaN or outside [0, 1]."""


class ShardError(RsnaKitError):
    """A prepared folder that is incomplete, damaged or made by another image configuration."""


class BundleError(RsnaKitError):
    """A weights folder that is incomplete, damaged or made by another configuration."""


class DeviceMemoryError(RsnaKitError):
    """A device has too little memory for what it was asked for."""


class ImageError(RsnaKitError):
    """One image that cannot be used. It costs that image, never the run."""

    stage = "image"


class HeaderError(ImageError):
    """The file is not a DICOM image this kit can describe."""

    stage = "header"


class DecodeError(ImageError):
    """No decoder could turn the codestream into pixels, or the pixels contradict the header."""

    stage = "decode"


class RenderError(ImageError):
    """The pixels hold no picture: constant, or no breast in them."""

    stage = "render"


def one_line(error: BaseException) -> str:
    """What a library's error says, on one line of at most 400 characters; its type when it says nothing."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 400 else said[:399] + "…"


def sentence(said: object) -> str:
    """What an error says, with a full stop where it has none: so that another sentence may follow."""
    return str(said) if str(said).endswith((".", "?")) else f"{said}."


def out_of_memory(error: BaseException) -> bool:
    """Whether a framework says that a device's memory is used up: TensorFlow, XLA, cuDNN and NumPy say so differently.

    Example:
        >>> out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes."))
        True
    """
    said = ("RESOURCE_EXHAUSTED", "Out of memory", "OOM when", "CUDNN_STATUS_ALLOC_FAILED")
    exhausted = isinstance(error, MemoryError) or "ResourceExhausted" in type(error).__name__
    return exhausted or any(words in str(error) for words in said)


def listed(names: Iterable[object], what: str = "", most: int = 5) -> str:
    """`3 missing (a, b, c)` of names and what they are; at most so many of them."""
    known = [str(name) for name in names]
    shown = ", ".join(known[:most]) + (", …" if len(known) > most else "")
    return f"{len(known)}{' ' + what if what else ''} ({shown})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence ` Did you mean 'x'?`, or an empty string when nothing known is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def named(key: str, name: str, registry: Mapping[str, Entry]) -> Entry:
    """The entry of a registry.

    Raises:
        UsageError: there is none of that name; says which there are, and the nearest one.
    """
    if name not in registry:
        known = ", ".join(registry)
        raise UsageError(f"{key}: got {name!r}, expected one of {known}.{did_you_mean(name, registry)}")
    return registry[name]
