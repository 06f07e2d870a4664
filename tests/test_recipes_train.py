"""train on a prepared folder: folds that hold out what they score, resuming, the clock, foreign bundles."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_kit.competition.folds import assign_folds
from rsna_kit.config import Config, with_overrides
from rsna_kit.data.shards import open_prepared, read_picture
from rsna_kit.models.bundle import load_model, open_bundle
from rsna_kit.recipes.prepare import prepare
from rsna_kit.recipes.train import train
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import ShardError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.scoring.breasts import to_breasts
from rsna_kit.scoring.threshold import choose_threshold

pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.tf, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(tiny: Config) -> Config:
    """A head on frozen maps: seconds a fold."""
    settings = ["model.head=conv", "model.trunk=frozen", "data.augment=flip", "train.folds=2", "train.epochs=2"]
    return with_overrides(tiny, settings)


@pytest.fixture(scope="module")
def prepared(phantom: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare(phantom, out, config, Events())
    return out


@pytest.fixture(scope="module")
def trained(prepared: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    assert train(prepared, out, config, Events(), Clock())["ok"]
    return out


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "model")
    return tmp_path / "model"


def written(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("bundles/*/model.weights.h5")}


def test_every_score_comes_from_the_fold_that_held_it_out(trained: Path, prepared: Path, config: Config) -> None:
    folder = open_prepared(prepared)
    oof = pd.read_csv(trained / "oof.csv", dtype={"image_id": str, "patient_id": str})
    assert list(oof["image_id"]) == list(folder.table["image_id"])
    assert list(oof["fold"]) == list(assign_folds(folder.table, 2, config.train.seed))
    assert oof.groupby("patient_id")["fold"].nunique().max() == 1
    for fold, rows in oof.groupby("fold"):
        network = load_model(open_bundle(trained / "bundles" / f"fold{fold}"))
        batch = np.stack([read_picture(folder, image_id) for image_id in rows["image_id"]])[..., None]
        scores = 1 / (1 + np.exp(-np.asarray(network.predict_on_batch(batch), np.float64)[:, 0]))
        np.testing.assert_allclose(scores, rows["score"], atol=2e-3)


def test_the_threshold_is_the_plateau_of_the_out_of_fold_curve(trained: Path) -> None:
    oof = pd.read_csv(trained / "oof.csv", dtype={"image_id": str, "patient_id": str})
    breasts = to_breasts(oof, oof)
    wanted = choose_threshold(breasts["cancer"], breasts["score"]).value
    for fold in (0, 1):
        assert open_bundle(trained / "bundles" / f"fold{fold}").threshold == pytest.approx(wanted)


def test_a_finished_run_trains_nothing(model: Path, prepared: Path, config: Config, quiet: Events) -> None:
    before = written(model)
    result = train(prepared, model, config, quiet, Clock())
    assert result["folds"] == [0, 1]
    assert written(model) == before


def test_a_missing_fold_is_trained_to_the_same_scores(
    model: Path, prepared: Path, config: Config, quiet: Events
) -> None:
    oof, before = (model / "oof.csv").read_bytes(), written(model)
    shutil.rmtree(model / "bundles" / "fold1")
    train(prepared, model, config, quiet, Clock())
    assert written(model)["fold0"] == before["fold0"]
    assert written(model)["fold1"] != before["fold1"]
    again, first = pd.read_csv(model / "oof.csv"), pd.read_csv(io.BytesIO(oof))
    np.testing.assert_allclose(again["score"], first["score"], atol=1e-4)


def test_another_configuration_trains_again(model: Path, prepared: Path, config: Config, quiet: Events) -> None:
    before = written(model)
    other = replace(config, train=replace(config.train, learning_rate=2e-3))
    train(prepared, model, other, quiet, Clock(), folds=[0])
    assert set(written(model)) == {"fold0"}  # fold1 was of the other configuration
    assert written(model)["fold0"] != before["fold0"]


def test_the_clock_stops_and_the_next_run_goes_on(
    prepared: Path, config: Config, tmp_path: Path, quiet: Events
) -> None:
    long = replace(config, train=replace(config.train, epochs=400))
    result = train(prepared, tmp_path, long, quiet, Clock(limit_s=20))
    assert not result["ok"]
    assert 0 in result["stopped_by_clock"]
    assert open_bundle(tmp_path / "bundles" / "fold0").threshold is not None
    before = written(tmp_path)
    assert not train(prepared, tmp_path, long, quiet, Clock(limit_s=20))["ok"]
    assert written(tmp_path)["fold0"] != before["fold0"]


def test_shards_of_another_image_section_are_refused(
    prepared: Path, config: Config, tmp_path: Path, quiet: Events
) -> None:
    other = replace(config, image=replace(config.image, voi="minmax"))
    with pytest.raises(ShardError, match="minmax"):
        train(prepared, tmp_path, other, quiet, Clock())
    with pytest.raises(UsageError, match="from 0 to 1"):
        train(prepared, tmp_path, config, quiet, Clock(), folds=[2])
