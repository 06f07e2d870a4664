"""The folders that a rehearsal writes: emptied, if it was a rehearsal that wrote them before, and marked as its own.

OUT.verdict.json is the mark, and a permit to delete what lies at OUT the next time: it is written when OUT has become
the rehearsal's own, after all inputs were found good, and goes before OUT does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.files import read_json, write_json


def beside(folder: Path, end: str) -> Path:
    """`runs/a` and `.log` → `runs/a.log`; `.verdict.json` is the mark, and in the end the verdict."""
    return folder.with_name(folder.name + end)


def empty(out: Path, ends: Iterable[str], inputs: Iterable[Path]) -> None:
    """Make room for a run: Kaggle's /kaggle/working begins empty. What no rehearsal has written is left alone.

    Args:
        out: becomes /kaggle/working.
        ends: of the names of the other folders that will be written, beside `out`.
        inputs: what is read.

    Raises:
        UsageError: a folder that is to be emptied holds something else, or an input; nothing was touched.
    """
    mark, ours = beside(out, ".verdict.json"), False
    with suppress(OSError, ValueError, AttributeError):  # a file of that name that is none of ours is no permit
        ours = {"verdict", "out"} <= read_json(mark).keys()
    places = [out, *(beside(out, end) for end in ends)]
    for place in places:
        if inside := [path for path in inputs if path.resolve().is_relative_to(place.resolve())]:
            raise UsageError(
                f"{inside[0]} is an input and lies in {place}, which is emptied first. Name another --out."
            )
        if place.exists() and not (ours and place.is_dir()) and (not place.is_dir() or any(place.iterdir())):
            raise UsageError(
                f"{place} is not empty and no rehearsal wrote it (no {mark.name} beside it); /kaggle/working begins "
                "empty. Name a new folder, or remove it."
            )
    for place in places:
        shutil.rmtree(place.resolve(), ignore_errors=True)  # behind a link, to a larger disk perhaps
    if ours:
        mark.unlink()


def claim(out: Path) -> None:
    """Say that `out` is a rehearsal's, before anything is run: what a killed one leaves, the next one may empty."""
    out.resolve().mkdir(parents=True, exist_ok=True)
    write_json(beside(out, ".verdict.json"), {"verdict": None, "out": str(out)})
