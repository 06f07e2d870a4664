"""Ensembles at real size: the DREAM challenge's validation scores, 51,314 breasts by 12 models, without labels."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from oracles import rank_mean_slow
from realdata import realdata

from rsna_kit.scoring.blend import logit_mean, rank_mean, votes


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    table = pd.read_csv(realdata("tables") / "dream_breast_predictions_12models.csv.gz")
    return table.filter(regex="^m").to_numpy(np.float64)


def ranks(scores: np.ndarray) -> np.ndarray:
    """Each model's ranks by themselves."""
    return np.stack([rank_mean(column[:, None]) for column in scores.T], axis=1)


def test_the_scales_are_those_that_were_published(scores: np.ndarray) -> None:
    """One model says 0.48 to 0.72 to everybody, others 0.0001 to 0.999: what a plain mean has to live with."""
    assert scores.shape == (51314, 12)
    width = scores.max(axis=0) - scores.min(axis=0)
    narrow = int(width.argmin())
    assert (scores[:, narrow].min().round(2), scores[:, narrow].max().round(2)) == (0.48, 0.72)
    assert scores.min() < 1e-4
    assert scores.max() > 0.999


def test_models_agree_as_much_as_was_published(scores: np.ndarray) -> None:
    """Spearman's correlation, Pearson's of the ranks: 0.30 to 0.97 between two models."""
    correlations = np.corrcoef(ranks(scores), rowvar=False)[np.triu_indices(12, 1)]
    assert (round(correlations.min(), 2), round(correlations.max(), 2)) == (0.30, 0.97)


def test_ranks_are_scipys(scores: np.ndarray) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.rankdata(scores, axis=0).mean(axis=1) / len(scores)
    np.testing.assert_allclose(rank_mean(scores), expected, rtol=1e-12)


def test_blends_agree_with_their_slow_twins(scores: np.ndarray) -> None:
    some = scores[np.random.default_rng(0).choice(len(scores), 200, replace=False)]
    np.testing.assert_allclose(rank_mean(some), rank_mean_slow(some.tolist()), rtol=1e-12)
    for row, found in zip(some.tolist(), logit_mean(some), strict=True):
        middle = sum(math.log(min(score, 1 - 1e-15) / (1 - min(score, 1 - 1e-15))) for score in row) / 12
        assert found == pytest.approx(1 / (1 + math.exp(-middle)), rel=1e-9)
    thresholds = np.quantile(scores, 0.9, axis=0)
    for row, found in zip(some.tolist(), votes(some, thresholds), strict=True):
        calls = sum(score >= threshold for score, threshold in zip(row, thresholds, strict=True))
        assert found == pytest.approx(calls / 12)


def test_no_rising_change_of_a_scale_moves_a_rank(scores: np.ndarray) -> None:
    bent = scores.copy()
    bent[:, 0] /= 4
    bent[:, 1] = np.exp(8 * bent[:, 1])
    bent[:, 2] -= 0.3
    np.testing.assert_array_equal(rank_mean(bent), rank_mean(scores))
    assert not np.allclose(logit_mean(np.clip(bent, 0, 1)), logit_mean(scores))


def test_every_model_moves_a_rank_mean_alike_and_a_mean_by_its_width(scores: np.ndarray) -> None:
    """How far each model's own part of the blend spreads: the narrow one hardly takes part in a plain mean."""
    narrow = int((scores.max(axis=0) - scores.min(axis=0)).argmin())
    spread = scores.std(axis=0)
    assert spread[narrow] < 0.5 * np.median(spread)
    np.testing.assert_allclose(ranks(scores).std(axis=0), 1 / math.sqrt(12), rtol=0.01)


def test_what_comes_out_is_a_score_for_every_breast(scores: np.ndarray) -> None:
    for blended in (rank_mean(scores), logit_mean(scores), votes(scores, np.full(12, 0.5))):
        assert blended.shape == (51314,)
        assert ((blended >= 0) & (blended <= 1)).all()
