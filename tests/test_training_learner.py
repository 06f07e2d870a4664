"""What is trained and what travels share their weights, for every kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_networks import add_backbone

from rsna_kit.config import Config, preset, with_overrides
from rsna_kit.models.network import build_network
from rsna_kit.runtime.errors import UsageError
from rsna_kit.training.learner import Learner, build_learner

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

add_backbone()
SMALL = with_overrides(
    preset("smoke"), ["image.height=64", "image.width=32", "model.weights=none", "model.backbone=toy"]
)
RNG = np.random.default_rng(0)
PICTURES = RNG.integers(1, 256, (5, 64, 32, 1), np.uint8)
VIEWS = np.zeros((2, 3, 64, 32, 1), np.uint8)  # a breast of three views and one of two
VIEWS[0], VIEWS[1, :2] = PICTURES[:3], PICTURES[3:]
KINDS = {
    "image": ["train.targets=biopsy,BIRADS"],
    "breast": ["model.kind=breast", "train.targets=biopsy,BIRADS"],
}


def configured(*settings: str) -> Config:
    return with_overrides(SMALL, settings)


@pytest.fixture(scope="module", params=list(KINDS))
def made(request: pytest.FixtureRequest) -> tuple[Config, Learner]:
    config = configured(*KINDS[request.param])
    keras.utils.set_random_seed(0)
    return config, build_learner(config, config.image)


def examples(config: Config) -> np.ndarray:
    return VIEWS if config.model.kind == "breast" else PICTURES


def test_shapes_and_names(made: tuple[Config, Learner]) -> None:
    """The only input is the picture, or the pictures of a breast: targets cannot get in."""
    config, learner = made
    breast = config.model.kind == "breast"
    assert [tuple(tensor.shape) for tensor in learner.network.inputs] == [(None, 64, 32, 1)]
    assert [tuple(tensor.shape) for tensor in learner.trained.inputs] == [
        (None, None, 64, 32, 1) if breast else (None, 64, 32, 1)
    ]
    assert learner.network.output_shape == (None, 2 if breast else 1)
    outputs = np.asarray(learner.trained(examples(config)))
    assert outputs.shape == (len(examples(config)), 3)
    assert outputs.dtype == np.float32
    assert (outputs.std(axis=0) > 0).all()


def test_the_first_target_is_what_travels(made: tuple[Config, Learner]) -> None:
    config, learner = made
    cancer = np.asarray(learner.trained(examples(config)))[:, 0]
    single = np.asarray(learner.network(PICTURES))
    if config.model.kind == "breast":
        weights = np.exp(single[:, 1])
        sums = np.array([(single[part, 0] * weights[part]).sum() / weights[part].sum() for part in ([0, 1, 2], [3, 4])])
        np.testing.assert_allclose(cancer, sums, atol=1e-5)
    else:
        np.testing.assert_allclose(cancer, single[:, 0], atol=1e-6)


def test_what_travels_does_not_know_the_targets(made: tuple[Config, Learner], tmp_path: Path) -> None:
    """Its weights fit the network that anyone builds from the configuration, whatever it learned beside cancer."""
    config, learner = made
    path = str(tmp_path / "model.weights.h5")
    learner.network.save_weights(path)
    assert not [weight.path for weight in learner.network.weights if "targets" in weight.path]
    travelled = build_network(with_overrides(config, ["train.targets="]), config.image)
    travelled.load_weights(path)
    np.testing.assert_array_equal(np.asarray(travelled(PICTURES)), np.asarray(learner.network(PICTURES)))
    trained = {id(variable) for variable in learner.trained.variables}
    assert all(id(variable) in trained for variable in learner.network.variables)


def test_halves_are_the_whole(made: tuple[Config, Learner]) -> None:
    config, learner = made
    assert learner.halves is not None
    halves = trunk, scored, on_maps = learner.halves()
    maps = np.asarray(trunk(PICTURES))
    np.testing.assert_allclose(scored(maps), np.asarray(learner.network(PICTURES)), atol=1e-5)
    if config.model.kind == "breast":
        views = np.zeros((2, 3, *maps.shape[1:]), np.float32)
        views[0], views[1, :2] = maps[:3], maps[3:]
        maps = views
    np.testing.assert_allclose(on_maps(maps), np.asarray(learner.trained(examples(config))), atol=1e-5)
    known = {id(variable) for variable in learner.trained.variables}
    assert all(id(variable) in known for half in halves[:2] for variable in half.variables)
    assert not trunk.trainable_variables
    assert [v.path for v in on_maps.trainable_variables] == [v.path for v in learner.trained.trainable_variables]


def test_missing_targets_teach_nothing(made: tuple[Config, Learner]) -> None:
    """A step of plain gradient descent moves a target's head only by the targets that are there."""
    config, learner = made
    heads = [variable for variable in learner.trained.trainable_variables if "targets" in variable.path]
    assert len(heads) == 2
    learner.trained.compile(optimizer=keras.optimizers.SGD(0.01), loss=learner.loss, run_eagerly=True)
    targets = np.full((len(examples(config)), 3), np.nan, np.float32)
    targets[:, 0] = np.arange(len(targets)) % 2
    logit = learner.network.get_layer("logit").kernel

    def step() -> tuple[list[np.ndarray], Any]:
        before, known = [np.array(head) for head in heads], np.array(logit)
        learner.trained.train_on_batch(examples(config), targets)
        changes = [np.abs(np.array(head) - old) for head, old in zip(heads, before, strict=True)]
        return [change.reshape(-1, 2).max(axis=0) for change in changes], known

    moved, before = step()
    assert (np.array(logit) != before).any()
    assert not any(change.any() for change in moved)
    targets[0, 1] = 1
    assert [change.tolist()[1] for change in step()[0]] == [0, 0]
    targets[1, 2] = 0
    assert all((change > 0).all() for change in step()[0])


def test_the_cvae() -> None:
    config = configured("model.kind=cvae", "cvae.filters=2", "cvae.latent=3", "cvae.beta=4")
    learner = build_learner(config, config.image)
    assert not learner.shift
    assert learner.calibrate is not None
    outputs = np.asarray(learner.trained(PICTURES))
    assert outputs.shape == (5, 2)
    np.testing.assert_allclose(learner.loss(np.zeros((5, 1)), outputs), outputs.sum(axis=1), rtol=1e-6)
    assert np.asarray(learner.network(PICTURES)).shape == (5, 1)
    learner.progress(0.5)
    assert learner.halves is not None
    trunk, scored, on_maps = learner.halves()
    for half, model in ((scored, learner.network), (on_maps, learner.trained)):
        np.testing.assert_allclose(half(trunk(PICTURES)), model(PICTURES), rtol=1e-5)
    whole = np.asarray(learner.trained(PICTURES))[:, 1]
    learner.progress(0.075)  # a quarter of the way up
    np.testing.assert_allclose(np.asarray(learner.trained(PICTURES))[:, 1], whole / 4, rtol=1e-5)
    build_network(config, config.image).set_weights(learner.network.get_weights())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.targets=biopsi"], "Did you mean 'biopsy'"),
        (["model.backbone=convnext_tini"], "Did you mean 'convnext_tiny'"),
        (["model.head=residal"], "Did you mean 'residual'"),
        (["model.pool=avgmx"], "Did you mean 'avgmax'"),
        (["model.view_pool=meen"], r"model.view_pool: got 'meen', expected one of .*Did you mean 'mean'\?"),
        (["train.loss=focall"], "Did you mean 'focal'"),
        (["data.augment=lite"], "Did you mean 'light'"),
        (["model.kind=cvae", "train.targets=biopsy"], "a CVAE learns no targets"),
        (["model.kind=cvae", "model.trunk=train"], "model.trunk=train: expected frozen for a CVAE"),
    ],
)
def test_names_that_there_are_not_and_what_a_cvae_cannot_learn_are_refused(settings: list[str], message: str) -> None:
    config = configured(*settings)
    with pytest.raises(UsageError, match=message):
        build_learner(config, config.image)
