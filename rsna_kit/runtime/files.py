"""Files that are whole or absent: write to a temporary name beside the target, then rename."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError that does not: a write that fails (a full disk) says what went wrong, not where."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it replaces `path` in one step, on error it is removed.

    The temporary name keeps the suffix of `path` (`.scores.tmp-1234.csv`), because writers choose
    their format by it, and begins with a dot, so that no pattern for `path` finds it. A crash leaves the old `path`
    untouched.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.stem)}.tmp-*{glob.escape(path.suffix)}"):
            pid = left.name.removeprefix(f".{path.stem}.tmp-").partition(".")[0]  # Keras' have a suffix more
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                left.unlink(missing_ok=True)  # of a process that was killed while it wrote
        temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
        try:
            yield temporary
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `content`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, whole or not at all; what is no UTF-8 in the name of a file is escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_csv(path: Path, frame: Any) -> None:
    """Write a table of pandas without its index, as `write_text` does."""
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n", errors="backslashreplace")


def read_csv(path: Path, texts: Iterable[str]) -> Any:
    """A table that `write_csv` wrote, to the last bit of every number; the columns `texts` (where there) stay text."""
    import pandas as pd

    version = tuple(int(part) for part in pd.__version__.split(".")[:2])
    exact: Any = {"float_precision": "round_trip"} if version < (3, 1) else {}  # later: always
    return pd.read_csv(path, dtype=dict.fromkeys(texts, str), **exact)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON (two-space indent, keys in the given order), whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
