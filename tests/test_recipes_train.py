"""train on a prepared folder: folds that hold out what they score, resuming, the clock, foreign bundles."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_learner import use_toys

from rsna_kit.competition.folds import assign_folds
from rsna_kit.competition.seen import known_patients
from rsna_kit.config import Config, with_overrides
from rsna_kit.data.shards import open_prepared, read_picture
from rsna_kit.models.bundle import load_model, open_bundle
from rsna_kit.recipes.prepare import prepare
from rsna_kit.recipes.train import train
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import RsnaKitError, ShardError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_json
from rsna_kit.scoring import calibration
from rsna_kit.scoring.breasts import read_predictions, to_breasts
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


def test_every_bundle_carries_the_calibration_of_the_out_of_fold_scores(
    model: Path, prepared: Path, config: Config, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten patients have too few cancers for one, until fewer are enough; the folds are kept, not trained again."""
    assert read_json(model / "threshold.json")["calibration"] is None
    assert open_bundle(model / "bundles" / "fold0").calibration is None
    monkeypatch.setattr(calibration, "FEWEST_CANCERS", 1)
    train(prepared, model, config, quiet, Clock())
    breasts = read_predictions(model / "oof.csv")
    wanted = calibration.calibrate(breasts["cancer"], breasts["score"], breasts["fold"])
    assert wanted is not None
    assert read_json(model / "threshold.json")["calibration"] == wanted
    for fold in range(2):
        assert open_bundle(model / "bundles" / f"fold{fold}").calibration == wanted


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
    prepared: Path, config: Config, tmp_path: Path, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_toys(monkeypatch)
    long = replace(config, train=replace(config.train, epochs=4000))
    result = train(prepared, tmp_path, long, quiet, Clock(limit_s=20))
    assert not result["ok"]
    assert 0 in result["stopped_by_clock"]
    assert open_bundle(tmp_path / "bundles" / "fold0").threshold is not None
    assert (tmp_path / "fold0" / "checkpoint.npz").is_file()
    before, epochs = written(tmp_path), len(read_json(tmp_path / "fold0" / "history.json"))
    said = io.StringIO()
    assert not train(prepared, tmp_path, long, Events(stream=said), Clock(limit_s=20))["ok"]
    assert "fold 0: resumes at epoch" in said.getvalue()
    assert written(tmp_path)["fold0"] != before["fold0"]
    assert len(read_json(tmp_path / "fold0" / "history.json")) >= epochs


def test_shards_of_another_image_section_are_refused(
    prepared: Path, config: Config, tmp_path: Path, quiet: Events
) -> None:
    other = replace(config, image=replace(config.image, voi="minmax"))
    with pytest.raises(ShardError, match="minmax"):
        train(prepared, tmp_path, other, quiet, Clock())
    with pytest.raises(UsageError, match="from 0 to 1"):
        train(prepared, tmp_path, config, quiet, Clock(), folds=[2])


def killed(*batch: object) -> float:
    raise KeyboardInterrupt


def test_a_killed_fold_goes_on_and_leaves_no_checkpoint(
    model: Path, prepared: Path, config: Config, tmp_path: Path, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rsna_kit.training.replicas import Replicas

    made, steps = Replicas.train_step, iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(Replicas, "train_step", lambda *batch: made(*batch) if next(steps) < 2 else killed())
        often = replace(config, train=replace(config.train, checkpoint_minutes=0.0))
        with pytest.raises(KeyboardInterrupt):
            train(prepared, tmp_path / "again", often, quiet, Clock())
    assert (tmp_path / "again" / "fold0" / "checkpoint.npz").is_file()
    said = io.StringIO()
    train(prepared, tmp_path / "again", config, Events(stream=said), Clock())
    assert "fold 0: resumes at epoch 1, step 3" in said.getvalue()
    assert not list((tmp_path / "again").glob("*/checkpoint.npz"))
    again, first = pd.read_csv(tmp_path / "again" / "oof.csv"), pd.read_csv(model / "oof.csv")
    np.testing.assert_allclose(again["score"], first["score"], atol=1e-4)


def test_a_fold_of_one_class_is_refused_before_anything_is_loaded(
    prepared: Path, config: Config, tmp_path: Path, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_folds(table: pd.DataFrame, *arguments: object) -> np.ndarray:
        return np.where(table.groupby("patient_id")["cancer"].transform("max") == 1, 0, 1)

    monkeypatch.setattr("rsna_kit.recipes.train.assign_folds", no_folds)
    monkeypatch.setattr("rsna_kit.training.trainer.Trainer.__init__", killed)
    with pytest.raises(RsnaKitError, match=r"fold 0: 0 of \d+ training images have cancer, expected both classes"):
        train(prepared, tmp_path, config, quiet, Clock())


def test_a_trunk_of_our_own_is_a_start_and_the_bundle_says_so(
    model: Path, prepared: Path, config: Config, tmp_path: Path, quiet: Events
) -> None:
    started = replace(config, model=replace(config.model, weights="start"))
    folder = model / "bundles" / "fold1"
    train(prepared, tmp_path, started, quiet, Clock(), folds=[0], weights=[folder])
    start = open_bundle(tmp_path / "bundles" / "fold0").metadata["start"]
    assert start["sha256"] == open_bundle(folder).metadata["sha256"]["model.weights.h5"]
    before = written(tmp_path)
    train(prepared, tmp_path, started, quiet, Clock(), folds=[0], weights=[folder])
    assert written(tmp_path) == before
    other = model / "bundles" / "fold0"
    train(prepared, tmp_path, started, quiet, Clock(), folds=[0], weights=[other])
    assert written(tmp_path) != before


@pytest.mark.parametrize("kind", ["breast", "cvae"])
def test_every_kind_gives_bundles_and_out_of_fold_scores(
    prepared: Path, config: Config, tmp_path: Path, quiet: Events, kind: str
) -> None:
    settings = [f"model.kind={kind}", "train.epochs=1", "cvae.filters=4", "cvae.latent=4", "train.targets="]
    result = train(prepared, tmp_path, with_overrides(config, settings), quiet, Clock(), folds=[0])
    oof = pd.read_csv(tmp_path / "oof.csv", dtype={"image_id": str, "patient_id": str})
    assert ("attention" in oof.columns) == (kind == "breast")
    assert oof["score"].between(0, 1).all()
    assert np.isfinite(result["roc_auc"])
    bundle = open_bundle(tmp_path / "bundles" / "fold0")
    folder = open_prepared(prepared)
    batch = np.stack([read_picture(folder, image_id) for image_id in oof["image_id"]])[..., None]
    outputs = np.asarray(load_model(bundle).predict_on_batch(batch), np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-outputs[:, 0])), oof["score"], atol=2e-3)
    breasts = to_breasts(oof, oof)
    assert bundle.threshold == pytest.approx(choose_threshold(breasts["cancer"], breasts["score"]).value)


def test_folds_hold_out_what_the_configuration_says(
    prepared: Path, config: Config, tmp_path: Path, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_toys(monkeypatch)
    table = open_prepared(prepared).table
    machines = table.groupby("machine_id")["cancer"].agg(["sum", "size"])
    out = with_overrides(config, ["train.hold_out=machine", "train.epochs=1"])
    wanted = assign_folds(table, 2, config.train.seed, "machine")
    assert list(wanted) != list(assign_folds(table, 2, config.train.seed)), machines
    train(prepared, tmp_path, out, quiet, Clock())
    oof = pd.read_csv(tmp_path / "oof.csv", dtype={"image_id": str})
    assert list(oof["fold"]) == list(wanted)


def test_each_fold_may_have_a_start_of_its_own(
    model: Path, prepared: Path, config: Config, tmp_path: Path, quiet: Events
) -> None:
    started = with_overrides(config, ["model.weights=start", "train.epochs=1"])
    for fold in (0, 1):
        train(prepared, tmp_path, started, quiet, Clock(), [fold], [model / "bundles" / f"fold{fold}"])
    before = written(tmp_path)
    assert set(before) == {"fold0", "fold1"}
    assert len(pd.read_csv(tmp_path / "oof.csv")) == len(open_prepared(prepared).table)
    said = io.StringIO()
    train(prepared, tmp_path, started, Events(stream=said), Clock(), [0], [model / "bundles" / "fold1"])
    table = open_prepared(prepared).table.assign(fold=assign_folds(open_prepared(prepared).table, 2, config.train.seed))
    seen = table.loc[table["fold"] == 0, "patient_id"].nunique()
    assert f"fold 0: starts from a network that has seen {seen} of the patients it is validated on" in said.getvalue()
    assert written(tmp_path)["fold1"] == before["fold1"]


def test_a_start_that_was_dealt_otherwise_is_found_out_though_its_fold_has_the_same_number(
    model: Path, prepared: Path, config: Config, tmp_path: Path, quiet: Events
) -> None:
    """A network of fold 0 of two has seen nobody of fold 0 of two, but some of fold 0 of another dealing."""
    table = open_prepared(prepared).table
    started = with_overrides(config, ["model.weights=start", "train.epochs=1"])
    own, said = [model / "bundles" / "fold0"], io.StringIO()
    train(prepared, tmp_path / "own", started, Events(stream=said), Clock(), [0], own)
    assert "starts from a network" not in said.getvalue()
    first = set(table.loc[assign_folds(table, 2, config.train.seed) == 0, "patient_id"])
    seed = next(s for s in range(100) if set(table.loc[assign_folds(table, 2, s) == 0, "patient_id"]) != first)
    train(
        prepared,
        tmp_path / "other",
        with_overrides(started, [f"train.seed={seed}"]),
        Events(stream=said),
        Clock(),
        [0],
        own,
    )
    assert "fold 0: starts from a network that has seen" in said.getvalue()
    # And what started from it has seen all that it had: nobody is new to the grandchild.
    grandchild = open_bundle(tmp_path / "other/bundles/fold0").metadata["trained_on"]
    assert set(known_patients(grandchild, table["patient_id"])) > set(table["patient_id"]) - first


def test_folds_that_another_version_dealt_are_not_mixed(
    model: Path, prepared: Path, config: Config, quiet: Events
) -> None:
    """Fold 1 is missing, fold 0 was validated on a patient that is in fold 1 now: training on would leak."""
    shutil.rmtree(model / "bundles" / "fold1")
    path = model / "fold0" / "validation.csv"
    scores = pd.read_csv(path, dtype={"image_id": str})
    folder = open_prepared(prepared)
    other = folder.table.loc[~folder.table["image_id"].isin(scores["image_id"]), "image_id"].iloc[0]
    scores.loc[0, "image_id"] = other
    scores.to_csv(path, index=False)
    with pytest.raises(UsageError, match=r"fold0: validated on other patients than fold 0 has now.*another folder"):
        train(prepared, model, config, quiet, Clock())
    assert (model / "bundles" / "fold0").is_dir()


def test_a_training_that_cannot_begin_removes_nothing(
    model: Path, prepared: Path, config: Config, quiet: Events
) -> None:
    before = written(model)
    for wrong in ("train.targets=biopsi", "model.backbone=efficientnet_lite00"):
        with pytest.raises(UsageError, match=r"efficientnet_lite0|biopsy"):
            train(prepared, model, with_overrides(config, [wrong]), quiet, Clock())
        assert written(model) == before


def test_a_time_limit_that_leaves_nothing_says_so(
    prepared: Path, config: Config, tmp_path: Path, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_toys(monkeypatch)
    with pytest.raises(RsnaKitError, match=r"no fold was trained: getting ready took .* Give more time"):
        train(prepared, tmp_path, config, quiet, Clock(limit_s=1e-3))
