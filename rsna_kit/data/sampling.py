"""Labels to the order of one epoch: every batch holds cancers, every healthy image comes once."""

from __future__ import annotations

import numpy as np

from rsna_kit.runtime.errors import RsnaKitError, UsageError


def positives_per_batch(labels: np.ndarray, batch_size: int, positive_share: float) -> int:
    """Cancers in each batch: the wanted share or, where cancers are commoner than that, their own; at least one.

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
    share = max(positive_share, count / len(labels))
    return min(max(round(share * batch_size), 1), batch_size - 1)


def epoch_order(labels: np.ndarray, batch_size: int, positive_share: float, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch, decided by `seed` and `epoch` alone.

    Each batch holds `positives_per_batch` cancers, drawn without replacement until all have come, then again
    from a new shuffle. All healthy images come once; what the last batch lacks is drawn again. Where cancers
    are so many that one pass over the healthy images would leave some out, the epoch is as long as the cancers need.

    Args:
        labels: (N,) of 0 and 1.

    Returns:
        int64 (steps * batch_size,) positions in `labels`.
    """
    rng = np.random.default_rng([seed, epoch])
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels != 1)
    per_batch = positives_per_batch(labels, batch_size, positive_share)
    steps = -(-len(negatives) // (batch_size - per_batch))
    if len(positives) > positive_share * len(labels):  # then the batch share is the natural one
        steps = max(steps, -(-len(positives) // per_batch))
    order = np.concatenate(
        [
            _repeated(positives, steps * per_batch, rng).reshape(steps, per_batch),
            _repeated(negatives, steps * (batch_size - per_batch), rng).reshape(steps, -1),
        ],
        axis=1,
    )
    return rng.permuted(order, axis=1).reshape(-1).astype(np.int64)


def _repeated(items: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` items: whole shuffles one after the other, the last one cut."""
    shuffles = [rng.permutation(items) for _ in range(-(-count // len(items)))]
    return np.concatenate(shuffles)[:count]
