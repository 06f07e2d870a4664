"""Models on the breasts that they share: paired differences, plain verdicts, refusals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring.intervals import Interval, bootstrap, shown
from rsna_kit.scoring.threshold import with_calls
from rsna_lab.analysis.comparison import RESAMPLES, cancers_needed, compare, in_common, markdown, verdict


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


def test_a_comparison_is_the_bootstrap_with_a_verdict() -> None:
    models = {"weak": with_calls(breasts(1, 0.5))[0], "strong": with_calls(breasts(2, 3.0))[0]}
    models["copy"] = models["weak"]
    found = compare(models, "weak", ["roc_auc", "pf1_binary", "log_loss"])
    assert "differences" not in found["weak"]
    for metric, one in found["strong"]["metrics"].items():
        assert one == bootstrap(models["strong"], [metric], RESAMPLES)[metric].as_dict()
        apart = bootstrap(models["strong"], [metric], RESAMPLES, against=models["weak"])[metric]
        told = {
            "verdict": verdict(metric, apart),
            "cancers_needed": cancers_needed(apart, models["weak"]["cancer"].sum()),
        }
        assert found["strong"]["differences"][metric] == apart.as_dict() | told
    assert found["strong"]["differences"]["roc_auc"]["verdict"] == "better"
    for apart in found["copy"]["differences"].values():
        same = {"value": 0, "low": 0, "high": 0, "verdict": "not told apart", "cancers_needed": None}
        assert apart == same
    lines = markdown(found, "weak").splitlines()
    assert lines[0].startswith("| model | ROC-AUC | less weak |  |")
    assert lines[3].startswith("| strong | ")
    assert "| better |" in lines[3]
    assert {line.count("|") for line in lines} == {11}
    with pytest.raises(UsageError, match=r"got 'roc_auk'.*Did you mean 'roc_auc'"):
        compare(models, "weak", ["roc_auk"])


@pytest.mark.parametrize(
    ("metric", "low", "high", "word"),
    [
        ("roc_auc", 0.01, 0.03, "better"),
        ("roc_auc", -0.03, -0.01, "worse"),
        ("log_loss", 0.01, 0.03, "worse"),
        ("log_loss", -0.03, -0.01, "better"),
        ("recall_rate", 0.01, 0.03, "higher"),
        ("recall_rate", -0.03, -0.01, "lower"),
        ("roc_auc", -0.01, 0.03, "not told apart"),
        ("roc_auc", 0.0, 0.03, "not told apart"),
        ("roc_auc", math.nan, math.nan, "not told apart"),
    ],
)
def test_the_verdict_follows_the_interval_and_the_metrics_name(metric: str, low: float, high: float, word: str) -> None:
    assert verdict(metric, Interval((low + high) / 2, low, high)) == word


def test_how_many_cancers_it_takes_is_the_textbooks_formula() -> None:
    """Standard error 0.01 with 100 cancers: (1.96 + 0.8416)² · 100 · (0.01 / 0.02)² = 196.2; half of it, a quarter."""
    assert cancers_needed(Interval(0, -0.0195996, 0.0195996), 100) == 197
    assert cancers_needed(Interval(0, -0.0195996 / 2, 0.0195996 / 2), 100) == 50
    assert cancers_needed(Interval(0, 0, 0), 100) is None
    assert cancers_needed(Interval(0, math.nan, math.nan), 100) is None


def test_a_comparison_is_made_on_the_common_breasts_by_id() -> None:
    """The second model has fewer breasts, in another order."""
    first, fewer = breasts(1), breasts(2).iloc[40:].sample(frac=1, random_state=0)
    cut = in_common({"a": first, "b": fewer})
    assert (
        cut["a"]["prediction_id"].tolist() == cut["b"]["prediction_id"].tolist() == first["prediction_id"][40:].tolist()
    )
    by_id = fewer.set_index("prediction_id")["score"]
    assert cut["b"]["score"].tolist() == by_id[cut["b"]["prediction_id"]].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient_id": lambda frame: frame["patient_id"].replace("7", "8")}, r"2 breasts \(first: 7_L\).* patient_id"),
        ({"cancer": lambda frame: frame["cancer"].mask(frame.index == 4, 1)}, r"1 breasts \(first: 2_L\).* cancer"),
        ({"fold": lambda frame: frame["fold"].mask(frame.index == 4, 1)}, r"1 breasts \(first: 2_L\).* fold"),
        ({"prediction_id": lambda frame: frame["prediction_id"] + "x"}, "a, b: no breast in common"),
    ],
)
def test_tables_that_do_not_go_together_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(TableError, match=message):
        in_common({"a": breasts(1), "b": breasts(2).assign(**change)}, alike=["fold"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("interval", "sign", "text"),
    [
        (Interval(0.7121, 0.655, 0.7701), "", "0.712 [0.655, 0.770]"),
        (Interval(0.012, -0.008, 0.031), "+", "+0.012 [-0.008, +0.031]"),
        (Interval(0.5, np.nan, np.nan), "", "0.500"),
        (Interval(np.nan, np.nan, np.nan), "", "not defined"),
    ],
)
def test_an_interval_is_shown(interval: Interval, sign: str, text: str) -> None:
    assert shown(interval.as_dict(), sign) == text
