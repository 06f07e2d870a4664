"""Probabilities ↔ logits, the scale on which evidence adds up, and regression on that scale."""

from __future__ import annotations

import numpy as np

CERTAIN = 1e-15  # nearest to 0 and 1 that a probability counts as: the logits of 0 and 1 are infinite
_MOST_STEPS = 100


def logits(probabilities: np.ndarray, certain: float = CERTAIN) -> np.ndarray:
    """log(p / (1 - p)), finite: probabilities are taken as at least `certain` and at most 1 - `certain`.

    Example:
        >>> logits(np.array([0.5, 0.75])).round(4).tolist()
        [0.0, 1.0986]
    """
    clipped = np.clip(np.asarray(probabilities, dtype=np.float64), certain, 1 - certain)
    return np.log(clipped) - np.log1p(-clipped)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), exact to the last bits at both ends.

    Example:
        >>> sigmoid(np.array([0.0, -1000.0])).tolist()
        [0.5, 0.0]
    """
    numbers = np.asarray(values, dtype=np.float64)
    small = np.exp(-np.abs(numbers))
    return np.where(numbers >= 0, 1, small) / (1 + small)


def rising_regression(features: np.ndarray, targets: np.ndarray, with_intercept: bool) -> np.ndarray:
    """Logistic regression of probabilities with slopes of at least 0.

    A slope that would be negative is left out and the others are fitted anew, as the authors of beta calibration do
    (Kull, Silva Filho and Flach 2017). scikit-learn's takes labels, not probabilities, and slopes of any sign.

    Args:
        features: float (N, F).
        targets: float (N,), more than 0 and less than 1.
        with_intercept: whether to fit one.

    Returns:
        float64 (F,), the slopes, or (F + 1,) with the intercept at the end.

    Example:
        >>> rising_regression(np.array([[-1.0], [0.0], [1.0]]), np.array([0.2, 0.5, 0.8]), True).round(3).tolist()
        [1.386, 0.0]
    """
    design = np.column_stack([features, np.ones(len(targets))]) if with_intercept else features
    numbers, kept = np.zeros(design.shape[1]), list(range(design.shape[1]))
    while kept:
        numbers[kept] = _newton(design[:, kept], targets)
        slopes = numbers[: features.shape[1]]
        if (slopes >= 0).all():
            break
        kept.remove(int(np.argmin(slopes)))
        numbers[:] = 0
    return numbers


def _newton(design: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights of least cross-entropy; of several such, as with constant columns, the smallest."""
    weights = np.zeros(design.shape[1])
    loss = _cross_entropy(design @ weights, targets)
    for _ in range(_MOST_STEPS):
        said = sigmoid(design @ weights)
        curvature = (design.T * (said * (1 - said))) @ design
        step = np.linalg.lstsq(curvature, design.T @ (targets - said), rcond=None)[0]
        while (new := _cross_entropy(design @ (weights + step), targets)) > loss:
            step /= 2
        weights = weights + step
        if np.abs(step).max() <= 1e-10 * (1 + np.abs(weights).max()):
            break
        loss = new
    return weights


def _cross_entropy(values: np.ndarray, targets: np.ndarray) -> float:
    return float((np.logaddexp(0, values) - targets * values).sum())
