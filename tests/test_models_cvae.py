"""The autoencoder: its losses and its score against the formulas, what it learns, and the weights that travel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rsna_kit.config import PRIOR, CvaeConfig, ImageConfig
from rsna_kit.models.cvae import anomaly_score, build_cvae, error_model, inside_breast
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.training.cvae import CALIBRATION_PICTURES, calibrate, loss_terms
from rsna_kit.training.export import save_weights

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf
keras = pytest.importorskip("keras")

SMALL = CvaeConfig(filters=2, latent=3, beta=0.5)
IMAGE = ImageConfig(height=64, width=32)


def breasts(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Healthy toy breasts, uint8 (N, h, w, 1): half ellipses on the left, of random size and brightness."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:height, :width]
    pictures = []
    for _ in range(count):
        middle, tall, wide = (
            height * rng.uniform(0.45, 0.55),
            height * rng.uniform(0.3, 0.42),
            width * rng.uniform(0.6, 0.85),
        )
        depth = np.clip(1 - ((down - middle) / tall) ** 2 - (across / wide) ** 2, 0, 1)
        pictures.append(255 * rng.uniform(0.4, 0.6) * np.sqrt(depth))
    return np.rint(np.array(pictures)).astype(np.uint8)[..., None]


def scrambled(cvae: Any) -> Any:
    """Every variable away from its start, so that none can be forgotten unnoticed."""
    rng = np.random.default_rng(7)
    cvae.set_weights([w + rng.uniform(-0.05, 0.05, w.shape).astype(w.dtype) for w in cvae.get_weights()])
    return cvae


def compiled(trained: Any, rate: float, eagerly: bool = True) -> Any:
    loss = lambda targets, outputs: keras.ops.sum(outputs, axis=-1)  # noqa: E731
    trained.compile(optimizer=keras.optimizers.Adam(rate), loss=loss, run_eagerly=eagerly, jit_compile=False)
    return trained


def value(model: Any, pictures: np.ndarray, training: bool = False) -> np.ndarray:
    return np.asarray(model(pictures, training=training))


def between(cvae: Any, name: str) -> Any:
    return keras.Model(cvae.input, cvae.get_layer(name).output)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(3)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(50, 37, 50, 37), (300, 130, 150, 65)],
)
def test_any_size_in_the_same_size_out(height: int, width: int, rows: int, columns: int) -> None:
    cvae = build_cvae(dataclasses.replace(SMALL, filters=1), ImageConfig(height=height, width=width))
    pictures = breasts(2, height, width)
    assert value(cvae, pictures).shape == (2, 1)
    assert cvae.get_layer("reduced").output.shape[1:3] == (rows, columns)
    drawn = value(error_model(cvae), pictures)
    assert (drawn.shape, drawn.dtype) == ((2, height, width, 1), np.float32)
    assert 0 <= drawn.min() < drawn.max() <= 1


def test_terms_are_the_formula() -> None:
    """-log N(x; y, v) per pixel, and beta times the divergence per pixel, in NumPy."""
    cvae, pictures = scrambled(build_cvae(SMALL, IMAGE)), breasts(3, 64, 32)
    variance = float(cvae.get_layer("standardise").variance)
    drawn = value(between(cvae, "reconstruction"), pictures).astype(float)
    squared = (pictures / 255 - drawn) ** 2
    nats = 0.5 * (squared / variance + math.log(2 * math.pi * variance))
    mean, spread = (value(between(cvae, f"latent_{name}"), pictures).astype(float) for name in ("mean", "log_variance"))
    assert np.abs(spread).max() < 10
    divergence = 0.5 * (mean**2 + np.exp(spread) - 1 - spread).sum(axis=1)
    assert divergence.min() > 0.01
    trained, beta = loss_terms(cvae)
    terms = value(trained, pictures)
    np.testing.assert_allclose(terms[:, 0], nats.mean(axis=(1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(terms[:, 1], divergence / (64 * 32), rtol=1e-4)
    beta.assign([[0.5]])
    np.testing.assert_allclose(value(trained, pictures)[:, 1], terms[:, 1] / 2, rtol=1e-5)

    tissue = np.stack([cv2.dilate((one[..., 0] > 0).astype(np.uint8), np.ones((5, 5))) for one in pictures])
    inside = np.stack([cv2.erode(one, np.ones((9, 9))) for one in tissue])[..., None]
    assert 0.2 < inside.mean() < 0.7
    kernel, bias = cvae.get_layer("logit").get_weights()
    mean = (squared / variance * inside).sum(axis=(1, 2, 3)) / inside.sum(axis=(1, 2, 3))
    np.testing.assert_allclose(value(cvae, pictures)[:, 0], kernel[0, 0] * np.log(mean) + bias[0], rtol=1e-4)


def test_training_takes_the_variance_of_the_batch_and_remembers_it() -> None:
    layer = build_cvae(SMALL, IMAGE).get_layer("standardise")
    squared = np.random.default_rng(1).uniform(0, 0.1, (2, 8, 4, 1)).astype(np.float32)
    standardised, log_variance = layer(squared, training=True)
    best = squared.mean()
    np.testing.assert_allclose(np.asarray(standardised), squared / best, rtol=1e-5)
    assert float(log_variance) == pytest.approx(math.log(best), rel=1e-5)
    assert float(layer.variance) == pytest.approx(0.9 * 1 + 0.1 * best, rel=1e-5)
    afterwards, _ = layer(squared, training=False)
    np.testing.assert_allclose(np.asarray(afterwards), squared / float(layer.variance), rtol=1e-5)
    standardised, log_variance = layer(np.zeros((1, 2, 2, 1), np.float32), training=True)
    assert np.asarray(standardised).max() == 0.0
    assert float(log_variance) == pytest.approx(2 * math.log(1 / 255), rel=1e-5)


def test_scores_are_deterministic_and_training_samples_by_the_seed() -> None:
    pictures = breasts(2, 64, 32)

    def draws() -> list[np.ndarray]:
        keras.utils.set_random_seed(11)
        sample = build_cvae(SMALL, IMAGE).get_layer("sample")
        latent = [np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)]
        np.testing.assert_array_equal(np.asarray(sample(latent, training=False)), latent[0])
        return [np.asarray(sample(latent, training=True)) for _ in range(2)]

    first, again = draws(), draws()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    cvae = build_cvae(SMALL, IMAGE)
    np.testing.assert_array_equal(value(cvae, pictures), value(cvae, pictures))


def test_a_weights_file_of_the_network_is_all_there_is(tmp_path: Path) -> None:
    pictures, cvae = breasts(3, 64, 32), scrambled(build_cvae(SMALL, IMAGE))
    kept = {id(variable) for variable in cvae.variables}
    left = [variable.path for variable in loss_terms(cvae)[0].variables if id(variable) not in kept]
    assert left == ["beta/kernel"]
    save_weights(cvae, tmp_path / "model.weights.h5")
    fresh = build_cvae(SMALL, IMAGE)
    assert not np.array_equal(value(fresh, pictures), value(cvae, pictures))
    fresh.load_weights(str(tmp_path / "model.weights.h5"))
    for ours, theirs in ((fresh, cvae), (loss_terms(fresh)[0], loss_terms(cvae)[0])):
        np.testing.assert_array_equal(value(ours, pictures), value(theirs, pictures))


def test_error_map_is_what_the_score_looks_at() -> None:
    image, pictures = ImageConfig(height=300, width=130), breasts(2, 300, 130)
    cvae = build_cvae(dataclasses.replace(SMALL, filters=1), image)
    reduced = pictures[..., 0].reshape(2, 150, 2, 65, 2).mean(axis=(2, 4)) / 255
    drawn = value(between(cvae, "reconstruction"), pictures)[..., 0]
    mask = value(between(cvae, "inside"), pictures)[..., 0]
    assert 0.1 < mask.mean() < 0.8
    twin = np.stack(
        [
            cv2.resize(one.astype(np.float32), (130, 300), interpolation=cv2.INTER_LINEAR)
            for one in np.abs(reduced - drawn) * mask
        ]
    )
    np.testing.assert_allclose(value(error_model(cvae), pictures)[..., 0], twin, atol=1e-5)


@pytest.fixture(scope="module")
def learned() -> tuple[Any, list[float]]:
    """A small autoencoder after 150 steps on healthy toys, and the mean error map of new ones before and after."""
    keras.utils.set_random_seed(5)
    cvae = build_cvae(CvaeConfig(filters=8, latent=8), ImageConfig(height=32, width=32))
    trained, beta = loss_terms(cvae)
    model = compiled(trained, 5e-3, eagerly=False)
    pictures, new = breasts(128, 32, 32, seed=1), breasts(32, 32, 32, seed=2)
    order, errors = np.random.default_rng(0), []
    errors.append(float(value(error_model(cvae), new).mean()))
    for step in range(150):
        beta.assign([[min(1.0, step / 45)]])
        model.optimizer.learning_rate = 5e-3 * min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / 150))
        model.train_on_batch(pictures[order.choice(128, 16, replace=False)], np.zeros((16, 2), np.float32))
    errors.append(float(value(error_model(cvae), new).mean()))
    return cvae, errors


def test_it_learns_what_healthy_looks_like(learned: tuple[Any, list[float]]) -> None:
    cvae, (before, after) = learned
    assert after < before / 3
    new = breasts(32, 32, 32, seed=2)
    drawn = value(between(cvae, "reconstruction"), new)
    average = np.abs(new / 255 - breasts(128, 32, 32, seed=1).mean(axis=0) / 255).mean()
    assert np.abs(new / 255 - drawn).mean() < 0.7 * average  # each picture its own, not the mean of all


def test_a_planted_lesion_raises_the_score_and_is_where_the_map_peaks(learned: tuple[Any, list[float]]) -> None:
    cvae, _ = learned
    healthy = breasts(32, 32, 32, seed=2)
    lesions = healthy.copy()
    for picture in lesions:
        cv2.circle(picture[..., 0], (10, 15), 2, 220, -1)
    rise = value(cvae, lesions) - value(cvae, healthy)
    assert (rise > 0).mean() > 0.95
    assert (value(cvae, lesions) > value(cvae, healthy).T).mean() > 0.9  # also among other breasts
    peaks = [np.unravel_index(error.argmax(), (32, 32)) for error in value(error_model(cvae), lesions)[..., 0]]
    near = [abs(row - 15) <= 3 and abs(column - 10) <= 3 for row, column in peaks]
    assert np.mean(near) > 0.9


def test_mixed_precision_keeps_the_losses_in_float32() -> None:
    pictures = breasts(4, 64, 32)
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        cvae = build_cvae(SMALL, IMAGE)
    finally:
        keras.config.set_dtype_policy(before)
    assert cvae.get_layer("encoder3_conv1").compute_dtype == "bfloat16"
    trained = loss_terms(cvae)[0]
    assert {model.output.dtype for model in (cvae, trained, error_model(cvae))} == {"float32"}
    exact = build_cvae(SMALL, IMAGE)
    exact.set_weights(cvae.get_weights())
    np.testing.assert_allclose(value(trained, pictures), value(loss_terms(exact)[0], pictures), rtol=0.05, atol=1e-3)
    names = ("latent_mean", "latent_log_variance", "reconstruction")
    assert {cvae.get_layer(name).output.dtype for name in names} == {"float32"}
    assert np.isfinite(compiled(trained, 1e-3).train_on_batch(pictures, np.zeros((4, 2), np.float32)))


# ---- the score, and its calibration


def inside(picture: np.ndarray) -> np.ndarray:
    return np.asarray(inside_breast(picture[None, ..., None].astype(np.float32)))[0, ..., 0]


def test_inside_leaves_out_the_rim_but_not_the_chest_wall() -> None:
    picture = np.zeros((20, 16), np.float32)
    picture[:, :10] = 0.4  # chest wall on the left, breast from the top to the bottom
    expected = np.zeros((20, 16), np.float32)
    expected[:, :8] = 1
    np.testing.assert_array_equal(inside(picture), expected)


def test_holes_belong_to_the_inside_and_large_gaps_do_not() -> None:
    picture = np.full((31, 31), 0.4, np.float32)
    picture[8:12, 8:12] = 0
    assert inside(picture).all()
    picture[8:20, 8:20] = 0
    assert not inside(picture)[6:22, 6:22].any()
    assert inside(picture)[5, 5] == 1


def test_half_a_grey_level_is_air_and_a_picture_without_an_inside_counts_as_a_whole() -> None:
    picture = np.full((12, 12), 0.49 / 255, np.float32)
    assert inside(picture).all()
    picture[4:7, 4:7] = 0.5
    assert inside(picture).all()
    picture[:, :6] = 1.0 / 255
    np.testing.assert_array_equal(inside(picture)[0], [1] * 4 + [0] * 8)


def test_inside_equals_opencv() -> None:
    rng = np.random.default_rng(1)
    picture = cv2.GaussianBlur(rng.normal(0, 1, (70, 45)).astype(np.float32), (0, 0), 4)
    picture = np.where(picture > -0.05, 0.3, 0).astype(np.float32)
    grown = cv2.dilate((picture > 0).astype(np.uint8), np.ones((5, 5), np.uint8))
    twin = cv2.erode(grown, np.ones((9, 9), np.uint8))
    assert 0.05 < twin.mean() < 0.95
    np.testing.assert_array_equal(inside(picture), twin)


def test_score_is_the_log_of_the_mean_error_that_counts() -> None:
    errors = np.array([[1.0, 2.0], [4.0, 9.0]], np.float32)[None, ..., None]
    mask = np.array([[1.0, 1.0], [0.0, 0.0]], np.float32)[None, ..., None]
    for scale, expected in ((1, 1.5), (2, 3.0), (0, 1e-6)):
        score = np.asarray(anomaly_score(np.float32(scale) * errors, mask))
        assert score.shape == (1, 1)
        assert np.exp(score.item()) == pytest.approx(expected)


class Logit:
    """The last layer of a CVAE, which keeps what it is given."""

    def get_layer(self, name: str) -> Logit:
        assert name == "logit"
        return self

    def set_weights(self, weights: list[np.ndarray]) -> None:
        self.slope, self.offset = weights[0].item(), weights[1].item()


def calibrated(scores: list[float]) -> Logit:
    logit = Logit()
    calibrate(logit, lambda ids: np.array([scores[int(one)] for one in ids]), list(map(str, range(len(scores)))))
    return logit


def test_calibration_centres_healthy_pictures_on_the_prior() -> None:
    """And scores that are all equal keep the slope."""
    found, deviation = calibrated([1.0, 3.0, 5.0]), math.sqrt(8 / 3)
    assert found.slope == pytest.approx(1 / deviation)
    assert found.slope * 3 + found.offset == pytest.approx(math.log(PRIOR / (1 - PRIOR)), rel=1e-5)
    equal = calibrated([-2.5, -2.5])
    assert (equal.slope, equal.offset) == (1.0, pytest.approx(math.log(PRIOR / (1 - PRIOR)) + 2.5))


def test_calibration_scores_at_most_512_spread_over_all() -> None:
    asked: list[str] = []

    def predict(ids: Sequence[str]) -> np.ndarray:
        asked.extend(ids)
        return np.arange(len(asked), dtype=np.float32)

    calibrate(Logit(), predict, [str(number) for number in range(5110)])
    assert len(asked) == len(set(asked)) == CALIBRATION_PICTURES == 512
    assert (asked[0], asked[-1]) == ("0", "5109")


def test_calibration_refuses_nothing_and_what_is_not_finite() -> None:
    with pytest.raises(RsnaKitError, match="no healthy training picture"):
        calibrated([])
    with pytest.raises(RsnaKitError, match="picture 1 is not finite, so training has diverged"):
        calibrated([1.0, math.nan, 2.0])
