"""Labels → the order of one epoch: every batch holds cancers, every healthy example, or a share of them, comes once.

An example is a picture, or a breast with all its views.
"""

from __future__ import annotations

import numpy as np

from rsna_kit.runtime.errors import RsnaKitError, UsageError


def positives_per_batch(labels: np.ndarray, batch_size: int, positive_share: float, negatives: float = 1.0) -> int:
    """Cancers in each batch: the wanted share or, where cancers are commoner than that, their own; at least one.

    Args:
        labels: (N,) of 0 and 1.
        batch_size: examples in a batch.
        positive_share: wanted share of cancers.
        negatives: share of the healthy examples that an epoch draws; cancers are that much commoner in it.

    Raises:
        UsageError: a batch too small to hold both classes.
        RsnaKitError: only one class in `labels`.

    Example:
        >>> positives_per_batch(np.array([0] * 98 + [1] * 2), batch_size=16, positive_share=0.25)
        4
    """
    count = int(np.sum(labels == 1))
    if batch_size < 2:
        raise UsageError(f"train.batch_size: got {batch_size}, expected at least 2: each batch holds both classes")
    if count in (0, len(labels)):
        raise RsnaKitError(
            f"training images: {count} of {len(labels)} have cancer, expected both classes. "
            "Use more patients or fewer folds."
        )
    share = max(positive_share, count / (count + _drawn(len(labels) - count, negatives)))
    return min(max(round(share * batch_size), 1), batch_size - 1)


def epoch_order(
    labels: np.ndarray, batch_size: int, per_batch: int, seed: int, epoch: int, negatives: float = 1.0
) -> np.ndarray:
    """The order of one epoch, decided by `seed` and `epoch` alone.

    Each batch holds `per_batch` cancers, drawn without replacement until all have come, then again from a new shuffle.
    All healthy examples come once, or the share of them that is drawn for this epoch; what the last batch lacks is
    drawn again. Where cancers are so many that one pass over the healthy would leave some out, the epoch is as long as
    the cancers need.

    Args:
        labels: (N,) of 0 and 1.
        batch_size: examples in a batch.
        per_batch: see `positives_per_batch`; 0 where there is no cancer to learn.
        seed: of the run.
        epoch: its number.
        negatives: share of the healthy examples to draw, in (0, 1], at least one; others in every epoch.

    Returns:
        int64 (steps * batch_size,) positions in `labels`.

    Raises:
        RsnaKitError: no healthy example.
    """
    rng = np.random.default_rng([seed, epoch])
    positives, healthy = np.flatnonzero(labels == 1), np.flatnonzero(labels != 1)
    if not len(healthy):
        raise RsnaKitError("training images: none is without cancer, expected some. Use more patients or fewer folds.")
    if (drawn := _drawn(len(healthy), negatives)) < len(healthy):
        healthy = rng.choice(healthy, drawn, replace=False)
    steps = -(-len(healthy) // (batch_size - per_batch))
    if per_batch:
        steps = max(steps, -(-len(positives) // per_batch))
    cancers = _repeated(positives, steps * per_batch, rng).reshape(steps, -1)
    others = _repeated(healthy, steps * (batch_size - per_batch), rng).reshape(steps, -1)
    return rng.permuted(np.concatenate([cancers, others], axis=1), axis=1).reshape(-1)


def _drawn(count: int, share: float) -> int:
    return max(round(share * count), 1)


def _repeated(items: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` items: whole shuffles one after the other, the last one cut."""
    shuffles = [rng.permutation(items) for _ in range(-(-count // max(len(items), 1)))]
    return np.concatenate([np.empty(0, np.int64), *shuffles])[:count]
