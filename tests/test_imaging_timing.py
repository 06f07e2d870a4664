"""Projected time: which files are tried, and what follows from a clock that is literal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.decode import Group
from rsna_kit.dicom.survey import Failure, Kind, Survey, Surveyed
from rsna_kit.imaging import pace
from rsna_kit.imaging.pace import Size, SizeTime, choose, measure
from rsna_kit.runtime.errors import DecodeError

IMAGE = ImageConfig(height=8, width=4)


def files(name: str, count: int, side: int, bits: int = 12, syntax: str = "1.70") -> list[Surveyed]:
    """`count` files `name0`, `name1`, … of side x side pixels."""
    kind = Kind(Group(syntax, 16, bits, False, "MONOCHROME2"), side, side, "LINEAR", 1, None, False, 1, 0)
    return [Surveyed(f"{name}{number}", Path(f"{name}{number}.dcm"), 1000, kind) for number in range(count)]


def names(chosen: list[Surveyed]) -> list[str]:
    return [file.image_id for file in chosen]


def test_three_files_of_each_size_are_tried_the_frequent_size_first() -> None:
    found = Survey([*files("rare", 2, 20), *files("often", 9, 10)], [])
    assert names(choose(found)) == ["often1", "often4", "often7", "rare0", "rare1"]


def test_every_group_of_a_size_is_tried() -> None:
    found = Survey([*files("a", 9, 10), *files("b", 1, 10, bits=10), *files("c", 1, 10, bits=14)], [])
    assert names(choose(found)) == ["a4", "b0", "c0"]


def test_as_many_sizes_as_files_are_not_all_tried_but_every_group_is() -> None:
    """A folder of digitised films; its one file of another group is of the rarest size."""
    films = [file for side in range(100, 1100) for file in files(f"f{side}-", 2, side)]
    chosen = choose(Survey([*films, *files("odd", 1, 99, bits=16)], []))
    assert len(chosen) == 48
    assert names(chosen)[:3] == ["f100-1", "odd0", "f101-1"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[float]]], list[str]]:
    """Make `read_image` take the given CPU seconds, one after the other; what it read is listed."""

    def install(spends: dict[str, list[float]]) -> list[str]:
        now, read = [100.0], []

        def fake(path: Path, image_id: str, image: ImageConfig) -> None:
            assert image is IMAGE
            read.append(image_id)
            spent = spends[image_id].pop(0)
            now[0] += abs(spent)
            if spent < 0:
                raise DecodeError(f"{image_id}: bad") if spent > -10 else MemoryError("much")

        monkeypatch.setattr(pace, "read_image", fake)
        monkeypatch.setattr(pace, "_cpu_seconds", lambda: now[0])
        return read

    return install


def test_the_projection_is_the_median_times_the_files(clock: Callable[..., list[str]]) -> None:
    found = Survey([*files("a", 9, 10), *files("b", 4, 20)], [])
    read = clock({"a1": [50.0, 1.0], "a4": [9.0], "a7": [2.0], "b0": [4.0], "b2": [6.0], "b3": [5.0]})
    told: list[int] = []
    result = measure(found, choose(found), IMAGE, told.append)
    assert read == ["a1", "a1", "a4", "a7", "b0", "b2", "b3"]  # the very first loads libraries, and is read again
    assert result.sizes == [SizeTime(Size("1.70", 10, 10), 9, 3, 2.0), SizeTime(Size("1.70", 20, 20), 4, 3, 5.0)]
    assert (result.images, result.timed, result.cpu_s) == (13, 6, 9 * 2.0 + 4 * 5.0)
    assert result.failures == []
    assert told == [1] * 6


def test_what_was_not_timed_costs_what_its_pixels_cost(clock: Callable[..., list[str]]) -> None:
    found = Survey([*files("a", 3, 10), *files("b", 2, 20), *files("c", 1, 10, syntax="1.90")], [])
    clock({"a1": [50.0, 1.0]})
    result = measure(found, [found.files[1]], IMAGE)
    assert [row.cpu_s for row in result.sizes] == [1.0, 4.0, None]
    assert (result.images, result.timed, result.cpu_s) == (5, 1, 3 * 1.0 + 2 * 4.0)


def test_files_that_fail_are_reported_and_not_timed(clock: Callable[..., list[str]]) -> None:
    found = Survey(files("a", 3, 10), [])
    clock({"a0": [-1.0, -1.0], "a1": [-20.0], "a2": [3.0]})
    result = measure(found, choose(found), IMAGE)
    assert result.sizes == [SizeTime(Size("1.70", 10, 10), 3, 1, 3.0)]
    assert result.failures == [
        Failure("a0", Path("a0.dcm"), "decode", "a0: bad"),
        Failure("a1", Path("a1.dcm"), "image", "a1.dcm: unexpected MemoryError: much"),
    ]


def test_the_time_of_processes_is_counted_while_they_live_and_afterwards() -> None:
    """Risky decoders run in processes that stay; this one works for 0.2 s of CPU time, and waits."""
    work = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    before = pace._cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert pace._cpu_seconds() - before > 0.17  # the kernel counts in steps of 10 ms
        child.communicate(b"\n")
    assert pace._cpu_seconds() - before > 0.17
