"""Calibrations: rising, probable, plain numbers; what they are worth is measured out of fold."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring.calibration import (
    BETA_FROM,
    FEWEST_CANCERS,
    KEPT,
    METHODS,
    Calibration,
    at_prevalence,
    calibrate,
    cross_fitted,
    expected_calibration_error,
    fit,
    reliability,
)
from rsna_kit.scoring.logits import logits, sigmoid
from rsna_kit.scoring.metrics import mean_log_loss, roc_auc_score

TABLES = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=2, max_size=40).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


def sample(cancers: int = 300, seed: int = 0, apart: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and places on a line on which log-odds are apart * place - apart**2 / 2 - log(19): 5 % cancers."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.ones(cancers, int), np.zeros(19 * cancers, int)]
    return labels, rng.normal(size=len(labels)) + apart * labels


def truth(line: np.ndarray, apart: float = 2.0) -> np.ndarray:
    return sigmoid(apart * line - apart**2 / 2 - math.log(19))


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None)
@given(rows=TABLES, new=st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_every_map_rises_and_stays_between_0_and_1(
    method: str, rows: list[tuple[int, float]], new: list[float]
) -> None:
    """Whatever it was fitted on, even where the scores are worse than chance."""
    labels, scores = zip(*rows, strict=True)
    calibration = fit(method, labels, scores)
    probabilities = calibration.apply(np.sort(new))
    assert (np.diff(probabilities) >= -1e-15).all()
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    kept = Calibration.from_dict(json.loads(json.dumps(calibration.as_dict())))
    np.testing.assert_array_equal(kept.apply(np.sort(new)), probabilities)


@pytest.mark.parametrize("method", ["platt", "beta", "isotonic"])
def test_a_distorted_probability_is_found_again(method: str) -> None:
    """Scores that say everything wrong by 3 logits and half as sure as they may be."""
    labels, line = sample(4000)
    scores = sigmoid(logits(truth(line)) / 2 + 3)
    found = fit(method, labels, scores).apply(scores)
    assert np.abs(found - truth(line)).mean() < 0.01
    assert expected_calibration_error(labels, found) < 0.005 < 0.5 < expected_calibration_error(labels, scores)
    assert mean_log_loss(labels, found) < mean_log_loss(labels, truth(line)) + 0.001


def test_platt_finds_the_numbers_that_were_put_in() -> None:
    labels, line = sample(4000)
    scores = sigmoid((logits(truth(line)) - 0.7) / 1.5)  # so logit(truth) = 1.5 logit(score) + 0.7
    assert fit("platt", labels, scores).parameters == pytest.approx({"slope": 1.5, "intercept": 0.7}, abs=0.1)
    assert fit("beta", labels, scores).parameters == pytest.approx({"a": 1.5, "b": 1.5, "c": 0.7}, abs=0.3)


def test_a_temperature_cools_but_moves_no_prevalence() -> None:
    labels, line = sample(4000)
    cooled = fit("temperature", labels, sigmoid(2 * logits(truth(line))))
    assert cooled.parameters["slope"] == pytest.approx(0.5, abs=0.03)
    moved = sigmoid(logits(truth(line)) + 3)
    assert expected_calibration_error(labels, fit("temperature", labels, moved).apply(moved)) > 0.2


def test_platts_fit_is_scikit_learns() -> None:
    """A breast with the target t is t breasts with cancer and 1 - t without."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    labels, line = sample(30)
    targets = np.where(labels == 1, 31 / 32, 1 / (19 * 30 + 2))
    model = linear_model.LogisticRegression(C=1e9, solver="newton-cholesky", tol=1e-8)
    model.fit(np.tile(line[:, None], (2, 1)), np.repeat([1, 0], len(line)), np.r_[targets, 1 - targets])
    found = fit("platt", labels, sigmoid(line)).parameters
    assert found == pytest.approx({"slope": model.coef_[0, 0], "intercept": model.intercept_[0]}, rel=1e-4)


@pytest.mark.parametrize("method", ["platt", "beta", "temperature"])
def test_the_fit_is_the_one_of_least_loss(method: str) -> None:
    """Against the loss on Platt's targets at the numbers around it, computed here from the definitions."""
    rng = np.random.default_rng(3)
    labels = (rng.random(200) < 0.3).astype(int)
    scores = sigmoid(rng.normal(size=200) + labels)
    positives = labels.sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (200 - positives + 2))

    def loss(numbers: list[float]) -> float:
        if method == "beta":
            logit = numbers[0] * np.log(scores) - numbers[1] * np.log(1 - scores) + numbers[2]
        else:
            logit = numbers[0] * np.log(scores / (1 - scores)) + (numbers[1] if method == "platt" else 0)
        said = 1 / (1 + np.exp(-logit))
        return float(-(targets * np.log(said) + (1 - targets) * np.log(1 - said)).sum())

    numbers = [fit(method, labels, scores).parameters[name] for name in METHODS[method]]
    for index in range(len(numbers)):
        for step in (-0.01, 0.01):
            moved = list(numbers)
            moved[index] += step
            assert loss(moved) > loss(numbers)


def test_isotonic_pools_its_violators() -> None:
    """0.3 and 0.4 are in the wrong order: both get their mean, and lines join the knots."""
    calibration = fit("isotonic", [0, 0, 1, 0, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert calibration.apply([0.2, 0.3, 0.4, 0.5]).tolist() == pytest.approx([0.2, 0.5, 0.5, 0.8])
    assert calibration.apply([0.0, 1.0, 0.25]).tolist() == pytest.approx([0.2, 0.8, 0.35])


@pytest.mark.parametrize("method", METHODS)
def test_separated_classes_have_finite_numbers_and_no_certainty(method: str) -> None:
    labels, scores = np.r_[np.zeros(50, int), np.ones(50, int)], np.r_[np.zeros(50), np.ones(50)]
    probabilities = fit(method, labels, scores).apply([0, 1])
    assert probabilities.tolist() == pytest.approx([1 / 52, 51 / 52], abs=1e-4)


@pytest.mark.parametrize("method", ["platt", "beta", "isotonic"])
def test_worse_than_chance_is_a_constant(method: str) -> None:
    labels = np.r_[np.zeros(50, int), np.ones(50, int)]
    probabilities = fit(method, labels, np.linspace(1, 0, 100)).apply([0.01, 0.5, 0.99])
    assert probabilities.tolist() == pytest.approx([0.5] * 3, abs=1e-6)


def test_constant_scores_are_the_share_of_cancers() -> None:
    for method in ("platt", "beta", "isotonic"):
        found = fit(method, [1, 0, 0, 0] * 25, [0.7] * 100).apply([0.7])
        assert found.tolist() == pytest.approx([0.25], abs=0.01)


@pytest.mark.parametrize(
    ("method", "labels", "scores", "error", "message"),
    [
        ("logistic", [0, 1], [0.1, 0.2], UsageError, "got method 'logistic', expected one of isotonic, platt, beta"),
        ("platt", [0, 0], [0.1, 0.2], TableError, "got 0 cancers among 2 breasts, expected some of both"),
        ("platt", [1, 1], [0.1, 0.2], TableError, "got 2 cancers among 2 breasts, expected some of both"),
        ("platt", [0, 1], [0.1, 1.2], TableError, r"scores: got 0.1 to 1.2, expected \[0, 1\]"),
        ("platt", [0, 1], [0.1, math.nan], TableError, "NaN"),
        ("platt", [0, 2], [0.1, 0.2], TableError, "expected 0 or 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    method: str, labels: list, scores: list, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit(method, labels, scores)


@pytest.mark.parametrize("score", [math.nan, -0.1, 1.1])
def test_what_is_no_score_has_no_probability(score: float) -> None:
    with pytest.raises(TableError, match=r"NaN or outside \[0, 1\]"):
        Calibration("platt", {"slope": 1.0, "intercept": 0.0}).apply([0.5, score])


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"method": "spline", "parameters": {}},
        {"method": ["platt"], "parameters": {}},
        {"method": "platt"},
        {"method": "platt", "parameters": {"slope": 1.0}},
        {"method": "platt", "parameters": {"slope": 1.0, "intercept": "low"}},
        {"method": "platt", "parameters": {"slope": -1.0, "intercept": 0.0}},
        {"method": "platt", "parameters": {"slope": math.nan, "intercept": 0.0}},
        {"method": "platt", "parameters": {"slope": [1.0], "intercept": 0.0}},
        {"method": "beta", "parameters": {"a": 1.0, "b": -0.1, "c": 0.0}},
        {"method": "isotonic", "parameters": {"scores": [], "probabilities": []}},
        {"method": "isotonic", "parameters": {"scores": [0.1, 0.2], "probabilities": [0.2, 0.1]}},
        {"method": "isotonic", "parameters": {"scores": [0.2, 0.1], "probabilities": [0.1, 0.2]}},
        {"method": "isotonic", "parameters": {"scores": [0.1, 0.2], "probabilities": [0.1]}},
        {"method": "isotonic", "parameters": {"scores": [0.1, 0.2], "probabilities": [0.1, 1.2]}},
    ],
)
def test_what_is_no_rising_map_is_not_taken_out_of_a_file(content: Any) -> None:
    with pytest.raises(TableError, match="calibration: "):
        Calibration.from_dict(content)


def test_a_fold_is_calibrated_by_the_others() -> None:
    labels, line = sample(60)
    scores, folds = sigmoid(line), np.arange(len(line)) % 3
    found = cross_fitted("platt", labels, scores, folds)
    for fold in range(3):
        held = folds == fold
        np.testing.assert_array_equal(found[held], fit("platt", labels[~held], scores[~held]).apply(scores[held]))
    flipped = cross_fitted("platt", np.where(folds == 1, 1 - labels, labels), scores, folds)
    np.testing.assert_array_equal(found[folds == 1], flipped[folds == 1])


def test_what_travels_with_a_network_says_what_it_is_worth() -> None:
    labels, line = sample(60)
    scores, folds = sigmoid(line + 2), np.arange(len(line)) % 3
    said: list[str] = []
    content = calibrate(labels, scores, folds, said.append)
    assert content is not None
    json.dumps(content, allow_nan=False)
    chosen = Calibration.from_dict(content)
    assert chosen == fit("beta", labels, scores)
    honest = cross_fitted("beta", labels, scores, folds)
    assert content["how"] == {
        "cancers": 60,
        "log_loss": {"raw": mean_log_loss(labels, scores), "calibrated": mean_log_loss(labels, honest)},
        "calibration_error": {
            "raw": expected_calibration_error(labels, scores),
            "calibrated": expected_calibration_error(labels, honest),
        },
    }
    assert said == [f"beta calibration: log-loss {mean_log_loss(labels, scores):.4f} before, "
                    f"{mean_log_loss(labels, honest):.4f} after, out of fold"]  # fmt: skip
    assert roc_auc_score(labels, chosen.apply(scores)) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_few_cancers_are_calibrated_with_fewer_numbers() -> None:
    for cancers, method in ((BETA_FROM, "beta"), (BETA_FROM - 1, "platt"), (FEWEST_CANCERS, "platt")):
        labels, line = sample(cancers)
        content = calibrate(labels, sigmoid(line), np.arange(len(line)) % 2)
        assert content is not None
        assert content["method"] == method
        assert fit(KEPT, labels, sigmoid(line)) == fit(method, labels, sigmoid(line))


def test_one_fold_is_calibrated_without_a_measure_of_it() -> None:
    labels, line = sample(60)
    content = calibrate(labels, sigmoid(line), np.zeros(len(line)))
    assert content is not None
    assert content["how"] == {"cancers": 60}


def test_too_few_cancers_are_not_calibrated_on() -> None:
    said: list[str] = []
    labels = np.r_[np.ones(FEWEST_CANCERS - 1, int), np.zeros(100, int)]
    assert calibrate(labels, np.linspace(0, 1, len(labels)), np.arange(len(labels)) % 2, said.append) is None
    assert said == ["no calibration: 4 cancers among 104 breasts, expected 5 or more"]
    assert calibrate(np.ones(9, int), np.linspace(0, 1, 9), np.arange(9) % 2) is None


def test_bins_hold_about_equally_many_and_never_split_a_tie() -> None:
    labels = np.array([0, 0, 0, 1, 0, 1, 0, 1, 1, 1])
    scores = np.array([0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    table = reliability(labels, scores, bins=5)
    assert table[["low", "high", "breasts", "cancers"]].to_numpy().tolist() == [
        [0.1, 0.2, 5, 1], [0.3, 0.3, 1, 1], [0.4, 0.5, 2, 1], [0.6, 0.7, 2, 2],
    ]  # fmt: skip
    assert table["mean_score"].tolist() == pytest.approx([0.18, 0.3, 0.45, 0.65])
    assert table["share"].tolist() == [0.2, 1, 0.5, 1]


def test_the_interval_of_a_bin_is_wilsons() -> None:
    """Against statsmodels' published example of the formula: 10 of 100, and none of 10."""
    row = reliability([1] * 10 + [0] * 90, [0.1] * 100).iloc[0]
    assert (row["share_low"], row["share_high"]) == pytest.approx((0.05522914, 0.17436566), abs=1e-6)
    empty = reliability([0] * 10, [0.1] * 10).iloc[0]
    assert (empty["share_low"], empty["share_high"]) == pytest.approx((0, 0.27753279), abs=1e-6)


@settings(deadline=None)
@given(rows=TABLES, bins=st.integers(1, 12))
def test_the_calibration_error_is_the_weighted_gap(rows: list[tuple[int, float]], bins: int) -> None:
    """Bins made by hand: a breast's bin is the one of the first of its equals."""
    labels, scores = zip(*rows, strict=True)
    members: dict[int, list[tuple[int, float]]] = {}
    for label, score in rows:
        below = sum(other < score for other in scores)
        members.setdefault(below * bins // len(rows), []).append((label, score))
    gap = sum(abs(sum(label - score for label, score in group)) for group in members.values()) / len(rows)
    assert expected_calibration_error(labels, scores, bins) == pytest.approx(gap, abs=1e-12)
    assert reliability(labels, scores, bins)["breasts"].sum() == len(rows)


@pytest.mark.parametrize("bins", [0, -1])
def test_bins_are_at_least_one(bins: int) -> None:
    with pytest.raises(UsageError, match=f"bins: got {bins}"):
        reliability([0, 1], [0.1, 0.2], bins)


def test_another_prevalence_is_bayes_rule() -> None:
    """Calibrated at 5 %, seen at 2 %: the posterior of the two normals with that prior."""
    line = np.linspace(-3, 5, 50)
    expected = sigmoid(2 * line - 2 - math.log(49))
    np.testing.assert_allclose(at_prevalence(truth(line), 0.05, 0.02), expected, rtol=1e-12)
    np.testing.assert_allclose(at_prevalence(at_prevalence(truth(line), 0.05, 0.02), 0.02, 0.05), truth(line))
    assert at_prevalence([0.0, 1.0], 0.05, 0.02).tolist() == [0, 1]


@pytest.mark.parametrize("share", [0, 1, math.nan])
def test_a_prevalence_is_a_share(share: float) -> None:
    with pytest.raises(UsageError, match=r"prevalence seen: got .*, expected a share between 0 and 1"):
        at_prevalence([0.5], 0.02, share)
