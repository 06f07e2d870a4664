"""A folder without tables: what is found, who it belongs to, what is refused, and the scores that come of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from rsna_kit.competition.tables import read_test
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.events import Events
from rsna_lab.cli import main
from rsna_lab.phantom.dicom_file import JPEG2000, DicomFacts, write_dicom
from rsna_lab.recipes.folder import Named, gather, name_facts

RNG = np.random.default_rng(0)


def picture(path: Path, channels: int = 0, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (80, 48, channels) if channels else (80, 48)
    cv2.imwrite(str(path), RNG.integers(0, np.iinfo(dtype).max, shape).astype(dtype))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Mass-Test_P_00016_LEFT_CC.png", ("Mass-Test_P_00016", "L", "CC")),
        ("jones/RMLO.dcm", ("jones", "R", "MLO")),
        ("jones/right/mlo.dcm", ("jones", "R", "MLO")),
        ("20586908_MG_R_CC_ANON.dcm", ("20586908_MG___ANON", "R", "CC")),
        ("mdb001.pgm", ("mdb001", "", "")),
        ("Clear.png", ("Clear", "", "")),
    ],
)
def test_names_say_patient_side_and_view(name: str, expected: tuple[str, str, str]) -> None:
    assert name_facts(Path(name)) == Named(*expected)


def test_everything_in_a_folder_is_scored_refused_or_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "films", tmp_path / "out"
    picture(folder / "a" / "p1_L_CC.png")
    picture(folder / "a" / "p1_L_MLO.png", dtype=np.uint16)
    picture(folder / "b" / "mdb001.pgm")
    shutil.copy(folder / "b" / "mdb001.pgm", folder / "b" / "mdb001 copy.pgm")
    picture(folder / "holiday.jpg", channels=3)
    (folder / "notes.txt").write_text("none")
    (folder / "gone.dcm").symlink_to(tmp_path / "nowhere.dcm")
    facts = DicomFacts("p9", "7", "R", JPEG2000, 12)
    write_dicom(folder / "IM0001", RNG.integers(0, 4096, (80, 48)).astype(np.uint16), facts)
    (folder / "cut.dcm").write_bytes((folder / "IM0001").read_bytes()[:300])
    picture(folder / "cut.png")  # beside it, as viewers write one
    table = read_test(gather(folder, out, Events()) / "test.csv")
    found = dict(zip(table["image_id"], table["prediction_id"], strict=True))
    alone = "b_mdb001_copy"  # comes before mdb001.pgm, whose bytes it has
    own = {name: name for name in (alone, "cut", "cut-2")}
    assert found == {"IM0001": "p9_R", "a_p1_L_CC": "p1_L", "a_p1_L_MLO": "p1_L", **own}
    refused = pd.read_csv(out / "refused.csv").set_index("file")["reason"]
    assert refused["holiday.jpg"].endswith("Convert it to gray.")
    assert sum("the same bytes as" in reason for reason in refused) == 1
    assert "No such file" in refused["gone.dcm"]
    assert "1 other files left" in capsys.readouterr().err


def test_a_competition_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    picture(tmp_path / "films" / "p1_L_CC.png")
    theirs = tmp_path / "out/competition/train.csv"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    with pytest.raises(UsageError, match="is there and not of an earlier infer of a folder"):
        gather(tmp_path / "films", tmp_path / "out", Events())
    assert theirs.read_text() == "theirs"
    for _ in range(2):  # its own is made anew
        gather(tmp_path / "films", tmp_path / "new", Events())


@pytest.mark.parametrize("number", [8, 9])
def test_more_images_of_a_breast_than_a_breast_has_are_said(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for one in range(number):
        picture(tmp_path / "films" / str(one) / "p1_L.png")
    gather(tmp_path / "films", tmp_path / "out", Events())
    assert ("p1_L has 9 images" in capsys.readouterr().err) == (number == 9)


@pytest.mark.parametrize("content", [None, "notes.txt", "holiday.jpg"])
def test_a_folder_without_a_mammogram_is_refused(tmp_path: Path, content: str | None) -> None:
    if content == "holiday.jpg":
        picture(tmp_path / "films" / content, channels=3)
    elif content:
        (tmp_path / "films").mkdir()
        (tmp_path / "films" / content).write_text("none")
    with pytest.raises(UsageError, match="no such folder" if content is None else "no mammogram among 1 files"):
        gather(tmp_path / "films", tmp_path / "out", Events())


@pytest.mark.tf
def test_infer_takes_such_a_folder_and_draws_maps(tmp_path: Path, bundle: Path) -> None:
    for name in ("p1_L_CC.png", "p1_L_MLO.png", "mdb001.png"):
        picture(tmp_path / "films" / name)
    out = tmp_path / "out"
    assert main(["infer", str(tmp_path / "films"), str(out), "--bundle", str(bundle), "--maps"]) == 0
    scores = pd.read_csv(out / "scores.csv").set_index("prediction_id")
    assert scores["images"].to_dict() == {"mdb001": 1, "p1_L": 2}
    assert scores["score"].between(0, 1).all()
    assert "p1_L_MLO" in (out / "maps" / "index.html").read_text()
