"""A breast-level model is trained on what scoring makes of its views one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rsna_kit.config import Config, with_overrides
from rsna_kit.models.network import build_network
from rsna_kit.scoring.breasts import to_breasts
from rsna_kit.training.learner import over_views, pool_views

keras = pytest.importorskip("keras")
tensorflow = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

RNG = np.random.default_rng(0)


def scorer(columns: int, norm: bool = False) -> Any:
    """A small network of views, 8x6; the same weights each time."""
    layers = keras.layers
    picture = keras.Input((8, 6, 1), dtype="uint8")
    tensor = layers.Rescaling(1 / 255)(picture)
    tensor = layers.BatchNormalization(momentum=0.0, name="norm")(tensor) if norm else tensor
    model = keras.Model(picture, layers.Dense(columns, name="columns")(layers.Flatten()(tensor)))
    weights = np.random.default_rng(3).normal(0, 0.5, (48, columns))
    model.get_layer("columns").set_weights([weights, np.zeros(columns)])
    return model


def views_of(counts: list[int], largest: int = 0) -> np.ndarray:
    """Breasts with so many views, uint8 (B, V, 8, 6, 1); the others are black."""
    views = np.zeros((len(counts), max(largest, *counts), 8, 6, 1), np.uint8)
    for breast, count in enumerate(counts):
        views[breast, :count] = np.random.default_rng(count).integers(0, 256, (count, 8, 6, 1))
    return views


def as_scored(network: Any, views: np.ndarray, counts: list[int]) -> np.ndarray:
    """Each view by itself, then `to_breasts`."""
    rows = [
        (f"{b}_{v}", str(b), *np.asarray(network(views[b, v][None]))[0]) for b, n in enumerate(counts) for v in range(n)
    ]
    table = pd.DataFrame(rows, columns=["image_id", "prediction_id", "logit", "attention"])
    table["score"] = 1 / (1 + np.exp(-table["logit"].astype("float64")))
    return to_breasts(table[["image_id", "score", "attention"]], table)["score"].to_numpy()


def test_pooling_by_hand() -> None:
    """Weights 3/4 and 1/4: attention log 3 against 0; the third view is missing."""
    columns = np.array([[[2.0, np.log(3), 4.0], [-2.0, 0.0, 8.0], [100.0, 50.0, 100.0]]], np.float32)
    got = np.asarray(pool_views(columns, np.array([[True, True, False]])))
    np.testing.assert_allclose(got, [[1.0, 5.0]], rtol=1e-6)


@pytest.mark.parametrize("counts", [[1], [2, 2], [5, 1, 2], [1, 3, 4, 2]])
def test_what_is_trained_is_what_is_scored(counts: list[int]) -> None:
    network = scorer(2)
    views = views_of(counts)
    trained = 1 / (1 + np.exp(-np.asarray(over_views(network)(views), np.float64)))[:, 0]
    np.testing.assert_allclose(trained, as_scored(network, views, counts), atol=1e-5)


def test_views_that_are_missing_change_nothing() -> None:
    model = over_views(scorer(3))
    few, padded = np.asarray(model(views_of([2, 1]))), np.asarray(model(views_of([2, 1], largest=6)))
    np.testing.assert_allclose(few, padded, atol=1e-6)
    assert few.shape == (2, 2)


@pytest.mark.parametrize("choice", ["attention", "mean"])
def test_the_network_of_a_view(tiny: Config, choice: str) -> None:
    """The real one, and for the mean of logits scoring needs no other rule: the attention is 0."""
    keras.utils.set_random_seed(0)
    config = with_overrides(tiny, ["model.kind=breast", f"model.view_pool={choice}"])
    network = build_network(config, config.image)
    assert (network.input_shape, network.input.dtype) == ((None, 64, 32, 1), "uint8")
    assert (network.output_shape, network.output.dtype) == ((None, 2), "float32")
    views = RNG.integers(1, 256, (2, 3, 64, 32, 1), np.uint8)
    views[1, 2] = 0
    logits = np.asarray(over_views(network)(views))[:, 0]
    columns = [np.asarray(network(views[0])), np.asarray(network(views[1, :2]))]
    assert all(np.ptp(part[:, 0]) > 1e-4 for part in columns)
    if choice == "mean":
        assert not any(part[:, 1].any() for part in columns)
        np.testing.assert_allclose(logits, [part[:, 0].mean() for part in columns], atol=1e-5)
    else:
        assert all(np.ptp(part[:, 1]) > 1e-4 for part in columns)
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(scores, as_scored(network, views, [3, 2]), atol=1e-5)


def test_black_pictures_do_not_reach_the_statistics() -> None:
    """Half of the views may be missing; batch normalisation would learn mostly black."""
    network = scorer(2, norm=True)
    model = over_views(network)
    single = views_of([1])
    model(np.concatenate([single, np.zeros_like(single)], axis=1), training=True)
    picture = single[0, 0].astype(np.float32) / 255
    np.testing.assert_allclose(np.asarray(network.get_layer("norm").moving_mean), picture.mean(), rtol=1e-5)


def test_a_missing_view_gets_no_gradient() -> None:
    columns = tensorflow.Variable(RNG.normal(size=(2, 3, 3)).astype(np.float32))
    present = np.array([[True, True, False], [False, False, False]])
    with tensorflow.GradientTape() as tape:
        pooled = pool_views(columns, present)
        total = tensorflow.reduce_sum(pooled[:1])
    slope = np.asarray(tape.gradient(total, columns))
    assert np.isfinite(np.asarray(pooled)).all()  # a breast without any view is their mean, not NaN
    assert slope[0, :2].all()
    assert not slope[0, 2].any()
    assert not slope[1].any()
