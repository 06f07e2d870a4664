"""submission.csv: exactly the sample's ids, whole or untouched."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsna_kit.competition.submission import (
    check_submission,
    expected_ids,
    prior_submission,
    write_submission,
)
from rsna_kit.runtime.errors import SubmissionError, TableError
from rsna_kit.runtime.files import read_csv

SAMPLE = pd.DataFrame({"prediction_id": ["10008_L", "10008_R", "9_L"], "cancer": 0.0211676964})
GOOD = pd.DataFrame({"prediction_id": ["9_L", "10008_L", "10008_R"], "cancer": [1, 0, 0]})


def test_the_file_is_exact_and_in_the_order_of_the_sample(tmp_path: Path) -> None:
    write_submission(GOOD.assign(score=0.5), SAMPLE, tmp_path / "submission.csv")
    whole = b"prediction_id,cancer\n10008_L,0\n10008_R,0\n9_L,1\n"
    assert (tmp_path / "submission.csv").read_bytes() == whole
    write_submission(GOOD.assign(cancer=[True, False, False]), SAMPLE, tmp_path / "submission.csv")
    assert (tmp_path / "submission.csv").read_bytes() == whole
    write_submission(prior_submission(SAMPLE, 0.0211676964), SAMPLE, tmp_path / "submission.csv")
    text = (tmp_path / "submission.csv").read_text().splitlines()
    assert text == ["prediction_id,cancer", "10008_L,0.0211676964", "10008_R,0.0211676964", "9_L,0.0211676964"]
    with pytest.raises(SubmissionError, match="expected a number from 0 to 1"):
        prior_submission(SAMPLE, float("nan"))


@given(scores=st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_scores_survive_the_file_to_the_last_bit(tmp_path_factory: pytest.TempPathFactory, scores: list[float]) -> None:
    path = tmp_path_factory.mktemp("out") / "submission.csv"
    write_submission(SAMPLE.assign(cancer=scores), SAMPLE, path)
    assert read_csv(path, ["prediction_id"])["cancer"].tolist() == scores


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (GOOD.iloc[:1], r"of 1 rows, expected 3: 2 missing \(10008_L, 10008_R\)"),
        (pd.concat([GOOD, GOOD.assign(prediction_id=["a", "b", "c"])]), r"3 extra \(a, b, c\)"),
        (pd.concat([GOOD, GOOD.iloc[:1]]), r"1 duplicate \(9_L\)"),
        (GOOD.assign(cancer=[np.nan, 0, 0]), r"1 not a number \(9_L\)"),
        (GOOD.assign(cancer=pd.array([1, pd.NA, 0], dtype="Int64")), r"1 not a number \(10008_L\)"),
        (GOOD.assign(cancer=[0, 1.01, -0.5]), r"2 outside \[0, 1\] \(10008_L, 10008_R\)"),
        (GOOD.assign(cancer=[0, np.inf, 0]), r"1 outside \[0, 1\] \(10008_L\)"),
        (GOOD.assign(cancer=["0", "1", "0"]), "expected numbers"),
        (GOOD.rename(columns={"cancer": "cancers"}), "no column 'cancer'.* Did you mean 'cancers'"),
        (GOOD.rename(columns={"prediction_id": "id"}), "no column 'prediction_id'"),
    ],
)
def test_what_would_not_score_is_refused_and_the_old_file_stays(
    tmp_path: Path, frame: pd.DataFrame, message: str
) -> None:
    path = tmp_path / "submission.csv"
    write_submission(GOOD, SAMPLE, path)
    before = path.read_bytes()
    with pytest.raises(SubmissionError, match=message):
        write_submission(frame, SAMPLE, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["submission.csv"]


def test_all_problems_are_told_at_once() -> None:
    frame = pd.DataFrame({"prediction_id": ["9_L", "9_L", "x"], "cancer": [0.1, np.nan, 2.0]})
    with pytest.raises(SubmissionError, match=r"2 missing .*1 extra .*1 duplicate .*1 not a number .*1 outside"):
        check_submission(frame, SAMPLE)


def test_a_write_that_dies_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a kill before the rename: the prior must still be there."""
    path = tmp_path / "submission.csv"
    write_submission(prior_submission(SAMPLE, 0.02), SAMPLE, path)
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: .*submission\.csv"):
        write_submission(GOOD, SAMPLE, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["submission.csv"]


def test_expected_ids_are_the_samples_in_its_order() -> None:
    test = pd.DataFrame({"prediction_id": ["9_L", "9_L", "10008_R", "10008_L"]})
    assert expected_ids(test, SAMPLE) == ["10008_L", "10008_R", "9_L"]
    assert expected_ids(test, None) == ["9_L", "10008_R", "10008_L"]
    other = pd.DataFrame({"prediction_id": ["9_L", "7_L"]})  # a rerun swaps both tables
    with pytest.raises(TableError, match=r"1 only in test.csv \(7_L\); 2 only in sample_submission.csv \(10008_L, 1"):
        expected_ids(other, SAMPLE)
