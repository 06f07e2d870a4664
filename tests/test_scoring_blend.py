"""Weights on the simplex, chosen without the breasts they score."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from rsna_kit.scoring.blend import blend_out_of_fold, choose_weights
from rsna_kit.scoring.breasts import weighted_breasts
from rsna_kit.scoring.metrics import measure

TABLE = pd.DataFrame({"image_id": ["1", "2", "3", "4"], "prediction_id": ["7_L", "7_L", "7_R", "8_L"]})


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_one_part_is_the_mean_over_the_images_of_a_breast() -> None:
    scores = pd.DataFrame({"image_id": ["4", "2", "1"], "score": [0.9, 0.3, 0.1]})
    breasts = weighted_breasts(scores, TABLE, [(1.0, "score", None)])
    assert breasts.to_dict("records") == [
        {"prediction_id": "7_L", "score": pytest.approx(0.2), "images": 2},
        {"prediction_id": "8_L", "score": 0.9, "images": 1},
    ]


def test_parts_are_pooled_each_in_its_way_and_then_weighted() -> None:
    """An image-level part of weight 0.25, a breast-level one of 0.75 whose attention counts one image thrice."""
    scores = pd.DataFrame(
        {
            "image_id": ["1", "2"],
            "score": [0.2, 0.4],
            "score_1": [sigmoid(2.0), sigmoid(-2.0)],
            "attention_1": [math.log(3), 0.0],
        }
    )
    breasts = weighted_breasts(scores, TABLE, [(0.25, "score", None), (0.75, "score_1", "attention_1")])
    assert breasts["score"].tolist() == [pytest.approx(0.25 * 0.3 + 0.75 * sigmoid(0.75 * 2.0 - 0.25 * 2.0))]


def test_a_part_that_saw_nothing_of_a_breast_leaves_it_to_the_others() -> None:
    nan = math.nan
    scores = pd.DataFrame(
        {
            "image_id": ["1", "2", "3", "4"],
            "score": [0.2, 0.4, 0.5, nan],
            "score_1": [0.8, nan, nan, 0.7],
            "attention_1": [5.0, nan, nan, 0.0],
        }
    )
    breasts = weighted_breasts(scores, TABLE, [(0.25, "score", None), (0.75, "score_1", "attention_1")])
    got = breasts.set_index("prediction_id")["score"]
    assert got.to_dict() == {"7_L": pytest.approx(0.25 * 0.3 + 0.75 * 0.8), "7_R": 0.5, "8_L": pytest.approx(0.7)}
    assert breasts["images"].tolist() == [2, 1, 1]


def test_no_score_is_no_breast() -> None:
    empty = pd.DataFrame({"image_id": pd.Series(dtype=str), "score": pd.Series(dtype="float64")})
    breasts = weighted_breasts(empty, TABLE, [(1.0, "score", None)])
    assert (len(breasts), list(breasts.columns)) == (0, ["prediction_id", "score", "images"])


def noisy_models(patients: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and three models: two good ones with noise of their own, and one that knows nothing."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(patients) < 0.2).astype(int)
    noise = rng.normal(size=(3, patients))
    logits = np.stack([2 * labels + noise[0], 1.5 * labels + noise[1], noise[2]], axis=1)
    return labels, 1 / (1 + np.exp(-logits))


def test_the_best_point_of_the_grid_is_found() -> None:
    """Against every point, looked at one by one."""
    labels, scores = noisy_models()
    grid = [np.array([a, b, 20 - a - b]) / 20 for a, b in itertools.product(range(21), repeat=2) if a + b <= 20]
    best = max(measure("roc_auc", labels, scores @ point) for point in grid)
    weights = choose_weights(labels, scores)
    assert measure("roc_auc", labels, scores @ weights) == pytest.approx(best)
    assert best > max(measure("roc_auc", labels, scores[:, model]) for model in range(3))
    assert weights[2] < 0.2 < weights[1] < weights[0]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_weights_are_shares(count: int) -> None:
    rng = np.random.default_rng(count)
    labels = np.array([0, 1] * 10)
    weights = choose_weights(labels, rng.random((20, count)))
    assert weights.shape == (count,)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)


def test_a_tie_goes_to_the_plain_mean() -> None:
    """Models that rank alike: nothing speaks for one of them. Three do not lie on the grid of twentieths."""
    scores = np.array([0.1, 0.2, 0.6, 0.9])
    same = np.stack([scores, scores**2, scores / 2], axis=1)
    np.testing.assert_allclose(choose_weights(np.array([0, 0, 1, 1]), same), [1 / 3] * 3)


def test_a_fold_is_scored_with_weights_that_the_other_folds_chose() -> None:
    """And its own labels cannot move them: the proof that the blend's score is honest."""
    labels, scores = noisy_models()
    folds = np.arange(len(labels)) % 3
    blended = blend_out_of_fold(labels, scores, folds)
    for fold in range(3):
        held = folds == fold
        np.testing.assert_allclose(blended[held], scores[held] @ choose_weights(labels[~held], scores[~held]))
    flipped = blend_out_of_fold(np.where(folds == 1, 1 - labels, labels), scores, folds)
    np.testing.assert_array_equal(blended[folds == 1], flipped[folds == 1])
    assert not np.array_equal(blended[folds != 1], flipped[folds != 1])


def test_weights_that_chance_chose_are_not_flattered() -> None:
    """Three models that know nothing: chosen and judged on the same breasts they shine, nested they do not."""
    flattered, honest = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        labels, scores = (rng.random(60) < 0.3).astype(int), rng.random((60, 3))
        flattered.append(measure("roc_auc", labels, scores @ choose_weights(labels, scores)))
        honest.append(measure("roc_auc", labels, blend_out_of_fold(labels, scores, np.arange(60) % 3)))
    assert np.mean(flattered) > 0.55
    assert np.mean(honest) < 0.52


def test_with_one_fold_there_is_nothing_to_choose_on() -> None:
    labels, scores = noisy_models()
    np.testing.assert_allclose(blend_out_of_fold(labels, scores, np.zeros(len(labels), int)), scores.mean(axis=1))
