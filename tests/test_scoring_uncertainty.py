"""The bootstrap: patients are drawn, intervals are the percentiles, the same seed gives the same numbers."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring import uncertainty
from rsna_kit.scoring.counts import Counts
from rsna_kit.scoring.metrics import (
    at,
    average_precision,
    average_precision_score,
    brier,
    f1_at,
    f1_max_score,
    pf1,
    pf1_score,
    roc_auc,
    roc_auc_score,
)
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


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_the_same_seed_gives_the_same_interval_whatever_the_chunk(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(40, seed=2)
    first = bootstrap(*data, METRICS, resamples=50, seed=5, method=method)
    for cells in (300, 1):
        monkeypatch.setattr(uncertainty, "_CELLS", cells)
        assert bootstrap(*data, METRICS, resamples=50, seed=5, method=method) == first
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
    [
        ({"resamples": 0}, "resamples"),
        ({"level": 1.0}, "level"),
        ({"level": 95}, r"0\.95"),
        ({"method": "BCa"}, "expected one of percentile, bca"),
    ],
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


def test_a_metric_of_ones_own_sees_every_threshold() -> None:
    """The mean number called over all thresholds, of which most are not needed by the kit's own metrics."""
    labels, scores, groups = table(25, seed=1)

    def mean_called(counts: Counts) -> np.ndarray:
        return (counts.tp + counts.fp).mean(axis=-1)

    found = bootstrap(labels, scores, groups, {"called": mean_called, "auc": roc_auc}, resamples=30, seed=4)
    tables = oracles.resampled_slow(labels, scores, groups, 30, seed=4)
    called = [np.mean([np.sum(np.array(drawn[1]) >= t) for t in np.unique(scores)]) for drawn in tables]
    assert (found["called"].low, found["called"].high) == pytest.approx(tuple(np.quantile(called, [0.025, 0.975])))
    alone = bootstrap(labels, scores, groups, {"auc": roc_auc}, resamples=30, seed=4)
    assert found["auc"] == alone["auc"]


def bca_slow(value: float, draws: np.ndarray, left_out: np.ndarray, level: float) -> tuple[float, float]:
    """Efron's formulae, written with scipy's normal distribution (DiCiccio & Efron 1996, 2.1, 2.8 and 6.6)."""
    norm = pytest.importorskip("scipy.stats").norm
    bias = norm.ppf((np.sum(draws < value) + np.sum(draws == value) / 2) / len(draws))
    away = np.mean(left_out) - left_out
    acceleration = np.sum(away**3) / (6 * np.sum(away**2) ** 1.5)
    shares = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + norm.ppf(tail)
        shares.append(norm.cdf(bias + z / (1 - acceleration * z)))
    return tuple(np.quantile(draws, shares))


def test_bca_equals_the_formulae_on_tables_written_out() -> None:
    labels, scores, groups = table(30, seed=7)
    second = np.clip(scores + np.random.default_rng(8).normal(0, 0.2, len(scores)), 0, 1)
    tables = [oracles.resampled_slow(labels, column, groups, 60, seed=3) for column in (scores, second)]
    kept = [groups != patient for patient in np.unique(groups)]

    def everything(metric, column: np.ndarray, drawn: list) -> tuple[float, np.ndarray, np.ndarray]:
        left_out = [metric(labels[rows].tolist(), column[rows].tolist()) for rows in kept]
        value = metric(labels.tolist(), column.tolist())
        return value, np.array([metric(*one) for one in drawn]), np.array(left_out)

    metrics = {"auc": roc_auc, "pf1": pf1, "sensitivity": at("sensitivity", 0.2)}
    found = bootstrap(labels, scores, groups, metrics, resamples=60, seed=3, level=0.8, method="bca")
    difference = paired(labels, scores, second, groups, metrics, resamples=60, seed=3, level=0.8, method="bca")

    def sensitivity(labels: list[int], scores: list[float]) -> float:
        tp, _, fn, _ = oracles.confusion_slow(labels, scores, 0.2)
        return tp / (tp + fn)  # on some resamples exactly what it is on the table: a tie counts half

    for name, metric in (("auc", oracles.roc_auc_slow), ("pf1", oracles.pf1_slow), ("sensitivity", sensitivity)):
        before, after = (
            everything(metric, column, drawn) for column, drawn in zip((scores, second), tables, strict=True)
        )
        assert (found[name].low, found[name].high) == pytest.approx(bca_slow(*before, 0.8))
        slow = bca_slow(*(two - one for one, two in zip(before, after, strict=True)), 0.8)
        assert (difference[name].low, difference[name].high) == pytest.approx(slow)


def test_bca_agrees_with_scipy_where_every_patient_has_one_breast() -> None:
    """A skewed mean of 40: BCa moves both ends by more than a thirtieth of the width; the two agree to a fiftieth."""
    stats = pytest.importorskip("scipy.stats")
    labels, scores = np.zeros(40), np.random.default_rng(4).random(40) ** 5
    ours = {
        method: bootstrap(labels, scores, np.arange(40), {"brier": brier}, 30_000, method=method)["brier"]
        for method in ("percentile", "bca")
    }
    for method, interval in ours.items():
        theirs = stats.bootstrap(
            ((labels - scores) ** 2,), np.mean, n_resamples=30_000, method=method, random_state=1
        ).confidence_interval
        width = theirs.high - theirs.low
        assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=width / 50)
    assert ours["bca"].low - ours["percentile"].low > width / 30
    assert ours["bca"].high - ours["percentile"].high > width / 30


def test_bca_agrees_with_scipy_on_auc() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(5)
    labels = np.repeat([1, 0], [15, 85])
    scores = rng.normal(size=100) + 1.5 * labels

    def auc(labels: np.ndarray, scores: np.ndarray) -> float:
        positives = labels.sum()
        ranks = stats.rankdata(scores)[labels == 1].sum()
        return (ranks - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))

    theirs = stats.bootstrap(
        (labels, scores), auc, n_resamples=3000, paired=True, vectorized=False, method="BCa", random_state=2
    ).confidence_interval
    found = bootstrap(labels, scores, np.arange(100), {"auc": roc_auc}, 3000, method="bca")["auc"]
    width = theirs.high - theirs.low
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=width / 15)


def test_bca_of_resamples_that_are_all_equal_is_that_value() -> None:
    """Perfect separation: AUC is 1 on every resample and without any patient."""
    found = bootstrap([0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8], list("abcd"), {"auc": roc_auc}, 50, method="bca")
    assert found["auc"] == Interval(1.0, 1.0, 1.0)


def test_bca_without_acceleration_where_no_patient_matters() -> None:
    """Six patients with the same two breasts: leaving one out changes nothing."""
    labels, scores, groups = [0, 1] * 6, [0.4, 0.8] * 6, np.repeat(np.arange(6), 2)
    found = bootstrap(labels, scores, groups, {"brier": brier}, 50, method="bca")["brier"]
    assert (found.low, found.value, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_bca_is_the_percentile_interval_where_every_resample_lies_on_one_side() -> None:
    """Some patient is missing from every resample, so the number of patients drawn is always below their number."""

    def patients(counts: Counts) -> np.ndarray:
        return (counts.weights > 0).sum(axis=-1)

    data = table(20, seed=3)
    plain, corrected = (
        bootstrap(*data, {"patients": patients}, 50, method=method)["patients"] for method in ("percentile", "bca")
    )
    assert corrected == plain
    assert plain.high < plain.value == 20


def test_bca_is_the_percentile_interval_beyond_its_pole() -> None:
    """One patient carries the whole loss: acceleration 1/6, and at 7 standard deviations 1 - a·z is below 0."""
    data = np.eye(200, dtype=int)[0], np.zeros(200), np.arange(200)
    plain, corrected = (
        bootstrap(*data, {"brier": brier}, 200, level=1 - 1e-12, method=method)["brier"]
        for method in ("percentile", "bca")
    )
    assert corrected == plain
    assert plain.low < plain.value < plain.high


def test_bca_leaves_out_undefined_resamples_and_undefined_patients() -> None:
    """One positive: a third of the resamples, and the table without it, have no AUC. The others make an interval."""
    labels, scores = [1, 0, 0, 0, 0, 0], [0.5, 0.1, 0.2, 0.9, 0.4, 0.6]
    found = bootstrap(labels, scores, np.arange(6), {"auc": roc_auc}, 200, method="bca")["auc"]
    assert 0 <= found.low < found.value < found.high <= 1


def test_a_skewed_metric_is_shifted_by_bca_towards_its_long_tail() -> None:
    labels, scores, groups = table(40, seed=9)
    plain = bootstrap(labels, scores, groups, {"auc": roc_auc}, 2000)["auc"]
    corrected = bootstrap(labels, scores, groups, {"auc": roc_auc}, 2000, method="bca")["auc"]
    assert corrected.low < plain.low
    assert corrected.high < plain.high


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_equal_models_differ_by_exactly_nothing(method: str) -> None:
    """The same scores in every metric; the same order, by other numbers, in those that only rank."""
    labels, scores, groups = table(40, seed=2)
    same = paired(labels, scores, scores.copy(), groups, METRICS, resamples=50, method=method)
    assert same == dict.fromkeys(METRICS, Interval(0.0, 0.0, 0.0))
    ranks = {"auc": roc_auc, "ap": average_precision}
    assert paired(labels, scores, scores**3, groups, ranks, resamples=50, method=method) == dict.fromkeys(
        ranks, Interval(0.0, 0.0, 0.0)
    )


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_a_single_patient_has_values_and_no_intervals(method: str) -> None:
    found = bootstrap([1, 0], [0.8, 0.4], ["a", "a"], {"auc": roc_auc}, method=method)["auc"]
    assert found.as_dict() == {"value": 1.0, "low": None, "high": None}


@pytest.mark.parametrize("missing", [None, np.nan])
def test_missing_patient_ids_are_refused(missing: object) -> None:
    groups = np.array(["a", missing, "b"], dtype=object)
    with pytest.raises(TableError, match="1 of 3 patient ids are missing"):
        bootstrap([0, 1, 0], [0.1, 0.9, 0.2], groups, {"auc": roc_auc})


def test_an_interval_knows_its_level() -> None:
    data = table(10, seed=1)
    assert bootstrap(*data, {"pf1": pf1}, resamples=5, level=0.9)["pf1"].level == 0.9


# ---- scripts/interval-coverage ----


@pytest.fixture(scope="module")
def coverage() -> Any:
    loader = SourceFileLoader("interval_coverage", str(Path(__file__).parent.parent / "scripts" / "interval-coverage"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_truth_of_the_simulation_is_what_a_large_table_shows(coverage: Any) -> None:
    """200,000 breasts, 4,100 cancers: the standard errors are a third of what is allowed."""
    labels, scores, patients = coverage.table(np.random.default_rng(1), 100_000)
    truth, threshold = coverage.truth()
    found = (roc_auc_score, average_precision_score, pf1_score, lambda y, s: f1_at(y, s, threshold))
    assert [metric(labels, scores) for metric in found] == pytest.approx(list(truth.values()), abs=0.02)
    assert roc_auc_score(labels, scores) == pytest.approx(truth["ROC-AUC"], abs=0.006)
    assert f1_max_score(labels, scores) - f1_at(labels, scores, threshold) < 0.01
    assert labels.mean() == pytest.approx(0.0207, abs=0.001)
    assert np.bincount(patients).tolist() == [2] * 100_000
    healthy = labels.reshape(-1, 2).sum(axis=1) == 0
    numbers = np.log(scores / (1 - scores)).reshape(-1, 2)[healthy]
    assert np.corrcoef(numbers.T)[0, 1] == pytest.approx(0.5, abs=0.01)


def test_the_simulation_reports_every_metric_and_method(
    coverage: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["interval-coverage", "--simulations", "8", "--resamples", "60", "--patients", "500"]
    )
    assert coverage.main() == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 2 + 8 + 1
    rows = json.loads(lines[-1])["rows"]
    assert [row["metric"] for row in rows[::2]] == ["ROC-AUC", "average precision", "pF1", "F1 at a threshold"]
    for row in rows:
        assert row["coverage"] + row["too_low"] + row["too_high"] == pytest.approx(1)
        assert row["coverage"] > 0.5
        assert 0 < row["width"] < 1
    assert "8/8 tables" in err
