"""Subgroups: each is what the metrics say of its breasts alone, and a group too small or of one class says so."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from rsna_kit.runtime.errors import TableError
from rsna_kit.scoring.intervals import bootstrap
from rsna_lab.analysis.subgroups import OTHERS, SHOWN, UNKNOWN, breast_facts, subgroups


def breasts(patients: int = 200, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    cancer = (rng.random(2 * patients) < 0.2).astype("int8")
    score = np.clip(rng.beta(1.2, 8, 2 * patients) + 0.25 * cancer, 0, 1)
    ids = [f"{number}" for number in range(patients) for _ in "LR"]
    names = [f"{patient}_{side}" for patient, side in zip(ids, "LR" * patients, strict=True)]
    columns = {"prediction_id": names, "patient_id": ids, "cancer": cancer, "score": score, "called": score >= 0.3}
    return pd.DataFrame(columns)


def facts(table: pd.DataFrame, **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=table["prediction_id"].tolist())


def test_a_row_is_what_the_metrics_say_of_its_breasts() -> None:
    """The slow twin: filter by hand, call the bootstrap."""
    table = breasts()
    known = facts(table, site=["1", "2", "2", "1"] * 100)
    rows = subgroups(table, known, resamples=50, seed=3)
    assert list(rows["level"]) == ["1", "2"]
    for row in rows.to_dict("records"):
        part = table[(known["site"] == row["level"]).to_numpy()]
        assert (row["breasts"], row["cancers"]) == (len(part), part["cancer"].sum())
        assert {name: row[name] for name in SHOWN} == bootstrap(part, SHOWN, 50, 3)


def test_one_class_has_its_own_share_and_nothing_else() -> None:
    """F1 of cancers alone would be a number (no false alarm is possible), and would look splendid."""
    table = breasts()
    known = facts(table, kind=np.where(table["cancer"] == 1, "ill", "healthy").tolist())
    healthy, ill = subgroups(table, known, resamples=20).to_dict("records")
    for row, defined in ((healthy, "specificity"), (ill, "sensitivity")):
        for name in SHOWN:
            assert math.isnan(row[name].value) == (name != defined)
        assert row["small"]  # asked of both classes, and one of them is absent


def test_what_concerns_one_class_is_asked_of_that_class_only() -> None:
    table = breasts()
    known = facts(table, **{"invasive cancer": ["yes", "no"] * 200, "difficult negative": ["no", "yes"] * 200})
    rows = subgroups(table, known, resamples=10)
    invasive, difficult = (rows[rows["group"] == name] for name in known.columns)
    assert invasive["breasts"].sum() == invasive["cancers"].sum() == table["cancer"].sum()
    assert difficult["breasts"].sum() == (table["cancer"] == 0).sum()
    assert difficult["cancers"].sum() == 0
    assert not rows["small"].any()  # of those that are asked there are enough


def test_what_resampling_cannot_move_has_no_interval() -> None:
    """All cancers found in every resample, or one patient alone: that is not a sure number."""
    table = breasts(40).assign(cancer=[1, 0] * 40, score=[0.9, 0.1] * 40, called=[1, 0] * 40)
    for levels in (["1"] * 40 + ["2"] * 40, ["1"] * 2 + ["2"] * 78):
        row = subgroups(table, facts(table, site=levels), resamples=20).iloc[0]
        for name in SHOWN:
            assert row[name].value == 1
            assert math.isnan(row[name].low)


@pytest.mark.parametrize(("cancers", "healthy", "small"), [(9, 40, True), (10, 40, False), (40, 9, True)])
def test_small_groups_are_said_to_be_small(cancers: int, healthy: int, small: bool) -> None:
    count = cancers + healthy
    table = pd.DataFrame(
        {
            "prediction_id": [f"{number}" for number in range(count + 40)],
            "patient_id": [f"{number}" for number in range(count + 40)],
            "cancer": [1] * cancers + [0] * healthy + [1, 0] * 20,
            "score": np.linspace(0, 1, count + 40),
            "called": 1,
        }
    )
    known = facts(table, site=["1"] * count + ["2"] * 40)
    assert list(subgroups(table, known, resamples=5)["small"]) == [small, False]


def test_levels_are_ordered_as_people_count_and_the_rarest_are_taken_together() -> None:
    table = breasts(400)
    machines = [str(number % 20 if number % 2 else 2) for number in range(800)]
    rows = subgroups(table, facts(table, machine=machines), resamples=5)
    assert len(rows) == 11  # 1, 3 … 19 and 2
    assert list(rows["level"]) == sorted(rows["level"], key=int)
    many = [str(number % 30) if number < 100 else str(number % 7) for number in range(800)]
    rows = subgroups(table, facts(table, machine=many), resamples=5)
    assert len(rows) == 12
    assert rows["level"].iloc[-1] == OTHERS
    assert rows["breasts"].sum() == 800


def test_what_divides_nothing_is_left_out_and_what_is_absent_is_not_known() -> None:
    table = breasts(20)
    known = facts(table, site=["1"] * 40, machine=["5", "6"] * 20)
    rows = subgroups(table, known.iloc[:30], resamples=5)
    assert list(rows["group"].unique()) == ["site", "machine"]
    assert list(rows["level"]) == ["1", UNKNOWN, "5", "6", UNKNOWN]
    assert list(subgroups(table, known, resamples=5)["group"].unique()) == ["machine"]
    assert subgroups(table, pd.DataFrame(index=known.index)).empty


def test_facts_of_a_breast_come_from_all_its_images() -> None:
    images = pd.DataFrame(
        {
            "prediction_id": ["1_L", "1_L", "1_L", "1_R", "2_L"],
            "site_id": pd.array([1, 1, 1, 1, None], dtype="Int64"),
            "machine_id": [49.0, 49.0, 49.0, 49.0, None],  # as pandas reads whole numbers beside an empty cell
            "age": [59.9, 59.9, 59.9, 60.0, None],
            "density": ["B", "B", "B", None, ""],
            "implant": [0, 1, 0, 0, 0],
            "invasive": [0, 0, 1, 0, 0],
            "difficult_negative_case": [False, False, False, True, False],
        }
    )
    assert breast_facts(images).reset_index().to_dict("list") == {
        "prediction_id": ["1_L", "1_R", "2_L"],
        "site": ["1", "1", UNKNOWN],
        "machine": ["49", "49", UNKNOWN],
        "age": ["50 to 59", "60 to 69", UNKNOWN],
        "density": ["B", UNKNOWN, UNKNOWN],
        "implant": ["yes", "no", "no"],
        "invasive cancer": ["yes", "no", "no"],
        "difficult negative": ["no", "yes", "no"],
        "number of images": ["3", "1", "1"],
    }


def test_a_table_without_breasts_is_refused() -> None:
    with pytest.raises(TableError, match="Did you mean 'predictionid'"):
        breast_facts(pd.DataFrame({"predictionid": ["1_L"]}))
