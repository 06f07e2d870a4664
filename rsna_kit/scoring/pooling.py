"""Scores of the images of a breast → one score, by any of several pools.

    mean           of all images: what is deployed
    max            of all images
    noisy_or       1 - product of (1 - score): each image could show the cancer by itself; grows with their number
    trimmed_mean   the mean without the lowest and the highest, from three images on
    top2           the mean of the two highest

A breast may have any number of images; of one image every pool is that image's score. The images of a breast are not
independent, so noisy_or is no probability; its order may be of use all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from rsna_kit.runtime.errors import UsageError

# Scores with the images of a breast side by side and rising; where each breast begins, and how many images it has.
Pool = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _mean(scores: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(scores, starts) / counts


def _max(scores: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return scores[starts + counts - 1]


def _noisy_or(scores: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # log of 0: a score of 1 makes 1
        return -np.expm1(np.add.reduceat(np.log1p(-scores), starts))


def _trimmed_mean(scores: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    ends = scores[starts] + scores[starts + counts - 1]
    total = np.add.reduceat(scores, starts)
    return np.where(counts > 2, total - ends, total) / np.where(counts > 2, counts - 2, counts)


def _top2(scores: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    last = starts + counts - 1
    return (scores[last] + scores[last - (counts > 1)]) / 2


POOLS: Mapping[str, Pool] = {
    "mean": _mean, "max": _max, "noisy_or": _noisy_or, "trimmed_mean": _trimmed_mean, "top2": _top2,
}  # fmt: skip


def pool_scores(how: str, scores: np.ndarray, breasts: np.ndarray) -> np.ndarray:
    """One score for each breast.

    Args:
        how: one of POOLS.
        scores: float (N,) in [0, 1].
        breasts: int (N,), 0 … B-1: the breast of each image; every breast has an image.

    Returns:
        float64 (B,) in [0, 1].

    Raises:
        UsageError: an unknown pool.

    Example:
        >>> pool_scores("top2", np.array([0.1, 0.5, 0.9, 0.2]), np.array([0, 0, 0, 1])).tolist()
        [0.7, 0.2]
    """
    if how not in POOLS:
        raise UsageError(f"pool: got {how!r}, expected one of {', '.join(POOLS)}")
    order = np.lexsort((scores, breasts))
    counts = np.bincount(breasts)
    starts = np.cumsum(counts) - counts
    pooled = POOLS[how](np.asarray(scores, dtype=np.float64)[order], starts, counts)
    return np.clip(pooled, 0, 1)  # a mean of ones can round to a little more than 1
