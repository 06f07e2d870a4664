"""Out-of-fold scores and labels of breasts → the map from score to probability that travels with a network.

Networks that are trained on resampled batches rank well and say probabilities that are far off. A calibration turns no
order round, so what a threshold calls stays the same; the number itself gets better, and the raw pF1. It is fitted on
scores of breasts that the network has not learned from.

It is Platt's (1999), on logits. Its slope is at least 0, and it is fitted to Platt's targets, (P + 1) / (P + 2) for the
P cancers and 1 / (N + 2) for the N others: no probability is 0 or 1, and classes that do not overlap still have a
finite slope. From 5 cancers on it never did worse in log-loss on new patients than the plain prevalence (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy.special import expit

from rsna_kit.runtime.errors import TableError
from rsna_kit.scoring.breasts import Calibration, to_logit
from rsna_kit.scoring.metrics import Ranking, checked, log_loss
from rsna_kit.scoring.threshold import can_cross_fit, cross_fitted

FEWEST_CANCERS = 5


def fit(y_true: ArrayLike, scores: ArrayLike) -> Calibration:
    """Fit a calibration.

    Scores that rank worse than chance would need a falling map; they get a constant one (a slope of 0).

    Args:
        y_true: 0/1 of shape (N,).
        scores: float (N,) in [0, 1], of breasts that the network has not learned from.

    Raises:
        TableError: labels or scores that are none, or only one class.

    Example:
        >>> fit([0, 0, 1, 1], [0.1, 0.3, 0.6, 0.8]).apply([0.1, 0.8]).round(2).tolist()
        [0.19, 0.78]
    """
    labels, values = checked(y_true, scores)
    positives = int(labels.sum())
    if not 0 < positives < len(labels):
        raise TableError(f"calibration: got {positives} cancers among {len(labels)} breasts, expected some of both")
    logits = to_logit(values)
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))

    def loss(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        """Cross-entropy and its gradient."""
        said = numbers[0] * logits + numbers[1]
        wrong = expit(said) - targets
        slopes = np.array([wrong @ logits, wrong.sum()]) / len(said)
        return float(np.mean(np.logaddexp(0, said) - targets * said)), slopes

    start = [0.0, np.log(targets.mean() / (1 - targets.mean()))]
    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    bounds = [(0, None), (None, None)]
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return Calibration(*found.x.tolist())


def out_of_fold(y_true: ArrayLike, scores: ArrayLike, folds: ArrayLike) -> np.ndarray:
    """Probability of each breast by a calibration that was fitted on the other folds: float64 (N,).

    Args:
        y_true, scores: as for `fit`.
        folds: of shape (N,), at least two; both classes lie outside each.
    """
    labels, values = checked(y_true, scores)
    return cross_fitted(np.asarray(folds), lambda others, held: fit(labels[others], values[others]).apply(values[held]))


def calibrate(
    y_true: ArrayLike, scores: ArrayLike, folds: ArrayLike, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any] | None:
    """The calibration that travels with a network, and what it is worth.

    Args:
        y_true, scores, folds: out of fold, as for `out_of_fold`; a single fold will do.
        say: told what was fitted, or why nothing was.

    Returns:
        What `Calibration.from_dict` takes, and `how`: `cancers` and, from two folds on, `log_loss` of the raw scores
        and of probabilities by calibrations of the other folds. Ready for JSON. None for fewer than `FEWEST_CANCERS`
        cancers, or without any healthy breast.
    """
    labels, values = checked(y_true, scores)
    cancers, fold_of = int(labels.sum()), np.asarray(folds)
    if not FEWEST_CANCERS <= cancers < len(labels):
        say(f"no calibration: {cancers} cancers among {len(labels)} breasts, expected {FEWEST_CANCERS} or more")
        return None
    chosen = fit(labels, values)
    how: dict[str, Any] = {"cancers": cancers}
    if can_cross_fit(labels, fold_of):
        columns = {"raw": values, "calibrated": out_of_fold(labels, values, fold_of)}
        losses = {name: float(log_loss(Ranking(labels, column).counts())) for name, column in columns.items()}
        how["log_loss"] = losses
        say(f"calibration: log-loss {losses['raw']:.4f} before, {losses['calibrated']:.4f} after, out of fold")
    return {"slope": chosen.slope, "intercept": chosen.intercept, "how": how}
