from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_pictures import write_toys

from rsna_kit.config import preset, with_overrides
from rsna_kit.data.shards import Prepared, read_picture
from rsna_kit.models.classifier import build_classifier
from rsna_kit.models.training import FoldResult, Trainer, learning_rate_at
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.events import Events

pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.tf, pytest.mark.slow]

CONFIG = with_overrides(
    preset("smoke"),
    [
        "image.height=64",
        "image.width=32",
        "train.epochs=4",
        "train.batch_size=8",
        "infer.batch_size=16",
        "model.head=linear",
        "model.trunk=train",
        "data.augment=light",
    ],
)
STEPS = 6  # 32 healthy training images, 6 in a batch


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_toys(tmp_path_factory.mktemp("toys"), CONFIG.image, 80)


@pytest.fixture(scope="module")
def table(prepared: Prepared) -> pd.DataFrame:
    return prepared.table.assign(fold=np.arange(80) % 2)


@pytest.fixture(scope="module")
def trainer(prepared: Prepared, table: pd.DataFrame) -> Trainer:
    """One for all tests: tracing takes longer than everything else together."""
    labels = table.set_index("image_id")["cancer"]

    def evaluate(scores: pd.DataFrame) -> dict[str, float]:
        values, truth = scores["score"].to_numpy(), labels[scores["image_id"]].to_numpy()
        return {"roc_auc": float(np.mean(values[truth == 1][:, None] > values[truth == 0]))}

    return Trainer(prepared, CONFIG, Events(stream=io.StringIO()), evaluate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fold0")


@pytest.fixture(scope="module")
def result(trainer: Trainer, table: pd.DataFrame, folder: Path) -> FoldResult:
    return trainer.train_fold(table, 0, folder, Clock())


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
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "history.json", "model.weights.h5"]
    history = json.loads((folder / "history.json").read_text())
    assert history == result.history
    assert list(history[0]) == ["epoch", "loss", "val_loss", "val_roc_auc", "learning_rate", "seconds"]


def test_kept_weights_give_the_kept_scores(result: FoldResult, folder: Path, prepared: Prepared) -> None:
    """The correction to natural odds must be in the file, not only in the process."""
    model = build_classifier(CONFIG.model, CONFIG.image)
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


def test_a_loss_that_is_not_finite_says_where(
    trainer: Trainer, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = dataclasses.replace(CONFIG.train, learning_rate=1e38)
    monkeypatch.setattr(trainer, "_config", dataclasses.replace(CONFIG, train=train))
    with pytest.raises(RsnaKitError, match=r"fold 1, epoch 1, step \d of 6: the loss is (nan|inf).*learning_rate"):
        trainer.train_fold(table, 1, tmp_path, Clock())


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
    trainer.model.get_layer("logit").kernel.assign(np.zeros((1280, 1)))
    trainer._validate(state, 1, 0.5, 0.0)
    np.testing.assert_allclose(state.scores, 0.2, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"), [({"fold": 1}, "no validation images"), ({"cancer": 0}, "both classes")]
)
def test_a_fold_that_cannot_be_trained_is_refused(
    trainer: Trainer, table: pd.DataFrame, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    with pytest.raises(RsnaKitError, match=message):
        trainer.train_fold(table.assign(**change), 0, tmp_path, Clock())


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_at(step, 100, 1e-3, 0.1) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert max(rates) == 1e-3
    assert rates[-1] < 1e-6
    assert learning_rate_at(0, 100, 1e-3, 0.0) == 1e-3
