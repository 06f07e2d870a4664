"""What a run stands on: cores that this process may use, memory, GPUs, versions, the commit, Kaggle's image."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

# All that decide results.
_PACKAGES = "numpy pandas pydicom imagecodecs dicomsdl opencv-python-headless albumentations scikit-learn"
_PACKAGES += " tensorflow tensorflow-cpu keras keras-cv"


def cpu_count() -> int:
    """Cores this process may run on (its affinity mask, not the machine's total)."""
    return len(os.sched_getaffinity(0))


def memory_gib() -> float:
    """Physical memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def gpus() -> list[str]:
    """Every NVIDIA GPU with its memory, such as `Tesla T4, 15360 MiB`; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def kaggle_image(etc: Path = Path("/etc")) -> str | None:
    """When Kaggle's image was built and from which commit of its sources; None on any other machine."""
    try:
        built, source = ((etc / name).read_text().strip() for name in ("build_date", "git_commit"))
    except OSError:
        return None
    return f"built {built}, source {source}"


def versions(packages: Iterable[str] = _PACKAGES.split()) -> dict[str, str]:
    """Versions of packages, by default of all that decide results; one that is absent is left out."""
    found = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> str | None:
    """The commit of the checkout or of the build (dataset or wheel) this package runs from, None where none is known.

    A build from a working tree with changes says so: `<commit>-dirty`.
    """
    package = Path(__file__).resolve().parents[1]
    root = package.parent
    if (package / "commit.txt").is_file():
        return (package / "commit.txt").read_text().strip()
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def describe() -> dict[str, Any]:
    """One JSON-ready description for logs and bundles."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpus": cpu_count(),
        "memory_gib": round(memory_gib(), 1),
        "packages": versions(),
    }
