"""Folds: no patient is split, cancers are spread evenly, the same seed deals the same cards."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna_kit.competition.folds import assign_folds, digest_patients, known_patients
from rsna_kit.runtime.errors import TableError, UsageError


def random_table(patients: int, cancers: int, seed: int) -> pd.DataFrame:
    """2 to 14 images a patient, two sites with three machines each, cancers in one breast."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(patients):
        site = int(rng.integers(1, 3))
        machine = site * 10 + int(rng.choice(3, p=[0.7, 0.2, 0.1]))
        for image in range(int(rng.choice([2, 4, 5, 6, 14], p=[0.1, 0.6, 0.1, 0.15, 0.05]))):
            rows.append((f"{number:05d}", site, machine, int(number < cancers and image % 2 == 0)))
    table = pd.DataFrame(rows, columns=["patient_id", "site_id", "machine_id", "cancer"])
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


def patients_of(table: pd.DataFrame, folds: np.ndarray) -> pd.DataFrame:
    return table.assign(fold=folds).groupby("patient_id").agg({"fold": "first", "cancer": "max", "site_id": "first"})


@settings(max_examples=40, deadline=None)
@given(
    patients=st.integers(20, 120), cancers=st.integers(5, 10), folds=st.integers(2, 5), seed=st.integers(0, 2**32 - 1)
)
def test_no_patient_is_split_and_cancers_are_balanced(patients: int, cancers: int, folds: int, seed: int) -> None:
    table = random_table(patients, cancers, seed)
    fold = assign_folds(table, folds, seed)
    assert fold.shape == (len(table),)
    assert fold.dtype == np.int64
    assert table.assign(fold=fold).groupby("patient_id")["fold"].nunique().max() == 1
    owners = patients_of(table, fold)
    for cancer in (0, 1):
        counts = np.bincount(owners.loc[owners["cancer"] == cancer, "fold"], minlength=folds)
        assert counts.max() - counts.min() <= 1
        assert counts.min() >= 1


def test_sites_machines_and_images_are_balanced_at_the_real_size() -> None:
    """11,913 patients and 486 with cancer, as in the competition, in four folds."""
    table = random_table(11913, 486, seed=7)
    table["fold"] = assign_folds(table, 4, seed=67)
    images = table["fold"].value_counts()
    assert images.max() - images.min() <= 15
    owners = table.groupby("patient_id").first()
    for name in ("site_id", "machine_id"):
        shares = pd.crosstab(owners[name], owners["fold"], normalize="columns")
        assert (shares.max(axis=1) - shares.min(axis=1)).max() < 0.002
    cancers = table[table["cancer"] == 1].groupby("patient_id").first()
    per_site = pd.crosstab(cancers["site_id"], cancers["fold"])
    assert (per_site.max(axis=1) - per_site.min(axis=1)).max() <= 2


def known_facts(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Ages like the competition's, some missing; density at site 1 alone, as there."""
    rng = np.random.default_rng(seed)
    owners = table.groupby("patient_id").agg(site=("site_id", "first"), cancer=("cancer", "max"))
    owners["age"] = rng.normal(58.3 + 5 * owners["cancer"], 10).round().clip(26, 89)
    owners.loc[rng.random(len(owners)) < 0.01, "age"] = np.nan
    owners["density"] = np.where(
        owners["site"] == 1, rng.choice(list("ABCD"), len(owners), p=[0.1, 0.43, 0.42, 0.05]), None
    )
    return table.join(owners[["age", "density"]], on="patient_id")


def unevenness(table: pd.DataFrame, fold: np.ndarray, fact: pd.Series) -> float:
    """Chi-square of fact against fold over its degrees of freedom, patients with cancer: 1 is chance, 0 is even."""
    owners = pd.DataFrame({"fold": fold, "fact": fact.to_numpy(), "cancer": table["cancer"], "id": table["patient_id"]})
    owners = owners.groupby("id").agg({"fold": "first", "fact": "first", "cancer": "max"}).query("cancer == 1")
    counts = pd.crosstab(owners["fact"], owners["fold"]).to_numpy()
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    return float(((counts - expected) ** 2 / expected).sum() / np.prod(np.array(counts.shape) - 1))


def test_age_and_density_are_as_even_as_scikit_learn_makes_them() -> None:
    """The yardstick is StratifiedGroupKFold on strata of all facts, unshuffled: shuffled, 1.6 deals as chance does."""
    model_selection = pytest.importorskip("sklearn.model_selection")
    table = known_facts(random_table(4000, 163, seed=7), seed=8)
    decades = table["age"].floordiv(10).fillna(-1)
    ill = table["cancer"].groupby(table["patient_id"]).transform("max")
    strata = pd.DataFrame({"a": ill, "b": table["machine_id"], "c": decades, "d": table["density"].fillna("?")})
    codes = strata.groupby(list("abcd")).ngroup()
    theirs = np.empty(len(table), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some strata are smaller than the number of folds
        splits = model_selection.StratifiedGroupKFold(4).split(codes, codes, table["patient_id"])
        for number, (_, held) in enumerate(splits):
            theirs[held] = number
    ours = assign_folds(table, 4, seed=67)
    blind = assign_folds(table.drop(columns=["age", "density"]), 4, seed=67)
    for fact in (decades, table["density"].fillna("?")):
        for of in (table, table.assign(cancer=1)):  # patients with cancer, all patients
            chi_square = [unevenness(of, fold, fact) for fold in (ours, theirs, blind)]
            assert chi_square[0] <= chi_square[1] + 0.05
            assert chi_square[0] < 0.6 * chi_square[2]


def test_the_seed_decides_and_row_order_does_not() -> None:
    table = known_facts(random_table(80, 12, seed=3), seed=5)
    first = patients_of(table, assign_folds(table, 4, seed=1))["fold"]
    shuffled = table.sample(frac=1, random_state=9)
    again = patients_of(shuffled, assign_folds(shuffled, 4, seed=1))["fold"]
    assert first.equals(again)
    assert not first.equals(patients_of(table, assign_folds(table, 4, seed=2))["fold"])


@pytest.mark.parametrize(
    ("folds", "cancers", "message"),
    [
        (1, 5, "got 1, expected at least 2"),
        (4, 3, "got 4, but the table has 3 patients with cancer.*at most 3 folds"),
        (2, 1, "1 patients with cancer and every fold needs one. Use more patients"),
        (2, 0, "0 patients with cancer"),
        (4, 18, "got 4, but the table has 2 patients without cancer"),
    ],
)
def test_impossible_folds_are_refused(folds: int, cancers: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        assign_folds(random_table(20, cancers, seed=1), folds, seed=0)


def test_held_out_machines_are_in_one_fold_each() -> None:
    table = random_table(120, 30, seed=2)
    fold = assign_folds(table, 3, seed=0, hold_out="machine")
    assert set(fold) == {0, 1, 2}
    assert table.assign(fold=fold).groupby("machine_id")["fold"].nunique().max() == 1
    assert table.assign(fold=fold).groupby("patient_id")["fold"].nunique().max() == 1
    assert (table.assign(fold=fold).groupby("fold")["cancer"].sum() > 0).all()


def test_held_out_sites_follow_the_sites() -> None:
    table = random_table(60, 20, seed=2)
    fold = assign_folds(table, 2, seed=0, hold_out="site")
    assert table.assign(fold=fold).groupby("site_id")["fold"].nunique().tolist() == [1, 1]
    assert set(fold) == {0, 1}


def test_machines_that_share_a_patient_stay_together() -> None:
    """b was seen on 1 and 2, c on 2 and 3: one group, whatever the order of the rows; 4 is another, and so is 5."""
    rows = [("a", 1, 1), ("b", 1, 0), ("b", 2, 0), ("c", 2, 1), ("c", 3, 0), ("d", 4, 1), ("e", 4, 0), ("f", 5, 0)]
    table = pd.DataFrame(rows, columns=["patient_id", "machine_id", "cancer"])
    assert assign_folds(table, 2, seed=0, hold_out="machine").tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    backwards = table[::-1].reset_index(drop=True)
    assert assign_folds(backwards, 2, seed=0, hold_out="machine").tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_machines_that_cannot_be_held_out_are_refused() -> None:
    table = random_table(40, 10, seed=1)
    with pytest.raises(UsageError, match=r"got 9 and train.hold_out=machine, but the table has 6 groups of machines"):
        assign_folds(table, 9, seed=0, hold_out="machine")
    with pytest.raises(TableError, match="machine_id is missing"):
        assign_folds(table.drop(columns="machine_id"), 2, seed=0, hold_out="machine")
    table["machine_id"] = table["machine_id"].astype("Int64").mask(table.index == 3)
    with pytest.raises(TableError, match="machine_id is missing"):
        assign_folds(table, 2, seed=0, hold_out="machine")


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
