"""One fold in training → what a checkpoint keeps of it, and its scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from rsna_kit.data.batches import TrainingSet
from rsna_kit.runtime.clock import Clock

SAVED = ("losses", "history", "best", "best_epoch", "validation_s")  # of the fields of `Fold`, as they are


@dataclass
class Fold:
    """One fold, while it is trained and afterwards. A checkpoint holds `SAVED`, `outputs` and `kept` of it.

    `history` has a row for each epoch, its seconds since the last interruption; `best_epoch` was kept. `stopped` says
    that the clock ended the training before the last epoch.
    """

    number: int
    training: TrainingSet
    validation: pd.DataFrame  # image_id, cancer
    out: Path
    clock: Clock
    fingerprint: str
    rate: Callable[[int], float]  # learning rate of a step
    losses: list[Any] = field(default_factory=list)  # of all batches so far; the last ones may not be read yet
    read: int = 0  # how many are
    history: list[dict[str, Any]] = field(default_factory=list)
    best: Sequence[float] = (-math.inf, -math.inf)
    best_epoch: int = 0
    outputs: np.ndarray = field(default_factory=lambda: np.empty((0, 1)))  # of the network, in the best epoch
    kept: list[np.ndarray] = field(default_factory=list)  # the network's weights then
    stopped: bool = False
    validation_s: float = 0.0
    step_s: float = 0.0
    save_s: float = 0.0
    saved: float = field(default_factory=time.monotonic)

    @property
    def epoch(self) -> int:
        """The epoch in training, from 1."""
        return len(self.history) + 1

    @property
    def step(self) -> int:
        """How many of its batches are done."""
        return len(self.losses) - len(self.history) * self.training.steps

    @property
    def scores(self) -> pd.DataFrame:
        """`score_frame` of the validation images, in table order, by the epoch that was kept."""
        return score_frame(self.validation, self.outputs)


def score_frame(rows: pd.DataFrame, outputs: np.ndarray) -> pd.DataFrame:
    """`image_id`, `score` in [0, 1], and `attention` where the network gives one: float64 (N, 1) or (N, 2)."""
    frame = pd.DataFrame({"image_id": rows["image_id"].to_numpy(), "score": expit(outputs[:, 0])})
    return frame.assign(attention=outputs[:, 1]) if outputs.shape[1] > 1 else frame
