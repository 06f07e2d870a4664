"""Where a built folder is to stand → that place, if nothing but an earlier build can be lost there; and the exchange.

Every dataset on Kaggle has a dataset-metadata.json, a person's own as well. What was built here is known by its
contents.json, which is of the same dataset and lists every file that is there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from rsna_kit.runtime.contents import CONTENTS
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.files import read_json
from rsna_lab.kaggle.metadata import NOT_UPLOADED

_SHOWN = 3


def check_place(out: Path, dataset: str, inputs: Iterable[Path]) -> Path:
    """The place itself, behind links: a folder on another disk is filled there.

    Args:
        out: not there, empty, or an earlier build of the same dataset.
        dataset: its name.
        inputs: folders that are read, which must neither lie in the place nor hold it.

    Raises:
        UsageError: anything else; nothing was touched.
    """
    place = out.resolve()
    for path in inputs:
        read = path.resolve()
        if place.is_relative_to(read) or read.is_relative_to(place):
            raise UsageError(f"{out} and {path}, which is read, lie in one another. Name another folder with --out.")
    if place.exists() and (why := _why_not(place, dataset)):
        raise UsageError(f"{out} is there and was not built by scripts/build {dataset}: {why}. Name a new or empty "
                         "folder with --out, or remove it.")  # fmt: skip
    return place


def exchange(made: Path, place: Path) -> None:
    """Put a new folder, which lies beside its place, there; the old one goes once the new one stands."""
    old = place.with_name(f"{place.name}.old-{os.getpid()}")
    if place.exists():
        place.rename(old)
    try:
        made.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _why_not(place: Path, dataset: str) -> str:
    """Why a place is no earlier build of this dataset; "" where it is one, or empty."""
    if not place.is_dir():
        return "it is a file"
    there = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_symlink() or not path.is_dir()}
    if not there:
        return ""
    try:
        content = read_json(place / CONTENTS)
        built, listed = content["dataset"], set(content["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"it has no {CONTENTS} of ours"
    if built != dataset:
        return f"it is the dataset {built}"
    foreign = sorted(there - {CONTENTS, *NOT_UPLOADED, *listed})
    shown = ", ".join(foreign[:_SHOWN]) + (", …" if len(foreign) > _SHOWN else "")
    return f"its {CONTENTS} does not list {shown}" if foreign else ""
