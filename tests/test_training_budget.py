"""A budget of hours: the epochs that fit, what is refused, what later sessions keep, and memory that runs out."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from toy_learner import use_toys
from toy_pictures import toy_table

from rsna_kit.config import Config, with_overrides
from rsna_kit.data.batches import TrainingSet
from rsna_kit.models.bundle import open_bundle
from rsna_kit.recipes.prepare import prepare
from rsna_kit.recipes.train import train
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import DeviceMemoryError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_json
from rsna_kit.training import budget
from rsna_kit.training.budget import Pace, fit_to
from rsna_kit.training.steps import Replicas

pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.tf, pytest.mark.slow]

TABLE = toy_table(80).assign(fold=np.arange(80) % 2)
PACE = Pace(
    loading_s=0.1, step_s=1.0, picture_s=0.1, save_s=1.0
)  # 6 steps, 40 pictures, twice the weights: 12 s an epoch of a fold


@pytest.fixture
def config(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    use_toys(monkeypatch, batch_norm=False)
    return tiny


def fitted(config: Config, left_s: float) -> tuple[int, float, str]:
    """Epochs and share of the healthy that fit into an hour of which so much is left, and what was said."""
    told = with_overrides(config, ["train.hours=1", "train.batch_size=8"])

    def training_set(table: pd.DataFrame, fold: int, config: Config) -> TrainingSet:
        return TrainingSet(None, table[table["fold"] != fold], config)  # type: ignore[arg-type]

    trainer: Any = SimpleNamespace(config=told, training_set=training_set)
    said = io.StringIO()
    found = fit_to(trainer, PACE, TABLE, [0, 1], left_s, Events(stream=said))
    return found.train.epochs, found.data.negatives, said.getvalue()


@pytest.mark.parametrize(
    ("left_s", "epochs", "negatives", "ends_s"),
    [
        (1000, 40, 1.0, 40 * 24 + 8),
        (200, 8, 0.9325, 8 * 22 + 8),  # 5 of 6 steps, so that the eighth epoch fits
        (45, 2, 0.4825, 2 * 18 + 8),  # 3 steps
    ],
)
def test_as_many_epochs_as_fit(config: Config, left_s: int, epochs: int, negatives: float, ends_s: int) -> None:
    found = fitted(config, left_s)
    assert found[:2] == (epochs, negatives)
    assert f"end after {(3600 - left_s + ends_s) // 60}:{(3600 - left_s + ends_s) % 60:02d}" in found[2]
    assert ends_s <= left_s


def test_a_budget_that_is_too_small_says_what_would_do(config: Config) -> None:
    """Two epochs of two folds: (2 * 24 + 8) / 0.98 = 57 s with all the healthy, 41 s with the fewest."""
    wanted = r"train.hours=1: getting ready took 59:30, .*train.hours=1.01 would do, or 1.01 with data.negatives=0.1"
    with pytest.raises(UsageError, match=wanted):
        fitted(config, 30)


@pytest.fixture
def prepared(phantom: Path, config: Config, tmp_path: Path, quiet: Events) -> Path:
    prepare(phantom, tmp_path / "prepared", config, quiet)
    return tmp_path / "prepared"


def test_a_plan_is_kept_for_the_folds_of_later_sessions(
    config: Config, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its folds are what a training with these epochs, set by hand, gives."""
    first_steps, asked = budget.first_steps, []

    def measured(*arguments: Any) -> Pace:
        first_steps(*arguments)
        asked.append(arguments[4])
        return PACE

    monkeypatch.setattr(budget, "first_steps", measured)
    monkeypatch.setattr(budget, "MEASURED_S", 0.1)
    monkeypatch.setattr(Clock, "elapsed_s", lambda clock: 3600 - 50.0)
    said, planned, hand = io.StringIO(), tmp_path / "planned", tmp_path / "hand"

    def run(out: Path, settings: list[str], folds: list[int]) -> None:
        train(prepared, out, with_overrides(config, settings), Events(stream=said), Clock(), folds=folds)

    run(planned, ["train.hours=1"], [0])
    run(planned, ["train.hours=9"], [1])
    decided = read_json(planned / "plan.json")["decided"]
    assert f"plan.json: goes on as planned, {', '.join(decided)}" in said.getvalue()
    run(hand, decided, [0, 1])
    assert asked == [3600, 0, 0]
    assert not list(planned.glob("first-steps*"))
    trained = [open_bundle(planned / f"bundles/fold{fold}").config.train for fold in (0, 1)]
    assert trained[0].epochs == trained[1].epochs > 2
    assert trained[0].precision == "float32"
    assert (planned / "oof.csv").read_bytes() == (hand / "oof.csv").read_bytes()
    (planned / "plan.json").write_text("{}")
    with pytest.raises(UsageError, match=r"plan.json: no plan of a training"):
        run(planned, [], [0, 1])


def test_the_folds_that_are_left_are_planned_by_the_pace_of_those_that_are_done(
    config: Config, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each is what a training with its epochs, set by hand, gives."""
    plans = iter([(3, [0, 1]), (2, [1])])

    def planned(trainer: Any, pace: Pace, table: pd.DataFrame, folds: list[int], *more: Any) -> Config:
        epochs, left = next(plans)
        assert folds == left
        assert pace.step_s > 0
        return with_overrides(trainer.config, [f"train.epochs={epochs}"])

    monkeypatch.setattr(budget, "fit_to", planned)
    monkeypatch.setattr(budget, "MEASURED_S", 0.1)
    told, quiet = with_overrides(config, ["train.hours=1"]), Events(stream=io.StringIO())
    for _ in range(2):  # the second time all is kept
        train(prepared, tmp_path / "out", told, quiet, Clock())
    assert "train.epochs=2" in read_json(tmp_path / "out/plan.json")["decided"]
    for fold, epochs in ((0, 3), (1, 2)):
        hand = tmp_path / f"hand{fold}"
        train(prepared, hand, with_overrides(config, [f"train.epochs={epochs}"]), quiet, Clock(), folds=[fold])
        scores = [(out / f"fold{fold}/validation.csv").read_bytes() for out in (tmp_path / "out", hand)]
        assert scores[0] == scores[1]


@pytest.mark.parametrize("needed", [2, 4])
def test_a_batch_that_memory_does_not_hold_is_computed_in_parts_once(
    config: Config, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: int
) -> None:
    """The order of the pictures and the result are what they are with these parts set by hand."""
    step, said = Replicas.train_step, io.StringIO()

    def small(replicas: Replicas, model: Any, images: Any, *batch: Any) -> Any:
        if replicas._config.train.accumulate < needed:
            raise DeviceMemoryError("the device has too little memory")
        return step(replicas, model, images, *batch)

    def run(out: Path, *settings: str) -> bytes:
        train(prepared, out, with_overrides(config, settings), Events(stream=said), Clock(), folds=[0])
        return (out / "oof.csv").read_bytes()

    monkeypatch.setattr(Replicas, "train_step", small)
    if needed == 4:
        with pytest.raises(DeviceMemoryError):
            run(tmp_path / "out")
        return
    assert run(tmp_path / "out") == run(tmp_path / "hand", "train.accumulate=2")
    assert "train.accumulate=2: each batch is computed in 2 parts, because the device" in said.getvalue()
    assert open_bundle(tmp_path / "out/bundles/fold0").config.train.accumulate == 2
