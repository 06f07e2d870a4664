"""Predictions as people really have them: a clear error or the defined answer, never a quiet wrong number."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from rsna_kit.competition.rows import read_rows
from rsna_kit.runtime.errors import TableError
from rsna_kit.scoring.predictions import read_predictions
from rsna_lab.cli import main

ROWS = [("10008_L", 1, 0.8), ("10008_R", 0, 0.3), ("10009_L", 0, 0.1), ("10009_R", 1, 0.6), ("10010_L", 0, 0.4)]


def text(rows: list[tuple] = ROWS, header: str = "prediction_id,cancer,score", separator: str = ",") -> str:
    lines = [header.replace(",", separator), *(separator.join(map(str, row)) for row in rows)]
    return "\n".join(lines) + "\n"


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_text(content, encoding=encoding)
    return path


def scored(path: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> dict:
    """What `rsna-kit score` prints, or its complaint."""
    code = main(["score", str(path), *options])
    printed = capsys.readouterr()
    return json.loads(printed.out)["files"][str(path)] if code == 0 else {"code": code, "error": printed.err}


def with_cell(row: int, column: int, value: object) -> str:
    changed = [list(cells) for cells in ROWS]
    changed[row][column] = value
    return text([tuple(cells) for cells in changed])


PLAIN = text()
REFUSED = {
    "a score that is NaN": (with_cell(1, 2, "nan"), "line 3: score is 'nan', expected a number from 0 to 1"),
    "a score that is missing": (with_cell(1, 2, ""), "line 3: score is '', expected a number from 0 to 1"),
    "a score that is infinite": (with_cell(1, 2, "inf"), "line 3: score is 'inf'"),
    "a score above 1": (with_cell(1, 2, 1.5), "line 3: score is '1.5', expected a number from 0 to 1"),
    "a score below 0": (with_cell(1, 2, -0.1), "line 3: score is '-0.1'"),
    "a logit for a score": (text([(a, b, c * 10) for a, b, c in ROWS]), "line 2: score is '8.0'.* rows are like this"),
    "a word for a score": (with_cell(1, 2, "high"), "line 3: score is 'high'"),
    "a decimal comma": (with_cell(1, 2, '"0,3"'), "line 3: score is '0,3', .* Write decimal points"),
    "a label that is missing": (with_cell(1, 1, ""), "line 3: cancer is '', expected 0 or 1"),
    "a label that is neither": (with_cell(1, 1, 2), "line 3: cancer is '2', expected 0 or 1"),
    "an id that is missing": (with_cell(1, 0, ""), "line 3: prediction_id is '', expected a value"),
    "an id that a table made of a gap": (with_cell(1, 0, "nan_L"), "line 3: prediction_id is 'nan_L', expected an id"),
    "an id that a spreadsheet rounded": (with_cell(1, 0, "1.94E+09_L"), "'1.94E.09_L', expected all digits of it. A"),
    "a breast that is there twice": (text([*ROWS, ROWS[0]]), "line 7: prediction_id is '10008_L', expected one row"),
    "a breast that is there twice, once as a float": (
        text([*ROWS, ("10008.0_L", 1, 0.8)]),
        "line 7: prediction_id is '10008_L', expected one row per breast",
    ),
    "no rows": ("prediction_id,cancer,score\n", "a header but no rows"),
    "an empty file": ("", "the file is empty"),
    "another separator": (text(separator="|"), "no column 'score'"),
    "a ragged line": (PLAIN + "10011_L,0\n", "line 7: 2 cells, expected 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_score_or_id_is_refused_by_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = REFUSED[case]
    path = write(tmp_path / "oof.csv", content)
    with pytest.raises(TableError, match=message):
        read_predictions(path)
    refused = scored(path, capsys=capsys)
    assert refused["code"] in (1, 2)
    assert "oof.csv" in refused["error"]
    assert "Traceback" not in refused["error"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_separators_marks_and_line_ends_change_nothing(
    separator: str, encoding: str, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = scored(write(tmp_path / "plain.csv", PLAIN), capsys=capsys)
    content = text(separator=separator).replace("\n", ending)
    path = tmp_path / "oof.csv"
    path.write_bytes(content.encode(encoding))
    assert read_rows(path).columns == ["prediction_id", "cancer", "score"]
    pd.testing.assert_frame_equal(read_predictions(path), read_predictions(tmp_path / "plain.csv"))
    assert scored(path, capsys=capsys) == plain


def test_a_semicolon_file_with_decimal_commas_is_refused_with_what_to_do(tmp_path: Path) -> None:
    content = text([(a, b, str(c).replace(".", ",")) for a, b, c in ROWS], separator=";")
    with pytest.raises(TableError, match=r"line 2: score is '0,8', .* Write decimal points"):
        read_predictions(write(tmp_path / "oof.csv", content))


def test_a_file_in_another_encoding_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What spreadsheets call Unicode text."""
    path = write(tmp_path / "oof.csv", text(separator="\t"), encoding="utf-16")
    with pytest.raises(TableError, match="cannot be read as CSV text in UTF-8"):
        read_predictions(path)
    assert "Traceback" not in scored(path, capsys=capsys)["error"]


def test_a_compressed_file_with_semicolons_is_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "oof.csv.gz", "wt", encoding="utf-8-sig") as file:
        file.write(text(separator=";"))
    assert read_predictions(tmp_path / "oof.csv.gz")["score"].tolist() == [row[2] for row in ROWS]


@pytest.mark.parametrize("written", ["10008", "10008.0", "10008.00", " 10008 ", " 10008.0"])
def test_ids_as_tables_write_them_are_one_patient(written: str, tmp_path: Path) -> None:
    """The truth says 10008; the scores come from a table whose column was text, whole or float."""
    truth = write(tmp_path / "truth.csv", "patient_id,image_id,laterality,cancer\n10008,7,L,1\n10009,8,R,0\n")
    rows = [(f"{written}_L", 0.9), (f"{written.replace('10008', '10009')} _R", 0.2)]
    by_breast = write(tmp_path / "breasts.csv", text(rows, "prediction_id,score"))
    breasts = read_predictions(by_breast, truth)
    assert breasts["prediction_id"].tolist() == ["10008_L", "10009_R"]
    assert breasts["patient_id"].tolist() == ["10008", "10009"]
    assert breasts["score"].tolist() == [0.9, 0.2]
    columns = "patient_id,laterality,image_id,cancer,score"
    rows = [(written, "L", "7.0", 1, 0.9), ("10009", "R", " 8", 0, 0.2)]
    breasts = read_predictions(write(tmp_path / "images.csv", text(rows, columns)))
    assert breasts["prediction_id"].tolist() == ["10008_L", "10009_R"]


def test_images_of_a_patient_written_in_two_ways_are_of_one_breast(tmp_path: Path) -> None:
    rows = [("10008", "L", 1, 1, 0.2), ("10008.0", "L", 2, 1, 0.4)]
    breasts = read_predictions(write(tmp_path / "oof.csv", text(rows, "patient_id,laterality,image_id,cancer,score")))
    assert breasts.to_dict("records") == [
        {"prediction_id": "10008_L", "patient_id": "10008", "cancer": 1, "score": pytest.approx(0.3)}
    ]


def test_an_image_that_is_there_twice_once_as_a_float_is_refused(tmp_path: Path) -> None:
    rows = [("10008_L", "7", 1, 0.2), ("10008_L", "7.0", 1, 0.4)]
    with pytest.raises(TableError, match=r"line 3: image_id is '7', expected each one once"):
        read_predictions(write(tmp_path / "oof.csv", text(rows, "prediction_id,image_id,cancer,score")))


@pytest.mark.parametrize("other", ["010008", "1e5", "10008.5", "P10008", "10_008"])
def test_ids_that_only_look_alike_are_left_alone(other: str, tmp_path: Path) -> None:
    rows = [("10008_L", 1, 0.8), (f"{other}_L", 0, 0.3)]
    breasts = read_predictions(write(tmp_path / "oof.csv", text(rows)))
    assert breasts["patient_id"].tolist() == ["10008", other]


@pytest.mark.parametrize("name", ["patient_id", "image_id"])
@pytest.mark.parametrize(
    ("cell", "expected"), [("", "a value"), ("NaN", "an id"), ("<NA>", "an id"), ("1.2e+09", "all")]
)
def test_an_id_that_is_none_is_refused_in_every_column(name: str, cell: str, expected: str, tmp_path: Path) -> None:
    row = {"patient_id": "10008", "laterality": "L", "image_id": "7", "cancer": "1", "score": "0.5"} | {name: cell}
    path = write(tmp_path / "oof.csv", text([tuple(row.values())], ",".join(row)))
    with pytest.raises(TableError, match=rf"line 2: {name} is .*, expected {expected}"):
        read_predictions(path)


def test_a_breast_of_two_patients_is_refused_at_both_levels(tmp_path: Path) -> None:
    rows = [("10008_L", "10008", 1, 1), ("10008_L", "10009", 2, 1)]
    truth = write(tmp_path / "truth.csv", text(rows, "prediction_id,patient_id,image_id,cancer"))
    for name, content in (
        ("breasts", "prediction_id,score\n10008_L,0.5\n"),
        ("images", "image_id,score\n1,0.5\n2,1\n"),
    ):
        with pytest.raises(TableError, match=r"1 breasts \(10008_L\) with images of two patients"):
            read_predictions(write(tmp_path / f"{name}.csv", content), truth)


def test_folds_are_kept_and_a_patient_in_two_is_refused(tmp_path: Path) -> None:
    header = "prediction_id,cancer,score,fold"
    whole = [(*row, fold) for row, fold in zip(ROWS, (0, "0.0", 1, 1, 2), strict=True)]
    assert read_predictions(write(tmp_path / "oof.csv", text(whole, header)))["fold"].tolist() == [0, 0, 1, 1, 2]
    torn = [(*row, fold) for row, fold in zip(ROWS, (0, 1, 1, 1, 2), strict=True)]
    with pytest.raises(TableError, match=r"1 patients \(10008\) in more than one fold"):
        read_predictions(write(tmp_path / "torn.csv", text(torn, header)))
    images = "image_id,score,fold\n1,0.5,3\n2,0.7,3\n"
    truth = write(tmp_path / "truth.csv", "patient_id,laterality,image_id,cancer\n7,L,1,1\n7,R,2,0\n")
    assert read_predictions(write(tmp_path / "images.csv", images), truth)["fold"].tolist() == [3, 3]
    with pytest.raises(TableError, match=r"1 patients \(7\) in more than one fold"):
        read_predictions(write(tmp_path / "images.csv", images.replace("0.7,3", "0.7,4")), truth)


def test_without_any_cancer_a_threshold_has_to_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "oof.csv", text([(a, 0, c) for a, _, c in ROWS]))
    assert "got no breast with cancer, expected at least one" in scored(path, capsys=capsys)["error"]
    summary = scored(path, "--threshold", "0.35", capsys=capsys)
    assert summary["metrics"]["pf1"] == {"value": None, "low": None, "high": None}
    assert summary["metrics"]["roc_auc"]["value"] is None
    assert summary["metrics"]["specificity"]["value"] == pytest.approx(2 / 5)
    assert summary["confusion"] == {"tp": 0, "fp": 3, "fn": 0, "tn": 2}


def test_equal_scores_tell_nothing_and_call_everybody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = scored(write(tmp_path / "oof.csv", text([(a, b, 0.3) for a, b, _ in ROWS])), capsys=capsys)
    assert summary["metrics"]["roc_auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert summary["confusion"] == {"tp": 2, "fp": 3, "fn": 0, "tn": 0}
    assert summary["threshold"]["value"] == 0.3
