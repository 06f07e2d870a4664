"""The three tables: fixed types, and complaints that point at the line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_kit.competition.tables import TEST_COLUMNS, TRAIN_COLUMNS, read_sample, read_test, read_train
from rsna_kit.runtime.errors import TableError

# Rows as the competition writes them: site 2 has neither BIRADS nor density, and ages can be missing.
TRAIN = """site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,machine_id,\
difficult_negative_case
2,10006,462822612,L,CC,61.0,0,0,0,,0,,29,False
2,10006,1459541791,L,MLO,61.0,0,0,0,,0,,29,False
1,00107,1864590858,R,MLO,,1,1,0,0.0,0,B,49,True
"""
TEST = """site_id,patient_id,image_id,laterality,view,age,implant,machine_id,prediction_id
2,10008,736471439,L,MLO,81,0,21,10008_L
2,10008,1591370361,L,CC,81,0,21,10008_L
2,10008,68070693,R,MLO,81,0,21,10008_R
"""
SAMPLE = "prediction_id,cancer\n10008_L,0.0211676964\n10008_R,0.0211676964\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


TYPES = ["Int64", *["str"] * 4, "float32", *["int8"] * 3, "Int64", "int8", "str", "Int64", "bool", "str"]


def test_train_has_the_promised_types_whatever_its_rows(tmp_path: Path) -> None:
    """All of site 2 has empty BIRADS and density: with guessed types a table of it alone would differ."""
    table = read_train(write(tmp_path / "train.csv", TRAIN))
    assert table.columns.tolist() == [*TRAIN_COLUMNS, "prediction_id"]
    assert [str(kind).replace("object", "str") for kind in table.dtypes] == TYPES  # pandas 2, pandas 3
    assert table["patient_id"].tolist() == ["10006", "10006", "00107"]
    assert table["prediction_id"].tolist() == ["10006_L", "10006_L", "00107_R"]
    assert table["density"].tolist() == [None, None, "B"]
    assert table["BIRADS"].tolist() == [pd.NA, pd.NA, 0]
    assert np.isnan(table["age"][2])
    assert table["difficult_negative_case"].tolist() == [False, False, True]
    part = read_train(write(tmp_path / "part.csv", "\n".join(TRAIN.splitlines()[:3])))
    assert part.dtypes.equals(table.dtypes)
    table.assign(further=1).to_csv(tmp_path / "again.csv", index=False)
    pd.testing.assert_frame_equal(read_train(tmp_path / "again.csv"), table)


def test_test_and_sample_are_read(tmp_path: Path) -> None:
    table = read_test(write(tmp_path / "test.csv", TEST))
    assert table.columns.tolist() == list(TEST_COLUMNS)
    assert table["age"].tolist() == [81, 81, 81]
    sample = read_sample(write(tmp_path / "sample.csv", SAMPLE))
    assert sample.to_dict("list") == {"prediction_id": ["10008_L", "10008_R"], "cancer": [0.0211676964] * 2}


def test_compressed_tables_blank_lines_a_byte_order_mark_and_quotes_are_read(tmp_path: Path) -> None:
    text = "\ufeff" + SAMPLE.replace("\n", "\r\n").replace("10008_R", '" 10008_R"') + "\r\n\r\n"
    with gzip.open(tmp_path / "sample.csv.gz", "wb") as file:
        file.write(text.encode())
    assert read_sample(tmp_path / "sample.csv.gz")["prediction_id"].tolist() == ["10008_L", "10008_R"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("laterality", "lateralty", r"line 1: no column 'laterality'.* Did you mean 'lateralty'"),
        ("1459541791", "462822612", r"line 3: image_id is '462822612', expected each one once"),
        ("1459541791", "", r"line 3: image_id is '', expected a value"),
        ("1459541791,L", "1459541791,X", r"line 3: laterality is 'X', expected one of L, R"),
        ("61.0,0,0,0", "61.0,2,0,0", r"line 2: cancer is '2', expected 0 or 1\. 2 rows .*also line 3"),
        ("61.0,0,0,0", "61.0,,0,0", r"line 2: cancer is '', expected 0 or 1"),
        ("61.0", "old", r"line 2: age is 'old', expected a number from 0 to 130 or nothing"),
        ("61.0", "nan", r"line 2: age is 'nan'"),
        ("61.0", "-3", r"line 2: age is '-3'"),
        (",B,49", ",E,49", r"line 4: density is 'E', expected one of A, B, C, D"),
        ("0.0,0,B", "0.5,0,B", r"line 4: BIRADS is '0.5', expected a whole number"),
        ("False", "maybe", r"line 2: difficult_negative_case is 'maybe', expected 0 or 1"),
        ("10006,1459541791", "10006,extra,1459541791", r"line 3: 15 cells, expected 14"),
        ("machine_id", "view", r"line 1: column 'view' stands there twice"),
    ],
)
def test_a_broken_train_table_is_refused_by_file_and_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TRAIN
    with pytest.raises(TableError, match=r"train\.csv, " + message):
        read_train(write(tmp_path / "train.csv", TRAIN.replace(old, new)))


def test_ids_that_became_floats_are_the_ids(tmp_path: Path) -> None:
    """The files are called by them: 1885042578.0 is no file on any disk."""
    text = TRAIN.replace("1459541791", "1459541791.0").replace("10006,", "10006.0,")
    table = read_train(write(tmp_path / "train.csv", text))
    pd.testing.assert_frame_equal(table, read_train(write(tmp_path / "plain.csv", TRAIN)))
    test = read_test(
        write(tmp_path / "test.csv", TEST.replace("10008_L", "10008.0_L").replace("68070693", "68070693.00"))
    )
    pd.testing.assert_frame_equal(test, read_test(write(tmp_path / "plain.csv", TEST)))
    assert read_sample(write(tmp_path / "s.csv", SAMPLE.replace("8_", "8.0_")))["prediction_id"][0] == "10008_L"


@pytest.mark.parametrize("written", ["1.46E+09", "1,46e+09", "1E+09"])
def test_ids_that_a_spreadsheet_rounded_are_refused_as_such(tmp_path: Path, written: str) -> None:
    text = TRAIN.replace("1459541791", f'"{written}"')
    with pytest.raises(
        TableError, match=rf"train\.csv, line 3: image_id is '{written.replace('+', '.')}', .*rounded"
    ) as error:
        read_train(write(tmp_path / "train.csv", text))
    assert "on the disk" not in str(error.value)


def test_line_numbers_count_blank_lines_and_quoted_line_breaks(tmp_path: Path) -> None:
    """The number must be the editor's, or nobody finds the row."""
    text = TRAIN.replace("\n2,10006,462822612", "\n\n2,10006,462822612").replace("L,MLO,61.0", 'L,"ML\nO",61.0')
    with pytest.raises(TableError, match="line 6: laterality is 'X'"):
        read_train(write(tmp_path / "train.csv", text.replace("1864590858,R", "1864590858,X")))


@pytest.mark.parametrize("column", ["patient_id", "image_id"])
@pytest.mark.parametrize("value", ["../../x", "/tmp/x", "a b", ".hidden", "a/b"])
def test_ids_that_lead_elsewhere_are_refused(tmp_path: Path, column: str, value: str) -> None:
    """Ids become file names: one that climbs out of the folder must not be read or written."""
    text = TRAIN.replace("00107" if column == "patient_id" else "1864590858", value)
    with pytest.raises(TableError, match=rf"line 4.*{column}"):
        read_train(write(tmp_path / "train.csv", text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (TRAIN.splitlines()[0].encode(), "a header but no rows"),
        (b"\xff\xfe\x00s\x00i", "cannot be read as CSV text in UTF-8"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(TableError, match=message):
        read_train(tmp_path / "train.csv")
    with pytest.raises(TableError, match="cannot be read"):
        read_train(write(tmp_path / "train.csv.gz", TRAIN))  # not compressed


def test_a_repeated_or_shared_prediction_id_and_a_bad_score_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"line 5: prediction_id is '10008_R', expected one patient_id"):
        read_test(write(tmp_path / "test.csv", TEST + "2,10009,1,R,CC,81,0,21,10008_R\n"))
    with pytest.raises(TableError, match="line 3: prediction_id is '10008_L', expected each one once"):
        read_sample(write(tmp_path / "s.csv", SAMPLE.replace("10008_R", "10008_L")))
    with pytest.raises(TableError, match=r"line 2: cancer is '1\.1', expected a number from 0 to 1"):
        read_sample(write(tmp_path / "s.csv", SAMPLE.replace("0.0211676964", "1.1", 1)))
