"""A folder of wheels with their hashes → the packages that this interpreter lacks, installed without the network.

The folder's requirements.txt has a line for every package: `name==version --hash=sha256:… --hash=sha256:…`, one hash
for each wheel. What is installed already stays as it is, whatever its version: nothing of Kaggle's image is replaced.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rsna_kit.runtime.errors import MissingDependencyError

REQUIREMENTS = "requirements.txt"
_LINE = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.!+]+)(?: --hash=sha256:[0-9a-f]{64})+")
_LIMIT_S = 900.0  # 800 MB of DALI take half a minute


@dataclass(frozen=True)
class Installed:
    """What became of each package: version that was installed; version that was there, and the one of the wheel."""

    new: dict[str, str]
    kept: dict[str, tuple[str, str]]
    seconds: float


def install_missing(folder: Path, say: Callable[[str], None], gpu: bool = True) -> Installed:
    """Install what is not there yet; pip compares every wheel with its hash first.

    Args:
        folder: wheels and their requirements.txt, from `scripts/build rsna-wheels`.
        say: told before pip starts.
        gpu: False leaves out what only a GPU can use (half a gigabyte of DALI).

    Raises:
        MissingDependencyError: no list of hashes, a wheel that is missing, damaged or for another interpreter.
    """
    began = time.monotonic()
    lines = _read(folder)
    if not gpu:
        lines = {name: line for name, line in lines.items() if not name.startswith("nvidia-")}
    kept: dict[str, tuple[str, str]] = {}
    for name, line in list(lines.items()):
        found = _version(name)
        if found is not None:
            kept[name] = (found, _pinned(line))
            del lines[name]
    if lines:
        say(f"installing {', '.join(lines)} from {folder}")
        _pip(folder, lines)
        importlib.invalidate_caches()
    return Installed({name: _pinned(line) for name, line in lines.items()}, kept, time.monotonic() - began)


def _read(folder: Path) -> dict[str, str]:
    """Package → its line of the list."""
    path = folder / REQUIREMENTS
    if not path.is_file():
        raise MissingDependencyError(f"{path}: no such file. {_AGAIN}")
    lines = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise MissingDependencyError(f"{path}: {line!r}, expected NAME==VERSION --hash=sha256:… {_AGAIN}")
        lines[match["name"]] = line.strip()
    return lines


def _pip(folder: Path, lines: dict[str, str]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as wanted:
        wanted.write("\n".join(lines.values()) + "\n")
        wanted.flush()
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--require-hashes",
            "--disable-pip-version-check",
            "--no-warn-script-location",
            "--find-links",
            str(folder),
            "--requirement",
            wanted.name,
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise MissingDependencyError(f"{folder}: pip was not done after {_LIMIT_S:.0f} s. {_AGAIN}") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise MissingDependencyError(f"{folder}: pip cannot install {', '.join(lines)}: {said} {_AGAIN}")


_AGAIN = "Build the dataset again (scripts/build rsna-wheels), upload it, and attach the new version."


def _pinned(line: str) -> str:
    return line.partition("==")[2].partition(" ")[0]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
