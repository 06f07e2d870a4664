"""Weights on the simplex, chosen without the breasts they score; models that do not belong together."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import rank_mean_slow

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring.blend import (
    OBJECTIVES,
    choose_weights,
    join_models,
    logit_mean,
    nested,
    nested_votes,
    rank_mean,
    votes,
    weighted_breasts,
)  # fmt: skip
from rsna_kit.scoring.metrics import roc_auc_score
from rsna_kit.scoring.threshold import choose_threshold

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
    scores = pd.DataFrame({
        "image_id": ["1", "2"], "score": [0.2, 0.4], "score_1": [sigmoid(2.0), sigmoid(-2.0)],
        "attention_1": [math.log(3), 0.0],
    })  # fmt: skip
    breasts = weighted_breasts(scores, TABLE, [(0.25, "score", None), (0.75, "score_1", "attention_1")])
    assert breasts["score"].tolist() == [pytest.approx(0.25 * 0.3 + 0.75 * sigmoid(0.75 * 2.0 - 0.25 * 2.0))]


def test_a_part_that_saw_nothing_of_a_breast_leaves_it_to_the_others() -> None:
    nan = math.nan
    scores = pd.DataFrame({
        "image_id": ["1", "2", "3", "4"], "score": [0.2, 0.4, 0.5, nan], "score_1": [0.8, nan, nan, 0.7],
        "attention_1": [5.0, nan, nan, 0.0],
    })  # fmt: skip
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
    best = max(roc_auc_score(labels, scores @ point) for point in grid)
    weights = choose_weights(labels, scores)
    assert roc_auc_score(labels, scores @ weights) == pytest.approx(best)
    assert best > max(roc_auc_score(labels, scores[:, model]) for model in range(3))
    assert weights[2] < 0.2 < weights[1] < weights[0]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("metric", sorted(OBJECTIVES))
def test_weights_are_shares(count: int, metric: str) -> None:
    rng = np.random.default_rng(count)
    labels = np.array([0, 1] * 10)
    weights = choose_weights(labels, rng.random((20, count)), metric)
    assert weights.shape == (count,)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)


def test_a_tie_goes_to_the_plain_mean() -> None:
    """Models that rank alike: nothing speaks for one of them. Three do not lie on the grid of twentieths."""
    scores = np.array([0.1, 0.2, 0.6, 0.9])
    same = np.stack([scores, scores**2, scores / 2], axis=1)
    np.testing.assert_allclose(choose_weights(np.array([0, 0, 1, 1]), same), [1 / 3] * 3)


def test_the_objective_is_a_choice() -> None:
    with pytest.raises(UsageError, match="--metric: got 'auc', expected one of roc_auc, pr_auc, pf1"):
        choose_weights(np.array([0, 1]), np.zeros((2, 2)), "auc")


def test_a_fold_is_scored_with_weights_that_the_other_folds_chose() -> None:
    labels, scores = noisy_models()
    folds = np.arange(len(labels)) % 3
    blended, weights = nested(labels, scores, folds)
    for fold in range(3):
        held = folds == fold
        np.testing.assert_array_equal(weights[fold], choose_weights(labels[~held], scores[~held]))
        np.testing.assert_allclose(blended[held], scores[held] @ weights[fold])


def test_a_folds_own_labels_cannot_move_its_weights() -> None:
    """The proof that the blend's score is honest: exchange all labels of a fold, and its scores stay."""
    labels, scores = noisy_models()
    folds = np.arange(len(labels)) % 3
    before, _ = nested(labels, scores, folds)
    after, _ = nested(np.where(folds == 1, 1 - labels, labels), scores, folds)
    np.testing.assert_array_equal(before[folds == 1], after[folds == 1])
    assert not np.array_equal(before[folds != 1], after[folds != 1])


def test_weights_that_chance_chose_are_not_flattered() -> None:
    """Three models that know nothing: chosen and judged on the same breasts they shine, nested they do not."""
    flattered, honest = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        labels, scores = (rng.random(60) < 0.3).astype(int), rng.random((60, 3))
        flattered.append(roc_auc_score(labels, scores @ choose_weights(labels, scores)))
        honest.append(roc_auc_score(labels, nested(labels, scores, np.arange(60) % 3)[0]))
    assert np.mean(flattered) > 0.55
    assert np.mean(honest) < 0.52


def test_with_one_fold_there_is_nothing_to_choose_on() -> None:
    labels, scores = noisy_models()
    blended, weights = nested(labels, scores, np.zeros(len(labels), int))
    np.testing.assert_allclose(weights[0], [1 / 3] * 3)
    np.testing.assert_allclose(blended, scores.mean(axis=1))


TABLES = st.integers(1, 4).flatmap(
    lambda models: st.lists(
        st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), min_size=models, max_size=models),
        min_size=1, max_size=12,
    )
)  # fmt: skip


@settings(deadline=None)
@given(rows=TABLES)
def test_rank_means_are_ranks_with_ties_averaged(rows: list[list[float]]) -> None:
    found = rank_mean(np.array(rows))
    np.testing.assert_allclose(found, rank_mean_slow(rows), rtol=1e-12)
    assert ((found > 0) & (found <= 1)).all()


def test_rank_means_know_no_scale() -> None:
    """Each model bent by a rising function of its own: bit by bit the same ranks."""
    _, scores = noisy_models()
    bent = np.stack([scores[:, 0] ** 3, 0.45 + 0.2 * scores[:, 1], np.log1p(scores[:, 2])], axis=1)
    np.testing.assert_array_equal(rank_mean(scores), rank_mean(bent))
    assert not np.allclose(scores.mean(axis=1), bent.mean(axis=1))


@settings(deadline=None)
@given(rows=TABLES)
def test_logit_means_are_means_of_log_odds(rows: list[list[float]]) -> None:
    expected = []
    for row in rows:
        odds = [min(max(score, 1e-15), 1 - 1e-15) for score in row]
        expected.append(sigmoid(sum(math.log(score) - math.log1p(-score) for score in odds) / len(row)))
    np.testing.assert_allclose(logit_mean(np.array(rows)), expected, rtol=1e-9)


def test_votes_are_counted_by_each_models_own_threshold() -> None:
    scores = np.array([[0.5, 0.5, 0.5], [0.4, 0.5, 0.9], [0.1, 0.2, 0.3]])
    assert votes(scores, np.array([0.5, 0.6, 0.4])).tolist() == pytest.approx([2 / 3, 1 / 3, 0])


def test_a_fold_is_voted_on_by_thresholds_of_the_others() -> None:
    labels, scores = noisy_models()
    folds = np.arange(len(labels)) % 3
    shares = nested_votes(labels, scores, folds)
    for fold in range(3):
        held = folds == fold
        for row in np.flatnonzero(held)[:20]:
            called = [scores[row, m] >= choose_threshold(labels[~held], scores[~held, m]).value for m in range(3)]
            assert shares[row] == pytest.approx(sum(called) / 3)
    flipped = nested_votes(np.where(folds == 1, 1 - labels, labels), scores, folds)
    np.testing.assert_array_equal(shares[folds == 1], flipped[folds == 1])
    alone = nested_votes(labels, scores, np.zeros(len(labels)))
    np.testing.assert_array_equal(alone, votes(scores, np.array([choose_threshold(labels, s).value for s in scores.T])))


def oof(**changes: list) -> pd.DataFrame:
    columns: dict[str, list] = {
        "image_id": ["1", "2", "3", "4"], "prediction_id": ["7_L", "7_L", "7_R", "8_L"],
        "patient_id": ["7", "7", "7", "8"], "cancer": [1, 1, 0, 0], "fold": [0, 0, 0, 1], "score": [0.2, 0.4, 0.1, 0.3],
    }  # fmt: skip
    return pd.DataFrame(columns | changes)


def test_models_are_joined_by_breast_not_by_position() -> None:
    joined = join_models({"a": oof(), "b": oof(score=[0.5, 0.7, 0.8, 0.9]).iloc[::-1]})
    assert list(joined.columns) == ["prediction_id", "patient_id", "cancer", "fold", "a", "b"]
    assert joined["prediction_id"].tolist() == ["7_L", "7_R", "8_L"]
    assert joined["a"].tolist() == pytest.approx([0.3, 0.1, 0.3])
    assert joined["b"].tolist() == pytest.approx([0.6, 0.8, 0.9])
    assert joined["fold"].tolist() == [0, 0, 1]


def test_a_breast_level_model_is_pooled_by_its_attention() -> None:
    joined = join_models({"a": oof(), "b": oof(attention=[50.0, 0.0, 0.0, 0.0])})
    assert joined["a"].iloc[0] == pytest.approx(0.3)
    assert joined["b"].iloc[0] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": [1, 1, 1, 0]}, r"models a and b: 3 breasts \(7_L, 7_R, 8_L\) with another fold in each"),
        ({"cancer": [1, 1, 0, 1]}, r"models a and b: 1 breasts \(8_L\) with another label in each"),
        ({"patient_id": ["7", "7", "7", "9"]}, r"models a and b: 1 breasts \(8_L\) with another patient in each"),
        ({"prediction_id": ["7_L", "7_L", "7_R", "9_L"]}, r"model b has no score for 1 breasts \(8_L\) of a"),
        ({"fold": [0, 1, 0, 1]}, r"model b: 1 breasts \(7_L\) in more than one fold"),
    ],
)
def test_models_that_do_not_belong_together_are_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(TableError, match=message):
        join_models({"a": oof(), "b": oof(**changes)})


def test_a_model_with_more_breasts_is_refused_by_name() -> None:
    with pytest.raises(TableError, match=r"model a has no score for 1 breasts \(8_L\) of b.*same train.folds and seed"):
        join_models({"a": oof().iloc[:3], "b": oof()})
