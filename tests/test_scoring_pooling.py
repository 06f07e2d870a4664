"""Pools: each against its definition, any number of images, and their comparison."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import pooled_slow

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring.breasts import compare_pools, to_breasts
from rsna_kit.scoring.metrics import roc_auc_score
from rsna_kit.scoring.pooling import POOLS, pool_scores


def oof(patients: int = 60, seed: int = 0) -> pd.DataFrame:
    """One to five images of each breast; a cancer shows in one of them only."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        for laterality in "LR":
            cancer = int(rng.random() < 0.3)
            count = int(rng.integers(1, 6))
            shown = int(rng.integers(0, count))
            for image in range(count):
                score = 1 / (1 + np.exp(-rng.normal() - 3 * cancer * (image == shown)))
                rows.append((f"{patient}{laterality}{image}", f"{patient}_{laterality}", str(patient), cancer, score))
    return pd.DataFrame(rows, columns=["image_id", "prediction_id", "patient_id", "cancer", "score"])


@pytest.mark.parametrize("how", POOLS)
@settings(deadline=None)
@given(
    breasts=st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=7), min_size=1, max_size=8),
    seed=st.integers(0, 9),
)
def test_a_pool_is_its_definition_whatever_the_order_of_the_images(
    how: str, breasts: list[list[float]], seed: int
) -> None:
    scores = np.concatenate(breasts)
    codes = np.repeat(np.arange(len(breasts)), [len(images) for images in breasts])
    order = np.random.default_rng(seed).permutation(len(scores))
    got = pool_scores(how, scores[order], codes[order])
    np.testing.assert_allclose(got, [pooled_slow(how, images) for images in breasts], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("how", "one", "two", "four"),
    [
        ("mean", 0.2, 0.5, 0.45),
        ("max", 0.2, 0.6, 1.0),
        ("noisy_or", 0.2, 0.76, 1.0),
        ("trimmed_mean", 0.2, 0.5, 0.4),
        ("top2", 0.2, 0.5, 0.7),
    ],
)
def test_the_numbers_of_each_pool(how: str, one: float, two: float, four: float) -> None:
    scores = np.array([0.2, 0.6, 0.4, 0.4, 0.0, 1.0, 0.4])
    got = pool_scores(how, scores, np.array([0, 1, 1, 2, 2, 2, 2]))
    assert got.tolist() == pytest.approx([one, two, four])


def test_breasts_are_made_by_the_pool_that_is_asked_for() -> None:
    images = oof(5)
    for how in POOLS:
        breasts = to_breasts(images, images, how)
        assert breasts["score"].tolist() == pytest.approx(
            [pooled_slow(how, group.tolist()) for _, group in images.groupby("prediction_id", sort=False)["score"]]
        )
    pd.testing.assert_frame_equal(to_breasts(images, images), to_breasts(images, images, "mean"))


def test_an_unknown_pool_is_refused() -> None:
    with pytest.raises(UsageError, match="pool: got 'median', expected one of mean, max, noisy_or, trimmed_mean, top2"):
        to_breasts(oof(2), oof(2), "median")


def test_scores_with_an_attention_keep_their_own_pool() -> None:
    images = oof(3).assign(attention=0.0)
    assert to_breasts(images, images)["score"].between(0, 1).all()
    with pytest.raises(UsageError, match="pool: got 'max', but these scores have an attention"):
        to_breasts(images, images, "max")
    with pytest.raises(UsageError, match="have an attention"):
        compare_pools(images)


@pytest.mark.parametrize("name", ["prediction_id", "patient_id", "cancer"])
def test_an_image_that_belongs_nowhere_is_refused(name: str) -> None:
    """A group-by would drop it without a word."""
    images = oof(3)
    images[name] = images[name].astype(object)
    images.loc[1, name] = None
    with pytest.raises(TableError, match=rf"1 images \(.*\) without a {name}"):
        to_breasts(images, images)


def test_pools_are_compared_with_the_mean_by_patient() -> None:
    images = oof(150)
    table = compare_pools(images, resamples=200)
    assert list(table) == list(POOLS)
    assert "roc_auc - mean" not in table["mean"]
    labels = to_breasts(images, images)["cancer"]
    for how, row in table.items():
        value = roc_auc_score(labels, to_breasts(images, images, how)["score"])
        assert row["roc_auc"].value == pytest.approx(value)
        if how != "mean":
            assert row["roc_auc - mean"].value == pytest.approx(value - table["mean"]["roc_auc"].value)
            assert row["roc_auc - mean"].low <= row["roc_auc - mean"].value <= row["roc_auc - mean"].high
    # A cancer that only one image shows: the highest score tells it, a mean dilutes it.
    assert table["max"]["roc_auc - mean"].low > 0
    assert table["max"]["pf1_binary - mean"].value == pytest.approx(
        table["max"]["pf1_binary"].value - table["mean"]["pf1_binary"].value
    )
