"""The bootstrap: patients are drawn, intervals are the percentiles, the same seed gives the same numbers."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring import uncertainty
from rsna_kit.scoring.metrics import at, average_precision, pf1, roc_auc
from rsna_kit.scoring.uncertainty import Interval, bootstrap, paired

METRICS = {"pf1": pf1, "auc": roc_auc, "ap": average_precision, "f1": at("f1", 0.4)}


def table(patients: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two breasts a patient, a fifth with cancer, scores with ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(2 * patients) < 0.2).astype(int)
    scores = np.round(np.clip(rng.normal(0.3 + 0.2 * labels, 0.2), 0, 1), 2)
    return labels, scores, np.repeat([f"p{number:04d}" for number in range(patients)], 2)


def test_intervals_equal_those_of_tables_written_out() -> None:
    labels, scores, groups = table(25, seed=1)
    found = bootstrap(labels, scores, groups, METRICS, resamples=40, seed=3, level=0.9)
    slow = {
        "pf1": oracles.pf1_slow,
        "auc": oracles.roc_auc_slow,
        "ap": oracles.average_precision_slow,
        "f1": lambda y, s: oracles.f1_slow(y, s, 0.4),
    }
    tables = oracles.resampled_slow(labels, scores, groups, 40, seed=3)
    for name, metric in slow.items():
        low, high = np.quantile([metric(*drawn) for drawn in tables], [0.05, 0.95])
        assert found[name].value == pytest.approx(metric(labels.tolist(), scores.tolist()))
        assert (found[name].low, found[name].high) == pytest.approx((low, high))


def test_the_same_seed_gives_the_same_interval_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(40, seed=2)
    first = bootstrap(*data, METRICS, resamples=50, seed=5)
    monkeypatch.setattr(uncertainty, "_CELLS", 300)
    assert bootstrap(*data, METRICS, resamples=50, seed=5) == first
    assert bootstrap(*data, METRICS, resamples=50, seed=6) != first


def test_row_order_does_not_matter() -> None:
    labels, scores, groups = table(40, seed=2)
    order = np.random.default_rng(0).permutation(len(labels))
    first = bootstrap(labels, scores, groups, METRICS, resamples=50)
    again = bootstrap(labels[order], scores[order], groups[order], METRICS, resamples=50)
    for name, interval in first.items():
        assert (again[name].low, again[name].high) == pytest.approx((interval.low, interval.high))


def test_patients_are_drawn_not_breasts() -> None:
    """Every breast written twice is no new information: grouped, the interval must not shrink."""
    labels, scores, _ = table(100, seed=3)
    alone = bootstrap(labels, scores, np.arange(200), {"auc": roc_auc}, resamples=300)["auc"]
    twice = [np.repeat(labels, 2), np.repeat(scores, 2)]
    grouped = bootstrap(*twice, np.repeat(np.arange(200), 2), {"auc": roc_auc}, resamples=300)["auc"]
    naive = bootstrap(*twice, np.arange(400), {"auc": roc_auc}, resamples=300)["auc"]
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert naive.high - naive.low < 0.85 * (alone.high - alone.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Normals 1 apart have AUC 0.7602; 100 tables, 95 % intervals: 88 or fewer hits would be 3 in 1,000."""
    rng = np.random.default_rng(11)
    hits = 0
    for number in range(100):
        labels = np.repeat([1, 0], [60, 240])
        scores = rng.normal(size=300) + labels
        found = bootstrap(labels, scores, np.arange(300), {"auc": roc_auc}, resamples=200, seed=number)["auc"]
        hits += found.low <= 0.7602 <= found.high
    assert 88 < hits <= 100


def test_resamples_where_a_metric_is_undefined_are_left_out() -> None:
    """One positive among 5 patients is absent from a third of the resamples; AUC is 1 in all others."""
    found = bootstrap([1, 0, 0, 0, 0], [0.9, 0.1, 0.2, 0.3, 0.4], np.arange(5), {"auc": roc_auc}, resamples=100)
    assert found["auc"] == Interval(1.0, 1.0, 1.0)


def test_an_undefined_metric_has_no_interval_and_no_number_in_json() -> None:
    found = bootstrap([0, 0], [0.1, 0.2], ["a", "b"], {"auc": roc_auc, "pf1": pf1}, resamples=10)
    assert math.isnan(found["auc"].value)
    assert found["pf1"].as_dict() == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"resamples": 0}, "resamples"), ({"level": 1.0}, "level"), ({"level": 95}, "0.95")],
)
def test_wrong_settings_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bootstrap([0, 1], [0, 1], ["a", "b"], {"auc": roc_auc}, **kwargs)


def test_groups_of_another_length_are_refused() -> None:
    with pytest.raises(TableError, match="expected one patient id for each of 2 breasts"):
        bootstrap([0, 1], [0, 1], ["a"], {"auc": roc_auc})


def test_paired_differences_are_those_of_tables_written_out() -> None:
    labels, first, patients = table(25, seed=5)
    second = np.clip(first + np.random.default_rng(8).normal(0, 0.2, len(first)), 0, 1)
    before = oracles.resampled_slow(labels, first, patients, 50, seed=3)
    after = oracles.resampled_slow(labels, second, patients, 50, seed=3)
    differences = [oracles.roc_auc_slow(*b) - oracles.roc_auc_slow(*a) for a, b in zip(before, after, strict=True)]
    found = paired(labels, first, second, patients, {"auc": roc_auc}, resamples=50, seed=3)["auc"]
    whole = oracles.roc_auc_slow(labels.tolist(), second.tolist()) - oracles.roc_auc_slow(
        labels.tolist(), first.tolist()
    )
    assert found.value == pytest.approx(whole)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))


def test_a_pair_is_narrower_than_two_strangers() -> None:
    """Two models that agree on what is hard: the difference is known far better than either value."""
    labels, first, patients = table(200, seed=6)
    second = np.clip(first + np.random.default_rng(2).normal(0, 0.01, len(first)), 0, 1)
    alone = bootstrap(labels, first, patients, {"auc": roc_auc})["auc"]
    pair = paired(labels, first, second, patients, {"auc": roc_auc})["auc"]
    assert pair.high - pair.low < 0.3 * (alone.high - alone.low)
    other = paired(labels, second, first, patients, {"auc": roc_auc})["auc"]
    assert (other.low, other.high) == pytest.approx((-pair.high, -pair.low))
