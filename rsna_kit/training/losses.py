"""Targets and logits, both (B, K) → the loss of every example (B,): cancer, and what train.csv knows besides.

A loss of one's own is a function here and a line in `LOSSES`; `train.loss` takes its name. All are computed from
logits; Keras' own binary cross-entropy does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rsna_kit.config import TrainConfig
from rsna_kit.runtime.errors import named
from rsna_kit.runtime.lazy import require

Loss = Callable[[Any, Any], Any]
TARGETS_WEIGHT = 0.1  # of the mean loss of the further targets beside the cancer's


def cross_entropy(targets: Any, logits: Any) -> Any:
    """Binary cross-entropy of each cell: float (B, K) and (B, K) to (B, K), finite for every finite logit."""
    return require("keras", "train").ops.binary_crossentropy(targets, logits, from_logits=True)


def focal_cross_entropy(targets: Any, logits: Any) -> Any:
    """Cross-entropy of each cell times (1 - p_t)^2 (Lin et al., Focal loss for dense object detection, 2017).

    Without the paper's alpha. p_t = y p + (1 - y) (1 - p), as Keras has it for soft targets. Its
    `BinaryFocalCrossentropy` gives the same numbers, but clips probabilities: beyond a logit of about 16 a wrong answer
    would have no gradient there.

    Args:
        targets: float (B, K) in [0, 1].
        logits: float (B, K).
    """
    ops = require("keras", "train").ops
    share = ops.sigmoid(logits)
    wrong = targets * (1 - share) + (1 - targets) * share
    return cross_entropy(targets, logits) * ops.square(wrong)


LOSSES: Mapping[str, Loss] = {"bce": cross_entropy, "focal": focal_cross_entropy}


def build_loss(train: TrainConfig) -> Loss:
    """The loss that the train section asks for.

    Args:
        train: `loss`, `label_smoothing`, `soft_positive` and `cancer_weight`.

    Returns:
        A function of targets float (B, K) in [0, 1] with NaN for missing, and logits float (B, K), to float (B,).
        A cancer (target 1) is learned as `soft_positive`, then both classes are smoothed as Keras does:
        y (1 - s) + s / 2. An example counts 1 + (cancer_weight - 1) y times, so a mixed picture counts in proportion.
        To this comes `TARGETS_WEIGHT` times the mean cross-entropy of the further targets that are not missing, which
        are learned as they are.

    Raises:
        UsageError: an unknown loss.
    """
    cells, ops = named("train.loss", train.loss, LOSSES), require("keras", "train").ops

    def loss(targets: Any, outputs: Any) -> Any:
        outputs = ops.convert_to_tensor(outputs)
        targets = ops.cast(targets, outputs.dtype)
        missing = ops.isnan(targets)
        targets = ops.where(missing, 0.0, targets)  # before the arithmetic: NaN times 0 is NaN in a gradient
        present = ops.cast(ops.logical_not(missing), outputs.dtype)
        cancer = targets[:, :1]
        soft = cancer * train.soft_positive * (1.0 - train.label_smoothing) + 0.5 * train.label_smoothing
        weight = 1 + (train.cancer_weight - 1) * cancer
        total = (cells(soft, outputs[:, :1]) * weight * present[:, :1])[:, 0]
        if outputs.shape[-1] == 1:
            return total
        further = cross_entropy(targets[:, 1:], outputs[:, 1:]) * present[:, 1:]
        count = ops.maximum(ops.sum(present[:, 1:], axis=-1), 1)
        return total + TARGETS_WEIGHT * ops.sum(further, axis=-1) / count

    return loss
