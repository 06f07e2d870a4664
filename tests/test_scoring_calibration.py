"""Calibrations: rising, probable, plain numbers; what they are worth is measured out of fold."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from rsna_kit.runtime.errors import TableError
from rsna_kit.scoring.breasts import Calibration
from rsna_kit.scoring.calibration import FEWEST_CANCERS, calibrate, fit, out_of_fold

TABLES = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=2, max_size=40).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


def sample(cancers: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, a place on a line for each, and the true probability of cancer there: 5 % have one."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.ones(cancers, int), np.zeros(19 * cancers, int)]
    line = rng.normal(size=len(labels)) + 2 * labels
    return labels, line, expit(2 * line - 2 - math.log(19))


@settings(deadline=None, max_examples=30)
@given(rows=TABLES, new=st.lists(st.floats(0, 1), min_size=2, max_size=30), times=st.sampled_from([1, 30]))
def test_every_map_rises_and_stays_between_0_and_1(rows: list[tuple[int, float]], new: list[float], times: int) -> None:
    """Whatever it was fitted on, even where the scores are worse than chance; and it survives JSON."""
    labels, scores = zip(*rows * times, strict=True)
    calibration = fit(labels, scores)
    probabilities = calibration.apply(np.sort(new))
    assert (np.diff(probabilities) >= -1e-15).all()
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    kept = Calibration.from_dict(json.loads(json.dumps(dataclasses.asdict(calibration))))
    np.testing.assert_array_equal(kept.apply(np.sort(new)), probabilities)


def test_a_distorted_probability_is_found_again() -> None:
    """Scores that say everything wrong by 3 logits and half as sure as they may be."""
    labels, _, truth = sample(4000)
    scores = expit(logit(truth) / 2 + 3)
    assert np.abs(scores - truth).mean() > 0.5
    assert np.abs(fit(labels, scores).apply(scores) - truth).mean() < 0.01


def test_the_fit_is_scikit_learns_where_slopes_are_positive() -> None:
    """A breast with the target t is t breasts with cancer and 1 - t without."""
    labels, line, _ = sample(30)
    found = fit(labels, expit(line))
    targets = np.where(labels == 1, 31 / 32, 1 / (19 * 30 + 2))
    model = LogisticRegression(C=1e12, solver="newton-cholesky", tol=1e-10)
    model.fit(np.tile(line[:, None], (2, 1)), np.repeat([1, 0], len(line)), np.r_[targets, 1 - targets])
    assert (found.slope, found.intercept) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), rel=2e-3)


def test_odd_tables_get_the_sober_answer() -> None:
    """No certainty where classes are separated, a constant where scores are worse than chance or say nothing."""
    labels = np.r_[np.zeros(50, int), np.ones(50, int)]
    assert fit(labels, labels).apply([0, 1]).tolist() == pytest.approx([1 / 52, 51 / 52], abs=1e-3)
    worse = fit(labels, np.linspace(1, 0, 100)).apply([0.01, 0.5, 0.99])
    assert worse.tolist() == pytest.approx([0.5] * 3, abs=1e-4)
    assert fit([1, 0, 0, 0] * 25, [0.7] * 100).apply([0.7]).tolist() == pytest.approx([0.25], abs=0.02)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 0], [0.1, 0.2], "got 0 cancers among 2 breasts, expected some of both"),
        ([1, 1], [0.1, 0.2], "got 2 cancers among 2 breasts, expected some of both"),
        ([0, 1], [0.1, 1.2], r"outside \[0, 1\]"),
        ([0, 1], [0.1, math.nan], "NaN"),
        ([0, 2], [0.1, 0.2], "expected 0 or 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(labels: list, scores: list, message: str) -> None:
    with pytest.raises(TableError, match=message):
        fit(labels, scores)


@pytest.mark.parametrize("score", [math.nan, -0.1, 1.1])
def test_what_is_no_score_has_no_probability(score: float) -> None:
    with pytest.raises(TableError, match=r"NaN or outside \[0, 1\]"):
        Calibration(1.0, 0.0).apply([0.5, score])


@pytest.mark.parametrize(
    "content",
    [None, [], {}, {"slope": 1.0}, *({"slope": slope, "intercept": 0.0} for slope in ("1", -1.0, math.nan, [1.0]))],
)
def test_what_is_no_rising_map_is_not_taken_out_of_a_file(content: Any) -> None:
    with pytest.raises(TableError, match="calibration: "):
        Calibration.from_dict(content)


def test_what_travels_with_a_network_says_what_it_is_worth() -> None:
    """Fitted on all; judged by calibrations of the other folds, which a fold's own labels cannot move."""
    labels, line, _ = sample(60)
    scores, folds = expit(line + 2), np.arange(len(line)) % 3
    said: list[str] = []
    content = calibrate(labels, scores, folds, said.append)
    assert content is not None
    json.dumps(content, allow_nan=False)
    assert Calibration.from_dict(content) == fit(labels, scores)
    honest = out_of_fold(labels, scores, folds)
    held = folds == 1
    np.testing.assert_array_equal(honest[held], fit(labels[~held], scores[~held]).apply(scores[held]))
    flipped = out_of_fold(np.where(held, 1 - labels, labels), scores, folds)
    np.testing.assert_array_equal(honest[held], flipped[held])
    before, after = (sklearn.metrics.log_loss(labels, column) for column in (scores, honest))
    assert content["how"] == {
        "cancers": 60,
        "log_loss": {"raw": pytest.approx(before), "calibrated": pytest.approx(after)},
    }
    assert said == [f"calibration: log-loss {before:.4f} before, {after:.4f} after, out of fold"]


def test_few_cancers_are_not_calibrated() -> None:
    labels, line, _ = sample(FEWEST_CANCERS)
    content = calibrate(labels, expit(line), np.zeros(len(line)))
    assert content is not None
    assert content["how"] == {"cancers": FEWEST_CANCERS}  # with one fold there is no measure of it
    said: list[str] = []
    labels = np.r_[np.ones(FEWEST_CANCERS - 1, int), np.zeros(100, int)]
    assert calibrate(labels, np.linspace(0, 1, len(labels)), np.arange(len(labels)) % 2, said.append) is None
    assert said == ["no calibration: 4 cancers among 104 breasts, expected 5 or more"]
    assert calibrate(np.ones(9, int), np.linspace(0, 1, 9), np.arange(9) % 2) is None
