"""Out-of-fold scores of several models → the weights with which their mean ranks best.

Weights are found by looking at every point of a grid on the simplex: with a few models that is a few thousand weighted
means, and there is no step size, no start and no luck in it. A tie goes to the point nearest to the plain mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb

import numpy as np

from rsna_kit.scoring.metrics import measure
from rsna_kit.scoring.threshold import can_cross_fit, cross_fitted

_FINEST = 20  # weights are multiples of 1 / 20 as long as there are few models
_MOST_POINTS = 2000


def choose_weights(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The weights of the weighted mean with the highest ROC-AUC.

    Args:
        labels: 0/1 of shape (N,).
        scores: probabilities of shape (N, M), a column for each model.

    Returns:
        float64 (M,), non-negative, sum 1; multiples of 1/20 with up to four models, coarser with more.

    Example:
        >>> choose_weights(np.array([0, 0, 1]), np.array([[0.2, 0.9], [0.1, 0.3], [0.3, 0.1]])).tolist()
        [0.9, 0.1]
    """
    count = scores.shape[1]
    mean = np.full(count, 1 / count)
    points = sorted([mean, *_simplex(count)], key=lambda point: float(np.square(point - mean).sum()))
    values = [measure("roc_auc", labels, scores @ point) for point in points]
    return points[int(np.argmax(np.round(values, 12)))]  # the first of equals is the nearest to the mean


def blend_out_of_fold(labels: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Weighted means whose weights were chosen on other folds than the one they score: float64 (N,).

    Args:
        labels, scores: as in `choose_weights`.
        folds: of shape (N,). Where there is nothing to choose on, as with one fold, weights are equal.
    """
    if not can_cross_fit(labels, folds):
        return scores.mean(axis=1)
    return cross_fitted(folds, lambda others, held: scores[held] @ choose_weights(labels[others], scores[others]))


def _simplex(count: int) -> Iterator[np.ndarray]:
    """The points of the finest grid that has not too many."""
    steps = max(n for n in range(1, _FINEST + 1) if n == 1 or comb(n + count - 1, count - 1) <= _MOST_POINTS)
    for bars in combinations(range(steps + count - 1), count - 1):  # stars and bars
        yield np.array([right - left - 1 for left, right in pairwise([-1, *bars, steps + count - 1])]) / steps
