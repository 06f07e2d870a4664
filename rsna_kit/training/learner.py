"""A configuration → the learner: the network that travels in a bundle, and what training drives to get it.

A classifier learns from pictures, a breast-level model from all views of a breast at once. Both may learn further
targets beside cancer, from the features that the logit sees. None of that travels: what is scored is one picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsna_kit.config import Config, ImageConfig
from rsna_kit.data.targets import target_names
from rsna_kit.models.cvae import build_cvae
from rsna_kit.models.network import build_network, split_classifier
from rsna_kit.models.views import over_views
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.lazy import require
from rsna_kit.training.losses import Loss, build_loss

Predict = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Learner:
    """What is trained, and how. K is the number of targets.

    `network`: keras.Model, uint8 (B, h, w, 1) to float32 (B, 1), or (B, 2) for breast-level models: logit, attention.
    `trained`: keras.Model to compile; it shares what `network` learns and may be the same object. uint8
        (B, h, w, 1), or (B, V, h, w, 1) of breasts, to float32 (B, K).
    `loss`: of targets (B, K) with NaN for missing, and outputs (B, K), to (B,).
    `shift`: whether the logit's bias is to be moved from the odds of a batch to natural odds.
    `progress`: told the share of the training that is done, in [0, 1].
    `calibrate`: None, or called before each validation with a function from image ids to the network's output (N,)
        and the ids of the training rows.
    `halves`: None, or where the trunk is frozen three models that share their variables with `network`: the trunk,
        uint8 (B, h, w, 1) to maps float (B, h', w', c); maps to what `network` gives; maps (B, h', w', c), or
        (B, V, h', w', c) of breasts, to what `trained` gives.
    """

    network: Any
    trained: Any
    loss: Loss
    shift: bool = True
    progress: Callable[[float], None] = lambda share: None
    calibrate: Callable[[Predict, Sequence[str]], None] | None = None
    halves: Callable[[], tuple[Any, Any, Any]] | None = None


def build_learner(config: Config, image: ImageConfig) -> Learner:
    """The learner for a configuration, with random weights.

    Args:
        config: its model, cvae, train and (for `halves`) data sections are used.
        image: size of the input.

    Raises:
        UsageError: an unknown loss, unknown targets, or a CVAE that is to learn targets.
    """
    names, ops = target_names(config.train.targets), require("keras", "train").ops
    if config.model.kind == "cvae":
        if len(names) > 1:
            raise UsageError(f"train.targets={config.train.targets}: a CVAE learns no targets, expected none")
        cvae = build_cvae(config.cvae, image)
        return Learner(
            cvae.network,
            cvae.trained,
            lambda targets, outputs: ops.sum(outputs, axis=-1),
            shift=False,
            progress=cvae.progress,
            calibrate=cvae.calibrate,
        )
    loss, network = build_loss(config.train), build_network(config, image)
    scorer = _with_targets(network, len(names) - 1)

    def whole(scorer: Any) -> Any:
        return over_views(scorer) if config.model.kind == "breast" else scorer

    def halves() -> tuple[Any, Any, Any]:
        keras = require("keras", "train")
        trunk, scored = split_classifier(network)
        trained = keras.Model(trunk.output, scorer.output, name="head")
        return trunk, scored, whole(trained)

    kept = config.model.trunk == "frozen" and config.data.mix == "none"
    return Learner(network, whole(scorer), loss, halves=halves if kept else None)


def _with_targets(network: Any, count: int) -> Any:
    """The network with `count` further logits behind its own, from the features that the layer "logit" sees."""
    if count == 0:
        return network
    keras = require("keras", "train")
    further = keras.layers.Dense(count, dtype="float32", name="targets")(network.get_layer("logit").input)
    columns = keras.layers.Concatenate(dtype="float32", name="with_targets")([network.output, further])
    return keras.Model(network.input, columns, name=network.name)
