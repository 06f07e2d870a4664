"""Surveys: what the heads of many files say, in order, whatever some of them are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dicom_files import J2K, SV1, literal, make_dicom

from rsna_kit.dicom import survey as module
from rsna_kit.dicom.decode import Group
from rsna_kit.dicom.survey import Failure, survey
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
    files = write(
        tmp_path,
        {
            "9": lossless,
            "text": b"patient_id,image_id",
            "3": film,
            "8": lossless,
            "1": film,
            "cut": lossless[:-20],
            "7": make_dicom(literal(), SV1, **WINDOWS),
            "6": lossless,
            "2": film,
            "wrong": make_dicom(literal(), SV1, Rows=6),
        },
    )
    return [*files, ("gone", tmp_path / "gone.dcm")]


def test_files_and_failures_keep_the_order_given(mixed: list[tuple[str, Path]]) -> None:
    found = survey(mixed)
    assert [file.image_id for file in found.files] == ["9", "3", "8", "1", "7", "6", "2"]
    assert [(bad.image_id, bad.stage) for bad in found.failures] == [
        ("text", "header"),
        ("cut", "header"),
        ("wrong", "decode"),
        ("gone", "header"),
    ]
    assert [file.size for file in found.files] == [path.stat().st_size for _, path in mixed if path.stem.isdigit()]


def test_examples_are_good_files_spread_over_their_group(mixed: list[tuple[str, Path]]) -> None:
    found = survey(mixed)
    for count, expected in (
        (1, {TWELVE: "7", FILM: "1"}),
        (2, {TWELVE: "86", FILM: "32"}),
        (9, {TWELVE: "9876", FILM: "312"}),
    ):
        given = {group: "".join(file.image_id for file in files) for group, files in found.examples(count).items()}
        assert given == expected


def test_a_file_that_blocks_holds_up_no_other(mixed: list[tuple[str, Path]], tmp_path: Path) -> None:
    """A pipe that nobody writes to stands for a file on a network disk that does not answer."""
    os.mkfifo(tmp_path / "stuck.dcm")
    told: list[int] = []
    found = survey([mixed[0], ("stuck", tmp_path / "stuck.dcm"), *mixed[1:]], told.append, limit_s=1.5)
    assert found.left == 1
    assert [file.image_id for file in found.files] == ["9", "3", "8", "1", "7", "6", "2"]
    assert [bad.image_id for bad in found.failures] == ["text", "cut", "wrong", "gone"]
    assert told == [1] * 11
    os.close(os.open(tmp_path / "stuck.dcm", os.O_WRONLY | os.O_NONBLOCK))  # the thread reads an end, and ends


def test_a_bug_costs_one_file(mixed: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, image_id: str) -> object:
        raise HeaderError("bad") if image_id == "9" else KeyError("oops")

    monkeypatch.setattr(module, "read_head", broken)
    found = survey(mixed[:2])
    assert found.failures == [
        Failure("9", mixed[0][1], "header", "bad"),
        Failure("text", mixed[1][1], "image", f"{mixed[1][1]}: unexpected KeyError: 'oops'"),
    ]
