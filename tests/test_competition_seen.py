"""Patients in two folds are named, and nothing else is; and those whom a model has seen are known by its digest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsna_kit.competition.folds import check_folds, shared_patients
from rsna_kit.competition.seen import digest_patients, known_patients
from rsna_kit.runtime.errors import TableError


def table(*patients: str) -> pd.DataFrame:
    return pd.DataFrame({"patient_id": list(patients)})


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 3)), max_size=30))
def test_shared_patients_are_those_that_a_loop_finds(rows: list[tuple[str, int]]) -> None:
    into: dict[str, set[int]] = {}
    for patient, fold in rows:
        into.setdefault(patient, set()).add(fold)
    expected = {patient: sorted(folds) for patient, folds in sorted(into.items()) if len(folds) > 1}
    found = shared_patients(table(*(patient for patient, _ in rows)), [fold for _, fold in rows])
    assert found.to_dict() == expected


def test_whole_patients_pass() -> None:
    check_folds(table("1", "1", "2", "3"), [0, 0, 1, 0])


def test_a_shared_patient_is_refused_by_name() -> None:
    message = r"oof\.csv: 1 patient is in more than one fold \(10006 in 0 and 2\), expected each in one"
    with pytest.raises(TableError, match=message):
        check_folds(table("10006", "10006", "7"), [0, 2, 1], "oof.csv")


def test_of_many_shared_patients_the_first_five_are_named() -> None:
    patients = [f"{number:02d}" for number in range(12)] * 2
    with pytest.raises(
        TableError, match=r"12 patients are in more than one fold \(00 in 0 and 1, .*04 in 0 and 1, …\)"
    ):
        check_folds(table(*patients), np.repeat([0, 1], 12))


@pytest.mark.parametrize(
    ("frame", "folds", "message"),
    [
        (pd.DataFrame({"patient": ["1"]}), [0], "no column 'patient_id'.*Did you mean 'patient'"),
        (table("1", "2"), [0, np.nan], r"1 rows without a patient or a fold \(first: row 2\)"),
    ],
)
def test_what_cannot_be_judged_is_refused(frame: pd.DataFrame, folds: list[float], message: str) -> None:
    with pytest.raises(TableError, match=message):
        check_folds(frame, folds)


@given(st.sets(st.text()), st.sets(st.text()), st.sets(st.text()))
def test_a_digest_knows_its_patients_and_those_of_the_one_before(one: set[str], two: set[str], three: set[str]) -> None:
    digest = digest_patients(one, digest_patients(two))
    assert known_patients(digest, [*one, *two, *three]) == sorted(one | two)
    assert known_patients(digest, three - one - two) == []
    assert digest == digest_patients(two | one)


def test_a_digest_of_a_whole_competition_is_small_and_tells_no_id() -> None:
    digest = digest_patients(str(number) for number in range(10_000))
    assert len(digest) == 66_668
    assert known_patients(digest, ["10000", "9999"]) == ["9999"]
    assert known_patients("", ["1"]) == []


def test_what_is_no_digest_is_refused() -> None:
    with pytest.raises(TableError, match="digest of patients: got 'not base64!', expected base64"):
        known_patients("not base64!", ["1"])
