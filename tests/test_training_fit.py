"""A fold is trained, resumed, stopped and refused; what comes out does not depend on how often it was interrupted."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from toy_learner import ShortClock, toy_learner, use_toys
from toy_pictures import write_toys

from rsna_kit.config import preset, with_overrides
from rsna_kit.data.shards import Prepared, read_picture
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.events import Events
from rsna_kit.training.fit import CHECKPOINT, Fold, Trainer

pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.tf, pytest.mark.slow]

TESTS = Path(__file__).parent
SMALL = ["image.height=64", "image.width=32", "train.batch_size=8", "infer.batch_size=16"]
CONFIG = with_overrides(
    preset("smoke"),
    [*SMALL, "train.epochs=4", "train.learning_rate=1e-2", "model.weights=none", "model.trunk=train"],
)
STEPS = 6  # 32 healthy training images, 6 in a batch


@pytest.fixture(scope="module", autouse=True)
def toys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_toys(patch)
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_toys(tmp_path_factory.mktemp("toys"), CONFIG.image, 80)


@pytest.fixture(scope="module")
def table(prepared: Prepared) -> pd.DataFrame:
    return prepared.table.assign(fold=np.arange(80) % 2)


Make = Callable[..., Trainer]


@pytest.fixture(scope="module")
def make(prepared: Prepared, table: pd.DataFrame) -> Make:
    """A trainer with settings; its talk is in `trainer._events.stream`."""
    labels = table.set_index("image_id")["cancer"]

    def evaluate(scores: pd.DataFrame) -> dict[str, float]:
        values, truth = scores["score"].to_numpy(), labels[scores["image_id"]].to_numpy()
        return {"roc_auc": float(np.mean(values[truth == 1][:, None] > values[truth == 0]))}

    def made(*settings: str) -> Trainer:
        return Trainer(prepared, with_overrides(CONFIG, settings), Events(stream=io.StringIO()), evaluate)

    return made


@pytest.fixture(scope="module")
def trainer(make: Make) -> Trainer:
    return make()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fold0")


@pytest.fixture(scope="module")
def result(trainer: Trainer, table: pd.DataFrame, folder: Path) -> Fold:
    return trainer.train_fold(table, 0, folder, Clock())


def without_time(result: Fold) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in result.history]


def arrays(trainer: Trainer) -> list[np.ndarray]:
    return [np.array(variable) for variable in trainer._variables]


def talk(trainer: Trainer) -> str:
    stream = trainer._events.stream
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def kept_scores(folder: Path, scores: pd.DataFrame, prepared: Prepared) -> np.ndarray:
    """By a fresh float32 network with the weights that were kept."""
    network = toy_learner(CONFIG, CONFIG.image).network
    network.load_weights(str(folder / "model.weights.h5"))
    pictures = np.stack([read_picture(prepared, image_id) for image_id in scores["image_id"]])[..., None]
    return 1 / (1 + np.exp(-np.asarray(network(pictures, training=False))[:, 0]))


class KilledError(Exception):
    """Stands for whatever ends a process."""


def kill_at(trainer: Trainer, patch: pytest.MonkeyPatch, step: int) -> None:
    """The training step of this number (from 1) is never made."""
    made, steps = trainer._replicas.train_step, iter(range(1, 1000))

    def train_step(*batch: Any) -> float:
        if next(steps) == step:
            raise KilledError
        return made(*batch)

    patch.setattr(trainer._replicas, "train_step", train_step)


def test_it_learns_and_keeps_the_best_epoch(
    result: Fold, folder: Path, table: pd.DataFrame, prepared: Prepared
) -> None:
    """The correction to natural odds is in the weights file, not only in the process."""
    values = [row["val_roc_auc"] for row in result.history]
    assert len(values) == 4
    assert values[result.best_epoch - 1] == max(values) > 0.9
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert not result.stopped
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.npz", "history.json", "model.weights.h5"]
    assert json.loads((folder / "history.json").read_text()) == result.history
    assert list(result.history[0]) == ["epoch", "loss", "val_loss", "val_roc_auc", "learning_rate", "seconds"]
    assert list(result.scores["image_id"]) == list(table.loc[table["fold"] == 0, "image_id"])
    np.testing.assert_allclose(kept_scores(folder, result.scores, prepared), result.scores["score"], atol=1e-5)


def test_a_fold_does_not_depend_on_the_folds_before_it(
    trainer: Trainer, result: Fold, table: pd.DataFrame, tmp_path: Path
) -> None:
    trainer.train_fold(table, 1, tmp_path / "between", ShortClock(STEPS))
    again = trainer.train_fold(table, 0, tmp_path / "again", Clock())
    assert without_time(again) == without_time(result)
    assert again.scores.equals(result.scores)


@pytest.mark.parametrize(("questions", "epochs"), [(STEPS, 1), (STEPS + 1 + 2, 2)])
def test_the_clock_ends_training_and_a_later_run_goes_on(
    trainer: Trainer, result: Fold, table: pd.DataFrame, tmp_path: Path, questions: int, epochs: int
) -> None:
    """Between epochs and inside one; the half epoch that was validated for the first session is none in the second."""
    first = trainer.train_fold(table, 0, tmp_path, ShortClock(questions))
    assert (first.stopped, len(first.history)) == (True, epochs)
    assert np.isfinite(first.scores["score"]).all()
    assert (tmp_path / "model.weights.h5").is_file()
    again = trainer.train_fold(table, 0, tmp_path, Clock())
    assert not again.stopped
    assert without_time(again) == without_time(result)
    assert again.scores.equals(result.scores)


def test_a_loss_that_is_not_finite_says_where(make: Make, table: pd.DataFrame, tmp_path: Path) -> None:
    trainer = make("train.learning_rate=1e38", "train.precision=mixed_bfloat16")
    where = r"fold 1, epoch 1, step (\d) of 6: the loss is (nan|inf).*clip_norm=1, or train\.precision=float32\."
    with pytest.raises(RsnaKitError, match=where) as raised:
        trainer.train_fold(table, 1, tmp_path, Clock())
    ids = str(raised.value).partition("of the batch: ")[2].rstrip(".").split(", ")
    assert len(ids) == 8
    assert set(ids) <= set(table.loc[table["fold"] == 0, "image_id"])


def test_a_loss_that_is_read_late_is_named_by_its_own_batch(
    trainer: Trainer, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All six steps were made by then."""
    losses = iter([0.5, 0.5, math.nan, 0.5, 0.5, 0.5])
    monkeypatch.setattr(trainer, "_step", lambda *batch: next(losses))
    training = trainer.training_set(table, 0, trainer.config)
    ids = ", ".join(training.examples[position][0] for position in training.plan(1)[0][16:24])
    with pytest.raises(RsnaKitError, match=rf"epoch 1, step 3 of 6: the loss is nan.*The images of the batch: {ids}\."):
        trainer.train_fold(table, 0, tmp_path, Clock())
    assert next(losses, None) is None


def test_without_metrics_the_validation_loss_decides(
    trainer: Trainer, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_evaluate", lambda scores: {})
    history = (result := trainer.train_fold(table, 1, tmp_path, Clock())).history
    losses = [row["val_loss"] for row in history]
    assert losses[result.best_epoch - 1] == min(losses)


def test_scores_are_on_the_scale_of_the_population(make: Make, table: pd.DataFrame, tmp_path: Path) -> None:
    """A network that has learned nothing scores the share of cancers in the table, not the share in a batch."""
    trainer = make("train.learning_rate=1e-9", "train.epochs=1", "train.label_smoothing=0")
    trainer.model.get_layer("logit").kernel.assign(np.zeros((16, 1)))
    trainer._start = arrays(trainer)
    result = trainer.train_fold(table, 0, tmp_path, Clock())
    np.testing.assert_allclose(result.scores["score"], 0.2, atol=1e-5)


def test_a_finished_fold_is_not_trained_again(
    trainer: Trainer, result: Fold, table: pd.DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its bundle was written: the checkpoint holds all of the result."""
    kill_at(trainer, monkeypatch, 1)
    again = trainer.train_fold(table, 0, folder, Clock())
    assert again.scores.equals(result.scores)
    assert again.history == result.history


def test_a_checkpoint_that_is_damaged_or_of_another_training_is_named_and_the_fold_begins_anew(
    trainer: Trainer, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def epochs(rows: pd.DataFrame) -> int:
        """Trained so far, after one more."""
        return len(trainer.train_fold(rows, 0, tmp_path, ShortClock(STEPS)).history)

    path = tmp_path / CHECKPOINT
    assert epochs(table) == 1
    path.write_bytes(path.read_bytes()[:-1000])
    assert epochs(table) == 1
    assert f"the checkpoint is not used: {path}: damaged" in talk(trainer)
    assert epochs(table.assign(cancer=table["cancer"].to_numpy()[::-1])) == 1
    assert f"{path}: of another configuration, other data" in talk(trainer)
    assert epochs(table) == 1
    monkeypatch.setattr(trainer, "config", with_overrides(trainer.config, ["train.devices=one"]))
    assert epochs(table) == 2  # does not concern the result
    monkeypatch.setattr(trainer, "config", with_overrides(trainer.config, ["train.label_smoothing=0.1"]))
    assert epochs(table) == 1


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import numpy as np
import pytest
from toy_learner import use_toys
from test_training_fit import CONFIG
from rsna_kit.config import with_overrides
from rsna_kit.data.shards import open_prepared
from rsna_kit.training import fit
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.events import Events
use_toys(pytest.MonkeyPatch())
fit.CHECKPOINT_S = 0.0
prepared = open_prepared(Path({prepared!r}))
table = prepared.table.assign(fold=np.arange(80) % 2)
config = with_overrides(CONFIG, ["train.ema=0.9"])
trainer = fit.Trainer(prepared, config, Events(stream=sys.stderr))
step = trainer._replicas.train_step
def shown(*batch):
    print("step", flush=True)
    return step(*batch)
trainer._replicas.train_step = shown
for name in {folders!r}:
    trainer.train_fold(table, 0, Path(name), Clock())
    np.savez(Path(name) / "end.npz", *[np.array(v) for v in trainer._variables])
"""


def test_a_process_killed_in_mid_epoch_resumes_bit_for_bit(prepared: Prepared, tmp_path: Path) -> None:
    """Averages, dropout and moving statistics go on, too."""
    killed, whole = str(tmp_path / "killed"), str(tmp_path / "whole")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}

    def start(*folders: str) -> subprocess.Popen[str]:
        code = RUN.format(tests=str(TESTS), prepared=str(prepared.root), folders=folders)
        command = [sys.executable, "-c", code]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    process = start(killed)
    assert process.stdout is not None
    for _ in range(STEPS + 4):  # in the second epoch
        assert process.stdout.readline() == "step\n", process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = start(killed, whole)
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert "fold 0: resumes at epoch 2, step" in said
    with np.load(tmp_path / "killed/end.npz") as one, np.load(tmp_path / "whole/end.npz") as other:
        assert len(one.files) > 20
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])


def test_averaged_weights_are_scored_and_kept_while_training_goes_on_with_its_own(
    make: Make, result: Fold, table: pd.DataFrame, tmp_path: Path
) -> None:
    averaged = make("train.ema=0.5")
    other = averaged.train_fold(table, 0, tmp_path, Clock())
    assert [row["loss"] for row in result.history] == [row["loss"] for row in other.history]
    assert [row["val_loss"] for row in result.history] != [row["val_loss"] for row in other.history]
    scores = kept_scores(tmp_path, other.scores, averaged.prepared)
    np.testing.assert_allclose(scores, other.scores["score"], atol=1e-5)


def test_mixed_precision_trains_and_its_weights_serve_float32(make: Make, table: pd.DataFrame, tmp_path: Path) -> None:
    import keras

    trainer = make("train.precision=mixed_float16", "train.epochs=2")
    assert keras.config.dtype_policy().name == "float32"
    assert trainer.model.layers[3].compute_dtype == "float16"
    assert {str(weight.dtype) for weight in trainer.model.weights} == {"float32"}
    result = trainer.train_fold(table, 0, tmp_path, Clock())
    assert all(math.isfinite(row["loss"]) for row in result.history)
    assert result.history[1]["loss"] < result.history[0]["loss"]
    scores = kept_scores(tmp_path, result.scores, trainer.prepared)
    np.testing.assert_allclose(scores, result.scores["score"], atol=0.03)


def test_the_smoke_preset_gives_the_figures_of_the_first_submission(
    prepared: Prepared, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of the code before optimisers, targets and kinds could be chosen: their defaults change nothing.

    Keras' schedule falls from its peak one step earlier than ours did: validation losses moved by up to 0.003.
    """
    from rsna_kit.training import learner

    monkeypatch.setattr("rsna_kit.training.fit.build_learner", learner.build_learner)
    config = with_overrides(preset("smoke"), [*SMALL, "train.epochs=3"])
    trainer = Trainer(prepared, config, Events(stream=io.StringIO()))
    result = trainer.train_fold(table, 0, tmp_path, Clock())
    assert [row["loss"] for row in result.history] == pytest.approx([0.375322, 0.16854, 0.144309], abs=2e-3)
    assert [row["val_loss"] for row in result.history] == pytest.approx([0.074938, 0.024826, 0.021039], abs=2e-3)
    # Trained on kept maps, scored as a whole: the network with the weights that were kept gives the same.
    pictures = np.stack([read_picture(prepared, image_id) for image_id in result.scores["image_id"]])[..., None]
    logits = trainer.model.predict_on_batch(pictures)[:, 0]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), result.scores["score"], atol=2e-3)
