"""The autoencoder of a map: losses and score against the formulas, what it learns, the weights that travel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_networks import add_backbone

from rsna_kit.config import PRIOR, Config, CvaeConfig, with_overrides
from rsna_kit.config import preset as named_preset
from rsna_kit.models.convnext import SIZES
from rsna_kit.models.cvae import AIR, anomaly_head
from rsna_kit.models.network import build_network, dtype_policy, split_classifier
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.training.cvae import CALIBRATION_PICTURES, calibrate, loss_terms
from rsna_kit.training.export import save_weights

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf
keras = pytest.importorskip("keras")

add_backbone()
SMALL = CvaeConfig(latent=3, filters=4, beta=0.5)
SHAPE = (5, 4, 6)
RNG = np.random.default_rng(0)


def config(height: int = 70, width: int = 40, backbone: str = "toy") -> Config:
    sizes = [f"image.height={height}", f"image.width={width}", f"model.backbone={backbone}", "model.weights=none"]
    return with_overrides(named_preset("cvae"), sizes)


def on_maps(shape: tuple[int, int, int] = SHAPE, cvae: CvaeConfig = SMALL) -> Any:
    """The head alone, on maps."""
    features = keras.Input(shape, name="features")
    return keras.Model(features, anomaly_head(cvae, features))


def maps(count: int = 3, seed: int = 1) -> np.ndarray:
    """Maps whose last column of cells is air, and most of whose first row."""
    made = np.random.default_rng(seed).normal(2, 3, (count, *SHAPE)).astype(np.float32)
    made[:, :, -1] = made[:, 0, 1:] = 0
    return made


def scrambled(network: Any) -> Any:
    """Every variable away from its start, so that none can be forgotten unnoticed."""
    rng = np.random.default_rng(7)
    network.set_weights([w + rng.uniform(-0.05, 0.05, w.shape).astype(w.dtype) for w in network.get_weights()])
    return network


def value(model: Any, given: np.ndarray, training: bool = False) -> np.ndarray:
    return np.asarray(model(given, training=training))


def between(network: Any, name: str) -> Any:
    return keras.Model(network.input, network.get_layer(name).output)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(3)


# ---- what it sees, and what it answers


@pytest.mark.parametrize("size", [(64, 32), (70, 40), (33, 47)])
def test_any_size_gives_a_score_which_is_the_worst_cells(size: tuple[int, int]) -> None:
    network = build_network(config(*size), config(*size).image)
    pictures = RNG.integers(100, 256, (2, *size, 1), np.uint8)
    trunk, head = split_classifier(network)
    seen, errors = value(trunk, pictures), value(between(network, "errors"), pictures)
    assert seen.shape[1:3] == errors.shape[1:] == (math.ceil(size[0] / 16), math.ceil(size[1] / 16))
    assert (errors > 0).all()
    scores = value(network, pictures)
    assert (scores.shape, scores.dtype) == ((2, 1), np.float32)
    np.testing.assert_allclose(scores[:, 0], np.log(errors.max(axis=(1, 2))), rtol=1e-5)
    np.testing.assert_allclose(value(head, seen), scores, rtol=1e-5)


@pytest.mark.parametrize(("backbone", "first"), [("toy", 8), ("convnext_tiny", 0)])
def test_a_cell_is_in_the_breast_where_the_pixels_around_its_centre_are(
    backbone: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strided convolutions of 3 look half a cell further; the stem of a ConvNeXt and its halvings do not."""
    monkeypatch.setitem(SIZES, "convnext_tiny", ((1, 1, 1, 1), 96))
    network = build_network(config(64, 64, backbone), config(64, 64).image)
    pictures = np.zeros((3, 64, 64, 1), np.uint8)
    pictures[0, first + 16 : first + 32, first + 32 : first + 48] = 20
    pictures[1, first + 16 : first + 32, first + 32 : first + 48] = AIR
    inside = np.zeros((3, 4, 4))
    inside[0, 1, 2] = 1
    np.testing.assert_array_equal(value(between(network, "inside"), pictures), inside)
    np.testing.assert_array_equal(value(between(network, "features"), pictures).any(axis=-1), inside)
    np.testing.assert_array_equal(value(between(network, "errors"), pictures) > 0, inside)
    trained, _ = loss_terms(network)
    assert np.isfinite(value(trained, pictures[1:])).all()  # nothing but air
    assert np.isfinite(value(network, pictures[1:])).all()


def test_the_score_looks_away_from_the_skin_but_not_from_the_chest_wall() -> None:
    """Cells beside air are left out, those at the picture's edge are not, and a breast that is all rim counts whole."""
    seen = np.random.default_rng(2).normal(2, 3, (2, 9, 7, 6)).astype(np.float32)
    seen[0, :, 5:] = seen[0, 7:] = 0
    seen[1, 1:] = 0
    network = on_maps((9, 7, 6))
    errors, cells = (value(between(network, name), seen) for name in ("errors", "cells"))
    expected = errors.copy()
    expected[0, :, 4:] = expected[0, 6:] = 0
    np.testing.assert_array_equal(cells, expected)
    assert (cells[0, :6, :4] > 0).all()
    assert cells[1].any()
    np.testing.assert_allclose(value(network, seen)[:, 0], np.log(cells.max(axis=(1, 2))), rtol=1e-5)


def test_only_the_head_learns() -> None:
    network = build_network(config(), config().image)
    assert not split_classifier(network)[0].trainable_variables
    learned = {variable.path.split("/")[0] for variable in network.trainable_variables}
    assert learned == {"encoder", "latent_mean", "latent_spread", "decoder", "reconstruction"}


# ---- what it learns


def test_terms_are_the_formula() -> None:
    """-log N(x; y, v) of every value in the breast, v their mean squared error, and beta times the divergence."""
    network, seen = scrambled(on_maps()), maps()
    inside = seen.any(axis=-1)
    mean, variance = network.get_layer("standardise").get_weights()
    standard = (seen - mean) / np.sqrt(variance + 1e-3) * inside[..., None]
    squared = (value(between(network, "reconstruction"), seen)[:, :5, :4] - standard)[inside] ** 2
    errors = value(between(network, "errors"), seen)
    np.testing.assert_allclose(errors[inside], squared.mean(axis=-1), rtol=1e-4)
    assert not errors[~inside].any()

    best = squared.mean()
    nats = np.zeros(seen.shape)
    nats[inside] = 0.5 * (squared / best + math.log(2 * math.pi * best))
    mean, spread = (value(between(network, f"latent_{name}"), seen).astype(float) for name in ("mean", "log_variance"))
    assert mean.shape == (3, 3, 2, 3)
    divergence = 0.5 * (mean**2 + np.exp(spread) - 1 - spread).sum(axis=(1, 2, 3))
    assert divergence.min() > 0.01
    trained, beta = loss_terms(network)
    terms = value(trained, seen)
    np.testing.assert_allclose(terms[:, 0], nats.mean(axis=(1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(terms[:, 1], divergence / math.prod(SHAPE), rtol=1e-4)
    beta.assign([[0.5]])
    np.testing.assert_allclose(value(trained, seen)[:, 1], terms[:, 1] / 2, rtol=1e-5)


def test_features_are_standardised_by_the_cells_of_the_breast_alone() -> None:
    network, seen = on_maps(), maps(8)
    inside = seen.any(axis=-1)
    normalise = network.get_layer("standardise")
    normalise.momentum = 0
    drawn = np.asarray(normalise(seen, training=True, mask=inside.astype(np.float32)))
    np.testing.assert_allclose(drawn[inside].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(drawn[inside].std(axis=0), 1, atol=1e-3)
    network(seen, training=True)  # the mask goes the same way inside the network
    mean, variance = normalise.get_weights()
    np.testing.assert_allclose(mean, seen[inside].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(variance, seen[inside].var(axis=0), rtol=1e-4)


def test_scores_are_deterministic_and_training_samples_by_the_seed() -> None:
    def draws() -> list[np.ndarray]:
        keras.utils.set_random_seed(11)
        sample = on_maps().get_layer("sample")
        latent = [np.full((2000, 3), 5, np.float32), np.full((2000, 3), -2, np.float32)]
        np.testing.assert_array_equal(np.asarray(sample(latent, training=False)), latent[0])
        return [np.asarray(sample(latent, training=True)) for _ in range(2)]

    first, again = draws(), draws()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert np.mean(first) == pytest.approx(5, abs=0.03)
    assert np.std(first) == pytest.approx(math.exp(-1), rel=0.05)
    network = scrambled(on_maps())
    np.testing.assert_array_equal(value(network, maps()), value(network, maps()))


def test_a_latent_begins_with_variance_1_and_never_leaves_what_exp_can_say() -> None:
    network = on_maps()
    assert not value(between(network, "latent_log_variance"), maps()).any()
    for bias, kept in ((50, 10), (-50, -10)):
        network.get_layer("latent_spread").bias.assign(np.full(3, bias, np.float32))
        assert (value(between(network, "latent_log_variance"), maps()) == kept).all()


def test_what_it_never_saw_has_the_largest_error_and_sets_the_score() -> None:
    """Maps of rank one, learned in 200 steps; a cell that is not of their kind."""
    rng = np.random.default_rng(4)
    pattern = rng.normal(size=6)

    def ordinary(count: int) -> np.ndarray:
        level = rng.normal(size=(count, 8, 8, 1)) + 2 * rng.normal(size=(count, 1, 1, 1))
        return (level * pattern + 0.05 * rng.normal(size=(count, 8, 8, 6))).astype(np.float32)

    network = on_maps((8, 8, 6), CvaeConfig(latent=4, filters=16))
    trained, beta = loss_terms(network)
    trained.compile(
        keras.optimizers.Adam(5e-3), lambda targets, outputs: keras.ops.sum(outputs, axis=-1), jit_compile=False
    )
    seen = ordinary(64)
    for step in range(200):
        beta.assign([[min(1.0, step / 60)]])
        trained.train_on_batch(seen[rng.choice(64, 16, replace=False)], np.zeros((16, 2), np.float32))
    healthy = ordinary(32)
    strange = healthy.copy()
    other = rng.normal(size=6)
    strange[:, 5, 2] = 3 * (other - pattern * (other @ pattern) / (pattern @ pattern))
    errors = value(between(network, "errors"), strange)
    assert value(between(network, "errors"), healthy).mean() < 0.7  # of a variance of 1
    assert np.mean([np.argmax(one) == 5 * 8 + 2 for one in errors]) > 0.9
    assert (value(network, strange) > value(network, healthy).T).mean() > 0.9


def test_a_weights_file_of_the_network_is_all_there_is(tmp_path: Path) -> None:
    network, seen = scrambled(on_maps()), maps()
    kept = {id(variable) for variable in network.variables}
    left = [variable.path for variable in loss_terms(network)[0].variables if id(variable) not in kept]
    assert left == ["beta/kernel"]
    save_weights(network, tmp_path / "model.weights.h5")
    fresh = on_maps()
    assert not np.array_equal(value(fresh, seen), value(network, seen))
    fresh.load_weights(str(tmp_path / "model.weights.h5"))
    for ours, theirs in ((fresh, network), (loss_terms(fresh)[0], loss_terms(network)[0])):
        np.testing.assert_array_equal(value(ours, seen), value(theirs, seen))


def test_mixed_precision_keeps_errors_and_losses_in_float32() -> None:
    with dtype_policy("mixed_bfloat16"):
        network = scrambled(on_maps())
    assert network.get_layer("encoder").compute_dtype == "bfloat16"
    names = ("standardise", "latent_mean", "latent_log_variance", "reconstruction", "errors")
    assert {network.get_layer(name).output.dtype for name in names} == {"float32"}
    assert {model.output.dtype for model in (network, loss_terms(network)[0])} == {"float32"}
    exact = on_maps()
    exact.set_weights(network.get_weights())
    np.testing.assert_allclose(value(network, maps()), value(exact, maps()), rtol=0.05, atol=0.02)


# ---- calibration


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


def test_calibration_puts_the_median_on_the_prior_and_ignores_a_blank_picture() -> None:
    """And scores that are all equal keep the slope."""
    for lowest in (1.0, -13.8):
        found = calibrated([lowest, 2.0, 3.0, 4.0, 5.0])  # its quartiles are 2 and 4
        assert found.slope == pytest.approx(1.349 / 2)
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
