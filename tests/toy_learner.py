"""A learner small enough to be traced in a second, in place of `build_learner`, and a clock that runs out."""

from __future__ import annotations

import math
from typing import Any

from rsna_kit.config import Config, ImageConfig
from rsna_kit.runtime.clock import Clock
from rsna_kit.training.learner import Learner
from rsna_kit.training.losses import build_loss


class ShortClock(Clock):
    """Has time for so many questions, then none."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self.questions = questions

    def remaining_s(self) -> float:
        self.questions -= 1
        return math.inf if self.questions >= 0 else 0.0


def toy_learner(config: Config, image: ImageConfig, batch_norm: bool = True) -> Learner:
    """Two convolutions, and with `batch_norm` what makes resuming hard: moving statistics and dropout."""
    import keras

    layers = keras.layers
    picture = keras.Input((image.height, image.width, 1), dtype="uint8", name="picture")
    tensor = layers.AveragePooling2D(4)(layers.Rescaling(1 / 128, offset=-1)(picture))
    for filters in (8, 16):
        tensor = layers.Conv2D(filters, 3, padding="same", activation="relu")(tensor)
        if batch_norm:
            tensor = layers.BatchNormalization(momentum=0.9)(tensor)
    tensor = layers.GlobalMaxPooling2D(dtype="float32")(tensor)
    if batch_norm:
        tensor = layers.Dropout(0.2)(tensor)
    network = keras.Model(picture, layers.Dense(1, dtype="float32", name="logit")(tensor))
    return Learner(network, network, build_loss(config.train))


def use_toys(patch: Any, batch_norm: bool = True) -> None:
    """Let `Trainer` train toys while `patch` (pytest's monkeypatch) lasts."""
    patch.setattr("rsna_kit.training.fit.build_learner", lambda c, i: toy_learner(c, i, batch_norm))
