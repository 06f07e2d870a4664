"""Hours → epochs and a share of the healthy pictures: what all folds that were asked for can do inside them.

A machine that others share changes its pace, so what is left of the hours is planned anew after every fold.
`plan.json` beside the bundles holds what was decided last, so that a run that goes on, and further folds in later
sessions, are trained so: epochs, share of the healthy, precision.
"""

from __future__ import annotations

import bisect
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from rsna_kit.config import Config, from_dict, to_dict, with_overrides
from rsna_kit.data.batches import training_stream
from rsna_kit.runtime.clock import Clock, format_duration
from rsna_kit.runtime.errors import DeviceMemoryError, UsageError, one_line
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_json, write_json
from rsna_kit.runtime.hardware import cpu_count
from rsna_kit.training.checkpoint import decisive
from rsna_kit.training.cvae import CALIBRATION_PICTURES
from rsna_kit.training.fit import Fold, Trainer
from rsna_kit.training.steps import settle_precision

PLAN = "plan.json"
FEWEST_EPOCHS = 2
LEAST_NEGATIVES = 0.1  # share of the healthy in an epoch that a budget never goes below by itself
FINE_EPOCHS = 20  # from so many on one epoch more or less is at most 5 % of the budget
MEASURED_SHARE, MEASURED_S, MEASURED_STEPS = 0.03, 90.0, 8  # of the budget, at most so long, at least so many
FOLD_S = 4.0  # a fold's bundle and curves
MARGIN = 0.98  # of what is left is planned with


@dataclass(frozen=True)
class Pace:
    """What was measured on this machine, in seconds; 0 for what was not.

    `loading_s`: a picture of the input pipeline, alone. `step_s`: a step. `picture_s`: a picture of a validation.
    `save_s`: writing all weights.
    """

    loading_s: float
    step_s: float = 0.0
    picture_s: float = 0.0
    save_s: float = 0.0


def recall(out: Path, config: Config, events: Events) -> tuple[Config, bool]:
    """The configuration with what an earlier session decided for `out`, and whether there was one.

    Without one, `train.precision=auto` becomes what it comes to on this machine.

    Raises:
        UsageError: a plan that cannot be read.
    """
    path = out / PLAN
    if path.is_file():
        try:
            plan = read_json(path)
            alike, decided = decisive(from_dict(plan["asked"])) == decisive(config), plan["decided"]
        except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            raise UsageError(f"{path}: no plan of a training ({error}). Remove it to plan anew") from error
        if alike:
            events.say(f"{path}: goes on as planned, {', '.join(decided)}")
            return with_overrides(config, decided), True
    return settle_precision(config, events.say), False


def remember(out: Path, asked: Config, planned: Config) -> None:
    """Write what was decided about a configuration."""
    keys = (("train", "epochs"), ("data", "negatives"), ("train", "precision"))
    decided = [f"{section}.{key}={getattr(getattr(planned, section), key)}" for section, key in keys]
    write_json(out / PLAN, {"asked": to_dict(decisive(asked)), "decided": decided})


def ready_trainer(
    make: Callable[[Config], Trainer],
    config: Config,
    table: pd.DataFrame,
    folds: Sequence[int],
    out: Path,
    clock: Clock,
    events: Events,
    planned: bool,
) -> Trainer:
    """A trainer whose first step fits into the device's memory and whose epochs fit into `train.hours`.

    Where memory runs out, each batch is computed in twice as many parts, once.

    Args:
        make: a trainer of a configuration.
        config: `train.hours` is counted from the clock's beginning.
        table: as `Trainer.train_fold` takes it.
        folds: those that are to be trained.
        out: the run's folder; nothing of what is tried stays in it.
        clock: of the run.
        events: told what was found and decided.
        planned: the epochs are decided already.

    Raises:
        DeviceMemoryError: parts do not help.
        UsageError: two epochs of all folds do not fit into `train.hours`; says what would.
    """
    budget_s, why = 0.0 if planned else config.train.hours * 3600, ""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix="first-steps-") as tried:
        trainer = make(config)
        try:
            pace = first_steps(trainer, table, folds[0], Path(tried), budget_s, events)
        except DeviceMemoryError as error:
            parts, why = 2 * config.train.accumulate, one_line(error)
            if config.train.batch_size % parts:
                raise
        if why:
            events.say(f"train.accumulate={parts}: each batch is computed in {parts} parts, because {why}")
            del trainer  # and what it holds of the device's memory
            trainer = make(replace(config, train=replace(config.train, accumulate=parts)))
            pace = first_steps(trainer, table, folds[0], Path(tried), budget_s, events)
    if budget_s:
        trainer.config = fit_to(trainer, pace, table, folds, budget_s - clock.elapsed_s(), events)
    return trainer


def fit_again(
    trainer: Trainer, done: Fold, table: pd.DataFrame, folds: Sequence[int], clock: Clock, events: Events
) -> Config:
    """As `fit_to`, for folds that are left, by the pace of one that is done; where it is late, as they were planned."""
    epoch_s = sum(row["seconds"] for row in done.history) / len(done.history)
    step_s = max(epoch_s - done.validation_s, 0) / done.training.steps
    pace = Pace(0.0, step_s, done.validation_s / len(done.validation), done.save_s)
    try:
        left_s = trainer.config.train.hours * 3600 - clock.elapsed_s()
        return fit_to(trainer, pace, table, folds, left_s, events)
    except UsageError:
        return trainer.config


def first_steps(trainer: Trainer, table: pd.DataFrame, fold: int, out: Path, budget_s: float, events: Events) -> Pace:
    """Do a fold's first step, and where there is a budget measure more of them; nothing of it is kept.

    The input pipeline is measured alone. Then steps, and pictures of the validation, are done twice, and the second
    time counts: in the first functions are traced, and pictures decoded where all of them are kept.

    Args:
        trainer: what trains; `train_fold` returns it to its starting state.
        table: as `Trainer.train_fold` takes it.
        fold: number of the fold.
        out: a folder for what is written to see how long it takes.
        budget_s: a share of it is spent; 0 for none.
        events: gets the pictures a second of the input pipeline.

    Raises:
        DeviceMemoryError: the device has too little memory for a step.
    """
    state, config = trainer.begin(table, fold, out, Clock()), trainer.config
    began = time.monotonic()
    count = sum(len(batch[0]) for batch in itertools.islice(training_stream(state.training, 1), MEASURED_STEPS))
    loading_s = (time.monotonic() - began) / count
    events.say(f"input pipeline: {1 / loading_s:.1f} pictures a second, alone, on {cpu_count()} cores", kind="pipeline")

    def steps(least: int, least_s: float) -> tuple[int, float]:
        began, count = time.monotonic(), 0
        epochs = (training_stream(state.training, epoch) for epoch in itertools.count(1))
        for count, batch in enumerate(itertools.chain.from_iterable(epochs), 1):
            trainer.learn(state, batch)
            if count >= least:
                float(state.losses[-1])  # a GPU may have been given more than it has done
                if time.monotonic() - began >= least_s:
                    break
        return count, time.monotonic() - began

    if not budget_s:
        steps(1, 0.0)
        return Pace(loading_s)
    count, _ = steps(MEASURED_STEPS, min(MEASURED_SHARE * budget_s, MEASURED_S))
    count, seconds = steps(count, 0.0)
    ids = state.validation["image_id"].tolist()[: 4 * config.infer.batch_size]
    for _ in range(2):
        began = time.monotonic()
        trainer.predict(ids)
        picture_s = (time.monotonic() - began) / len(ids)
    state.losses.clear()
    trainer.save(state)
    return Pace(loading_s, seconds / count, picture_s, state.save_s)


def fit_to(
    trainer: Trainer, pace: Pace, table: pd.DataFrame, folds: Sequence[int], left_s: float, events: Events
) -> Config:
    """The trainer's configuration with as many epochs as fit into the budget.

    Where fewer than `FINE_EPOCHS` fit, one more is taken than fits whole and fewer of the healthy are drawn for each,
    if that uses more of the budget; two epochs are the least.

    Args:
        trainer: its configuration's `train.hours` is the budget.
        pace: of this machine.
        table: as `Trainer.train_fold` takes it.
        folds: those that are to be trained.
        left_s: seconds that are left of the budget.
        events: told the plan.

    Raises:
        UsageError: two epochs of all folds do not fit; says what would.
    """
    config = trainer.config

    def epoch_s(negatives: float, fold: int) -> float:
        data = replace(config.data, negatives=negatives)
        training = trainer.training_set(table, fold, replace(config, data=data))
        scored = int((table["fold"] == fold).sum()) + CALIBRATION_PICTURES * (config.model.kind == "cvae")
        return training.steps * pace.step_s + scored * pace.picture_s + 2 * pace.save_s

    def once_s(negatives: float) -> float:
        return sum(epoch_s(negatives, fold) for fold in folds)

    asked, spare_s = config.data.negatives, MARGIN * left_s - FOLD_S * len(folds)
    negatives, least = asked, min(asked, LEAST_NEGATIVES)
    epochs = math.floor(spare_s / once_s(asked))
    if epochs < FINE_EPOCHS:
        wanted = max(epochs + 1, FEWEST_EPOCHS)
        shares = [least + (asked - least) * step / 40 for step in range(41)]
        fitting = bisect.bisect_right(shares, spare_s / wanted, key=once_s) - 1
        more = wanted * once_s(shares[max(fitting, 0)]) > epochs * once_s(asked) and shares[fitting] > asked / 2
        if fitting >= 0 and (epochs < FEWEST_EPOCHS or more):
            epochs, negatives = wanted, round(shares[fitting], 4)
    used_s = config.train.hours * 3600 - left_s
    if epochs < FEWEST_EPOCHS:
        need = [used_s + (FEWEST_EPOCHS * once_s(share) + FOLD_S * len(folds)) / MARGIN for share in (asked, least)]
        enough = [math.ceil(seconds / 36) / 100 for seconds in need]
        raise UsageError(
            f"train.hours={config.train.hours:g}: getting ready took {format_duration(used_s)}, and {FEWEST_EPOCHS} "
            f"epochs of {len(folds)} folds do not fit into the rest (a step takes {pace.step_s:.3g} s, a picture of "
            f"validation {pace.picture_s:.3g} s). train.hours={enough[0]:g} would do, or {enough[1]:g} with "
            f"data.negatives={least:g}; or train fewer folds (--fold), smaller pictures or a smaller backbone"
        )
    ends_s = used_s + epochs * once_s(negatives) + FOLD_S * len(folds)
    events.say(
        f"budget of {format_duration(config.train.hours * 3600)}, {format_duration(used_s)} of it used: a step takes "
        f"{pace.step_s:.3g} s, a picture of validation {pace.picture_s:.3g} s, so {epochs} epochs of {len(folds)} "
        f"folds with data.negatives={negatives:g} end after {format_duration(ends_s)}",
        kind="budget",
        epochs=epochs,
        negatives=negatives,
        **asdict(pace),
    )
    data, train = replace(config.data, negatives=negatives), replace(config.train, epochs=epochs)
    return replace(config, data=data, train=train)
