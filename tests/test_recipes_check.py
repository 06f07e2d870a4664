"""Checking a folder: the counts, the reasons, the tables that people read, and the exit code."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import EXPLICIT, J2K, LOSSLESS, SV1, make_dicom
from pydicom.uid import UID

from rsna_kit.config import ImageConfig, preset
from rsna_kit.recipes import check as recipe
from rsna_kit.recipes.check import check, find_dicoms
from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_lab.cli import main

SMALL = ImageConfig(height=64, width=32)
MPEG = "1.2.840.10008.1.2.4.100"


def breast(rows: int = 80, columns: int = 60) -> np.ndarray:
    """A half ellipse of growing brightness on air 0."""
    y, x = np.mgrid[:rows, :columns]
    inside = np.hypot((y - rows / 2) / (0.45 * rows), x / (0.7 * columns)) < 1
    return np.where(inside, 1000 + 10 * x, 0).astype(np.uint16)


def checked(folder: Path) -> tuple[dict[str, Any], str]:
    """The result, and what people read."""
    stream = io.StringIO()
    result = check(folder, Events(stream=stream), SMALL)
    assert json.loads(json.dumps(result)) == result
    return result, stream.getvalue()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of `write_mixed`, to be changed."""
    return write_mixed(tmp_path / "files")


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Such a folder, the result for it, and what people read."""
    folder = write_mixed(tmp_path_factory.mktemp("mixed") / "files")
    return folder, *checked(folder)


def write_mixed(folder: Path) -> Path:
    """Good files of four syntaxes, and one bad file of each kind, two of one kind."""
    windows = {"WindowCenter": ["1000", "2000"], "WindowWidth": ["500", "800"], "VOILUTFunction": "SIGMOID"}
    good = make_dicom(breast(), SV1, WindowCenter="1000", WindowWidth="800")
    contents = {
        "a/1": good,
        "a/2": good,
        "a/3": good,
        "b/4": make_dicom(breast(96, 64), J2K, PhotometricInterpretation="MONOCHROME1", **windows),
        "b/5": make_dicom(breast(), EXPLICIT),
        "b/6": make_dicom(breast(), LOSSLESS),
        "bad/text": b"image_id,laterality\n",
        "bad/empty": b"",
        "bad/cut": good[:-300],
        "bad/cut2": good[:-200],
        "bad/colour": make_dicom(breast(), EXPLICIT, PhotometricInterpretation="RGB"),
        "bad/rows": make_dicom(breast(), SV1, Rows=81),
        "bad/film": make_dicom(breast(), MPEG, codestream=bytes(100)),
        "bad/blank": make_dicom(np.full((50, 40), 7, np.uint16), SV1),
        "bad/broken": make_dicom(breast(44, 33), J2K, codestream=_broken()),
    }
    for name, content in contents.items():
        path = folder / f"{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def _broken() -> bytes:
    """A codestream with a good head and a good end, and no packets between them."""
    from dicom_files import encode

    stream = encode(breast(44, 33), J2K)
    at = stream.index(b"\xff\x93") + 2
    return stream[:at] + b"\xff" * (len(stream) - at - 2) + b"\xff\xd9"


def test_files_are_counted_by_how_they_are_coded(looked_at: tuple[Path, dict[str, Any], str]) -> None:
    mixed, found = looked_at[0], looked_at[1]["folder"]
    assert found["images"] == 15
    assert found["counts"] == {
        "transfer syntax": {
            f"{SV1} {UID(SV1).name}": 4,
            f"{J2K} {UID(J2K).name}": 2,
            "1.2.840.10008.1.2.1 Explicit VR Little Endian": 1,
            f"{MPEG} {UID(MPEG).name}": 1,
            f"{LOSSLESS} {UID(LOSSLESS).name}": 1,
        },
        "bits": {"16 coded, 12 stored": 9},
        "rows x columns": {"80 x 60": 6, "44 x 33": 1, "50 x 40": 1, "96 x 64": 1},
        "photometric": {"MONOCHROME2": 8, "MONOCHROME1": 1},
        "VOI window": {"none": 5, "LINEAR, 1 window": 3, "SIGMOID, 2 windows": 1},
        "JPEG 2000": {"1 level, LRCP, 1 layer, 1 tile, reversible, JP2 boxes": 2},
        "lossless JPEG": {"predictor 1, no restarts": 4, "predictor 6, no restarts": 1},
    }
    good = [mixed / f"{name}.dcm" for name in ("a/1", "a/2", "a/3", "b/4", "b/5", "b/6")]
    good += [mixed / f"bad/{name}.dcm" for name in ("film", "blank", "broken")]
    sizes = sorted(path.stat().st_size for path in good)
    assert (found["bytes"], found["median_bytes"]) == (sum(sizes), sizes[4])


def test_each_kind_of_bad_file_is_one_reason_with_an_example(looked_at: tuple[Path, dict[str, Any], str]) -> None:
    mixed, result, _ = looked_at
    found = result["folder"]
    assert result["ok"] is False
    assert found["problem_count"] == 9
    rows = {tuple(row["image_ids"]): (row["stage"], row["images"], row["reason"]) for row in found["problems"]}
    expected = {
        ("bad/cut", "bad/cut2"): ("header", 2, "Pixel Data item 1 says"),
        ("bad/text",): ("header", 1, "not a DICOM file"),
        ("bad/empty",): ("header", 1, "the file is empty"),
        ("bad/colour",): ("header", 1, "is 'RGB', expected MONOCHROME1"),
        ("bad/rows",): ("decode", 1, "holds 80 x 60 pixels, expected the header's 81 x 60"),
        ("bad/film",): ("decode", 1, f"no decoder knows transfer syntax {MPEG}"),
        ("bad/blank",): ("render", 1, "is 7"),
        ("bad/broken",): ("decode", 1, "no decoder could read"),
    }
    assert rows.keys() == expected.keys()
    for ids, (stage, images, said) in expected.items():
        assert rows[ids][:2] == (stage, images)
        assert said in rows[ids][2]
        assert str(mixed) not in rows[ids][2]
    assert found["problems"][0]["example"] == str(mixed / "bad/cut.dcm")


def test_people_read_the_same_in_a_hundred_columns(looked_at: tuple[Path, dict[str, Any], str]) -> None:
    mixed, result, text = looked_at
    assert "folder: 15 images, " in text
    assert "  rows x columns         6   40.0%  80 x 60\n" in text
    assert "                         1    6.7%  44 x 33\n" in text
    assert "  9 of 15 images cannot be used\n" in text
    assert "         2  header  Pixel Data item 1 says" in text
    for problem in result["folder"]["problems"]:
        assert problem["example"] in text
    lines = text[text.index("\nfolder: ") :].splitlines()
    assert [line for line in lines if len(line) > 100 and str(mixed) not in line] == []


def test_time_is_projected_from_the_pixels_of_the_files_that_were_read(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that advances by half a second whenever it is asked; three of the four syntaxes have one file."""
    now = itertools.count(0, 0.5)
    monkeypatch.setattr(recipe.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(recipe, "cpu_count", lambda: 4)
    monkeypatch.setattr(recipe, "_TIMED", 1)
    monkeypatch.setattr(recipe, "_LEAST_TIMED", 1)
    shutil.rmtree(mixed / "bad")
    (mixed / "a/3.dcm").write_bytes(make_dicom(breast(160, 60), SV1))  # twice the pixels of the file that is read
    result, text = checked(mixed)
    seconds = 3 * 0.5 + 0.5 * (1 + 1 + 2)
    assert result["folder"]["time"] == {
        "image": [64, 32],
        "timed": 4,
        "cpus": 4,
        "core_hours": seconds / 3600,
        "wall_hours": seconds / 4 / 3600,
    }
    assert "64 x 32: 0:04 on one core, 0:01 on all 4 of this" in text
    assert "projected from 4 files" in text
    assert "no problem found" in text
    assert result["ok"] is True


def test_many_values_are_cut_short_on_the_screen_alone(tmp_path: Path) -> None:
    for rows in range(80, 95):
        (tmp_path / f"{rows}.dcm").write_bytes(make_dicom(breast(rows), EXPLICIT))
    result, text = checked(tmp_path)
    assert len(result["folder"]["counts"]["rows x columns"]) == 15
    assert "5          5 others\n" in text
    assert "89 x 60" in text
    assert "90 x 60" not in text


def test_a_syntax_without_an_installed_decoder_costs_all_its_files(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(mixed / "bad")
    monkeypatch.setattr(
        recipe, "backends", lambda uid: [("one", False), ("two", False)] if uid == SV1 else [("n", True)]
    )
    found = checked(mixed)[0]["folder"]
    assert [(row["images"], row["stage"], row["image_ids"]) for row in found["problems"]] == [
        (3, "decode", ["a/1", "a/2", "a/3"])
    ]
    assert found["problems"][0]["reason"] == f"no decoder of {SV1} is installed. Install one of one, two"
    assert found["time"]["timed"] == 3


def test_dicom_files_are_found_below_a_folder_by_their_names(tmp_path: Path) -> None:
    for name in ("p1/s2/10.dcm", "p1/9.DCM", "notes.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_dicoms(tmp_path) == [("p1/9", tmp_path / "p1/9.DCM"), ("p1/s2/10", tmp_path / "p1/s2/10.dcm")]


def test_every_file_is_meant_where_none_is_called_dcm(tmp_path: Path) -> None:
    for name in ("DICOM/IM_0001", "DICOM/1.2.840.7", "DICOMDIR", ".DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [name for name, _ in find_dicoms(tmp_path)] == ["DICOM/1.2.840.7", "DICOM/IM_0001"]


def test_an_empty_or_missing_folder_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file in it, expected train\.csv, test\.csv or DICOM files"):
        find_dicoms(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        find_dicoms(tmp_path / "nowhere")


def test_tables_are_checked_before_any_image(phantom: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom, tmp_path / "competition")
    (tmp_path / "competition" / "test.csv").write_text("patient_id\n1\n")
    stream = io.StringIO()
    with pytest.raises(TableError, match=r"test\.csv"):
        check(tmp_path / "competition", Events(stream=stream), SMALL)
    assert "heads" not in stream.getvalue()


def test_the_verb_exits_with_1_for_bad_files_and_takes_a_preset(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(mixed), "--preset", "smoke"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["folder"]["time"]["image"] == [preset("smoke").image.height, preset("smoke").image.width]
    shutil.rmtree(mixed / "bad")
    assert main(["check", str(mixed), "--set", "image.height=64", "--set", "image.width=32"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"]["time"]["image"] == [64, 32]
    assert main(["check", "--set", "train.epochs=3"]) == 2
