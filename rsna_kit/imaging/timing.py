"""A `Survey` → how long its files take from disk to image, measured on a few of each kind.

The time is that of the CPU: of all threads, and of the processes that risky decoders run in. Waiting for a disk is
not in it, so the projection holds where the disk is fast enough.
"""

from __future__ import annotations

import os
import resource
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.survey import Failure, Survey, Surveyed, spread
from rsna_kit.dicom.trust import Group
from rsna_kit.imaging.render import read_image
from rsna_kit.runtime.errors import ImageError, one_line

_TIMED_PER_SIZE = 3
_MOST_TIMED = 48  # a folder of digitised films has as many sizes as files


class Size(NamedTuple):
    """What decides how long a file takes."""

    transfer_syntax: str
    rows: int
    columns: int


@dataclass(frozen=True)
class SizeTime:
    """The files of one size.

    Attributes:
        timed: how many of them were measured.
        cpu_s: the median of those, else what their pixels cost at the median of their transfer syntax; None when
            nothing of it could be read.
    """

    size: Size
    images: int
    timed: int
    cpu_s: float | None


@dataclass(frozen=True)
class Timing:
    """What was measured, the most frequent size first, and which of the files that were tried failed."""

    sizes: list[SizeTime]
    failures: list[Failure]

    @property
    def images(self) -> int:
        """How many images the projection is for."""
        return sum(row.images for row in self.sizes if row.cpu_s is not None)

    @property
    def timed(self) -> int:
        """How many files it rests on."""
        return sum(row.timed for row in self.sizes)

    @property
    def cpu_s(self) -> float:
        """Projected seconds of one core for all of them."""
        return sum(row.images * row.cpu_s for row in self.sizes if row.cpu_s is not None)


def choose(found: Survey) -> list[Surveyed]:
    """The files to measure: up to three of each size, of different groups where a size has several, 48 in all.

    Sizes with many files come first, and before them those with a group that no size before has.
    """
    sizes = list(_by_size(found.files).values())
    per_size = min(_TIMED_PER_SIZE, max(1, _MOST_TIMED // max(1, len(sizes))))
    first, later, seen = list[Surveyed](), list[Surveyed](), set[Group]()
    for files in sizes:
        groups = Survey(files, []).groups
        new = not seen.issuperset(groups)
        seen.update(groups)
        share = -(-per_size // len(groups))
        (first if new else later).extend(file for group in groups.values() for file in spread(group, share))
    return [*first, *later][:_MOST_TIMED]


def measure(
    found: Survey, chosen: Iterable[Surveyed], image: ImageConfig, advance: Callable[[int], None] | None = None
) -> Timing:
    """Read files one after the other as `prepare` and `infer` read them, and project their time to all.

    Args:
        found: all files.
        chosen: those to read, from `choose`.
        image: the image section of the configuration.
        advance: told `1` after each file.
    """
    sizes = _by_size(found.files)
    seconds: dict[Size, list[float]] = {size: [] for size in sizes}
    per_pixel: dict[str, list[float]] = {}
    failures = []
    for file in chosen:
        size = _size(file)
        if size.transfer_syntax not in per_pixel:  # the first file loads the decoder's libraries: not timed
            per_pixel[size.transfer_syntax] = []
            _read(file, image)
        spent = _read(file, image)
        if isinstance(spent, Failure):
            failures.append(spent)
        else:
            seconds[size].append(spent)
            per_pixel[size.transfer_syntax].append(spent / (size.rows * size.columns))
        if advance is not None:
            advance(1)
    rows = []
    for size, files in sizes.items():
        each = None
        if seconds[size]:
            each = statistics.median(seconds[size])
        elif per_pixel.get(size.transfer_syntax):
            each = statistics.median(per_pixel[size.transfer_syntax]) * size.rows * size.columns
        rows.append(SizeTime(size, len(files), len(seconds[size]), each))
    return Timing(rows, failures)


def _size(file: Surveyed) -> Size:
    return Size(file.kind.group.transfer_syntax, file.kind.rows, file.kind.columns)


def _by_size(files: Iterable[Surveyed]) -> dict[Size, list[Surveyed]]:
    """Files by size, the most frequent first."""
    found: dict[Size, list[Surveyed]] = {}
    for file in files:
        found.setdefault(_size(file), []).append(file)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _read(file: Surveyed, image: ImageConfig) -> float | Failure:
    """CPU seconds from file to image."""
    before = _cpu_seconds()
    try:
        read_image(file.path, file.image_id, image)
    except ImageError as error:
        return Failure(file.image_id, file.path, error.stage, str(error))
    except Exception as error:  # a bug met by one file must not hide what the others have
        reason = f"{file.path}: unexpected {type(error).__name__}: {one_line(error)}"
        return Failure(file.image_id, file.path, ImageError.stage, reason)
    return _cpu_seconds() - before


def _cpu_seconds() -> float:
    """Of this process, of its children that have ended, and (on Linux) of those that still run."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in used)
    for listed in Path("/proc/self/task").glob("*/children"):
        try:
            for child in listed.read_text().split():
                # Behind the name, which may hold anything: utime and stime are the 12th and 13th (man 5 proc).
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue  # the thread or the child has just ended
    return total
