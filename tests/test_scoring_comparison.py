"""Models on the breasts that they share: nested calls, paired differences, refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring import metrics
from rsna_kit.scoring.metrics import f1_at
from rsna_kit.scoring.threshold import choose_threshold
from rsna_kit.scoring.uncertainty import bootstrap, paired
from rsna_lab.analysis.comparison import METRICS, RESAMPLES, common, difference, with_calls, worth


def breasts(seed: int, strength: float = 1.5, patients: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(0).random(2 * patients) < 0.15  # the same breasts have cancer whatever the seed
    scores = 1 / (1 + np.exp(-(rng.normal(size=2 * patients) + strength * labels - 2)))
    owner = np.repeat(np.arange(patients), 2)
    return pd.DataFrame(
        {
            "prediction_id": [f"{patient}_{side}" for patient, side in zip(owner, "LR" * patients, strict=True)],
            "patient_id": owner.astype(str),
            "cancer": labels.astype("int8"),
            "score": scores,
            "fold": owner % 4,
        }
    )


def test_each_fold_is_called_by_what_the_others_chose() -> None:
    frame = breasts(1)
    model = with_calls("a", frame)
    for fold, rows in model.breasts.groupby("fold"):
        others = frame[frame["fold"] != fold]
        cut = choose_threshold(others["cancer"], others["score"]).value
        assert (rows["called"] == (rows["score"] >= cut)).all()
    assert model.how == "of each fold chosen on the other folds"
    assert model.cancers == frame["cancer"].sum()


@pytest.mark.parametrize("folds", ["none", "one", "cancers in one"])
def test_without_folds_that_can_choose_the_threshold_is_said_to_be_too_good(folds: str) -> None:
    frame = breasts(1)
    fold = {"none": None, "one": 0, "cancers in one": 1 - frame["cancer"]}[folds]
    frame = frame.drop(columns="fold") if fold is None else frame.assign(fold=fold)
    model = with_calls("a", frame)
    assert "too good" in model.how
    cut = choose_threshold(frame["cancer"], frame["score"]).value
    assert (model.breasts["called"] == (frame["score"] >= cut)).all()


def test_scores_of_no_cancer_are_refused() -> None:
    with pytest.raises(TableError, match="no breast with cancer"):
        with_calls("a", breasts(1).assign(cancer=0))


def test_worth_and_difference_are_those_of_the_bootstrap() -> None:
    first, second = with_calls("a", breasts(1)), with_calls("b", breasts(2, strength=2.5))
    found = worth(first, list(METRICS))
    labels, owners = first.breasts["cancer"], first.breasts["patient_id"]
    scores, calls = first.breasts["score"], first.breasts["called"]
    assert list(found) == list(METRICS)
    assert found["roc_auc"] == bootstrap(labels, scores, owners, {"m": metrics.roc_auc}, RESAMPLES)["m"]
    assert found["pf1_binary"].value == f1_at(labels, calls, 0.5)
    assert found["pf1"].value == pytest.approx(metrics.pf1_score(labels, scores))
    apart = difference(first, second, ["pf1_binary", "brier"])
    expected = paired(labels, calls, second.breasts["called"], owners, {"m": metrics.at("f1", 0.5)}, RESAMPLES)["m"]
    assert apart.intervals["pf1_binary"] == expected
    assert list(apart.intervals) == ["pf1_binary", "brier"]
    assert apart.intervals["brier"].value == pytest.approx(
        np.mean((second.breasts["score"] - labels) ** 2) - np.mean((scores - labels) ** 2)
    )


def test_a_difference_is_taken_on_the_common_breasts_by_id() -> None:
    """The second model has fewer breasts, in another order."""
    first, other = with_calls("a", breasts(1)), breasts(2)
    fewer = with_calls("b", other.iloc[40:].sample(frac=1, random_state=0))
    apart = difference(first, fewer, ["roc_auc"])
    both = first.breasts.merge(fewer.breasts, on="prediction_id", suffixes=("", "_b"))
    assert apart.breasts == len(both) == len(other) - 40
    assert apart.cancers == both["cancer"].sum()
    by_hand = metrics.roc_auc_score(both["cancer"], both["score_b"]) - metrics.roc_auc_score(
        both["cancer"], both["score"]
    )
    assert apart.intervals["roc_auc"].value == pytest.approx(by_hand)


def test_a_model_and_its_copy_are_apart_by_nothing() -> None:
    model = with_calls("a", breasts(1))
    apart = difference(model, with_calls("copy", breasts(1)))
    assert all((one.value, one.low, one.high) == (0, 0, 0) for one in apart.intervals.values())
    assert apart.cancers_needed("roc_auc") is None


def test_how_many_cancers_it_takes_grows_with_the_interval() -> None:
    first = with_calls("a", breasts(1))
    apart = difference(first, with_calls("b", breasts(2)), ["roc_auc"])
    needed = apart.cancers_needed("roc_auc")
    assert needed is not None
    assert needed > apart.cancers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient_id": lambda frame: frame["patient_id"].replace("7", "8")}, r"2 breasts \(first: 7_L\) .* patient"),
        ({"cancer": lambda frame: frame["cancer"].mask(frame.index == 4, 1)}, r"1 breasts \(first: 2_L\) .* label"),
        ({"prediction_id": lambda frame: frame["prediction_id"] + "x"}, "a, b: no breast in common"),
    ],
)
def test_tables_that_do_not_go_together_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(TableError, match=message):
        common({"a": breasts(1), "b": breasts(2).assign(**change)})  # type: ignore[arg-type]


def test_an_unknown_metric_is_refused_with_its_neighbour() -> None:
    with pytest.raises(UsageError, match=r"got 'roc_auk'.*Did you mean 'roc_auc'"):
        worth(with_calls("a", breasts(1)), ["roc_auk"])
