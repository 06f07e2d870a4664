"""Surveys: what the heads of many files say, in order, whatever some of them are."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from dicom_files import EXPLICIT, J2K, LOSSLESS, SV1, literal, make_dicom
from pydicom.dataset import Dataset

from rsna_kit.dicom import survey as module
from rsna_kit.dicom.survey import Failure, Kind, Survey, Surveyed, spread, survey
from rsna_kit.dicom.trust import Group
from rsna_kit.runtime.errors import HeaderError

TWELVE = Group(SV1, 16, 12, False, "MONOCHROME2")
FILM = Group(J2K, 16, 10, False, "MONOCHROME1")
WINDOWS = {"WindowCenter": ["1", "2"], "WindowWidth": ["3", "4"], "VOILUTFunction": "SIGMOID"}


def write(folder: Path, contents: dict[str, bytes]) -> list[tuple[str, Path]]:
    for name, content in contents.items():
        (folder / f"{name}.dcm").write_bytes(content)
    return [(name, folder / f"{name}.dcm") for name in contents]


@pytest.fixture
def mixed(tmp_path: Path) -> list[tuple[str, Path]]:
    """Seven files of two groups, three that are bad, and one that is missing."""
    lossless = make_dicom(literal(), SV1)
    film = make_dicom(literal() >> 2, J2K, BitsStored=10, PhotometricInterpretation="MONOCHROME1", **WINDOWS)
    files = write(tmp_path, {
        "9": lossless, "text": b"patient_id,image_id", "3": film, "8": lossless, "1": film, "cut": lossless[:-20],
        "7": make_dicom(literal(), SV1, **WINDOWS), "6": lossless, "2": film,
        "wrong": make_dicom(literal(), SV1, Rows=6),
    })  # fmt: skip
    return [*files, ("gone", tmp_path / "gone.dcm")]


def test_files_and_failures_keep_the_order_given(mixed: list[tuple[str, Path]]) -> None:
    found = survey(mixed)
    assert [file.image_id for file in found.files] == ["9", "3", "8", "1", "7", "6", "2"]
    assert [(bad.image_id, bad.stage) for bad in found.failures] == [
        ("text", "header"), ("cut", "header"), ("wrong", "decode"), ("gone", "header"),
    ]  # fmt: skip
    assert [file.size for file in found.files] == [path.stat().st_size for _, path in mixed if path.stem.isdigit()]


def test_every_failure_says_why(mixed: list[tuple[str, Path]]) -> None:
    expected = ["not a DICOM file", "only", "holds 5 x 7 pixels, expected the header's 6 x 7", "No such file"]
    for failure, said in zip(survey(mixed).failures, expected, strict=True):
        assert said in failure.reason
        assert str(failure.path) in failure.reason


def test_kinds_are_counted_and_shared(mixed: list[tuple[str, Path]]) -> None:
    found = survey(mixed)
    plain = Kind(TWELVE, 5, 7, "LINEAR", 0, None, False, 1, 0)
    assert found.kinds[plain] == 3
    assert found.kinds[plain._replace(voi_function="SIGMOID", num_windows=2)] == 1
    (film,) = (kind for kind in found.kinds if kind.group == FILM)
    assert (found.kinds[film], film.jp2, film.predictor, film.num_windows) == (3, True, None, 2)
    assert film.wavelet is not None
    assert (film.wavelet.reversible, film.wavelet.progression) == (True, "LRCP")
    assert len({id(file.kind) for file in found.files}) == 3


def test_the_largest_group_comes_first(mixed: list[tuple[str, Path]]) -> None:
    groups = survey(mixed).groups
    assert list(groups) == [TWELVE, FILM]
    assert [file.image_id for file in groups[TWELVE]] == ["9", "8", "7", "6"]
    assert [file.image_id for file in groups[FILM]] == ["3", "1", "2"]


def test_examples_are_good_files_spread_over_their_group(mixed: list[tuple[str, Path]]) -> None:
    found = survey(mixed)
    assert {group: [name for name, _ in files] for group, files in found.examples(2).items()} == {
        TWELVE: ["8", "6"], FILM: ["3", "2"],
    }  # fmt: skip
    assert [name for name, _ in found.examples(9)[TWELVE]] == ["9", "8", "7", "6"]
    assert found.examples(1)[FILM] == [("1", mixed[4][1])]


@pytest.mark.parametrize(
    ("count", "places"), [(1, [5]), (2, [2, 7]), (3, [1, 5, 8]), (10, list(range(10))), (99, list(range(10)))]
)
def test_spread_takes_the_middles_of_equal_parts(count: int, places: list[int]) -> None:
    files = [Surveyed(str(place), Path(), 0, Kind(TWELVE, 1, 1, "", 0, None, False, None, 0)) for place in range(10)]
    assert [int(file.image_id) for file in spread(files, count)] == places


@pytest.mark.parametrize("workers", [1, 2, 32])
def test_the_number_of_threads_changes_nothing(mixed: list[tuple[str, Path]], workers: int) -> None:
    many = [(f"{name}-{turn}", path) for turn in range(20) for name, path in mixed]
    assert survey(iter(many), workers) == survey(many)


def test_progress_is_told_by_the_calling_thread(mixed: list[tuple[str, Path]]) -> None:
    told: list[tuple[int, int]] = []
    survey(mixed, advance=lambda steps: told.append((steps, threading.get_ident())))
    assert told == [(1, threading.get_ident())] * 11


def test_a_file_that_blocks_holds_up_no_other(mixed: list[tuple[str, Path]], tmp_path: Path) -> None:
    """A pipe that nobody writes to stands for a file on a network disk that does not answer."""
    os.mkfifo(tmp_path / "stuck.dcm")
    told: list[int] = []
    found = survey([mixed[0], ("stuck", tmp_path / "stuck.dcm"), *mixed[1:]], 2, told.append, limit_s=3)
    assert found.left == 1
    assert [file.image_id for file in found.files] == ["9", "3", "8", "1", "7", "6", "2"]
    assert [bad.image_id for bad in found.failures] == ["text", "cut", "wrong", "gone"]
    assert told == [1] * 11
    os.close(os.open(tmp_path / "stuck.dcm", os.O_WRONLY | os.O_NONBLOCK))  # the thread reads an end, and ends


def test_without_time_every_file_is_left(mixed: list[tuple[str, Path]]) -> None:
    assert survey(iter(mixed), limit_s=0) == Survey([], [], 11)
    assert survey(iter(mixed), limit_s=1e12).left == 0


def test_a_file_that_blocks_does_not_keep_the_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stuck.dcm")
    script = (
        "import sys; from pathlib import Path; from rsna_kit.dicom.survey import survey; "
        "print(survey([('1', Path(sys.argv[1]))], limit_s=0.5))"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path / "stuck.dcm")], capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "Survey(files=[], failures=[], left=1)\n"


def test_a_bug_costs_one_file(mixed: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, image_id: str) -> object:
        raise HeaderError("bad") if image_id == "9" else KeyError("oops")

    monkeypatch.setattr(module, "read_head", broken)
    found = survey(mixed[:2])
    assert found.failures == [
        Failure("9", mixed[0][1], "header", "bad"),
        Failure("text", mixed[1][1], "image", f"{mixed[1][1]}: unexpected KeyError: 'oops'"),
    ]


def test_nothing_heavy_is_kept_of_a_file(tmp_path: Path) -> None:
    """A look-up table of 65,536 entries and the pixels stay on the disk."""
    item = Dataset()
    item.LUTDescriptor = [0, 0, 16]
    item["LUTDescriptor"].VR = "US"
    item.add_new(0x00283006, "OW", np.arange(65536, dtype="<u2").tobytes())
    content = make_dicom(np.zeros((100, 100), np.uint16), EXPLICIT, VOILUTSequence=[item])
    files = write(tmp_path, {str(number): content for number in range(20)})
    assert len(pickle.dumps(survey(files))) < 20 * 500


def test_restart_intervals_and_predictors_tell_kinds_apart(tmp_path: Path) -> None:
    six = make_dicom(literal(), LOSSLESS)
    at = six.index(b"\xff\xd8\xff") + 2
    stream = six[at - 2 : six.rindex(b"\xff\xd9") + 2]
    restarts = make_dicom(literal(), LOSSLESS, codestream=stream[:2] + b"\xff\xdd\x00\x04\x00\x07" + stream[2:])
    kinds = [file.kind for file in survey(write(tmp_path, {"1": six, "2": restarts})).files]
    assert [(kind.predictor, kind.restart_interval) for kind in kinds] == [(6, 0), (6, 7)]
