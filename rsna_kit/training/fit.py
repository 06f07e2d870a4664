"""A prepared folder and a fold → the best epoch's weights and its validation scores; goes on where it was killed.

The learning rate warms up and falls as a cosine, per step. Each batch holds more cancers than the population does
(`rsna_kit.data.sampling`), so the network learns odds that are too high by a known factor. Around every validation,
and in the weights kept, the head's bias is lowered by the logarithm of that factor (King and Zeng, Logistic
regression in rare events data, 2001): scores are then probabilities in the training population, which the mean over
folds and the prior of an unreadable image rely on. The order of the scores does not change.

Tracing the network takes 14 to 30 seconds, so one `Trainer` serves all folds of a process and returns to the same
starting state for each: a fold's result does not depend on the folds before it, nor on how often it was interrupted.
The loop is our own because Keras' `fit` with `BackupAndRestore` repeats the epoch in which it was killed. It reads the
losses every `READ_EVERY` steps: a GPU that is asked after each would wait for the next batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.config import Config
from rsna_kit.data.batches import Batch, Examples, Pictures, TrainingSet, picture_stream, training_stream
from rsna_kit.data.shards import Prepared
from rsna_kit.models.network import dtype_policy
from rsna_kit.models.starts import load_start
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import BundleError, RsnaKitError
from rsna_kit.runtime.events import Events, Progress
from rsna_kit.runtime.files import write_json
from rsna_kit.runtime.lazy import require
from rsna_kit.training.checkpoint import load_checkpoint, other_versions, save_checkpoint, training_fingerprint
from rsna_kit.training.export import save_weights
from rsna_kit.training.features import FeatureMaps, fits
from rsna_kit.training.fold import SAVED, Fold, score_frame
from rsna_kit.training.learner import build_learner
from rsna_kit.training.steps import (
    Replicas,
    assign_values,
    build_optimizer,
    build_schedule,
    read_values,
    settle_precision,
)

WEIGHTS, HISTORY, CHECKPOINT = "model.weights.h5", "history.json", "checkpoint.npz"
READ_EVERY = 16  # steps
CHECKPOINT_S = 600.0  # a run that is killed loses at most this
MONITOR = "roc_auc"  # decides which epoch is kept; where there is no such number, the validation loss
Evaluate = Callable[[pd.DataFrame], Mapping[str, float]]
TrainStep = Callable[[Any, np.ndarray, np.ndarray, np.ndarray], Any]


class Trainer:
    """Trains folds one after the other with one compiled network.

    Args:
        prepared: the pictures.
        config: all sections but infer (of which only the batch size) are used.
        events: progress and one line per epoch go there.
        evaluate: image scores (as `Fold.scores`) to validation metrics, all better when higher.
        clock: the time there is for what comes before the folds.
        weights: folders in which starting weights are looked for.
        step: does the step of a batch in the place of Keras' own, on one device.

    `model` is the network, `start` the provenance of its starting weights, empty for random ones, `prepared` what was
    given, `config` the same with the precision that `auto` came to.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: Config,
        events: Events,
        evaluate: Evaluate = lambda scores: {},
        clock: Clock | None = None,
        weights: Sequence[Path] = (),
        step: TrainStep | None = None,
    ) -> None:
        config = settle_precision(config, events.say)
        self.prepared, self.config, self._events, self._evaluate = prepared, config, events, evaluate
        self._pictures: Examples = Pictures(prepared, config.data.augment)
        alone = replace(config, train=replace(config.train, devices="one", accumulate=1))
        self._replicas = Replicas(alone if step else config, events)
        self._step = step
        with self._replicas.scope(), dtype_policy(config.train.precision):
            require("keras", "train").utils.set_random_seed(config.train.seed)
            self._learner = build_learner(config, prepared.image)
            self.model = self._learner.network
            self.start = load_start(self.model, config.model, weights)
            self._trained, self._scored = self._learner.trained, self.model
            if self._learner.halves is not None:  # then the head learns on maps that the frozen trunk gives once
                trunk, scored, trained = self._learner.halves()
                ids, give = prepared.table["image_id"].tolist(), partial(self._replicas.predict, trunk)
                if fits(shape := trunk.output.shape[1:], len(ids), config.data.augment):
                    self._scored, self._trained = scored, trained
                    self._pictures = FeatureMaps(give, shape, self._pictures, ids, config, events, clock or Clock())
            self._optimizer = build_optimizer(self._trained, config.train, self._replicas.count)
            self._trained.compile(optimizer=self._optimizer, loss=self._learner.loss, auto_scale_loss=False)
        held = [*self.model.variables, *self._trained.variables, *self._optimizer.variables]
        self._variables = list({id(variable): variable for variable in held}.values())
        self._start = read_values(self._variables)

    def train_fold(self, table: pd.DataFrame, fold: int, out: Path, clock: Clock) -> Fold:
        """Train on the rows whose `fold` is another, validate on the rest; keep the best epoch.

        `out` receives model.weights.h5 whenever an epoch is the best so far, history.json after every epoch, and
        checkpoint.npz after every epoch and every ten minutes. A checkpoint of the same training that is there is gone
        on from: same batches, same random numbers, same result. It is left for the caller to remove when what this
        returns is safe. Afterwards `model` holds the weights that were kept. Training ends by itself when the clock
        leaves less than 1.3 epochs, and inside an epoch when it leaves just the time to validate; the checkpoint is
        then the one of that moment, so that a later call goes on there.

        Args:
            table: columns image_id, cancer, fold, and what the kind of model needs; rows of `prepared.table`.
            fold: number of the validation fold.
            out: folder for the results.
            clock: the time this fold may take.

        Raises:
            RsnaKitError: the loss is no longer finite, the training rows are of one class, or the device's memory is
                too small.
        """
        state = self.begin(table, fold, out, clock)
        self._resume(state)
        epochs, steps = self.config.train.epochs, state.training.steps
        with self._events.progress(steps * epochs - len(state.losses), f"fold {fold}", "batches") as progress:
            while state.epoch <= epochs and not state.stopped:
                begun = time.monotonic()
                state.stopped = not self._train_epoch(state, progress)
                if state.stopped:  # the validation of half an epoch is none that a later run should know of
                    self.save(state)
                self._validate(state, begun)
                if not state.stopped:
                    self.save(state)
                    ahead_s = steps * state.step_s + state.validation_s + state.save_s
                    state.stopped = state.epoch <= epochs and clock.remaining_s() < 1.3 * ahead_s
        if state.stopped:
            self._events.say(f"fold {fold}: stopped by the clock after epoch {state.epoch - 1} of {epochs}")
        assign_values(self.model.weights, state.kept)
        return state

    def training_set(self, table: pd.DataFrame, fold: int, config: Config) -> TrainingSet:
        """What the fold learns from."""
        return TrainingSet(self._pictures, table[table["fold"] != fold], config)

    def begin(self, table: pd.DataFrame, fold: int, out: Path, clock: Clock) -> Fold:
        """Return to the starting state, with the head's bias at the odds of a batch."""
        held = table["fold"] == fold
        training = self.training_set(table, fold, self.config)
        for note in training.notes:
            self._events.say(f"fold {fold}: {note}")
        assign_values(self._variables, self._start)
        if self._learner.shift:
            bias = self.model.get_layer("logit").bias  # a start's own is at natural odds
            bias.assign(np.array(bias) + training.odds_shift if self.start.get("head") else [training.log_odds])
        out.mkdir(parents=True, exist_ok=True)
        rate = build_schedule(self.config.train.learning_rate, training.steps * self.config.train.epochs)
        fingerprint = training_fingerprint(self.config, self.prepared.data_fingerprint, table, fold, self.start)
        return Fold(fold, training, table.loc[held, ["image_id", "cancer"]], out, clock, fingerprint, rate)

    def save(self, state: Fold) -> None:
        """Write every array that the rest of the training depends on, and what is known of it."""
        self._read(state)
        began, path = time.monotonic(), state.out / CHECKPOINT
        groups = {"variables": read_values(self._variables), "outputs": [state.outputs], "kept": state.kept}
        fields = {name: getattr(state, name) for name in SAVED}
        size = save_checkpoint(path, state.fingerprint, groups, fields)
        if state.losses and not state.save_s:
            self._events.say(f"fold {state.number}: checkpoint of {size / 1e6:.1f} MB, {path}")
        state.saved = time.monotonic()
        state.save_s = state.saved - began

    def _resume(self, state: Fold) -> None:
        """Go on from the checkpoint, if there is one of this training; one that cannot be used is named and left."""
        path, number = state.out / CHECKPOINT, state.number
        if not path.exists():
            return
        try:
            groups, fields = load_checkpoint(path, state.fingerprint, {"variables": self._start})
        except BundleError as error:
            self._events.say(f"fold {number}: begins anew, the checkpoint is not used: {error}")
            return
        for name in SAVED:
            setattr(state, name, fields[name])
        state.read = len(state.losses)
        state.outputs, state.kept = groups["outputs"][0], groups["kept"]
        if state.kept:  # an epoch that the checkpoint does not know may have been kept since
            assign_values(self.model.weights, state.kept)
            save_weights(self.model, state.out / WEIGHTS)
        assign_values(self._variables, groups["variables"])
        if other := other_versions(fields):
            self._events.say(f"fold {number}: {other}")
        where = f"epoch {state.epoch}, step {state.step + 1} of {state.training.steps}"
        self._events.say(f"fold {number}: resumes at {where}")

    def _train_epoch(self, state: Fold, progress: Progress) -> bool:
        """Train to the end of the epoch; False when the clock ends it before."""
        train, steps, first = self.config.train, state.training.steps, state.step
        begun = time.monotonic()
        for batch in training_stream(state.training, state.epoch, first):
            done = len(state.losses) + 1
            self.learn(state, batch)
            last = state.step == steps
            if done % READ_EVERY == 0 or last or state.step - first == 1:
                self._read(state)
                state.step_s = (time.monotonic() - begun) / (state.step - first)
            progress.advance(1, f"epoch {state.epoch}/{train.epochs} loss {state.losses[state.read - 1]:.3f}")
            reserve = state.validation_s or 10 + state.step_s * len(state.validation) / train.batch_size
            if state.clock.remaining_s() < 1.3 * (reserve + state.save_s) and not last:
                self._read(state)
                return False
            if time.monotonic() - state.saved >= CHECKPOINT_S and not last:
                self.save(state)
        return True

    def learn(self, state: Fold, batch: Batch) -> None:
        """One step; its loss, which may still be on its way, is the last of `state.losses`."""
        done = len(state.losses)
        self._optimizer.learning_rate = state.rate(done)
        self._learner.progress(done / (state.training.steps * self.config.train.epochs))
        state.losses.append((self._step or self._replicas.train_step)(self._trained, *batch))

    def _read(self, state: Fold) -> None:
        """Wait for the losses that are on their way, and see that they are finite."""
        for number in range(state.read, len(state.losses)):
            state.losses[number] = loss = float(state.losses[number])
            if not math.isfinite(loss):
                raise self._error(state, number, loss)
        state.read = len(state.losses)

    def _validate(self, state: Fold, begun: float) -> None:
        """Score the validation images; keep weights and scores when they are the best so far."""
        validating, epoch = time.monotonic(), state.epoch
        with self._as_scored(state):
            if self._learner.calibrate:
                ids = [image_id for example in state.training.examples for image_id in example]
                self._learner.calibrate(lambda wanted: self.predict(wanted)[:, 0], ids)
            outputs = self.predict(state.validation["image_id"].tolist())
            state.validation_s = time.monotonic() - validating
            labels = state.validation["cancer"].to_numpy()
            val_loss = float(np.mean(np.logaddexp(0, outputs[:, 0]) - outputs[:, 0] * labels))
            metrics = self._evaluate(score_frame(state.validation, outputs))
            monitored = float(metrics.get(MONITOR, math.nan))
            key = [monitored if math.isfinite(monitored) else -math.inf, -val_loss]
            if not state.history or key > list(state.best) or self.config.train.keep == "last":
                state.best, state.best_epoch, state.outputs = key, epoch, outputs
                state.kept = read_values(self.model.weights)
                save_weights(self.model, state.out / WEIGHTS)
        row = {"epoch": epoch, "loss": float(np.mean(state.losses[-state.step :])), "val_loss": val_loss}
        row |= {f"val_{name}": float(value) for name, value in metrics.items()}
        row |= {"learning_rate": float(np.array(self._optimizer.learning_rate)), "seconds": time.monotonic() - begun}
        rounded = {name: (None if not math.isfinite(value) else round(value, 6)) for name, value in row.items()}
        state.history.append(rounded)
        write_json(state.out / HISTORY, state.history)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in row.items() if "loss" in name or "val_" in name)
        line = f"fold {state.number} epoch {epoch}/{self.config.train.epochs}: {shown}"
        self._events.say(line + " (kept)" * (state.best_epoch == epoch), kind="epoch", fold=state.number, **rounded)

    @contextmanager
    def _as_scored(self, state: Fold) -> Iterator[None]:
        """The network as it is validated and kept: averaged weights, and the head's bias at natural odds."""
        with ExitStack() as stack:
            if self.config.train.ema:
                learned = self._trained.trainable_variables
                stack.callback(assign_values, learned, read_values(learned))
                self._optimizer.finalize_variable_values(learned)  # Keras' word for putting the averages in their place
                assign_values(learned, read_values(learned))  # as copies: JAX's next step uses up what it is given
            if self._learner.shift:
                bias = self.model.get_layer("logit").bias
                stack.callback(bias.assign, value := np.array(bias))
                bias.assign(value - state.training.odds_shift)
            yield

    def predict(self, image_ids: Sequence[str]) -> np.ndarray:
        """Outputs of the network, float64 (N, 1) or (N, 2)."""
        stream = picture_stream(self._pictures, image_ids, self.config.infer.batch_size)
        return np.concatenate([self._replicas.predict(self._scored, batch) for batch in stream], dtype=np.float64)

    def _error(self, state: Fold, number: int, loss: float) -> RsnaKitError:
        """An error that names the batch it happened in, the one of this number."""
        training, step = state.training, number - len(state.history) * state.training.steps
        part = slice(step * training.batch_size, (step + 1) * training.batch_size)
        batch = zip(*(values[part] for values in training.plan(state.epoch)), strict=True)
        ids = ", ".join(image_id for position, seed in batch for image_id, _ in training.views(position, seed))
        half = "" if self.config.train.precision == "float32" else ", or train.precision=float32"
        return RsnaKitError(
            f"fold {state.number}, epoch {state.epoch}, step {step + 1} of {training.steps}: the loss is {loss}, "
            f"expected a finite number. The learning rate was {state.rate(number):.3g}: lower train.learning_rate or "
            f"set train.clip_norm=1{half}. The images of the batch: {ids}."
        )
