"""A small competition, its prepared folder and a bundle, made once and shared by the tests of whole recipes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from toy_networks import add_backbone

from rsna_kit.config import Config, preset, with_overrides
from rsna_kit.runtime.events import Events

if TYPE_CHECKING:
    from push_world import World

collect_ignore = ["timm_oracle.py"]  # for another Python: see there
TINY = ["image.height=64", "image.width=32", "data.save=none", "model.weights=none", "model.tap=32"]
TINY += ["model.head=linear", "model.pool=avg", "model.trunk=train"]
TINY += ["train.epochs=1", "train.batch_size=8", "infer.batch_size=8"]


@pytest.fixture(scope="session")
def tiny() -> Config:
    """64x32 pictures, a toy network with random weights, one epoch: for what is about plumbing, not about learning."""
    add_backbone()
    return with_overrides(preset("smoke"), [*TINY, "model.backbone=toy"])


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
    return make_bundle(tmp_path_factory.mktemp("bundles") / "fold0", tiny)


def make_bundle(out: Path, config: Config) -> Path:
    keras = pytest.importorskip("keras")
    from rsna_kit.models.network import build_classifier
    from rsna_kit.training.export import set_threshold, write_bundle

    keras.utils.set_random_seed(1)
    write_bundle(out, build_classifier(config.model, config.image), config, 0, None, {}, "none")
    set_threshold(out, 0.5, "for tests")
    return out


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A project, an empty local Kaggle and scripts/push between them, all in this process."""
    from kaggle_site import waited
    from push_world import make_world

    made = make_world(tmp_path)
    with waited(made.site):
        yield made
