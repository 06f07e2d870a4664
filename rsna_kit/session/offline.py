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
from collections.abc import Collection
from pathlib import Path

from rsna_kit.runtime.errors import MissingDependencyError

REQUIREMENTS = "requirements.txt"
_LINE = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.!+]+)(?: --hash=sha256:[0-9a-f]{64})+")
_LIMIT_S = 900.0  # 800 MB of DALI take half a minute
_PIP = "-m pip install --quiet --no-index --no-deps --no-compile --require-hashes --disable-pip-version-check"
_AGAIN = "Build the dataset again (scripts/build rsna-wheels), upload it, and attach the new version."


def install_missing(folder: Path, gpu: bool = True) -> str:
    """Install what is not there yet; pip compares every wheel with its hash first.

    Args:
        folder: wheels and their requirements.txt, from `scripts/build rsna-wheels`.
        gpu: False leaves out what only a GPU can use (half a gigabyte of DALI).

    Returns:
        What became of each package, in words.

    Raises:
        MissingDependencyError: no list of hashes, a wheel that is missing, damaged or for another interpreter.
    """
    began, path = time.monotonic(), folder / REQUIREMENTS
    if not path.is_file():
        raise MissingDependencyError(f"{path}: no such file. {_AGAIN}")
    new: dict[str, str] = {}  # package → its line of the list
    kept = []
    for line in filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())):
        match = _LINE.fullmatch(line)
        if match is None:
            raise MissingDependencyError(f"{path}: {line!r}, expected NAME==VERSION --hash=sha256:… {_AGAIN}")
        name = match["name"]
        try:
            kept.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if gpu or not name.startswith("nvidia-"):
                new[f"{name} {match['version']}"] = line
    if new:
        _install(folder, new.values())
    done = f"{', '.join(new) or 'nothing new'} in {time.monotonic() - began:.1f} s"
    return f"{done}; the image's own stay: {', '.join(kept) or 'none'}"


def _install(folder: Path, lines: Collection[str]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as wanted:
        wanted.write("\n".join(lines) + "\n")
        wanted.flush()
        command = [sys.executable, *_PIP.split(), "--find-links", str(folder), "--requirement", wanted.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise MissingDependencyError(f"{folder}: pip was not done after {_LIMIT_S:.0f} s. {_AGAIN}") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        names = ", ".join(line.partition("==")[0] for line in lines)
        raise MissingDependencyError(f"{folder}: pip cannot install {names}: {said} {_AGAIN}")
    importlib.invalidate_caches()
