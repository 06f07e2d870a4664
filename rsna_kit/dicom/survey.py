"""Many DICOM files → how each is coded and which cannot be read, from their heads alone.

One read of 64 KiB a file (`frame.read_head`), so tens of thousands of files on a network disk take minutes and not
hours. What is kept of a file is its name, its size and a `Kind` shared with the files that are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rsna_kit.dicom.codestream import Wavelet
from rsna_kit.dicom.decode import Group, group_of
from rsna_kit.dicom.frame import read_head
from rsna_kit.runtime.errors import DecodeError, ImageError, one_line
from rsna_kit.runtime.threads import in_daemons

_READERS = 16  # threads: they wait for a disk, parsing takes 0.3 ms of one core a file


class Kind(NamedTuple):
    """Everything in a head that decides how a file is decoded and shown, and how long that takes."""

    group: Group
    rows: int
    columns: int
    voi_function: str
    num_windows: int
    wavelet: Wavelet | None  # JPEG 2000
    jp2: bool  # its codestream lies inside JP2 boxes
    predictor: int | None  # lossless JPEG
    restart_interval: int


class Surveyed(NamedTuple):
    """A file with a good head."""

    image_id: str
    path: Path
    size: int  # bytes
    kind: Kind


class Failure(NamedTuple):
    """A file that cannot be used; stage and reason as in failures.csv."""

    image_id: str
    path: Path
    stage: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """What the heads of a set of files say, both lists in the order in which the files were given.

    `left` is how many files were not looked at because the time was over.
    """

    files: list[Surveyed]
    failures: list[Failure]
    left: int = 0

    @property
    def groups(self) -> dict[Group, list[Surveyed]]:
        """The files of each group, the largest group first."""
        found: dict[Group, list[Surveyed]] = {}
        for file in self.files:
            found.setdefault(file.kind.group, []).append(file)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def examples(self, per_group: int) -> dict[Group, list[Surveyed]]:
        """At most `per_group` files of each group, evenly spaced: the middles of as many equal parts of it."""
        found = {}
        for group, files in self.groups.items():
            count = min(per_group, len(files))
            found[group] = [files[(2 * part + 1) * len(files) // (2 * count)] for part in range(count)]
        return found


def survey(
    files: Iterable[tuple[str, Path]],
    advance: Callable[[int], None] | None = None,
    limit_s: float = math.inf,
) -> Survey:
    """Read the heads of many files; a bad file becomes a `Failure`, whatever is wrong with it.

    Args:
        files: image ids and their DICOM files.
        advance: told `1` after each file, from the calling thread.
        limit_s: seconds after which the files that are not read yet are left, a read that blocks among them.
    """
    files = list(files)
    results: dict[int, Surveyed | Failure] = {}
    shared: dict[Kind, Kind] = {}
    for number, result in in_daemons(_survey_one, files, _READERS, limit_s):
        if isinstance(result, Surveyed):
            result = result._replace(kind=shared.setdefault(result.kind, result.kind))
        results[number] = result
        if advance is not None:
            advance(1)
    ordered = [results[number] for number in sorted(results)]
    return Survey(
        [result for result in ordered if isinstance(result, Surveyed)],
        [result for result in ordered if isinstance(result, Failure)],
        len(files) - len(ordered),
    )


def _survey_one(file: tuple[str, Path]) -> Surveyed | Failure:
    image_id, path = file
    try:
        head = read_head(path, image_id)
    except ImageError as error:
        return Failure(image_id, path, error.stage, str(error))
    except Exception as error:  # a bug met by one file must not cost the other 32,000
        said = f"{path}: unexpected {type(error).__name__}: {one_line(error)}"
        return Failure(image_id, path, ImageError.stage, said)
    if head.problem is not None:
        return Failure(image_id, path, DecodeError.stage, head.problem)
    frame, facts = head.frame, head.facts
    kind = Kind(
        group_of(frame, facts),
        frame.rows,
        frame.columns,
        frame.voi_function,
        len(frame.windows),
        facts.wavelet if facts else None,
        head.jp2,
        facts.predictor if facts else None,
        facts.restart_interval if facts else 0,
    )
    return Surveyed(image_id, path, head.size, kind)
