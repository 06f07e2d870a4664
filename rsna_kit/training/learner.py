"""A configuration → the learner: the network that travels in a bundle, and what training drives to get it.

A classifier learns from pictures, a breast-level model from all views of a breast at once. Both may learn further
targets beside cancer, from the features that the logit sees. A CVAE learns to reconstruct healthy pictures. None of
that travels: what is scored is one picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from rsna_kit.config import Config, ImageConfig
from rsna_kit.data.augment import RECIPES
from rsna_kit.data.targets import target_names
from rsna_kit.models.backbones import BACKBONES
from rsna_kit.models.heads import HEADS, POOLINGS, POOLS
from rsna_kit.models.network import build_network, split_classifier
from rsna_kit.runtime.errors import UsageError, named
from rsna_kit.runtime.lazy import require
from rsna_kit.training import cvae
from rsna_kit.training.losses import LOSSES, Loss, build_loss

_NEVER = -1e9  # attention of a missing view: its softmax is 0, and where every view is missing nothing is divided by 0


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
    calibrate: Callable[[cvae.Predict, Sequence[str]], None] | None = None
    halves: Callable[[], tuple[Any, Any, Any]] | None = None


def check_names(config: Config) -> None:
    """See whether there is whatever the configuration names: targets, and an entry of each registry.

    Raises:
        UsageError: a name that there is not, with the nearest known one.
    """
    target_names(config.train.targets)
    named("model.backbone", config.model.backbone, BACKBONES)
    named("model.head", config.model.head, HEADS)
    named("model.pool", config.model.pool, POOLS)
    named("model.view_pool", config.model.view_pool, POOLINGS)
    named("train.loss", config.train.loss, LOSSES)
    named("data.augment", config.data.augment, RECIPES)


def build_learner(config: Config, image: ImageConfig) -> Learner:
    """The learner for a configuration, with random weights.

    Args:
        config: its model, cvae and train sections are used.
        image: size of the input.

    Raises:
        UsageError: as `check_names`, or a CVAE that is to learn targets or its trunk.
    """
    check_names(config)
    names, ops = target_names(config.train.targets), require("keras", "train").ops
    if config.model.kind == "cvae" and len(names) > 1:
        raise UsageError(f"train.targets={config.train.targets}: a CVAE learns no targets, expected none")
    if config.model.kind == "cvae" and config.model.trunk != "frozen":
        raise UsageError(
            f"model.trunk={config.model.trunk}: expected frozen for a CVAE: a trunk that learned, too, would soon show "
            "nothing that is hard to reconstruct. --preset cvae sets it"
        )
    network = build_network(config, image)
    scorer, beta = cvae.loss_terms(network) if config.model.kind == "cvae" else (network, None)
    scorer = _with_targets(scorer, len(names) - 1)

    def whole(scorer: Any) -> Any:
        return over_views(scorer) if config.model.kind == "breast" else scorer

    def halves() -> tuple[Any, Any, Any]:
        keras = require("keras", "train")
        trunk, scored = split_classifier(network)
        trained = keras.Model(trunk.output, scorer.output, name="head")
        return trunk, scored, whole(trained)

    learner = Learner(
        network, whole(scorer), build_loss(config.train), halves=halves if config.model.trunk == "frozen" else None
    )
    if beta is None:
        return learner
    return replace(
        learner,
        loss=lambda targets, outputs: ops.sum(outputs, axis=-1),
        shift=False,
        progress=lambda share: beta.assign([[config.cvae.beta * min(1.0, share / cvae.WARMUP)]]),
        calibrate=lambda predict, image_ids: cvae.calibrate(network, predict, image_ids),
    )


def _with_targets(network: Any, count: int) -> Any:
    """The network with `count` further logits behind its own, from the features that the layer "logit" sees."""
    if count == 0:
        return network
    keras = require("keras", "train")
    further = keras.layers.Dense(count, dtype="float32", name="targets")(network.get_layer("logit").input)
    columns = keras.layers.Concatenate(dtype="float32", name="with_targets")([network.output, further])
    return keras.Model(network.input, columns, name=network.name)


def over_views(scorer: Any) -> Any:
    """One network for all views of a breast.

    Args:
        scorer: keras.Model, (B, *shape) to float (B, 2 + K): logit, attention, logits of K further targets.

    Returns:
        keras.Model that shares its weights: (B, V, *shape) of any V to float32 (B, 1 + K), the breast's logits. A view
        that is all 0 is missing, a breast's first view never is. Where all are missing, they count alike.
    """
    keras = require("keras", "train")
    views = keras.Input((None, *scorer.input.shape[1:]), dtype=scorer.input.dtype, name="views")
    return keras.Model(views, _over_views_layer()(scorer, name="over_views")(views), name="breast")


def pool_views(columns: Any, present: Any) -> Any:
    """Logits of breasts from those of their views.

    Args:
        columns: float (B, V, 2 + K): logit, attention, further logits.
        present: bool (B, V); a missing view has no influence and gets no gradient.

    Returns:
        float (B, 1 + K): each logit weighted by the softmax of the attention over the views that are there.
    """
    ops = require("keras", "train").ops
    attention = ops.where(present, columns[..., 1], _NEVER)
    # Not ops.softmax, which warns where there is one view.
    share = ops.exp(attention - ops.logsumexp(attention, axis=1, keepdims=True))[..., None]
    logits = ops.concatenate([columns[..., :1], columns[..., 2:]], axis=-1)
    return ops.sum(share * logits, axis=1)


@cache
def _over_views_layer() -> Any:
    """The layer's class; Keras is not there when this module is imported."""
    keras = require("keras", "train")
    ops = keras.ops

    class OverViews(keras.layers.Layer):  # type: ignore[name-defined]
        """Runs `scorer` on every view and pools."""

        def __init__(self, scorer: Any, **options: Any) -> None:
            super().__init__(dtype="float32", **options)
            self.scorer = scorer

        def call(self, views: Any, training: bool | None = None) -> Any:
            flat = ops.reshape(views, (-1, ops.shape(views)[1], math.prod(views.shape[2:])))
            present = ops.any(ops.not_equal(flat, 0), axis=2)
            # Black pictures would drag the statistics of batch normalisation: the first view stands in for a missing
            # one, and has no influence there.
            filled = ops.where(present[..., None], flat, flat[:, :1])
            columns = self.scorer(ops.reshape(filled, (-1, *views.shape[2:])), training=training)
            return pool_views(ops.reshape(columns, (-1, ops.shape(views)[1], columns.shape[-1])), present)

        def compute_output_shape(self, shape: Any) -> Any:
            return shape[0], self.scorer.output.shape[-1] - 1

    return OverViews
