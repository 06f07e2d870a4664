"""The bootstrap: patients are drawn, intervals are percentiles, the same seed gives the same numbers; and summaries."""

from __future__ import annotations

import json
import math

import numpy as np
import oracles
import pandas as pd
import pytest

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring import intervals
from rsna_kit.scoring.intervals import Interval, bootstrap, summarise
from rsna_kit.scoring.metrics import METRICS, measure
from rsna_kit.scoring.threshold import choose_threshold


def table(patients: int, seed: int, noise: float = 0.0) -> pd.DataFrame:
    """Two breasts a patient, a quarter with cancer; `noise` moves the scores of a second model."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(2 * patients) < 0.25).astype(int)
    scores = np.clip(rng.normal(0.2 + 0.2 * labels, 0.2).round(2), 0, 1)
    moved = np.clip(scores + np.random.default_rng(8).normal(0, noise or 1e-300, len(scores)), 0, 1)
    ids = [f"{number:03d}" for number in range(patients) for _ in "LR"]
    names = [f"{patient}_{side}" for patient, side in zip(ids, "LR" * patients, strict=True)]
    return pd.DataFrame({"prediction_id": names, "patient_id": ids, "cancer": labels, "score": moved})


def test_intervals_are_those_of_tables_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of differences, and however few resamples are drawn at once."""
    first, second = table(25, seed=5), table(25, seed=5, noise=0.2)
    labels, patients = first["cancer"].to_numpy(), first["patient_id"].to_numpy()
    before, after = (
        oracles.resampled_slow(labels, one["score"].to_numpy(), patients, 50, seed=3) for one in (first, second)
    )
    for metric, slow in (("roc_auc", oracles.roc_auc_slow), ("pf1", oracles.pf1_slow)):
        found = bootstrap(first, [metric], resamples=50, seed=3)[metric]
        ends = np.quantile([slow(*one) for one in before], [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx(tuple(ends))
        found = bootstrap(second, [metric], 50, 3, first)[metric]
        ends = np.quantile([slow(*b) - slow(*a) for a, b in zip(before, after, strict=True)], [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx(tuple(ends))
        assert found.value == pytest.approx(slow(labels, second["score"]) - slow(labels, first["score"]))
    whole = bootstrap(first, METRICS, resamples=50, seed=3)
    monkeypatch.setattr(intervals, "_CELLS", 100)
    few = bootstrap(first, METRICS, resamples=50, seed=3)
    assert few["roc_auc"] == whole["roc_auc"]
    assert few["log_loss"].low == pytest.approx(whole["log_loss"].low)
    assert bootstrap(first, ["roc_auc"], resamples=50, seed=4)["roc_auc"] != whole["roc_auc"]


def test_patients_are_drawn_not_breasts() -> None:
    """The same 200 breasts, each twice under one patient: as wide as once, where strangers would be narrower."""
    once = table(100, seed=2)
    twice = pd.concat([once, once])
    alone, grouped = (bootstrap(one, ["roc_auc"], resamples=300)["roc_auc"] for one in (once, twice))
    naive = bootstrap(twice.assign(patient_id=np.arange(400)), ["roc_auc"], resamples=300)["roc_auc"]
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert naive.high - naive.low < 0.85 * (alone.high - alone.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Normals 1 apart have AUC 0.7602; 100 tables, 95 % intervals: 88 or fewer hits would be 3 in 1,000."""
    rng = np.random.default_rng(11)
    labels, hits = np.repeat([1, 0], [60, 240]), 0
    for number in range(100):
        frame = pd.DataFrame({"patient_id": np.arange(300), "cancer": labels, "score": rng.normal(size=300) + labels})
        found = bootstrap(frame, ["roc_auc"], resamples=200, seed=number)["roc_auc"]
        hits += found.low <= 0.7602 <= found.high
    assert 88 < hits <= 100


def test_a_difference_may_be_clear_though_the_intervals_overlap() -> None:
    """Two models that agree on what is hard: the difference is known far better than either value."""
    first = table(200, seed=6)
    second = first.assign(score=np.clip(first["score"] + 0.05 * first["cancer"], 0, 1))
    one, two = (bootstrap(model, ["roc_auc"])["roc_auc"] for model in (first, second))
    apart = bootstrap(second, ["roc_auc"], against=first)["roc_auc"]
    assert two.low < one.high
    assert apart.low > 0
    other = bootstrap(first, ["roc_auc"], against=second)["roc_auc"]
    assert (other.low, other.high) == pytest.approx((-apart.high, -apart.low))


def test_equal_models_differ_by_exactly_nothing() -> None:
    """The same scores in every metric; the same order, by other numbers, in those that only rank."""
    model = table(40, seed=2).assign(called=lambda frame: frame["score"] > 0.3)
    nothing = Interval(0.0, 0.0, 0.0)
    assert bootstrap(model, METRICS, 50, against=model.copy()) == dict.fromkeys(METRICS, nothing)
    ranked = bootstrap(model.assign(score=model["score"] ** 3), ["roc_auc", "pr_auc"], 50, against=model)
    assert set(ranked.values()) == {nothing}


def test_what_is_not_defined_has_no_interval_and_no_number_in_json() -> None:
    """Resamples without the one positive are left out; without any there is no value; one patient has no interval."""
    frame = pd.DataFrame({"patient_id": range(5), "cancer": [1, 0, 0, 0, 0], "score": [0.9, 0.1, 0.2, 0.3, 0.4]})
    assert bootstrap(frame, ["roc_auc"], resamples=100)["roc_auc"] == Interval(1.0, 1.0, 1.0)
    nobody = bootstrap(frame.assign(cancer=0), ["roc_auc", "pf1"], resamples=10)
    assert math.isnan(nobody["roc_auc"].value)
    assert nobody["pf1"].as_dict() == {"value": None, "low": None, "high": None}
    single = bootstrap(frame.assign(patient_id="a"), ["roc_auc"])["roc_auc"]
    assert single.as_dict() == {"value": 1.0, "low": None, "high": None}


def test_what_cannot_be_resampled_is_refused() -> None:
    frame = table(5, seed=1)
    with pytest.raises(UsageError, match="resamples"):
        bootstrap(frame, ["roc_auc"], resamples=0)
    with pytest.raises(UsageError, match=r"got 'roc_auk'.*Did you mean 'roc_auc'"):
        bootstrap(frame, ["roc_auk"])
    for missing in (None, np.nan):
        with pytest.raises(TableError, match="1 of 10 ids are missing"):
            bootstrap(frame.assign(patient_id=["a"] * 9 + [missing]), ["roc_auc"])


def test_a_summary_holds_what_the_metrics_say_and_survives_json() -> None:
    frame = table(200, seed=0)
    rule = choose_threshold(frame["cancer"], frame["score"])
    summary = summarise(frame, rule, resamples=50)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary == summarise(frame, rule, resamples=50)
    labels, scores = frame["cancer"], frame["score"]
    values = {name: metric["value"] for name, metric in summary["metrics"].items()}
    assert list(values) == list(METRICS)
    assert values["pf1"] == pytest.approx(measure("pf1", labels, scores))
    assert values["roc_auc"] == measure("roc_auc", labels, scores)
    assert values["pf1_binary"] == pytest.approx(measure("pf1", labels, scores >= rule.value))
    called = (scores >= rule.value).astype(int)
    counted = {
        name: int(((labels == truth) & (called == call)).sum())
        for name, truth, call in (("tp", 1, 1), ("fp", 0, 1), ("fn", 1, 0), ("tn", 0, 0))
    }
    assert summary["confusion"] == counted
    assert summary["counts"] == {
        "breasts": 400,
        "patients": 200,
        "positives": labels.sum(),
        "prevalence": pytest.approx(labels.mean()),
    }
    assert summary["threshold"] == {
        "value": rule.value,
        "f1": rule.f1,
        "low": rule.low,
        "high": rule.high,
        "quantile": rule.quantile,
    }
    assert summarise(frame, 0.3, resamples=5)["threshold"]["quantile"] == pytest.approx((scores < 0.3).mean())
    for metric in summary["metrics"].values():
        assert metric["low"] <= metric["value"] <= metric["high"]
