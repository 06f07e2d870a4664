"""Targets and logits, both (B, K) → the loss of every example (B,): cancer, and what train.csv knows besides.

The loss of an example is that of cancer plus `train.targets_weight` times the mean over its further targets that are
not missing. All from logits; Keras' own binary cross-entropy does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rsna_kit.config import TrainConfig
from rsna_kit.runtime.lazy import require

Loss = Callable[[Any, Any], Any]
_LEAST = 1e-7  # of the focal factor's base: its power has no finite slope at 0 when gamma is below 1


def build_loss(train: TrainConfig) -> Loss:
    """The loss that the train section asks for.

    Args:
        train: `loss`, `focal_gamma`, `label_smoothing`, `soft_positive`, `cancer_weight` and `targets_weight`.

    Returns:
        A function of targets float (B, K) in [0, 1] with NaN for missing, and logits float (B, K), to float (B,).
        A cancer (target 1) is learned as `soft_positive`, then both classes are smoothed as Keras does:
        y (1 - s) + s / 2. An example counts 1 + (cancer_weight - 1) y times, so a mixed picture counts in proportion.
        Further targets are learned as they are.
    """
    ops = require("keras", "train").ops

    def loss(targets: Any, outputs: Any) -> Any:
        outputs = ops.convert_to_tensor(outputs)
        targets = ops.cast(targets, outputs.dtype)
        missing = ops.isnan(targets)
        targets = ops.where(missing, 0.0, targets)  # before the arithmetic: NaN times 0 is NaN in a gradient
        cancer = targets[:, :1]
        if train.loss == "focal":
            total = focal_cross_entropy(_soft(cancer, train), outputs[:, :1], train.focal_gamma)
        else:
            total = cross_entropy(_soft(cancer, train), outputs[:, :1])
        if train.cancer_weight != 1:
            total = total * (1 + (train.cancer_weight - 1) * cancer)
        present = ops.cast(ops.logical_not(missing), outputs.dtype)
        total = (total * present[:, :1])[:, 0]
        if outputs.shape[-1] == 1:
            return total
        further = cross_entropy(targets[:, 1:], outputs[:, 1:]) * present[:, 1:]
        count = ops.maximum(ops.sum(present[:, 1:], axis=-1), 1)
        return total + train.targets_weight * ops.sum(further, axis=-1) / count

    return loss


def cross_entropy(targets: Any, logits: Any) -> Any:
    """Binary cross-entropy of each cell: float (B, K) and (B, K) to (B, K), finite for every finite logit."""
    return require("keras", "train").ops.binary_crossentropy(targets, logits, from_logits=True)


def focal_cross_entropy(targets: Any, logits: Any, gamma: float) -> Any:
    """Cross-entropy of each cell times (1 - p_t)^gamma (Lin et al., Focal loss for dense object detection, 2017).

    Without the paper's alpha. `keras.losses.BinaryFocalCrossentropy` gives the same numbers, but clips probabilities:
    beyond a logit of about 16 a wrong answer would have no gradient there.

    Args:
        targets: float (B, K) in [0, 1]; p_t = y p + (1 - y) (1 - p), as Keras has it for soft targets.
        logits: float (B, K).
        gamma: 0 gives the cross-entropy.
    """
    ops = require("keras", "train").ops
    entropy = cross_entropy(targets, logits)
    if gamma == 0:
        return entropy
    share = ops.sigmoid(logits)
    wrong = targets * (1 - share) + (1 - targets) * share
    return entropy * ops.power(ops.maximum(wrong, _LEAST), gamma)


def _soft(cancer: Any, train: TrainConfig) -> Any:
    """Labels as they are learned."""
    if train.soft_positive != 1:
        cancer = cancer * train.soft_positive
    if train.label_smoothing:
        cancer = cancer * (1.0 - train.label_smoothing) + 0.5 * train.label_smoothing
    return cancer
