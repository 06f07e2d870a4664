"""A prepared folder and a fold to the best epoch's weights and its validation scores.

AdamW without decay on normalisation and biases; the learning rate warms up and falls as a cosine, per step; binary
cross-entropy from logits with label smoothing. Each batch holds more cancers than the population does
(`rsna_kit.data.sampling`), so the network learns odds that are too high by a known factor. Around every validation,
and in the weights kept, the head's bias is lowered by the logarithm of that factor (King and Zeng, Logistic
regression in rare events data, 2001): scores are then probabilities in the training population, which the mean over
folds and the prior of an unreadable image rely on. The order of the scores does not change.

Tracing the network takes 14 to 30 seconds, so one `Trainer` serves all folds of a process and returns to the same
starting state for each: a fold's result does not depend on the folds before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.config import Config
from rsna_kit.data.batches import Pictures, TrainingSet, picture_stream, training_stream
from rsna_kit.data.sampling import positives_per_batch
from rsna_kit.data.shards import Prepared
from rsna_kit.models.classifier import build_classifier, split_classifier
from rsna_kit.models.curves import draw_curves
from rsna_kit.models.features import FeatureMaps
from rsna_kit.models.weights import load_imagenet, save_weights
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.events import Events, Progress
from rsna_kit.runtime.files import write_json
from rsna_kit.runtime.lazy import require

WEIGHTS, HISTORY, CURVES = "model.weights.h5", "history.json", "curves.png"
Evaluate = Callable[[pd.DataFrame], Mapping[str, float]]


@dataclass(frozen=True)
class FoldResult:
    """What one fold gave.

    `scores` has `image_id`, `score` of the validation images, in table order, by the epoch that was kept.
    `stopped` says that the clock ended the training before the last epoch.
    """

    scores: pd.DataFrame
    history: list[dict[str, Any]]
    best_epoch: int
    minutes: float
    stopped: bool


@dataclass
class _Fold:
    """One fold while it is trained."""

    number: int
    training: TrainingSet
    validation: pd.DataFrame  # image_id, cancer
    odds_shift: float
    out: Path
    clock: Clock
    steps: int = 0  # in each epoch
    history: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, float] = (-math.inf, -math.inf)
    best_epoch: int = 0
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    validation_s: float = 0.0
    step_s: float = 0.0


class Trainer:
    """Trains folds one after the other with one compiled network.

    Args:
        prepared: the pictures.
        config: all sections but infer (of which only the batch size) are used.
        events: progress and one line per epoch go there.
        evaluate: image scores (`image_id`, `score`) to validation metrics, all better when higher.
        monitor: the metric that decides which epoch is kept; where there is no such number, the validation loss.
        clock: the time there is for what comes before the folds.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: Config,
        events: Events,
        evaluate: Evaluate | None = None,
        monitor: str = "roc_auc",
        clock: Clock | None = None,
    ) -> None:
        self._prepared, self._config, self._events = prepared, config, events
        self._evaluate, self._monitor = evaluate, monitor
        self._pictures = Pictures(prepared)
        keras = require("keras", "train")
        keras.utils.set_random_seed(config.train.seed)
        self.model = build_classifier(config.model, prepared.image)
        if config.model.weights == "imagenet":
            load_imagenet(self.model)
        # What learns: the whole network, or its head on maps that the frozen trunk gives once and for all.
        self._learner, self._maps = self.model, None
        if config.model.trunk == "frozen":
            trunk, head = split_classifier(self.model, config.model)
            if FeatureMaps.fit(trunk, len(prepared.table), config):
                self._learner = head
                ids = prepared.table["image_id"].tolist()
                self._maps = FeatureMaps(trunk, self._pictures, ids, config, events, clock or Clock())
        self._optimizer = _compile(self._learner, config)
        self._variables = [*self.model.variables, *self._optimizer.variables]
        self._start = [np.array(variable) for variable in self._variables]

    def train_fold(self, table: pd.DataFrame, fold: int, out: Path, clock: Clock) -> FoldResult:
        """Train on the rows whose `fold` is another, validate on the rest; keep the best epoch.

        `out` receives model.weights.h5 whenever an epoch is the best so far, history.json after every epoch and
        curves.png at the end. Afterwards `model` holds the weights that were kept. Training ends by itself when
        the clock leaves less than 1.3 epochs, and inside an epoch when it leaves just the time to validate.

        Args:
            table: columns image_id, cancer, fold; rows of `prepared.table`.
            fold: number of the validation fold.
            out: folder for the results.
            clock: the time this fold may take.

        Raises:
            RsnaKitError: the loss is no longer finite, or a class is missing among the training rows.
        """
        started = time.monotonic()
        state = self._begin(table, fold, out, clock)
        epochs = self._config.train.epochs
        with self._events.progress(state.steps * epochs, f"fold {fold}", "batches") as progress:
            for epoch in range(1, epochs + 1):
                begun = time.monotonic()
                loss, whole = self._train_epoch(state, epoch, progress)
                self._validate(state, epoch, loss, begun)
                seconds = state.steps * state.step_s + state.validation_s
                if epoch < epochs and (not whole or clock.remaining_s() < 1.3 * seconds):
                    self._events.say(f"fold {fold}: stopped by the clock after epoch {epoch} of {epochs}", kind="clock")
                    break
        draw_curves(state.history, state.best_epoch, out / CURVES)
        self.model.load_weights(str(out / WEIGHTS))
        scores = pd.DataFrame({"image_id": state.validation["image_id"].to_numpy(), "score": state.scores})
        minutes = (time.monotonic() - started) / 60
        return FoldResult(scores, state.history, state.best_epoch, minutes, stopped=not whole or epoch < epochs)

    def _begin(self, table: pd.DataFrame, fold: int, out: Path, clock: Clock) -> _Fold:
        """Return to the starting state, with the head's bias at the odds of a batch."""
        held = table["fold"] == fold
        rows, validation = table[~held], table.loc[held, ["image_id", "cancer"]]
        if validation.empty:
            raise RsnaKitError(f"fold {fold}: no validation images; folds are {sorted(table['fold'].unique())}")
        labels = rows["cancer"].to_numpy()
        size, share = self._config.train.batch_size, self._config.data.positive_share
        drawn, natural = positives_per_batch(labels, size, share) / size, float(np.mean(labels))
        for variable, value in zip(self._variables, self._start, strict=True):
            variable.assign(value)
        self.model.get_layer("logit").bias.assign([_log_odds(drawn)])
        out.mkdir(parents=True, exist_ok=True)
        training = TrainingSet(self._pictures, rows["image_id"].tolist(), labels, self._config)
        steps = len(training.plan(0)[0]) // size
        return _Fold(fold, training, validation, _log_odds(drawn) - _log_odds(natural), out, clock, steps)

    def _train_epoch(self, state: _Fold, epoch: int, progress: Progress) -> tuple[float, bool]:
        """Mean loss of the epoch, and whether it was whole."""
        train, loss = self._config.train, math.nan
        self._learner.reset_metrics()
        stream = training_stream if self._maps is None else self._maps.training_stream
        begun, note = time.monotonic(), f"epoch {epoch}/{train.epochs}"
        for step, (images, labels, weights) in enumerate(stream(state.training, epoch)):
            total = state.steps * train.epochs
            rate = learning_rate_at((epoch - 1) * state.steps + step, total, train.learning_rate, train.warmup_share)
            self._optimizer.learning_rate = rate
            logs = self._learner.train_on_batch(images, labels, sample_weight=weights, return_dict=True)
            loss = float(logs["loss"])  # mean since the epoch began
            if not math.isfinite(loss):
                raise RsnaKitError(
                    f"fold {state.number}, epoch {epoch}, step {step + 1} of {state.steps}: the loss is {loss}, "
                    f"expected a finite number. Lower train.learning_rate (now {train.learning_rate:g})."
                )
            progress.advance(1, f"{note} loss {loss:.3f}")
            if step == 0:
                begun = time.monotonic()  # the first step of a process traces the network
            else:
                state.step_s = (time.monotonic() - begun) / step
            left, known = state.clock.remaining_s(), state.validation_s
            reserve = known or 10 + state.step_s * len(state.validation) / train.batch_size
            if left < 1.3 * reserve and step + 1 < state.steps:
                return loss, False
        return loss, True

    def _validate(self, state: _Fold, epoch: int, loss: float, begun: float) -> None:
        """Score the validation images; keep weights and scores when they are the best so far."""
        validating = time.monotonic()
        with _natural_odds(self.model, state.odds_shift):
            logits = self._predict(state.validation["image_id"].tolist())
            state.validation_s = time.monotonic() - validating
            scores = 1.0 / (1.0 + np.exp(-logits))
            val_loss = _cross_entropy(logits, state.validation["cancer"].to_numpy())
            frame = pd.DataFrame({"image_id": state.validation["image_id"].to_numpy(), "score": scores})
            metrics = self._evaluate(frame) if self._evaluate else {}
            monitored = float(metrics.get(self._monitor, math.nan))
            key = (monitored if math.isfinite(monitored) else -math.inf, -val_loss)
            if not state.history or key > state.best or self._config.train.keep == "last":
                state.best, state.best_epoch, state.scores = key, epoch, scores
                save_weights(self.model, state.out / WEIGHTS)
        row: dict[str, Any] = {"epoch": epoch, "loss": loss, "val_loss": val_loss}
        row |= {f"val_{name}": float(value) for name, value in metrics.items()}
        row |= {"learning_rate": float(self._optimizer.learning_rate), "seconds": time.monotonic() - begun}
        row = {name: (None if not math.isfinite(value) else round(value, 6)) for name, value in row.items()}
        state.history.append(row)
        write_json(state.out / HISTORY, state.history)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in row.items() if "loss" in name or "val_" in name)
        kept = " (kept)" if state.best_epoch == epoch else ""
        line = f"fold {state.number} epoch {epoch}/{self._config.train.epochs}: {shown}{kept}"
        self._events.say(line, kind="epoch", fold=state.number, **row)

    def _predict(self, image_ids: list[str]) -> np.ndarray:
        """Logits float64 (N,); the last batch is padded, so that one shape is traced."""
        size = self._config.infer.batch_size
        logits = []
        stream = (
            picture_stream(self._pictures, image_ids, size)
            if self._maps is None
            else self._maps.stream(image_ids, size)
        )
        for inputs in stream:
            batch = np.asarray(inputs)
            padded = np.zeros((size, *batch.shape[1:]), batch.dtype)
            padded[: len(batch)] = batch
            logits.append(np.asarray(self._learner.predict_on_batch(padded), np.float64)[: len(batch), 0])
        return np.concatenate(logits)


def learning_rate_at(step: int, total: int, peak: float, warmup_share: float) -> float:
    """Linear warm-up to `peak`, then a cosine that would reach 0 at step `total`.

    Example:
        >>> [round(learning_rate_at(step, 10, 1.0, 0.2), 3) for step in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.038]
    """
    warmup = round(warmup_share * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def _compile(model: Any, config: Config) -> Any:
    keras = require("keras", "train")
    optimizer = keras.optimizers.AdamW(config.train.learning_rate, weight_decay=config.train.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    optimizer.build(model.trainable_variables)
    loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=config.train.label_smoothing)
    model.compile(optimizer=optimizer, loss=loss)
    return optimizer


@contextmanager
def _natural_odds(model: Any, shift: float) -> Iterator[None]:
    """Lower the head's bias by `shift` while validating and saving."""
    bias = model.get_layer("logit").bias
    learned = np.array(bias)
    bias.assign(learned - shift)
    try:
        yield
    finally:
        bias.assign(learned)


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, logits) - logits * labels))
