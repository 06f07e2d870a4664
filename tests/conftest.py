"""A small competition, its prepared folder and a bundle, made once and shared by the tests of whole recipes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kaggle_double import VERSIONS

from rsna_kit.config import Config, with_overrides
from rsna_kit.presets import preset
from rsna_kit.runtime.events import Events

if TYPE_CHECKING:
    from push_world import World, Worlds

TINY = ["image.height=64", "image.width=32", "data.save=none", "model.weights=none",
        "model.tap=32", "model.head=linear", "model.pool=avg", "model.trunk=train", "train.epochs=1",
        "train.batch_size=8", "infer.batch_size=8"]  # fmt: skip


@pytest.fixture(scope="session")
def tiny() -> Config:
    """64x32 pictures, random weights, one epoch: for what is about plumbing, not about learning."""
    return with_overrides(preset("smoke"), TINY)


@pytest.fixture
def quiet() -> Events:
    """Events whose talk nobody reads."""
    return Events(stream=io.StringIO())


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom competition of ten patients. Shared: copy it before changing it."""
    from rsna_lab.phantom.writer import write_competition

    out = tmp_path_factory.mktemp("phantom") / "competition"
    write_competition(out, 10, seed=5, events=Events(stream=io.StringIO()))
    return out


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny: Config) -> Path:
    """An untrained network as a bundle with the threshold 0.5."""
    keras = pytest.importorskip("keras")
    from rsna_kit.models.bundle import set_threshold, write_bundle
    from rsna_kit.models.network import build_classifier

    keras.utils.set_random_seed(1)
    out = tmp_path_factory.mktemp("bundles") / "fold0"
    write_bundle(out, build_classifier(tiny.model, tiny.image), tiny, 0, None, {}, "none")
    set_threshold(out, 0.5, "for tests")
    return out


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """scripts/push and a local Kaggle, with the real `kaggle` programs that are installed."""
    from push_world import Worlds

    with Worlds(tmp_path_factory.mktemp("kaggle")) as opened:
        yield opened


@pytest.fixture
def world(worlds: Worlds, tmp_path: Path) -> World:
    """A project of its own and an empty site, with the newest program."""
    return worlds.make(tmp_path)


@pytest.fixture(params=VERSIONS)
def each_world(worlds: Worlds, tmp_path: Path, request: pytest.FixtureRequest) -> World:
    """The same with each version of the program, for what differs between them."""
    return worlds.make(tmp_path, request.param)
