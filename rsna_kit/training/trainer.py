"""A prepared folder and a fold → the best epoch's weights and its validation scores; goes on where it was killed.

The learning rate warms up and falls as a cosine, per step. Each batch holds more cancers than the population does
(`rsna_kit.data.sampling`), so the network learns odds that are too high by a known factor. Around every validation,
and in the weights kept, the head's bias is lowered by the logarithm of that factor (King and Zeng, Logistic
regression in rare events data, 2001): scores are then probabilities in the training population, which the mean over
folds and the prior of an unreadable image rely on. The order of the scores does not change.

Tracing the network takes 14 to 30 seconds, so one `Trainer` serves all folds of a process and returns to the same
starting state for each: a fold's result does not depend on the folds before it, nor on how often it was interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.config import Config
from rsna_kit.data.batches import Pictures, make_training_set, picture_stream, training_stream
from rsna_kit.data.shards import Prepared
from rsna_kit.models.bundle import save_weights
from rsna_kit.models.network import dtype_policy
from rsna_kit.models.starts import load_start
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.events import Events, Progress
from rsna_kit.runtime.files import write_json
from rsna_kit.runtime.lazy import require
from rsna_kit.training.checkpoint import training_fingerprint
from rsna_kit.training.curves import draw_curves
from rsna_kit.training.features import FeatureMaps
from rsna_kit.training.fold import CURVES, HISTORY, WEIGHTS, Fold, FoldResult, score_frame
from rsna_kit.training.guard import check_fold, enough_memory, says_nothing
from rsna_kit.training.learner import build_learner
from rsna_kit.training.mixing import build_mixer
from rsna_kit.training.optimisers import WeightAverage, build_optimizer, learning_rate_at
from rsna_kit.training.replicas import Replicas

Evaluate = Callable[[pd.DataFrame], Mapping[str, float]]


class Trainer:
    """Trains folds one after the other with one compiled network.

    Args:
        prepared: the pictures.
        config: all sections but infer (of which only the batch size) are used.
        events: progress and one line per epoch go there.
        evaluate: image scores (as in `FoldResult`) to validation metrics, all better when higher.
        monitor: the metric that decides which epoch is kept; where there is no such number, the validation loss.
        clock: the time there is for what comes before the folds.
        weights: folders in which starting weights are looked for.

    `model` is the network, `start` the provenance of its starting weights, empty for random ones.
    """

    def __init__(
        self, prepared: Prepared, config: Config, events: Events, evaluate: Evaluate | None = None,
        monitor: str = "roc_auc", clock: Clock | None = None, weights: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        self._prepared, self._config, self._events = prepared, config, events
        self._evaluate, self._monitor = evaluate, monitor
        self._pictures = Pictures(prepared)
        self._mixer = build_mixer(config.data, config.train.seed, config.model.kind)
        self._replicas = Replicas(config.train.devices, config.train.batch_size, events)
        with self._replicas.scope(), dtype_policy(config.train.precision):
            require("keras", "train").utils.set_random_seed(config.train.seed)
            self._learner = build_learner(config, prepared.image)
            self.model = self._learner.network
            self.start = load_start(self.model, config.model, weights)
            self._choose_models(clock or Clock())
            self._optimizer = build_optimizer(self._trained, config.train, self._replicas.count)
            self._trained.compile(optimizer=self._optimizer, loss=self._learner.loss, auto_scale_loss=False)
        held = [*self.model.variables, *self._trained.variables, *self._optimizer.variables]
        self._variables = list({id(variable): variable for variable in held}.values())
        self._average = WeightAverage(self._trained, config.train.ema) if config.train.ema else None
        self._start = [np.array(variable) for variable in self._variables]

    def _choose_models(self, clock: Clock) -> None:
        """What learns and what scores: the whole network, or its head on maps that the frozen trunk gives once."""
        self._trained, self._scored, self._maps = self._learner.trained, self.model, None
        if self._learner.maps and self._learner.halves is not None:
            halves = self._learner.halves()
            if FeatureMaps.fit(halves.trunk, len(self._prepared.table), self._config):
                self._trained, self._scored = halves.trained, halves.scored
                ids = self._prepared.table["image_id"].tolist()
                size = self._config.infer.batch_size
                with enough_memory(self._config, self.model, "infer.batch_size", size, "feature maps"):
                    self._maps = FeatureMaps(halves.trunk, self._pictures, ids, self._config, self._events, clock)

    def train_fold(self, table: pd.DataFrame, fold: int, out: Path, clock: Clock) -> FoldResult:
        """Train on the rows whose `fold` is another, validate on the rest; keep the best epoch.

        `out` receives model.weights.h5 whenever an epoch is the best so far, history.json after every epoch,
        checkpoint.npz after every epoch and every `train.checkpoint_minutes`, and curves.png at the end. A checkpoint
        of the same training that is there is gone on from: same batches, same random numbers, same result. It is left
        for the caller to remove when what this returns is safe. Afterwards `model` holds the weights that were kept.
        Training ends by itself when the clock leaves less than 1.3 epochs, and inside an epoch when it leaves just
        the time to validate; the checkpoint is then the one of that moment, so that a later call goes on there.

        Args:
            table: columns image_id, cancer, fold, and what the kind of model needs; rows of `prepared.table`.
            fold: number of the validation fold.
            out: folder for the results.
            clock: the time this fold may take.

        Raises:
            RsnaKitError: the loss is no longer finite or has grown beyond recovery, a batch of constant images, a class
                is missing among the training or validation rows, or the device's memory is too small.
        """
        state = self._begin(table, fold, out, clock)
        self._resume(state)
        epochs, whole = self._config.train.epochs, True
        left = state.training.steps * (epochs + 1 - state.epoch) - state.step
        with self._events.progress(left, f"fold {fold}", "batches") as progress:
            while state.epoch <= epochs:
                begun = time.monotonic() - state.epoch_s
                loss, whole = self._train_epoch(state, progress, begun)
                if not whole:  # the validation of half an epoch is none that a later run should know of
                    state.save(self._groups(), begun, self._events)
                self._validate(state, loss, begun)
                if whole:
                    state.epoch, state.step, state.epoch_s = state.epoch + 1, 0, 0.0
                    state.save(self._groups(), time.monotonic(), self._events)
                seconds = state.training.steps * state.step_s + state.validation_s + state.save_s
                if not whole or (state.epoch <= epochs and clock.remaining_s() < 1.3 * seconds):
                    done = len(state.history)
                    self._events.say(f"fold {fold}: stopped by the clock after epoch {done} of {epochs}", kind="clock")
                    break
        draw_curves(state.history, state.best_epoch, out / CURVES)
        _assign(self.model.weights, state.kept)
        minutes = (state.spent_s + time.monotonic() - state.begun) / 60
        stopped = not whole or state.epoch <= epochs
        scores = score_frame(state.validation["image_id"], state.outputs)
        return FoldResult(scores, state.history, state.best_epoch, minutes, stopped)

    def _begin(self, table: pd.DataFrame, fold: int, out: Path, clock: Clock) -> Fold:
        """Return to the starting state, with the head's bias at the odds of a batch."""
        check_fold(table, fold, self._config.model.kind)
        held = table["fold"] == fold
        training = make_training_set(self._pictures, table[~held], self._config)
        for note in training.notes:
            self._events.say(f"fold {fold}: {note}")
        _assign(self._variables, self._start)
        if self._learner.shift:
            self.model.get_layer("logit").bias.assign([training.log_odds])
        if self._average:
            self._average.start()
        out.mkdir(parents=True, exist_ok=True)
        data = self._prepared.data_fingerprint
        fingerprint = training_fingerprint(self._config, data, table, fold, self.start)
        return Fold(fold, training, table.loc[held, ["image_id", "cancer"]], out, clock, fingerprint)

    def _groups(self) -> dict[str, list[np.ndarray]]:
        """Every array that the rest of the training depends on."""
        return {
            "variables": [np.array(variable) for variable in self._variables],
            "metrics": [np.array(variable) for variable in self._trained.metrics_variables],
            "averages": self._average.arrays() if self._average else [],
        }

    def _resume(self, state: Fold) -> None:
        """Go on from the checkpoint, if there is one of this training."""
        found = state.load(self._groups(), self._events)
        if found is None:
            return
        if state.kept:  # an epoch that the checkpoint does not know may have been kept since
            _assign(self.model.weights, state.kept)
            save_weights(self.model, state.out / WEIGHTS)
        _assign(self._variables, found["variables"])
        _assign(self._trained.metrics_variables, found["metrics"])
        if self._average:
            self._average.load(found["averages"])

    def _train_epoch(self, state: Fold, progress: Progress, epoch_begun: float) -> tuple[float, bool]:
        """Mean loss of the epoch, and whether it was whole."""
        train, steps, loss = self._config.train, state.training.steps, math.nan
        if state.step == 0:
            self._trained.reset_metrics()
        first, begun, total = state.step, time.monotonic(), steps * train.epochs
        stream = training_stream if self._maps is None else self._maps.training_stream
        for images, targets, weights in stream(state.training, state.epoch, first):
            done = (state.epoch - 1) * steps + state.step
            rate = learning_rate_at(done, total, train.learning_rate, train.warmup_share)
            self._optimizer.learning_rate = rate
            self._learner.progress(done / total)
            if says_nothing(images):
                raise state.error(rate, "all its images are constant. Prepare them again, or take them out")
            if self._mixer:
                images, targets, weights = self._mixer(images, targets, weights, done)
            with enough_memory(self._config, self.model, "train.batch_size", train.batch_size, f"fold {state.number}"):
                loss = self._replicas.train_step(self._trained, images, targets, weights)
            if complaint := state.guard.complaint(loss, state.step + 1):
                half = "" if train.precision == "float32" else ", or train.precision=float32"
                raise state.error(rate, f"{complaint}. Lower train.learning_rate or set train.clip_norm=1{half}")
            if self._average:
                self._average.update(done)
            state.step += 1
            progress.advance(1, f"epoch {state.epoch}/{train.epochs} loss {loss:.3f}")
            if state.step == first + 1:
                begun = time.monotonic()  # the first step of a process traces the network
            else:
                state.step_s = (time.monotonic() - begun) / (state.step - first - 1)
            left, known = state.clock.remaining_s(), state.validation_s
            reserve = known or 10 + state.step_s * len(state.validation) / train.batch_size
            if left < 1.3 * (reserve + state.save_s) and state.step < steps:
                return loss, False
            if time.monotonic() - state.saved >= 60 * train.checkpoint_minutes and state.step < steps:
                state.save(self._groups(), epoch_begun, self._events)
        return loss, True

    def _validate(self, state: Fold, loss: float, begun: float) -> None:
        """Score the validation images; keep weights and scores when they are the best so far."""
        validating = time.monotonic()
        with self._as_scored(state):
            if self._learner.calibrate:
                ids = [image_id for example in state.training.examples for image_id in example]
                self._learner.calibrate(lambda wanted: self._predict(wanted)[:, 0], ids)
            outputs = self._predict(state.validation["image_id"].tolist())
            state.validation_s = time.monotonic() - validating
            val_loss = _cross_entropy(outputs[:, 0], state.validation["cancer"].to_numpy())
            frame = score_frame(state.validation["image_id"], outputs)
            metrics = self._evaluate(frame) if self._evaluate else {}
            monitored = float(metrics.get(self._monitor, math.nan))
            key = (monitored if math.isfinite(monitored) else -math.inf, -val_loss)
            if not state.history or key > state.best or self._config.train.keep == "last":
                state.best, state.best_epoch, state.outputs = key, state.epoch, outputs
                state.kept = [np.array(weight) for weight in self.model.weights]
                save_weights(self.model, state.out / WEIGHTS)
        row: dict[str, Any] = {"epoch": state.epoch, "loss": loss, "val_loss": val_loss}
        row |= {f"val_{name}": float(value) for name, value in metrics.items()}
        row |= {"learning_rate": float(np.array(self._optimizer.learning_rate)), "seconds": time.monotonic() - begun}
        row = {name: (None if not math.isfinite(value) else round(value, 6)) for name, value in row.items()}
        state.history.append(row)
        write_json(state.out / HISTORY, state.history)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in row.items() if "loss" in name or "val_" in name)
        kept = " (kept)" if state.best_epoch == state.epoch else ""
        line = f"fold {state.number} epoch {state.epoch}/{self._config.train.epochs}: {shown}{kept}"
        self._events.say(line, kind="epoch", fold=state.number, **row)

    @contextmanager
    def _as_scored(self, state: Fold) -> Iterator[None]:
        """The network as it is validated and kept: averaged weights, and the head's bias at natural odds."""
        with ExitStack() as stack:
            if self._average:
                stack.enter_context(self._average.applied())
            if self._learner.shift:
                bias = self.model.get_layer("logit").bias
                learned = np.array(bias)
                bias.assign(learned - state.training.odds_shift)
                stack.callback(bias.assign, learned)
            yield

    def _predict(self, image_ids: Sequence[str]) -> np.ndarray:
        """Outputs of the network, float64 (N, 1) or (N, 2)."""
        size = self._config.infer.batch_size
        stream = (
            picture_stream(self._pictures, image_ids, size)
            if self._maps is None
            else self._maps.stream(image_ids, size)
        )
        with enough_memory(self._config, self.model, "infer.batch_size", size, "validation"):
            return self._replicas.predict(self._scored, stream, size)


def _assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, logits) - logits * labels))
