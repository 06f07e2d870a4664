"""A fold in training → what is known of it, saved so that a killed training goes on, and what came out of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.data.batches import TrainingSet
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import BundleError, RsnaKitError
from rsna_kit.runtime.events import Events
from rsna_kit.training.checkpoint import Groups, load_checkpoint, save_checkpoint
from rsna_kit.training.guard import LossGuard, batch_ids

WEIGHTS, HISTORY, CURVES, CHECKPOINT = "model.weights.h5", "history.json", "curves.png", "checkpoint.npz"
_SAVED = ("epoch", "step", "history", "best_epoch", "validation_s")  # of the fields below, as they are


@dataclass(frozen=True)
class FoldResult:
    """What one fold gave.

    `scores` has `image_id`, `score` (and `attention`, a logit, of breast-level models) of the validation images, in
    table order, by the epoch that was kept. `minutes` counts those before an interruption too. `stopped` says that the
    clock ended the training before the last epoch.
    """

    scores: pd.DataFrame
    history: list[dict[str, Any]]
    best_epoch: int
    minutes: float
    stopped: bool


@dataclass
class Fold:
    """One fold while it is trained. `epoch` is the one in training, `step` how many of its batches are done."""

    number: int
    training: TrainingSet
    validation: pd.DataFrame  # image_id, cancer
    out: Path
    clock: Clock
    fingerprint: str
    epoch: int = 1
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, float] = (-math.inf, -math.inf)
    best_epoch: int = 0
    outputs: np.ndarray = field(default_factory=lambda: np.empty((0, 1)))  # of the network, in the best epoch
    kept: list[np.ndarray] = field(default_factory=list)  # the network's weights then
    validation_s: float = 0.0
    step_s: float = 0.0
    save_s: float = 0.0
    epoch_s: float = 0.0  # spent on this epoch before an interruption
    spent_s: float = 0.0  # spent on the fold before an interruption
    begun: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    guard: LossGuard = field(default_factory=LossGuard)

    def save(self, groups: Groups, epoch_begun: float, events: Events) -> None:
        """Write the checkpoint.

        Args:
            groups: every array that the rest of the training depends on.
            epoch_begun: when the epoch began, by time.monotonic().
            events: told its size once.
        """
        began, path = time.monotonic(), self.out / CHECKPOINT
        fields = {name: getattr(self, name) for name in _SAVED}
        fields |= {"best": self.best, "first_losses": self.guard.first}
        fields |= {"epoch_s": began - epoch_begun, "spent_s": self.spent_s + began - self.begun}
        groups = {**groups, "kept": self.kept, "outputs": [self.outputs]}
        size = save_checkpoint(path, self.fingerprint, groups, fields)
        self.saved = time.monotonic()
        if not self.save_s:
            events.say(f"fold {self.number}: checkpoint of {size / 1e6:.1f} MB, {path}")
        self.save_s = self.saved - began
        events.record("checkpoint", fold=self.number, epoch=self.epoch, step=self.step, bytes=size)

    def load(self, like: Groups, events: Events) -> dict[str, list[np.ndarray]] | None:
        """Take up the checkpoint, if there is one of this training; one that cannot be used is named and passed over.

        Args:
            like: see `load_checkpoint`.
            events: told what is done.

        Returns:
            The groups of arrays that were saved, or None.
        """
        path = self.out / CHECKPOINT
        if not path.exists():
            return None
        try:
            found = load_checkpoint(path, self.fingerprint, like)
        except BundleError as error:
            events.say(
                f"fold {self.number}: begins anew, the checkpoint is not used: {error}", kind="checkpoint_refused"
            )
            return None
        for name in (*_SAVED, "epoch_s", "spent_s"):
            setattr(self, name, found.fields[name])
        self.best, self.guard = tuple(found.fields["best"]), LossGuard(found.fields["first_losses"])
        self.kept, self.outputs = found.groups["kept"], found.groups["outputs"][0]
        where = f"epoch {self.epoch}, step {self.step + 1} of {self.training.steps}"
        events.say(f"fold {self.number}: resumes at {where}", kind="resume", fold=self.number)
        return found.groups

    def error(self, learning_rate: float, complaint: str) -> RsnaKitError:
        """An error that names the batch it happened in."""
        ids = ", ".join(batch_ids(self.training, self.epoch, self.step))
        kept = f" The best epoch so far, {self.best_epoch}, is in {self.out / WEIGHTS}." if self.best_epoch else ""
        return RsnaKitError(
            f"fold {self.number}, epoch {self.epoch}, step {self.step + 1} of {self.training.steps}: {complaint} "
            f"(the learning rate was {learning_rate:.3g}). The images of the batch: {ids}.{kept}"
        )


def score_frame(image_ids: pd.Series, outputs: np.ndarray) -> pd.DataFrame:
    """Door 8: `image_id`, `score` in [0, 1], and `attention` where the network gives one.

    Args:
        image_ids: N ids.
        outputs: of the network, float64 (N, 1) or (N, 2): logit, attention.
    """
    with np.errstate(over="ignore"):
        scores = 1.0 / (1.0 + np.exp(-outputs[:, 0]))
    frame = pd.DataFrame({"image_id": image_ids.to_numpy(), "score": scores})
    return frame.assign(attention=outputs[:, 1]) if outputs.shape[1] > 1 else frame
