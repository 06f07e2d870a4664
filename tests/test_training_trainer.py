"""A fold is trained, resumed, stopped and refused; what comes out does not depend on how often it was interrupted."""

from __future__ import annotations

import gc
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
from rsna_kit.training.fold import CHECKPOINT, FoldResult
from rsna_kit.training.guard import LossGuard, device_bytes, picture_bytes, says_nothing
from rsna_kit.training.trainer import Trainer
from toy_learner import toy_learner, use_toys
from toy_pictures import write_toys

from rsna_kit.config import Config, with_overrides
from rsna_kit.data.shards import Prepared, read_picture
from rsna_kit.presets import preset
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.events import Events

pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.tf, pytest.mark.slow]

TESTS = Path(__file__).parent
CONFIG = with_overrides(
    preset("smoke"),
    [
        "image.height=64",
        "image.width=32",
        "train.epochs=4",
        "train.batch_size=8",
        "train.learning_rate=1e-2",
        "infer.batch_size=16",
        "model.weights=none",
        "model.trunk=train",
    ],
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

    def made(*settings: str, config: Config = CONFIG) -> Trainer:
        return Trainer(prepared, with_overrides(config, settings), Events(stream=io.StringIO()), evaluate)

    return made


@pytest.fixture(scope="module")
def trainer(make: Make) -> Trainer:
    return make()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fold0")


@pytest.fixture(scope="module")
def result(trainer: Trainer, table: pd.DataFrame, folder: Path) -> FoldResult:
    return trainer.train_fold(table, 0, folder, Clock())


def without_time(result: FoldResult) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in result.history]


def arrays(trainer: Trainer) -> list[np.ndarray]:
    return [np.array(variable) for variable in trainer._variables]


def talk(trainer: Trainer) -> str:
    stream = trainer._events.stream
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


class ShortClock(Clock):
    """Has time for so many questions, then none."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self.questions = questions

    def remaining_s(self) -> float:
        self.questions -= 1
        return math.inf if self.questions >= 0 else 0.0


def test_it_learns_and_keeps_the_best_epoch(result: FoldResult) -> None:
    values = [row["val_roc_auc"] for row in result.history]
    assert len(values) == 4
    assert values[result.best_epoch - 1] == max(values) > 0.9
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert not result.stopped


def test_scores_are_those_of_the_validation_rows_in_table_order(result: FoldResult, table: pd.DataFrame) -> None:
    assert list(result.scores["image_id"]) == list(table.loc[table["fold"] == 0, "image_id"])
    assert result.scores["score"].between(0, 1).all()


def test_history_and_curves_are_written(result: FoldResult, folder: Path) -> None:
    names = ["checkpoint.npz", "curves.png", "history.json", "model.weights.h5"]
    assert sorted(path.name for path in folder.iterdir()) == names
    history = json.loads((folder / "history.json").read_text())
    assert history == result.history
    assert list(history[0]) == ["epoch", "loss", "val_loss", "val_roc_auc", "learning_rate", "seconds"]


def test_kept_weights_give_the_kept_scores(result: FoldResult, folder: Path, prepared: Prepared) -> None:
    """The correction to natural odds must be in the file, not only in the process."""
    model = toy_learner(CONFIG, CONFIG.image).network
    model.load_weights(str(folder / "model.weights.h5"))
    pictures = np.stack([read_picture(prepared, image_id) for image_id in result.scores["image_id"]])[..., None]
    logits = np.asarray(model(pictures, training=False))[:, 0]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), result.scores["score"], atol=1e-5)


def test_a_fold_does_not_depend_on_the_folds_before_it(
    trainer: Trainer, result: FoldResult, table: pd.DataFrame, tmp_path: Path
) -> None:
    """The network, its optimizer and its random numbers return to where they began."""
    trainer.train_fold(table, 1, tmp_path / "between", ShortClock(STEPS))
    again = trainer.train_fold(table, 0, tmp_path / "again", Clock())
    np.testing.assert_allclose(again.scores["score"], result.scores["score"], atol=1e-6)
    assert again.best_epoch == result.best_epoch


def test_the_clock_ends_training_between_epochs(trainer: Trainer, table: pd.DataFrame, tmp_path: Path) -> None:
    result = trainer.train_fold(table, 0, tmp_path, ShortClock(STEPS))
    assert (len(result.history), result.best_epoch, result.stopped) == (1, 1, True)
    assert (tmp_path / "model.weights.h5").is_file()


def test_the_clock_ends_training_inside_an_epoch(trainer: Trainer, table: pd.DataFrame, tmp_path: Path) -> None:
    result = trainer.train_fold(table, 0, tmp_path, ShortClock(STEPS + 1 + 2))
    assert (len(result.history), result.stopped) == (2, True)
    assert np.isfinite(result.scores["score"]).all()


def test_a_loss_that_is_not_finite_says_where(make: Make, table: pd.DataFrame, tmp_path: Path) -> None:
    trainer = make("train.learning_rate=1e38")
    where = r"fold 1, epoch 1, step (\d) of 6: the loss is (nan|inf).*learning_rate.*The images of the batch: (.*)\."
    with pytest.raises(RsnaKitError, match=where) as raised:
        trainer.train_fold(table, 1, tmp_path, Clock())
    ids = str(raised.value).partition("of the batch: ")[2].rstrip(".").split(", ")
    assert len(ids) == 8
    assert set(ids) <= set(table.loc[table["fold"] == 0, "image_id"])
    assert "train.precision" not in str(raised.value)
    with pytest.raises(RsnaKitError, match=r"set train\.clip_norm=1, or train\.precision=float32 \(the learning rate"):
        make("train.learning_rate=1e38", "train.precision=mixed_bfloat16").train_fold(table, 1, tmp_path, Clock())


def test_without_metrics_the_validation_loss_decides(
    trainer: Trainer, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_evaluate", None)
    history = (result := trainer.train_fold(table, 1, tmp_path, Clock())).history
    losses = [row["val_loss"] for row in history]
    assert losses[result.best_epoch - 1] == min(losses)


def test_scores_are_on_the_scale_of_the_population(trainer: Trainer, table: pd.DataFrame, tmp_path: Path) -> None:
    """A network that has learned nothing scores the share of cancers in the table, not the share in a batch."""
    state = trainer._begin(table, 0, tmp_path, Clock())
    trainer.model.get_layer("logit").kernel.assign(np.zeros((16, 1)))
    trainer._validate(state, 0.5, 0.0)
    np.testing.assert_allclose(1 / (1 + np.exp(-state.outputs)), 0.2, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": 1}, "fold 0: no validation images"),
        ({"cancer": 0}, "fold 0: 0 of 40 training images have cancer, expected both classes"),
        ({"cancer": [int(number % 2 == 0) for number in range(80)]}, "0 of 40 training images"),
        ({"cancer": [int(number % 4 == 1) for number in range(80)]}, "0 of 40 validation images"),
    ],
)
def test_a_fold_that_cannot_be_trained_is_refused(
    trainer: Trainer, table: pd.DataFrame, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RsnaKitError, match=message):
        trainer.train_fold(table.assign(**change), 0, tmp_path, Clock())


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


def test_a_killed_fold_ends_as_if_nothing_had_happened(
    make: Make, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first step, between two epochs and inside one; EMA, dropout and moving statistics go on too."""
    trainer = make("train.checkpoint_minutes=0", "train.ema=0.9", "train.epochs=3")
    whole = trainer.train_fold(table, 0, tmp_path / "whole", Clock())
    expected = arrays(trainer)
    for step in (1, STEPS + 1, 2 * STEPS + 4):
        folder = tmp_path / f"killed{step}"
        with monkeypatch.context() as patch:
            kill_at(trainer, patch, step)
            with pytest.raises(KilledError):
                trainer.train_fold(table, 0, folder, Clock())
        trainer.train_fold(table, 1, tmp_path / f"other{step}", ShortClock(2))
        again = trainer.train_fold(table, 0, folder, Clock())
        assert without_time(again) == without_time(whole)
        assert again.scores.equals(whole.scores)
        for one, other in zip(arrays(trainer), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        where = f"resumes at epoch {1 + (step - 1) // STEPS}, step {1 + (step - 1) % STEPS} of 6"
        assert (where in talk(trainer)) == (step > 1)


def test_a_fold_that_the_clock_stopped_goes_on_where_it_was(
    trainer: Trainer, result: FoldResult, table: pd.DataFrame, tmp_path: Path
) -> None:
    """The half epoch that was validated for the first session is none in the second."""
    first = trainer.train_fold(table, 0, tmp_path, ShortClock(STEPS + 1 + 2))
    assert (first.stopped, len(first.history)) == (True, 2)
    again = trainer.train_fold(table, 0, tmp_path, Clock())
    assert not again.stopped
    assert without_time(again) == without_time(result)
    assert again.scores.equals(result.scores)


def test_a_finished_fold_is_not_trained_again(
    trainer: Trainer, result: FoldResult, table: pd.DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KilledError before its bundle was written: the checkpoint holds all of the result."""
    kill_at(trainer, monkeypatch, 1)
    again = trainer.train_fold(table, 0, folder, Clock())
    assert again.scores.equals(result.scores)
    assert again.history == result.history


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (damage, "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "damaged or no checkpoint"),
        (lambda path: path.write_bytes(b""), "damaged or no checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_fold_begins_anew(
    trainer: Trainer, table: pd.DataFrame, tmp_path: Path, harm: Callable[[Path], None], reason: str
) -> None:
    trainer.train_fold(table, 0, tmp_path, ShortClock(STEPS))
    harm(tmp_path / CHECKPOINT)
    again = trainer.train_fold(table, 0, tmp_path, ShortClock(STEPS))
    assert len(again.history) == 1
    line = [line for line in talk(trainer).splitlines() if "checkpoint is not used" in line][-1]
    assert reason in line
    assert str(tmp_path / CHECKPOINT) in line


def test_a_checkpoint_of_another_training_is_not_used(
    trainer: Trainer, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.train_fold(table, 0, tmp_path, ShortClock(STEPS))
    relabelled = table.assign(cancer=table["cancer"].to_numpy()[::-1])
    assert len(trainer.train_fold(relabelled, 0, tmp_path, ShortClock(STEPS)).history) == 1
    assert f"{tmp_path / CHECKPOINT}: of another configuration, other data" in talk(trainer)
    trainer.train_fold(table, 0, tmp_path, ShortClock(STEPS))
    monkeypatch.setattr(trainer, "_config", with_overrides(CONFIG, ["train.checkpoint_minutes=1", "train.epochs=4"]))
    assert len(trainer.train_fold(table, 0, tmp_path, ShortClock(STEPS)).history) == 2  # does not concern the result
    monkeypatch.setattr(trainer, "_config", with_overrides(CONFIG, ["train.label_smoothing=0.1"]))
    assert len(trainer.train_fold(table, 0, tmp_path, ShortClock(STEPS)).history) == 1


RUN = """
import io, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import numpy as np
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
from toy_learner import use_toys
from test_training_trainer import CONFIG
from rsna_kit.config import with_overrides
from rsna_kit.data.shards import open_prepared
from rsna_kit.training import trainer
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.events import Events
import pytest
patch = pytest.MonkeyPatch()
use_toys(patch)
prepared = open_prepared(Path({prepared!r}))
table = prepared.table.assign(fold=np.arange(80) % 2)
config = with_overrides(CONFIG, ["train.checkpoint_minutes=0", "data.augment=light"])
trainer = trainer.Trainer(prepared, config, Events(stream=sys.stderr))
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
    assert (tmp_path / "killed" / CHECKPOINT).is_file()
    assert not (tmp_path / "killed" / "curves.png").exists()
    again = start(killed, whole)
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert "fold 0: resumes at epoch 2, step" in said
    with np.load(tmp_path / "killed/end.npz") as one, np.load(tmp_path / "whole/end.npz") as other:
        assert len(one.files) > 20
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_loss_that_grows_beyond_recovery_is_stopped(make: Make, table: pd.DataFrame, tmp_path: Path) -> None:
    """What was kept before stays, and so does the checkpoint."""
    trainer = make("train.optimizer=sgd", "train.learning_rate=3000", "train.warmup_share=1", "train.epochs=8")
    with pytest.raises(RsnaKitError, match=r"the loss (has grown to .* the first 10 had|is (nan|inf)).*clip_norm"):
        trainer.train_fold(table, 0, tmp_path, Clock())


def test_a_batch_of_constant_images_is_refused(
    trainer: Trainer, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_pictures", Constant(trainer._pictures.shape))
    with pytest.raises(RsnaKitError, match=r"fold 0, epoch 1, step 1 of 6: all its images are constant.*\d{5}, \d{5}"):
        trainer.train_fold(table, 0, tmp_path, Clock())


class Constant:
    """Pictures that show nothing."""

    failure = None

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def __getitem__(self, image_id: str) -> np.ndarray:
        return np.full(self.shape[:2], int(image_id) % 256, np.uint8)


@pytest.mark.parametrize("device", ["tensorflow", "jax"])
def test_too_little_memory_says_what_would_fit(
    trainer: Trainer, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    import tensorflow as tf

    raised = {
        "tensorflow": tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
        "jax": RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345 bytes."),
    }

    def train_step(*batch: Any) -> float:
        raise raised[device]

    monkeypatch.setattr(trainer._replicas, "train_step", train_step)
    wanted = r"train.batch_size=8 pictures of 64x32 .*float32.*GiB for each.*--set train.batch_size=4.*mixed_float16"
    with pytest.raises(RsnaKitError, match=wanted):
        trainer.train_fold(table, 0, tmp_path, Clock())


def test_another_error_of_the_device_stays_what_it_is(
    trainer: Trainer, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_step(*batch: Any) -> float:
        raise RuntimeError("INTERNAL: something else")

    monkeypatch.setattr(trainer._replicas, "train_step", train_step)
    with pytest.raises(RuntimeError, match="something else"):
        trainer.train_fold(table, 0, tmp_path, Clock())


def test_steps_leave_nothing_behind(trainer: Trainer, table: pd.DataFrame, tmp_path: Path) -> None:
    """Neither graphs nor arrays grow with the number of steps; benchmarks/training_memory.py watches the process."""
    import tensorflow as tf

    trainer.train_fold(table, 0, tmp_path / "first", Clock())

    def living() -> int:
        gc.collect()
        return sum(isinstance(thing, tf.Tensor | tf.Variable) for thing in gc.get_objects())

    before = living()
    trainer.train_fold(table, 0, tmp_path / "second", Clock())
    assert living() <= before + 5


def test_averaged_weights_are_scored_and_kept_while_training_goes_on_with_its_own(
    make: Make, result: FoldResult, table: pd.DataFrame, tmp_path: Path
) -> None:
    one, averaged = result, make("train.ema=0.5")
    other = averaged.train_fold(table, 0, tmp_path / "averaged", Clock())
    assert [row["loss"] for row in one.history] == [row["loss"] for row in other.history]
    assert [row["val_loss"] for row in one.history] != [row["val_loss"] for row in other.history]
    network = toy_learner(CONFIG, CONFIG.image).network
    network.load_weights(str(tmp_path / "averaged" / "model.weights.h5"))
    pictures = np.stack([read_picture(averaged._prepared, name) for name in other.scores["image_id"]])[..., None]
    logits = np.asarray(network(pictures, training=False))[:, 0]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), other.scores["score"], atol=1e-5)


def test_mixed_precision_trains_and_its_weights_serve_float32(make: Make, table: pd.DataFrame, tmp_path: Path) -> None:
    import keras

    trainer = make("train.precision=mixed_float16", "train.epochs=2")
    assert keras.config.dtype_policy().name == "float32"
    assert trainer.model.layers[3].compute_dtype == "float16"
    assert {str(weight.dtype) for weight in trainer.model.weights} == {"float32"}
    result = trainer.train_fold(table, 0, tmp_path, Clock())
    assert all(math.isfinite(row["loss"]) for row in result.history)
    assert result.history[1]["loss"] < result.history[0]["loss"]
    network = toy_learner(CONFIG, CONFIG.image).network
    network.load_weights(str(tmp_path / "model.weights.h5"))
    pictures = np.stack([read_picture(trainer._prepared, name) for name in result.scores["image_id"]])[..., None]
    logits = np.asarray(network(pictures, training=False))[:, 0]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), result.scores["score"], atol=0.03)


def test_batches_are_mixed_when_asked(make: Make, table: pd.DataFrame, tmp_path: Path) -> None:
    trainer, steps = make("data.mix=mixup", "data.mix_share=1", "train.epochs=2"), []
    mixer = trainer._mixer
    assert mixer is not None

    def seen(images: Any, targets: Any, weights: Any, step: int) -> tuple[Any, Any, Any]:
        steps.append(step)
        return mixer(images, targets, weights, step)

    trainer._mixer = seen
    trainer.train_fold(table, 0, tmp_path, Clock())
    assert steps == list(range(2 * STEPS))


def test_the_smoke_preset_gives_the_figures_of_the_first_submission(
    prepared: Prepared, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of the code before optimisers, targets and kinds could be chosen: their defaults change nothing."""
    from rsna_kit.training import learner

    monkeypatch.setattr("rsna_kit.training.trainer.build_learner", learner.build_learner)
    small = ["image.height=64", "image.width=32", "train.epochs=3", "train.batch_size=8", "infer.batch_size=16"]
    trainer = Trainer(prepared, with_overrides(preset("smoke"), small), Events(stream=io.StringIO()))
    history = trainer.train_fold(table, 0, tmp_path, Clock()).history
    assert [row["loss"] for row in history] == pytest.approx([0.375322, 0.16854, 0.144309], abs=2e-3)
    assert [row["val_loss"] for row in history] == pytest.approx([0.073971, 0.021501, 0.018967], abs=2e-3)


def complaints(losses: list[float], steps: int = 100) -> list[str]:
    """What the guard says of each batch, told the running mean of its epoch as Keras tells it."""
    guard, found = LossGuard(), []
    for number, loss in enumerate(losses):
        epoch = [*losses[number - number % steps : number], loss]
        found.append(guard.complaint(sum(epoch) / len(epoch), len(epoch)))
    return found


def test_the_guard_tells_a_spike_from_a_divergence() -> None:
    assert not any(complaints([0.7] * 30 + [60.0] + [0.5] * 30))
    assert not any(complaints([500.0] * 30 + [9000.0] * 30))  # an autoencoder's are large from the start
    assert not any(complaints([0.01] * 150 + [3.0] * 150))  # from a good start, and still a loss one can have
    found = complaints([0.7] * 130 + [25.0] * 30)
    assert next(number for number, text in enumerate(found) if text) == 130 + 7  # 8 of 10 bring the mean beyond 20
    assert found[137] == "the loss has grown to 20.14, mean of 10 batches; the first 10 had 0.7"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_the_guard_sees_the_first_loss_that_is_not_finite(loss: float) -> None:
    assert complaints([0.7, 0.6, loss])[1:] == ["", f"the loss is {loss}, expected a finite number"]


def test_a_batch_says_something_when_one_pixel_does() -> None:
    batch = np.zeros((4, 64, 32, 1), np.uint8)
    assert says_nothing(batch)
    assert says_nothing(batch + np.arange(4, dtype=np.uint8)[:, None, None, None])  # each another grey
    assert says_nothing(np.tile(np.arange(64.0).reshape(1, 8, 8, 1), (4, 1, 1, 1)))  # maps of constant pictures
    for place in (0, 5, 2047):
        batch[:] = 0
        batch[2].reshape(-1)[place] = 1
        assert not says_nothing(batch)


def test_the_memory_of_a_picture_is_that_of_all_outputs() -> None:
    """64 x 32 and scaled, 16 x 8 pooled, and so on: 2 * 2048 + 128 + 128 * (8 + 8 + 16 + 16) + 16 + 16 + 1 numbers."""
    network = toy_learner(CONFIG, CONFIG.image).network
    assert picture_bytes(network, 4) == 4 * (2 * 2048 + 128 + 128 * 48 + 33)
    import tensorflow as tf

    assert (device_bytes() is None) == (not tf.config.list_logical_devices("GPU"))
