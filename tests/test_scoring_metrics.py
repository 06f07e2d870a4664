"""Metrics against literals, slow twins and scikit-learn; reduced counts against all of them."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring.counts import Counts
from rsna_kit.scoring.metrics import (
    Ranking,
    UndefinedMetricWarning,
    at,
    average_precision,
    average_precision_score,
    brier,
    brier_score_loss,
    confusion_at,
    f1_at,
    f1_curve,
    f1_max,
    f1_max_score,
    log_loss,
    mean_log_loss,
    pf1,
    pf1_score,
    roc_auc,
    roc_auc_score,
    sensitivity_at_recall_rate,
    sensitivity_at_recall_rate_score,
    thresholds_needed,
)

# Few distinct scores, so that ties are the rule; both classes present.
TABLES = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])), min_size=2, max_size=30
).filter(lambda rows: len({label for label, _ in rows}) == 2)


EVERY = {
    "pf1": pf1, "pf2": partial(pf1, beta=2), "auc": roc_auc, "ap": average_precision, "f1_max": f1_max,
    "log_loss": log_loss, "brier": brier, "sensitivity": sensitivity_at_recall_rate(0.3), "ppv": at("ppv", 0.0),
    "f1": at("f1", 0.5), "accuracy": at("accuracy", 0.3), "specificity": at("specificity", 0.9),
}  # fmt: skip


def mean_log_loss_slow(labels: list[int], scores: list[float]) -> float:
    """Mean of the costs, one breast after the other; a probability is never below 2.2e-16 or above 1 - 2.2e-16."""
    cost = 0.0
    for label, score in zip(labels, scores, strict=True):
        score = min(max(score, 2.220446049250313e-16), 1 - 2.220446049250313e-16)
        cost -= np.log(score) if label else np.log(1 - score)
    return cost / len(labels)


def sensitivity_at_recall_rate_slow(labels: list[int], scores: list[float], share: float) -> float:
    """Try every threshold, and the one that calls nothing."""
    best = 0.0
    for threshold in scores:
        tp, fp, fn, _ = oracles.confusion_slow(labels, scores, threshold)
        if (tp + fp) / len(labels) <= share:
            best = max(best, tp / (tp + fn))
    return best


def test_pf1_by_hand() -> None:
    """cTP 1.2, cFP 0.5: precision 1.2/1.7, recall 1.2/2."""
    assert pf1_score([1, 1, 0, 0], [0.9, 0.3, 0.4, 0.1]) == pytest.approx(2 * 1.2 / (2 + 1.7))


def test_pf1_clips_scores_as_the_competition_does() -> None:
    assert pf1_score([1, 0], [3.0, -2.0]) == 1.0


def test_pf1_of_zeros_is_zero_without_a_warning() -> None:
    assert pf1_score([1, 0], [0.0, 0.0]) == 0.0


def test_pf1_of_a_binary_submission_is_f1() -> None:
    labels, called = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    assert pf1_score(labels, called) == f1_at(labels, called, 0.5) == pytest.approx(2 / 3)


def test_confusion_by_hand() -> None:
    assert confusion_at([1, 1, 0, 0, 0], [0.9, 0.2, 0.5, 0.1, 0.0], 0.5) == {
        "tp": 1, "fp": 1, "fn": 1, "tn": 2,
        "sensitivity": 0.5, "specificity": pytest.approx(2 / 3), "recall_rate": 0.4, "ppv": 0.5, "accuracy": 0.6,
    }  # fmt: skip


def test_a_score_equal_to_the_threshold_is_called() -> None:
    assert confusion_at([1, 0], [0.3, 0.2], 0.3)["tp"] == 1
    assert confusion_at([1, 1, 0], [np.nextafter(0.3, 0), 0.4, 0.3], 0.3)["fn"] == 1


def test_the_f1_curve_ascends_in_thresholds_and_groups_ties() -> None:
    thresholds, f1 = f1_curve([1, 0, 1, 0], [0.5, 0.5, 0.9, 0.1])
    assert thresholds.tolist() == [0.1, 0.5, 0.9]
    assert f1.tolist() == pytest.approx([2 / 3, 0.8, 2 / 3])


@given(rows=TABLES, beta=st.sampled_from([0.5, 1.0, 2.0]))
def test_every_metric_equals_its_slow_twin(rows: list[tuple[int, float]], beta: float) -> None:
    labels, scores = [list(column) for column in zip(*rows, strict=True)]
    assert pf1_score(labels, scores, beta) == pytest.approx(oracles.pf1_slow(labels, scores, beta))
    assert roc_auc_score(labels, scores) == pytest.approx(oracles.roc_auc_slow(labels, scores))
    assert average_precision_score(labels, scores) == pytest.approx(oracles.average_precision_slow(labels, scores))
    assert f1_max_score(labels, scores) == pytest.approx(max(oracles.f1_slow(labels, scores, t) for t in scores))
    assert mean_log_loss(labels, scores) == pytest.approx(mean_log_loss_slow(labels, scores))
    assert brier_score_loss(labels, scores) == pytest.approx(
        sum((label - score) ** 2 for label, score in rows) / len(rows)
    )
    for share in (0.01, 0.1, 0.3, 0.5, 1.0):
        slow = sensitivity_at_recall_rate_slow(labels, scores, share)
        assert sensitivity_at_recall_rate_score(labels, scores, share) == pytest.approx(slow)
    for threshold, f1 in zip(*f1_curve(labels, scores), strict=True):
        assert f1 == pytest.approx(oracles.f1_slow(labels, scores, threshold))
    # Also between, below and above the scores.
    for threshold in (-1.0, 0.0, 0.05, 0.3, 0.5, 1.0, 1.5):
        with warnings.catch_warnings(action="ignore", category=UndefinedMetricWarning):
            called = confusion_at(labels, scores, threshold)
        counts = tuple(called[name] for name in ("tp", "fp", "fn", "tn"))
        assert counts == oracles.confusion_slow(labels, scores, threshold)
        assert f1_at(labels, scores, threshold) == pytest.approx(oracles.f1_slow(labels, scores, threshold))


@settings(max_examples=30)
@given(rows=TABLES, seed=st.integers(0, 1000))
def test_weights_are_repetitions(rows: list[tuple[int, float]], seed: int) -> None:
    """The bootstrap rests on this: counting row i w times is the same as a table with row i w times."""
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    weights = np.random.default_rng(seed).integers(1, 4, size=(2, len(labels)))
    counts = Ranking(labels, scores).counts(weights)
    for row, repeated in enumerate(weights):
        alone = Ranking(np.repeat(labels, repeated), np.repeat(scores, repeated)).counts()
        for metric in EVERY.values():
            assert metric(counts)[row] == pytest.approx(float(metric(alone)), nan_ok=True)


@given(
    rows=st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])), min_size=1),
    thresholds=st.lists(st.sampled_from([-1.0, 0.0, 0.05, 0.1, 0.3, 0.5, 0.9, 1.0, 2.0]), max_size=3),
    seed=st.integers(0, 1000),
)
def test_reduced_counts_are_all_counts(rows: list[tuple[int, float]], thresholds: list[float], seed: int) -> None:
    """One class alone, ties, thresholds on, between, below and above the scores; patients of several breasts."""
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    rng = np.random.default_rng(seed)
    patients = np.sort(rng.integers(0, 5, size=len(labels)))
    weights = rng.integers(0, 3, size=(4, patients.max() + 1))
    everything = Ranking(labels, scores, patients).counts(weights)
    reduced = Ranking(labels, scores, patients, thresholds).counts(weights)
    assert everything.thresholds.tolist() == np.unique(scores).tolist()
    kept = np.isin(everything.thresholds, reduced.thresholds)
    np.testing.assert_array_equal(reduced.tp, everything.tp[:, kept])
    np.testing.assert_array_equal(reduced.fp, everything.fp[:, kept])
    for threshold in thresholds:
        called = scores >= threshold
        for found, label in zip(reduced.at(threshold), (1, 0), strict=True):
            np.testing.assert_array_equal(found, weights[:, patients[called & (labels == label)]].sum(axis=1))
            np.testing.assert_array_equal(found, everything.at(threshold)[1 - label])
        for name in ("f1", "sensitivity", "specificity", "recall_rate", "ppv", "accuracy"):
            np.testing.assert_array_equal(at(name, threshold)(reduced), at(name, threshold)(everything))
    for metric in (roc_auc, f1_max, sensitivity_at_recall_rate(0.3), pf1, log_loss, brier):
        np.testing.assert_array_equal(metric(reduced), metric(everything))
    # Sums of the same fractions, with fewer zeros between them: they may be rounded elsewhere.
    np.testing.assert_allclose(average_precision(reduced), average_precision(everything), rtol=1e-13)


def test_few_thresholds_are_kept_and_the_others_are_refused() -> None:
    """Lowest 0.0, positives at 0.3 and 0.8, the next above them 0.4 and 0.9, asked for 0.65, which is read at 0.7."""
    scores = np.arange(10) / 10
    labels = np.isin(scores, [0.3, 0.8]).astype(int)
    counts = Ranking(labels, scores, thresholds=[0.65]).counts()
    assert counts.thresholds.tolist() == [0.0, 0.3, 0.4, 0.7, 0.8, 0.9]
    assert [float(count) for count in counts.at(0.65)] == [1, 2]
    assert [float(count) for count in counts.at(7.0)] == [0, 0]
    with pytest.raises(UsageError, match=r"threshold 0\.5 was not kept"):
        counts.at(0.5)
    with pytest.raises(UsageError, match=r"threshold 0\.95 was not kept"):
        Ranking([1, 0, 0], [0.1, 0.2, 0.95], thresholds=[]).counts().at(0.95)


def test_what_a_metric_needs_is_known_for_the_kits_own_and_for_no_other() -> None:
    assert thresholds_needed(EVERY.values()) == [0.0, 0.5, 0.3, 0.9]

    def lowest_ppv(counts: Counts) -> np.ndarray:
        return (counts.tp / (counts.tp + counts.fp)).min(axis=-1)

    assert thresholds_needed([roc_auc, lowest_ppv]) is None
    assert thresholds_needed([partial(lowest_ppv)]) is None


@pytest.mark.parametrize("seed", range(5))
def test_ranking_metrics_equal_scikit_learn(seed: int) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    labels = (rng.random(500) < 0.1).astype(int)
    scores = np.round(rng.random(500) * 0.6 + 0.4 * labels * rng.random(500), 2)
    assert roc_auc_score(labels, scores) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores))
    assert average_precision_score(labels, scores) == pytest.approx(
        sklearn_metrics.average_precision_score(labels, scores)
    )
    called = (scores >= 0.5).astype(int)
    assert f1_at(labels, scores, 0.5) == pytest.approx(sklearn_metrics.f1_score(labels, called))
    assert confusion_at(labels, scores, 0.5)["accuracy"] == pytest.approx(
        sklearn_metrics.accuracy_score(labels, called)
    )
    scores[:2] = labels[0], 1 - labels[1]  # sure and right, sure and wrong
    assert mean_log_loss(labels, scores) == pytest.approx(sklearn_metrics.log_loss(labels, scores), rel=1e-12)
    assert brier_score_loss(labels, scores) == pytest.approx(sklearn_metrics.brier_score_loss(labels, scores))
    for beta in (0.5, 2.0):
        assert pf1_score(labels, called, beta) == pytest.approx(sklearn_metrics.fbeta_score(labels, called, beta=beta))


def test_constant_scores_are_chance() -> None:
    labels = [1, 0, 0, 0]
    assert roc_auc_score(labels, [0.2] * 4) == 0.5
    assert average_precision_score(labels, [0.2] * 4) == 0.25


@pytest.mark.parametrize(("metric", "value"), [(pf1_score, 0.0), (average_precision_score, 0.0), (roc_auc_score, 0.5)])
def test_without_positives_there_is_a_warning_and_a_value(metric, value: float) -> None:
    with pytest.warns(UndefinedMetricWarning, match="not defined"):
        assert metric([0, 0], [0.1, 0.9]) == value


def test_without_negatives_auc_is_undefined_and_the_rest_is_perfect() -> None:
    with pytest.warns(UndefinedMetricWarning, match="one class"):
        assert roc_auc_score([1, 1], [0.1, 0.9]) == 0.5
    assert average_precision_score([1, 1], [0.1, 0.9]) == 1.0


def test_a_sure_and_wrong_score_costs_36() -> None:
    assert mean_log_loss([1], [0.0]) == pytest.approx(36.0437, abs=1e-4)
    assert mean_log_loss([0], [0.0]) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("metric", [mean_log_loss, brier_score_loss])
def test_losses_are_defined_for_one_class_and_refuse_what_is_no_probability(metric) -> None:
    assert 0 <= metric([0, 0], [0.1, 0.2]) < 0.2
    with pytest.raises(TableError, match=r"2 scores outside \[0, 1\] \(first 1.5\)"):
        metric([1, 0, 1], [1.5, -0.1, 0.5])


def test_sensitivity_at_a_recall_rate_by_hand() -> None:
    """29 of 100 may be called at 0.29, although 0.29 * 100 is 28.999…; two tied scores are called together or not."""
    labels, scores = [1] * 29 + [0] * 71, list(range(100, 0, -1))
    assert sensitivity_at_recall_rate_score(labels, scores, 0.29) == 1.0
    assert sensitivity_at_recall_rate_score(labels, scores, 0.28) == 28 / 29
    assert sensitivity_at_recall_rate_score([1, 0, 1, 0], [0.9, 0.9, 0.1, 0.1], 0.49) == 0.0
    with pytest.warns(UndefinedMetricWarning, match="sensitivity .*no positives"):
        assert sensitivity_at_recall_rate_score([0, 0], [0.1, 0.2], 0.5) == 0.0
    with pytest.warns(UndefinedMetricWarning, match="highest F1"):
        assert f1_max_score([0, 0], [0.1, 0.2]) == 0.0
    for share in (0.0, 1.5, np.nan):
        with pytest.raises(UsageError, match="recall rate"):
            sensitivity_at_recall_rate(share)


def test_a_metric_at_no_threshold_or_of_no_name_is_refused() -> None:
    with pytest.raises(UsageError, match="threshold NaN"):
        at("f1", np.nan)
    with pytest.raises(TableError, match="expected one of f1, sensitivity"):
        at("f2", 0.5)


def test_undefined_shares_warn_and_are_zero() -> None:
    with pytest.warns(UndefinedMetricWarning, match="ppv .*nothing is called"):
        assert confusion_at([1, 0], [0.1, 0.2], 0.5)["ppv"] == 0.0
    with pytest.warns(UndefinedMetricWarning, match="specificity .*no negatives"):
        assert confusion_at([1], [0.9], 0.5)["specificity"] == 0.0
    with pytest.warns(UndefinedMetricWarning, match="sensitivity .*no positives"):
        assert confusion_at([0], [0.9], 0.5)["sensitivity"] == 0.0
    with pytest.warns(UndefinedMetricWarning, match="F1"):
        assert f1_curve([0, 0], [0.1, 0.2])[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 0], [0.5], "shapes"),
        ([], [], "at least one"),
        ([1, 2], [0.5, 0.5], "expected 0 or 1"),
        ([1, np.nan], [0.5, 0.5], "expected 0 or 1"),
        ([1, 0], [0.5, np.nan], "1 NaN or infinite"),
        ([1, 0], [0.5, np.inf], "1 NaN or infinite"),
        ([[1, 0]], [[0.5, 0.5]], "shapes"),
    ],
)
def test_what_is_no_table_of_scores_is_refused(labels: list, scores: list, message: str) -> None:
    with pytest.raises(TableError, match=message):
        pf1_score(labels, scores)


def test_a_beta_of_zero_is_refused() -> None:
    with pytest.raises(TableError, match="beta"):
        pf1_score([1, 0], [1, 0], beta=0)
