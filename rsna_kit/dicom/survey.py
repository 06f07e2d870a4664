"""Many DICOM files → how each is coded and which cannot be read, from their heads alone.

One read of 64 KiB a file (`frame.read_head`), so tens of thousands of files on a network disk take minutes and not
hours. What is kept of a file is its name, its size and a `Kind` shared with the files that are alike.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rsna_kit.dicom.codestream import Wavelet
from rsna_kit.dicom.frame import Head, read_head
from rsna_kit.dicom.trust import Group, group_of
from rsna_kit.runtime.errors import DecodeError, ImageError

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
    """What the heads of a set of files say, both lists in the order in which the files were given."""

    files: list[Surveyed]
    failures: list[Failure]

    @property
    def kinds(self) -> Counter[Kind]:
        """How many files there are of each kind."""
        return Counter(file.kind for file in self.files)

    @property
    def groups(self) -> dict[Group, list[Surveyed]]:
        """The files of each group, the largest group first."""
        found: dict[Group, list[Surveyed]] = {}
        for file in self.files:
            found.setdefault(file.kind.group, []).append(file)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def examples(self, per_group: int) -> dict[Group, list[tuple[str, Path]]]:
        """At most `per_group` files of each group, spread evenly over it; the same files for the same survey."""
        return {
            group: [(file.image_id, file.path) for file in spread(files, per_group)]
            for group, files in self.groups.items()
        }


def spread(files: list[Surveyed], count: int) -> list[Surveyed]:
    """At most `count` of `files`, in their order and evenly spaced: the middles of as many equal parts."""
    count = min(count, len(files))
    return [files[(2 * part + 1) * len(files) // (2 * count)] for part in range(count)]


def survey(files: Iterable[tuple[str, Path]], workers: int = 0, advance: Callable[[int], None] | None = None) -> Survey:
    """Read the heads of many files; a bad file becomes a `Failure`, whatever is wrong with it.

    Args:
        files: image ids and their DICOM files.
        workers: reading threads, 0 for 16.
        advance: told `1` after each file, from the calling thread.
    """
    found, failures = list[Surveyed](), list[Failure]()
    shared: dict[Kind, Kind] = {}
    waiting: deque[Future[Surveyed | Failure]] = deque()

    def take() -> None:
        result = waiting.popleft().result()
        if isinstance(result, Failure):
            failures.append(result)
        else:
            found.append(result._replace(kind=shared.setdefault(result.kind, result.kind)))
        if advance is not None:
            advance(1)

    workers = workers or _READERS
    pool = ThreadPoolExecutor(workers, thread_name_prefix="survey")
    try:
        for image_id, path in files:
            waiting.append(pool.submit(_survey_one, image_id, path))
            if len(waiting) >= 4 * workers:
                take()
        while waiting:
            take()
    finally:
        pool.shutdown(cancel_futures=True)
    return Survey(found, failures)


def _survey_one(image_id: str, path: Path) -> Surveyed | Failure:
    try:
        head = read_head(path, image_id)
    except ImageError as error:
        return Failure(image_id, path, error.stage, str(error))
    except Exception as error:  # a bug met by one file must not cost the other 32,000
        return Failure(image_id, path, ImageError.stage, f"{path}: unexpected {type(error).__name__}: {error}")
    if head.problem is not None:
        return Failure(image_id, path, DecodeError.stage, head.problem)
    return Surveyed(image_id, path, head.size, _kind(head))


def _kind(head: Head) -> Kind:
    frame, facts = head.frame, head.facts
    return Kind(
        group_of(frame, facts), frame.rows, frame.columns, frame.voi_function, len(frame.windows),
        facts.wavelet if facts else None, head.jp2, facts.predictor if facts else None,
        facts.restart_interval if facts else 0,
    )  # fmt: skip
