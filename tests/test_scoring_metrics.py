"""Metrics against literals, slow twins, scikit-learn and a published reader study."""

from __future__ import annotations

import warnings

import numpy as np
import oracles
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import realdata

from rsna_kit.runtime.errors import TableError
from rsna_kit.scoring.metrics import (
    Ranking,
    UndefinedMetricWarning,
    at,
    average_precision,
    average_precision_score,
    confusion_at,
    f1_at,
    f1_curve,
    pf1,
    pf1_score,
    roc_auc,
    roc_auc_score,
)

# Reader study column → AUC, raw pF1, best F1, the threshold of the best F1 (to four digits).
READER_STUDY = {
    "Reader01": (0.7256, 0.2461, 0.3441, 0.30),
    "Reader04": (0.8590, 0.3770, 0.5082, 0.40),
    "Reader05": (0.7045, 0.3074, 0.3434, 0.35),
    "Reader13": (0.8598, 0.3265, 0.4235, 0.65),
    "Reader14": (0.7557, 0.2670, 0.3866, 0.25),
    "AI_GMIC_top5": (0.8812, 0.2119, 0.4490, 0.2829),
    "AI_GMIC_top1": (0.8567, 0.2193, 0.4167, 0.4533),
    "AI_GLAM": (0.8532, 0.1467, 0.3040, 0.1529),
    "AI_DMVCNN": (0.7788, 0.1397, 0.2800, 0.1742),
    "AI_frcnn": (0.7145, 0.1120, 0.2679, 0.7324),
    "AI_end2end_inbreast": (0.5860, 0.1055, 0.2169, 0.9999),
    "AI_end2end_ddsm": (0.4540, 0.0466, 0.0840, 0.0032),
}
# Few distinct scores, so that ties are the rule; both classes present.
TABLES = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])), min_size=2, max_size=30
).filter(lambda rows: len({label for label, _ in rows}) == 2)


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
        "sensitivity": 0.5, "specificity": pytest.approx(2 / 3), "recall_rate": 0.4, "ppv": 0.5,
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
    metrics = {"pf1": pf1, "auc": roc_auc, "ap": average_precision, "ppv": at("ppv", 0.0), "f1": at("f1", 0.5)}
    for row, repeated in enumerate(weights):
        alone = Ranking(np.repeat(labels, repeated), np.repeat(scores, repeated)).counts()
        for metric in metrics.values():
            assert metric(counts)[row] == pytest.approx(float(metric(alone)))


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


@pytest.mark.parametrize("column", READER_STUDY)
def test_the_nyu_reader_study_is_reproduced(column: str) -> None:
    """1,440 breasts, 61 with cancer: AUC, raw pF1, best F1 and its threshold to four digits."""
    table = pd.read_csv(realdata("tables") / "nyu_reader_study_breast.csv.gz")
    labels, scores = table["label"], table[f"{column}_POM"]
    assert (len(labels), labels.sum()) == (1440, 61)
    thresholds, f1 = f1_curve(labels, scores)
    found = (roc_auc_score(labels, scores), pf1_score(labels, scores), f1.max(), thresholds[f1.argmax()])
    # Half a unit of the fourth digit, and a hair for a figure that lies on the edge (0.45325 was printed as 0.4533).
    assert found == pytest.approx(READER_STUDY[column], abs=0.5e-4 + 1e-9)
