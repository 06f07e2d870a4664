"""Metrics against literals, slow twins and scikit-learn; weighted counts against tables written out."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna_kit.runtime.errors import TableError
from rsna_kit.scoring.metrics import (
    METRICS,
    RECALL_RATE,
    Ranking,
    f1_curve,
    measure,
)

# Few distinct scores, so that ties are the rule; both classes present.
TABLES = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])), min_size=2, max_size=30
).filter(lambda rows: len({label for label, _ in rows}) == 2)


def test_pf1_by_hand() -> None:
    """cTP 1.2, cFP 0.5: precision 1.2/1.7, recall 1.2/2. Scores are clipped; 0/1 calls give F1; zeros give 0."""
    assert measure("pf1", [1, 1, 0, 0], [0.9, 0.3, 0.4, 0.1]) == pytest.approx(2 * 1.2 / (2 + 1.7))
    assert measure("pf1", [1, 0], [3.0, -2.0]) == 1.0
    assert measure("pf1", [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]) == pytest.approx(2 / 3)
    assert measure("pf1", [1, 0], [0.0, 0.0]) == 0.0


def test_metrics_of_calls_by_hand() -> None:
    labels, scores = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.2, 0.5, 0.1, 0.0])
    expected = {"pf1_binary": 0.5, "sensitivity": 0.5, "specificity": 2 / 3, "recall_rate": 0.4, "ppv": 0.5}
    for name, number in (expected | {"accuracy": 0.6}).items():
        assert measure(name, labels, scores, scores >= 0.5) == pytest.approx(number)
        assert np.isnan(measure(name, labels, scores))  # nothing was called


@settings(deadline=None)
@given(rows=TABLES)
def test_every_metric_equals_its_slow_twin(rows: list[tuple[int, float]]) -> None:
    labels, scores = [list(column) for column in zip(*rows, strict=True)]
    assert measure("pf1", labels, scores) == pytest.approx(oracles.pf1_slow(labels, scores))
    assert measure("roc_auc", labels, scores) == pytest.approx(oracles.roc_auc_slow(labels, scores))
    assert measure("pr_auc", labels, scores) == pytest.approx(oracles.average_precision_slow(labels, scores))
    assert measure("f1_max", labels, scores) == pytest.approx(max(oracles.f1_slow(labels, scores, t) for t in scores))
    for threshold, f1 in zip(*f1_curve(labels, scores), strict=True):
        assert f1 == pytest.approx(oracles.f1_slow(labels, scores, threshold))
    for threshold in (-1.0, 0.05, 0.5, 1.5):  # between, below and above the scores
        called = np.array(scores) >= threshold
        assert measure("pf1_binary", labels, scores, called) == pytest.approx(
            oracles.f1_slow(labels, scores, threshold)
        )


@settings(max_examples=30, deadline=None)
@given(rows=TABLES, seed=st.integers(0, 1000))
def test_weights_are_repetitions(rows: list[tuple[int, float]], seed: int) -> None:
    """The bootstrap rests on this: a patient of weight w counts as if her rows stood in the table w times."""
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    rng = np.random.default_rng(seed)
    patients, called = np.sort(rng.integers(0, 5, size=len(labels))), scores >= 0.3
    weights = rng.integers(0, 3, size=(patients.max() + 1, 4))
    counts = Ranking(labels, scores, called, patients).counts(weights)
    for column, times in enumerate(weights.T):
        kept = np.repeat(np.arange(len(labels)), times[patients])
        if not kept.size:
            continue
        alone = Ranking(labels[kept], scores[kept], called[kept]).counts()
        for name, metric in METRICS.items():
            expected = pytest.approx(float(metric.measure(alone)), nan_ok=True)
            assert metric.measure(counts)[column] == expected, name


def test_metrics_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.1).astype(int)
    scores = np.round(rng.random(500) * 0.6 + 0.4 * labels * rng.random(500), 2)
    scores[:2] = labels[0], 1 - labels[1]  # sure and right, sure and wrong
    called = (scores >= 0.5).astype(int)
    assert measure("roc_auc", labels, scores) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores))
    average_precision = sklearn.metrics.average_precision_score(labels, scores)
    assert measure("pr_auc", labels, scores) == pytest.approx(average_precision)
    assert measure("log_loss", labels, scores) == pytest.approx(sklearn.metrics.log_loss(labels, scores), rel=1e-12)
    for name in ("f1", "accuracy", "recall", "precision"):
        ours = {"f1": "pf1_binary", "recall": "sensitivity", "precision": "ppv"}.get(name, name)
        theirs = getattr(sklearn.metrics, f"{name}_score")(labels, called)
        assert measure(ours, labels, scores, called) == pytest.approx(theirs)


def test_sensitivity_where_as_many_are_called_as_the_winner_did() -> None:
    """15 of 1,000 may be called; equal scores are called together or not at all."""
    assert RECALL_RATE == 0.015
    labels, scores = np.r_[np.ones(20, int), np.zeros(980, int)], np.arange(1000)[::-1] / 1000
    assert measure("sensitivity_at_winners_recall", labels, scores) == 15 / 20
    scores[14:16] = scores[14]
    assert measure("sensitivity_at_winners_recall", labels, scores) == 14 / 20


def test_names_follow_a_rule() -> None:
    """Worse scores: what ends in _loss rises, rates say nothing, all others fall."""
    labels = np.tile([1, 0, 0, 0], 50)
    good, bad = np.where(labels == 1, 0.9, 0.1), np.where(np.arange(200) % 8 == 0, 0.9, 0.1)
    for name in METRICS:
        better, worse = (measure(name, labels, scores, scores >= 0.5) for scores in (good, bad))
        if name.endswith("_loss"):
            assert worse > better
        elif not name.endswith("_rate"):
            assert worse < better or name in ("specificity", "ppv", "sensitivity_at_winners_recall")


def test_without_positives_there_is_no_value() -> None:
    assert np.isnan([measure(name, [0, 0], [0.1, 0.9]) for name in ("pf1", "pr_auc", "roc_auc")]).all()


def test_a_loss_is_of_probabilities() -> None:
    assert measure("log_loss", [1], [0.0]) == pytest.approx(36.0437, abs=1e-4)  # sure and wrong
    with pytest.raises(TableError, match=r"2 scores outside \[0, 1\] \(first 1.5\)"):
        measure("log_loss", [1, 0, 1], [1.5, -0.1, 0.5])


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
        measure("pf1", labels, scores)
    with pytest.raises(TableError, match=message):
        f1_curve(labels, scores)
