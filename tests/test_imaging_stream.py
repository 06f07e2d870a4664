"""One queue: order, bounds, files that cannot be read or hold a thread, devices of every temper, other backends."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from dicom_files import EXPLICIT, J2K, SV1, breast, make_dicom

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.codestream import StreamFacts
from rsna_kit.dicom.decode import Trust, decode, group_of
from rsna_kit.dicom.frame import EncodedFrame, check_stream, read_frame
from rsna_kit.imaging import spread as spreading
from rsna_kit.imaging import stream as streaming
from rsna_kit.imaging.render import read_image
from rsna_kit.imaging.spread import spread_images
from rsna_kit.imaging.stream import ImageStream, Outcome
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import DecodeError

IMAGE = ImageConfig(height=64, width=32)
Files = list[tuple[str, Path]]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Twelve breasts, every third of each syntax, no two alike; files 4 and 9 are no DICOM."""
    y, x = np.mgrid[:80, :60]
    found = []
    for k in range(12):
        breast = np.where(np.hypot((y - 40) / 35, x / 40) < 1, 800 + 9 * x + 50 * k, 0).astype(np.uint16)
        path = tmp_path / f"{k}.dcm"
        path.write_bytes(make_dicom(breast, (EXPLICIT, J2K, SV1)[k % 3]) if k not in (4, 9) else b"nothing")
        found.append((str(k), path))
    return found


class Decoder:
    """A device that decodes as the CPU does, takes JPEG 2000 alone, and can be told to misbehave."""

    name, batch_size = "device", 3

    def __init__(
        self, fail: frozenset[str] = frozenset(), raises: int = -1, hang: threading.Event | None = None
    ) -> None:
        self.batches: list[list[str]] = []
        self.fail, self.raises, self.hang = fail, raises, hang

    def takes(self, frame: EncodedFrame, facts: StreamFacts | None) -> bool:
        return frame.transfer_syntax == J2K

    def decode(self, frames: Sequence[EncodedFrame]) -> list[np.ndarray | DecodeError]:
        self.batches.append([frame.image_id for frame in frames])
        if len(self.batches) - 1 == self.raises:
            raise RuntimeError("out of memory")
        if self.hang is not None:
            self.hang.wait()
        return [DecodeError("no") if frame.image_id in self.fail else decode(frame) for frame in frames]


def read(files: Files, **options: object) -> tuple[list[Outcome], ImageStream]:
    with ImageStream(files, IMAGE, **options) as stream:
        return list(stream), stream


def same(outcomes: list[Outcome], files: Files) -> bool:
    """Every outcome is what one thread alone makes of its file, in the order of the files."""
    assert [outcome.image_id for outcome in outcomes] == [image_id for image_id, _ in files]
    for outcome, (image_id, path) in zip(outcomes, files, strict=True):
        if path.stat().st_size < 100:
            assert outcome.rendered is None
            assert outcome.failure()["stage"] == "header"
        else:
            assert outcome.rendered is not None
            assert np.array_equal(outcome.rendered.image, read_image(path, image_id, IMAGE).image)
    return True


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_outcomes_come_in_order_and_a_bad_file_costs_itself(files: Files, workers: int) -> None:
    outcomes, stream = read(files, workers=workers)
    assert same(outcomes, files)
    assert stream.counts == {"cpu": 12}
    assert next(stream, None) is None


def test_no_more_is_begun_than_is_allowed(files: Files) -> None:
    begun = []

    def drawn() -> Iterator[tuple[str, Path]]:
        for file in files:
            begun.append(file)
            yield file

    with ImageStream(drawn(), IMAGE, workers=2, ahead=3) as stream:
        for taken in range(1, 13):
            next(stream)
            assert len(begun) <= taken + 3
        assert next(stream, None) is None


def test_an_error_of_the_list_of_files_is_the_consumers(files: Files) -> None:
    def drawn() -> Iterator[tuple[str, Path]]:
        yield from files[:2]
        raise OSError("the folder went away")

    with ImageStream(drawn(), IMAGE, workers=1) as stream:
        assert [next(stream).image_id, next(stream).image_id] == ["0", "1"]
        with pytest.raises(OSError, match="the folder went away"):
            next(stream)


def test_a_bug_met_by_one_file_is_that_files_failure(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_or_fail(path: Path, image_id: str, *rest: object) -> object:
        if image_id == "2":
            raise ZeroDivisionError("bug")
        return read_image(path, image_id, *rest)

    monkeypatch.setattr(streaming, "read_image", read_or_fail)
    outcomes, _ = read(files[:4], workers=2)
    assert [outcome.rendered is None for outcome in outcomes] == [False, False, True, False]
    assert "image 2" in outcomes[2].failure()["reason"]
    assert "unexpected ZeroDivisionError: bug" in outcomes[2].failure()["reason"]


def test_a_device_shares_the_queue_and_the_bytes_are_the_same(files: Files) -> None:
    device = Decoder()
    outcomes, stream = read(files * 4, workers=1, devices=[device])
    assert same(outcomes, files * 4)
    assert stream.counts["device"] > 0
    assert stream.counts["device"] + stream.counts["cpu"] == 48
    taken = {image_id for batch in device.batches for image_id in batch}
    assert taken <= {"1", "7", "10"}  # JPEG 2000, and 4 is broken
    assert all(len(batch) <= 3 for batch in device.batches)
    assert not stream.notes


@pytest.mark.parametrize("waits", [True, False])
def test_a_late_device_begins_when_the_consumer_waits(
    files: Files, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """Slow decoding and a consumer that does nothing; or one that is slow while everything is decoded ahead."""
    monkeypatch.setattr(streaming, "_LOOK_FILES", 6)
    slow = (lambda *rest: time.sleep(0.05) or read_image(*rest)) if waits else read_image
    monkeypatch.setattr(streaming, "read_image", slow)
    many, device, outcomes = files * 3, Decoder(), []
    with ImageStream(many, IMAGE, workers=1, devices=[device], late=True, taken=36) as stream:
        for outcome in stream:
            time.sleep(0.0 if waits else 0.1)
            outcomes.append(outcome)
    assert same(outcomes, many)
    assert bool(device.batches) == bool(stream.notes) == waits
    if waits:
        assert re.fullmatch(r"device decodes, too, from file 6 on: \d+% was waiting", stream.notes[0])


@pytest.mark.parametrize("batch", [0, 1])
def test_a_device_that_raises_is_left_behind(files: Files, batch: int) -> None:
    outcomes, stream = read(files * 3, workers=1, devices=[Decoder(raises=batch)])
    assert same(outcomes, files * 3)
    if stream.notes:  # the threads may have been faster than its batch
        assert stream.notes == ["device is not used any more: RuntimeError: out of memory"]


def test_a_device_that_hangs_is_left_behind(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_LOOK_EVERY_S", 0.05)
    hang = threading.Event()

    def slow(*arguments: object) -> object:
        time.sleep(0.02)  # so that the device gets its batch
        return read_image(*arguments)

    monkeypatch.setattr(streaming, "read_image", slow)
    outcomes, stream = read(files, workers=1, devices=[Decoder(hang=hang)], patience_s=1.0)
    hang.set()
    assert same(outcomes, files)
    assert stream.notes == ["device is not used any more: nothing came within 1 s"]
    assert stream.counts == {"cpu": 12}


def test_the_clock_ends_the_stream_but_not_before_the_first_file(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "read_image", lambda *rest: time.sleep(0.2) or read_image(*rest))
    began = time.monotonic()
    outcomes, _ = read(files * 50, workers=1, clock=Clock(0.5))
    assert 1 <= len(outcomes) < 100
    assert time.monotonic() - began < 20
    outcomes, _ = read(files, workers=1, clock=Clock(-1.0))
    assert outcomes[0].image_id == "0"


def test_leaving_a_stream_early_does_not_abort_the_process(tmp_path: Path) -> None:
    """A thread that came back from a decoder while the interpreter ends would: close waits for it."""
    pixels = breast(1400, 900)
    path = tmp_path / "1.dcm"
    path.write_bytes(make_dicom(pixels, SV1))
    code = (
        "import sys; from pathlib import Path\n"
        "from rsna_kit.config import ImageConfig; from rsna_kit.imaging.stream import ImageStream\n"
        "files = [(str(k), Path(sys.argv[1])) for k in range(20)]\n"
        "with ImageStream(files, ImageConfig(height=64, width=32), workers=4) as stream: next(stream)\n"
    )
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, "")


def test_a_device_that_fails_on_everything_is_left_behind(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_MOST_FAILURES", 3)
    device = Decoder(fail=frozenset({"1", "7", "10"}))  # the threads decode what it fails on
    outcomes, stream = read(files * 6, workers=1, devices=[device])
    assert same(outcomes, files * 6)
    assert len(stream.notes) == 1
    assert re.fullmatch(r"device is not used any more: failed on \d+ files in a row, lastly no", stream.notes[0])


def test_a_device_is_not_asked_for_what_it_is_not_trusted_with(files: Files) -> None:
    frame = read_frame(files[1][1])
    trust = Trust(frozenset({(group_of(frame, check_stream(frame)), "device")}))
    device = Decoder()
    outcomes, _ = read(files, workers=1, trust=trust, devices=[device])
    assert same(outcomes, files)
    assert device.batches == []


def test_coarser_is_read_as_each_file_is_begun(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(path: Path, image_id: str, image: ImageConfig, trust: Trust, coarser: int) -> object:
        seen.append(coarser)
        return read_image(path, image_id, image, trust, coarser)

    monkeypatch.setattr(streaming, "read_image", note)
    with ImageStream(files, IMAGE, workers=1, ahead=1) as stream:
        next(stream)
        stream.coarser = 2
        list(stream)
    assert seen[0] == 0
    assert seen[-1] == 2


def test_a_cluster_gives_the_same_bytes_and_does_not_run_ahead(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="needs Dask: pip install 'rsna-kit[cluster]'")
    monkeypatch.setattr(spreading, "_ROUND", 1)
    drawn = []
    many = ((drawn.append(file), file)[1] for file in files * 4)
    outcomes = spread_images(many, IMAGE, workers=2)
    assert same(list(islice(outcomes, 12)), files)
    outcomes.close()
    assert len(drawn) <= 16  # one task a worker, eight files each


def test_a_file_that_hangs_costs_itself_and_not_its_thread(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    def read_or_hang(path: Path, image_id: str, *rest: object) -> object:
        if image_id == "1":
            free.wait()
        return read_image(path, image_id, *rest)

    monkeypatch.setattr(streaming, "read_image", read_or_hang)
    monkeypatch.setattr(streaming, "_LOOK_EVERY_S", 0.05)
    outcomes, _ = read(files, workers=1, patience_s=0.5)
    free.set()
    assert [outcome.image_id for outcome in outcomes if outcome.rendered is None] == ["1", "4", "9"]
    assert outcomes[1].failure()["stage"] == "decode"
    assert "nothing came within 0.5 s: a decoder hangs, or the disk" in outcomes[1].failure()["reason"]
