"""train on a prepared folder: folds that hold out what they score, resuming, the clock, foreign bundles."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from toy_learner import ShortClock, use_toys

from rsna_kit.competition.folds import assign_folds, known_patients
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
from rsna_kit.scoring.breasts import to_breasts
from rsna_kit.scoring.predictions import read_predictions
from rsna_kit.scoring.threshold import choose_threshold
from rsna_kit.training.fit import Trainer

pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.tf, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(tiny: Config) -> Config:
    """Two folds, two epochs."""
    return with_overrides(tiny, ["data.augment=flip", "train.folds=2", "train.epochs=2"])


@pytest.fixture(scope="module")
def prepared(phantom: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare(phantom, out, config, Events(stream=io.StringIO()))
    return out


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that are traced in a second; no bundle of theirs can be loaded."""
    use_toys(monkeypatch)


@pytest.fixture(scope="module")
def trained(prepared: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two toys."""
    out = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        use_toys(patch)
        assert train(prepared, out, config, Events(stream=io.StringIO()), Clock())["ok"]
    return out


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def others(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mammograms of other women, prepared alike."""
    from rsna_lab.phantom.writer import write_competition

    out, quiet = tmp_path_factory.mktemp("others"), Events(stream=io.StringIO())
    write_competition(out / "competition", 3, seed=8, events=quiet)
    prepare(out / "competition", out / "prepared", config, quiet)
    return out / "prepared"


def written(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("bundles/*/model.weights.h5")}


def run(prepared: Path, out: Path, config: Config, **options: Any) -> str:
    """Train; what was said."""
    said = io.StringIO()
    train(prepared, out, config, Events(stream=said), Clock(), **options)
    return said.getvalue()


def test_extra_mammograms_are_trained_on_and_never_validated(
    prepared: Path, others: Path, config: Config, tmp_path: Path, toys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in every fold's training with their weight, and in no validation, score or threshold."""
    own, more = open_prepared(prepared).table, open_prepared(others).table
    seen: dict[int, pd.DataFrame] = {}
    begin = Trainer.begin

    def watched(self: Trainer, table: pd.DataFrame, *rest: Any) -> Any:
        state = begin(self, table, *rest)
        ids = [image_id for example in state.training.examples for image_id in example]
        seen[state.number] = pd.DataFrame({"weight": state.training.weights}, index=ids)
        return state

    monkeypatch.setattr(Trainer, "begin", watched)
    said = run(prepared, tmp_path / "model", with_overrides(config, ["train.extra_weight=0.5"]), extra=[others])
    assert f"extra: {len(more)} images, {more['cancer'].sum()} with cancer, in no validation" in said
    dealt = assign_folds(own, 2, config.train.seed)
    for fold in (0, 1):
        assert set(seen[fold].index) == {*own.loc[dealt != fold, "image_id"], *more["image_id"]}
        assert (seen[fold].loc[more["image_id"], "weight"] == 0.5).all()
        assert (seen[fold].drop(more["image_id"]) == 1).all(axis=None)
        bundle = open_bundle(tmp_path / "model" / "bundles" / f"fold{fold}")
        assert set(known_patients(bundle.metadata["trained_on"], more["patient_id"])) == set(more["patient_id"])
    oof = pd.read_csv(tmp_path / "model" / "oof.csv", dtype=str)
    assert set(oof["image_id"]) == set(own["image_id"])
    with pytest.raises(ShardError, match=r"shares patient_id .* with .*No patient may be in two folders"):
        run(prepared, tmp_path / "twice", config, extra=[others, prepared])


@pytest.mark.parametrize(
    ("settings", "columns"),
    [
        (["model.head=conv", "model.trunk=frozen", "model.kind=breast"], {"attention"}),
        (["model.kind=cvae", "model.trunk=frozen", "cvae.filters=4", "cvae.latent=4"], set()),
    ],
)
def test_every_score_comes_from_the_fold_that_held_it_out(
    prepared: Path, config: Config, tmp_path: Path, settings: Sequence[str], columns: set[str]
) -> None:
    """Each is what the network of the fold's bundle gives, and the bundle's threshold is the plateau of them all."""
    config = with_overrides(config, [*settings, "train.epochs=1"])
    result = train(prepared, tmp_path, config, Events(stream=io.StringIO()), Clock(), folds=[0])
    folder = open_prepared(prepared)
    oof = pd.read_csv(tmp_path / "oof.csv", dtype={"image_id": str, "patient_id": str})
    assert {"attention"} & set(oof.columns) == columns
    dealt = assign_folds(folder.table, 2, config.train.seed)
    assert list(oof["image_id"]) == list(folder.table.loc[dealt == 0, "image_id"])
    assert oof["score"].between(0, 1).all()
    assert np.isfinite(result["roc_auc"])
    bundle = open_bundle(tmp_path / "bundles" / "fold0")
    batch = np.stack([read_picture(folder, image_id) for image_id in oof["image_id"]])[..., None]
    outputs = np.asarray(load_model(bundle).predict_on_batch(batch), np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-outputs[:, 0])), oof["score"], atol=2e-3)
    breasts = to_breasts(oof, oof)
    assert bundle.threshold == pytest.approx(choose_threshold(breasts["cancer"], breasts["score"]).value)


def test_all_folds_score_the_whole_table_once(trained: Path, prepared: Path, config: Config) -> None:
    oof, table = (
        pd.read_csv(trained / "oof.csv", dtype={"image_id": str, "patient_id": str}),
        open_prepared(prepared).table,
    )
    assert list(oof["image_id"]) == list(table["image_id"])
    assert list(oof["fold"]) == list(assign_folds(table, 2, config.train.seed))
    assert oof.groupby("patient_id")["fold"].nunique().max() == 1
    breasts = to_breasts(oof, oof)
    wanted = choose_threshold(breasts["cancer"], breasts["score"]).value
    assert [open_bundle(trained / f"bundles/fold{fold}").threshold for fold in (0, 1)] == pytest.approx([wanted] * 2)


def test_a_finished_run_trains_nothing_and_every_bundle_carries_the_calibration(
    model: Path, prepared: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten patients have too few cancers for one, until fewer are enough; the folds are kept, not trained again."""
    assert read_json(model / "threshold.json")["calibration"] is None
    before = written(model)
    monkeypatch.setattr(calibration, "FEWEST_CANCERS", 1)
    monkeypatch.setattr("rsna_kit.training.fit.Trainer.__init__", killed)
    run(prepared, model, config)
    assert written(model) == before
    breasts = read_predictions(model / "oof.csv")
    wanted = calibration.calibrate(breasts["cancer"], breasts["score"], breasts["fold"])
    assert wanted is not None
    assert read_json(model / "threshold.json")["calibration"] == wanted
    for fold in range(2):
        assert open_bundle(model / "bundles" / f"fold{fold}").calibration == wanted


def test_a_missing_fold_is_trained_to_the_same_scores(model: Path, prepared: Path, config: Config, toys: None) -> None:
    """Its bundle was not finished when the run before was killed."""
    oof, before = (model / "oof.csv").read_bytes(), written(model)
    (model / "bundles" / "fold1" / "metadata.json").unlink()
    run(prepared, model, config)
    assert written(model)["fold0"] == before["fold0"]
    assert written(model)["fold1"] != before["fold1"]
    again, first = pd.read_csv(model / "oof.csv"), pd.read_csv(io.BytesIO(oof))
    np.testing.assert_allclose(again["score"], first["score"], atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("train.learning_rate=2e-3", "bundles/fold0: of another configuration"),
        ("train.folds=3", "of another configuration, other patients to validate on"),
    ],
)
def test_a_bundle_of_another_training_is_refused_and_nothing_is_removed(
    model: Path, prepared: Path, config: Config, setting: str, reason: str
) -> None:
    before = written(model)
    with pytest.raises(UsageError, match=rf"{reason}; .*Train into another folder"):
        run(prepared, model, with_overrides(config, [setting]), folds=[0])
    assert written(model) == before


def test_folds_that_another_version_dealt_are_not_mixed(model: Path, prepared: Path, config: Config) -> None:
    """Fold 0 was validated on a patient that is in fold 1 now: training fold 1 would leak."""
    shutil.rmtree(model / "bundles" / "fold1")
    path, table = model / "fold0" / "validation.csv", open_prepared(prepared).table
    scores = pd.read_csv(path, dtype={"image_id": str})
    scores.loc[0, "image_id"] = table.loc[~table["image_id"].isin(scores["image_id"]), "image_id"].iloc[0]
    scores.to_csv(path, index=False)
    with pytest.raises(UsageError, match=r"fold0: of other patients to validate on.*another folder"):
        run(prepared, model, config)


def test_the_clock_stops_and_the_next_run_goes_on(
    prepared: Path, config: Config, tmp_path: Path, toys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsna_kit.recipes.train.Clock", lambda limit_s: ShortClock(9))
    long, epochs = with_overrides(config, ["train.epochs=100"]), 0
    for _ in range(2):
        said = io.StringIO()
        result = train(prepared, tmp_path, long, Events(stream=said), Clock(), folds=[0])
        assert (result["ok"], result["stopped_by_clock"]) == (False, [0])
        assert open_bundle(tmp_path / "bundles" / "fold0").threshold is not None
        assert (tmp_path / "fold0" / "checkpoint.npz").is_file()
        before, epochs = epochs, len(read_json(tmp_path / "fold0" / "history.json"))
        assert epochs > before
    assert "fold 0: resumes at epoch" in said.getvalue()


def killed(*batch: object, **options: object) -> float:
    raise KeyboardInterrupt


def test_a_killed_fold_goes_on_and_leaves_no_checkpoint(
    model: Path, prepared: Path, config: Config, tmp_path: Path, toys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rsna_kit.training.steps import Replicas

    # One step more than is kept: the one that is tried before.
    made, steps, out = Replicas.train_step, iter(range(1000)), tmp_path / "again"
    with monkeypatch.context() as patch:
        patch.setattr(Replicas, "train_step", lambda *batch: made(*batch) if next(steps) < 3 else killed())
        patch.setattr("rsna_kit.training.fit.CHECKPOINT_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            run(prepared, out, config)
    assert (out / "fold0" / "checkpoint.npz").is_file()
    assert "fold 0: resumes at epoch 1, step 3" in run(prepared, out, config)
    assert not list(out.glob("*/checkpoint.npz"))
    again, first = pd.read_csv(out / "oof.csv"), pd.read_csv(model / "oof.csv")
    np.testing.assert_allclose(again["score"], first["score"], atol=1e-4)


def test_what_cannot_be_trained_is_refused_before_anything_is_loaded(
    prepared: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_folds(table: pd.DataFrame, *arguments: object) -> np.ndarray:
        return np.where(table.groupby("patient_id")["cancer"].transform("max") == 1, 0, 1)

    monkeypatch.setattr("rsna_kit.training.fit.Trainer.__init__", killed)
    with pytest.raises(ShardError, match="minmax"):
        run(prepared, tmp_path, with_overrides(config, ["image.voi=minmax"]))
    with pytest.raises(UsageError, match="from 0 to 1"):
        run(prepared, tmp_path, config, folds=[2])
    monkeypatch.setattr("rsna_kit.recipes.train.assign_folds", no_folds)
    with pytest.raises(RsnaKitError, match=r"fold 0: 0 of \d+ training images have cancer, expected both classes"):
        run(prepared, tmp_path, config)


ROW = {"epoch": 1, "seconds": 0.0, "loss": 0.7, "val_loss": 0.7, "learning_rate": 1e-3}


def untrained(trainer: Trainer, table: pd.DataFrame, fold: int, out: Path, clock: Clock) -> SimpleNamespace:
    """What `train_fold` gives, of a network that stays as it was made."""
    ids = table.loc[table["fold"] == fold, "image_id"].to_numpy()
    scores = pd.DataFrame({"image_id": ids, "score": np.linspace(0, 1, len(ids))})
    out.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(scores=scores, history=[ROW], best_epoch=1, stopped=False, step_s=0.0)


def test_a_start_of_our_own_is_named_and_one_that_has_seen_the_patients_is_found_out(
    prepared: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fold may have its own. A network that was dealt otherwise is found out though its fold has the number."""
    monkeypatch.setattr(Trainer, "train_fold", untrained)
    run(prepared, tmp_path / "first", config)
    own = [tmp_path / "first" / "bundles" / f"fold{fold}" for fold in (0, 1)]
    started, out = with_overrides(config, ["model.weights=start"]), tmp_path / "started"
    for fold in (0, 1):
        assert "starts from a network" not in run(prepared, out, started, folds=[fold], weights=[own[fold]])
    start = open_bundle(out / "bundles" / "fold0").metadata["start"]
    assert start["sha256"] == open_bundle(own[0]).metadata["sha256"]["model.weights.h5"]
    assert set(written(out)) == {"fold0", "fold1"}
    with pytest.raises(UsageError, match="fold0: of other starting weights"):
        run(prepared, out, started, folds=[0], weights=[own[1]])
    table = open_prepared(prepared).table
    first = set(table.loc[assign_folds(table, 2, config.train.seed) == 0, "patient_id"])
    seed = next(s for s in range(100) if set(table.loc[assign_folds(table, 2, s) == 0, "patient_id"]) != first)
    other = with_overrides(started, [f"train.seed={seed}"])
    said = run(prepared, tmp_path / "other", other, folds=[0], weights=[own[0]])
    assert "fold 0: starts from a network that has seen" in said
    # And what started from it has seen all that it had: nobody is new to the grandchild.
    grandchild = open_bundle(tmp_path / "other/bundles/fold0").metadata["trained_on"]
    assert set(known_patients(grandchild, table["patient_id"])) > set(table["patient_id"]) - first


def test_folds_hold_out_what_the_configuration_says(prepared: Path, config: Config, tmp_path: Path, toys: None) -> None:
    table = open_prepared(prepared).table
    wanted = assign_folds(table, 2, config.train.seed, "machine")
    assert list(wanted) != list(assign_folds(table, 2, config.train.seed))
    run(prepared, tmp_path, with_overrides(config, ["train.hold_out=machine", "train.epochs=1"]))
    assert list(pd.read_csv(tmp_path / "oof.csv")["fold"]) == list(wanted)


def test_a_time_limit_that_leaves_nothing_says_so(prepared: Path, config: Config, tmp_path: Path, toys: None) -> None:
    with pytest.raises(RsnaKitError, match=r"no fold was trained: getting ready took .* Give more time"):
        train(prepared, tmp_path, config, Events(stream=io.StringIO()), Clock(limit_s=1e-3))
