"""A name that a person typed → a folder of the project, or an error with the names that there are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rsna_kit.runtime.errors import UsageError, did_you_mean
from rsna_lab.kaggle.metadata import DATASET_FILE, KERNEL_FILE


def kernel_folder(project: Path, name: str) -> Path:
    """The folder of a kernel of this project.

    Raises:
        UsageError: there is none of this name.
    """
    folder = project / "kernels" / name
    if "/" in name or not folder.is_dir():
        raise _no_such("kernel", name, (path.parent.name for path in project.glob(f"kernels/*/{KERNEL_FILE}")))
    return folder


def built_folder(project: Path, name: str) -> Path:
    """Where a dataset of this project lies once it is built.

    Raises:
        UsageError: there is none of this name, built or to be built.
    """
    patterns = (f"datasets/*/{DATASET_FILE}", f"build/datasets/*/{DATASET_FILE}")
    known = {path.parent.name for pattern in patterns for path in project.glob(pattern)}
    folder = project / "build" / "datasets" / name
    if name not in known and ("/" in name or not folder.is_dir()):
        raise _no_such("dataset", name, known)
    return folder


def _no_such(kind: str, name: str, known: Iterable[str]) -> UsageError:
    there = sorted(known)
    names = ", ".join(there) or "none"
    return UsageError(f"no such {kind}: {name!r}; there are {names}.{did_you_mean(name, there)}")
