"""Out-of-fold scores of breasts → one threshold that survives other patients, and the 0/1 answers it gives.

The best threshold of a curve is its luckiest one. The F1 of few positives is noisy, so neighbours of the maximum
that differ by less than the noise are as good; the middle of that plateau is the furthest from both edges. Whatever is
chosen on breasts looks too good on the same breasts: `cross_fitted` judges each fold by what the other folds chose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rsna_kit.runtime.errors import TableError
from rsna_kit.scoring.metrics import f1_curve

# One standard deviation of F1 at a winning operating point is 0.020, 0.031, 0.041 and 0.045 with 492, 216, 123 and
# 98 positives (4,000 simulated draws each): 0.44 / sqrt(positives) gives all four.
_F1_NOISE = 0.44
_MOST_OF_MAXIMUM = 0.30


@dataclass(frozen=True)
class Threshold:
    """A decision rule: positive when score >= value.

    `f1` is F1 at `value` on the data it was chosen from (so a little too good), `low` and `high` are the ends of
    the plateau, `quantile` is the share of breasts scored below `value`.
    """

    value: float
    f1: float
    low: float
    high: float
    quantile: float


def choose_threshold(y_true: ArrayLike, y_score: ArrayLike) -> Threshold:
    """The middle of the plateau of the F1 curve.

    The plateau is the run of thresholds around the (first) maximum whose F1 is at least maximum - tolerance. The
    tolerance is one standard deviation of F1, 0.44 / sqrt(positives), but at most 0.3 of the maximum: with a
    handful of positives the noise is larger than the curve, and everything would be plateau. On simulated scores
    (two normals 0.3 to 2.5 apart, 2 % positives, 60 to 492 of them) the middle costs 0.3 to 0.8 of what the
    maximum costs in F1 on new patients; down to 5 positives it was never worse.

    F1 does not change between two neighbouring scores, so the plateau starts at the score below its first
    threshold. Constant scores give that score, which calls everything.

    Args:
        y_true: 0/1 of shape (N,).
        y_score: out-of-fold scores of shape (N,).

    Raises:
        TableError: there is no positive, so no threshold is better than another.

    Example:
        >>> chosen = choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9])
        >>> chosen.low, chosen.high, chosen.value
        (0.1, 0.6, 0.35)
    """
    positives = int(np.sum(np.asarray(y_true) == 1))
    if not positives:
        raise TableError("threshold: got no breast with cancer, expected at least one. Choose on more patients.")
    thresholds, f1 = f1_curve(y_true, y_score)
    best = int(np.argmax(f1))
    tolerance = min(_F1_NOISE / math.sqrt(positives), _MOST_OF_MAXIMUM * f1[best])
    poor = np.flatnonzero(f1 < f1[best] - tolerance)
    first = int(poor[poor < best].max(initial=-1)) + 1
    last = int(poor[poor > best].min(initial=len(f1))) - 1
    low, high = float(thresholds[max(first - 1, 0)]), float(thresholds[last])
    # The plateau is open at `low` (that score's own F1 is below it): a middle that rounds onto it is moved inside.
    value = (low + high) / 2
    if not low < value <= high:
        value = high
    index = int(np.searchsorted(thresholds, value, side="left"))
    quantile = float(np.mean(np.asarray(y_score, dtype=np.float64) < value))
    return Threshold(value=value, f1=float(f1[index]), low=low, high=high, quantile=quantile)


def can_cross_fit(labels: np.ndarray, folds: np.ndarray) -> bool:
    """Whether every fold has others to choose on: at least two folds, and both classes outside each."""
    outside = [labels[folds != fold] for fold in np.unique(folds)]
    return all(0 < rest.sum() < len(rest) for rest in outside)


def cross_fitted(folds: np.ndarray, judge: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """A number for each breast by what was chosen without its fold.

    Args:
        folds: of shape (N,); patients are whole in them.
        judge: the breasts to choose on and those to judge, each a mask of shape (N,) → a number for each of the latter.

    Returns:
        float64 (N,).
    """
    found = np.empty(len(folds))
    for fold in np.unique(folds):
        found[folds == fold] = judge(folds != fold, folds == fold)
    return found


def with_calls(breasts: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Breasts with a column `called` (int8), by the threshold that the other folds chose, where folds are known.

    Args:
        breasts: `cancer` (0/1), `score` in [0, 1], and `fold` (int) where known.

    Returns:
        The breasts, and where the thresholds come from, in words.

    Raises:
        TableError: no breast with cancer.
    """
    labels, scores = breasts["cancer"].to_numpy(), breasts["score"].to_numpy(np.float64)

    def call(others: np.ndarray, held: np.ndarray) -> np.ndarray:
        return scores[held] >= choose_threshold(labels[others], scores[others]).value

    if "fold" in breasts.columns and can_cross_fit(labels, breasts["fold"].to_numpy()):
        called, how = cross_fitted(breasts["fold"].to_numpy(), call), "of each fold chosen on the other folds"
    else:
        everything = np.ones(len(scores), bool)
        called, how = call(everything, everything), "chosen on the breasts that it is judged on, so too good"
    return breasts.assign(called=called.astype("int8")), how
