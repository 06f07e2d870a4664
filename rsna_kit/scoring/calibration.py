"""Breast scores and labels → a rising map from score to probability of cancer, which travels with a network.

Networks that are trained on resampled batches rank well and say probabilities that are far off. A calibration turns no
order round, so what a threshold calls stays the same; the number itself gets better, and the raw pF1. It is fitted on
scores of breasts that the network has not learned from: the out-of-fold ones.

    beta    sigmoid(a * log(s) - b * log(1 - s) + c) (Kull, Silva Filho and Flach 2017), from 30 cancers on
    platt   sigmoid(slope * logit(s) + intercept) (Platt 1999, on logits), below; none under 5 cancers

In log-loss on new patients beta is best or nearly so whatever the shape of the scores, unless a network squeezes them;
Platt's never did worse than the plain prevalence from 5 cancers on (simulated, docs/log.md).

All slopes are at least 0. They are fitted to Platt's targets, (P + 1) / (P + 2) for the P cancers and 1 / (N + 2) for
the N others: no probability is 0 or 1, and classes that do not overlap still have a finite slope.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy.special import expit

from rsna_kit.runtime.errors import TableError
from rsna_kit.scoring.metrics import Ranking, checked, log_loss
from rsna_kit.scoring.threshold import can_cross_fit, cross_fitted

# Each method and the numbers that it keeps: slopes, and an intercept at the end.
METHODS: Mapping[str, tuple[str, ...]] = {"platt": ("slope", "intercept"), "beta": ("a", "b", "c")}
BETA_FROM, FEWEST_CANCERS = 30, 5
_CERTAIN = 1e-7  # networks compute in float32, where nothing below 1 is nearer to it than 6e-8


@dataclass(frozen=True)
class Calibration:
    """A fitted map; `parameters` are plain numbers."""

    method: str
    parameters: Mapping[str, float]

    def apply(self, scores: ArrayLike) -> np.ndarray:
        """Probabilities, float64, of scores in [0, 1] of any shape; never falling where scores rise.

        Example:
            >>> Calibration("platt", {"slope": 1.0, "intercept": -1.0}).apply([0.1, 0.5]).round(3).tolist()
            [0.039, 0.269]
        """
        values = np.asarray(scores, dtype=np.float64)
        if not ((values >= 0) & (values <= 1)).all():
            raise TableError("calibration: got a score that is NaN or outside [0, 1]")
        return expit(_design(self.method, values) @ [float(self.parameters[name]) for name in METHODS[self.method]])

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"method": self.method, "parameters": dict(self.parameters)}

    @classmethod
    def from_dict(cls, content: Any) -> Calibration:
        """What `as_dict` gave.

        Raises:
            TableError: an unknown method, or parameters that are not those of a rising map.

        Example:
            >>> Calibration.from_dict({"method": "platt", "parameters": {"slope": 2, "intercept": 0}}).method
            'platt'
        """
        given: Mapping[str, Any] = content if isinstance(content, Mapping) else {}
        method, parameters = given.get("method"), given.get("parameters")
        if not isinstance(method, str) or method not in METHODS:
            raise TableError(f"calibration: got method {method!r}, expected one of {', '.join(METHODS)}")
        names = METHODS[method]
        numbers = [parameters.get(name) for name in names] if isinstance(parameters, Mapping) else [None]
        plain = [float(number) for number in numbers if isinstance(number, int | float) and np.isfinite(number)]
        if len(plain) < len(names) or min(plain[:-1]) < 0:
            raise TableError(f"calibration: parameters of {method} are not {', '.join(names)} of a rising map")
        return cls(method, dict(zip(names, plain, strict=True)))


def fit(y_true: ArrayLike, scores: ArrayLike) -> Calibration:
    """Fit beta's calibration from 30 cancers on, Platt's below.

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
    if values.min() < 0 or values.max() > 1:
        raise TableError(f"scores: got {values.min():g} to {values.max():g}, expected [0, 1]")
    if not 0 < positives < len(labels):
        raise TableError(f"calibration: got {positives} cancers among {len(labels)} breasts, expected some of both")
    method = "beta" if positives >= BETA_FROM else "platt"
    design = _design(method, values)
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))

    def loss(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        """Cross-entropy and its gradient."""
        said = design @ numbers
        return float(np.mean(np.logaddexp(0, said) - targets * said)), design.T @ (expit(said) - targets) / len(labels)

    bounds = [(0, None)] * (design.shape[1] - 1) + [(None, None)]
    start = [*np.zeros(len(bounds) - 1), np.log(targets.mean() / (1 - targets.mean()))]
    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return Calibration(method, dict(zip(METHODS[method], found.x.tolist(), strict=True)))


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
        before, after = (
            float(log_loss(Ranking(labels, column).counts()))
            for column in (values, out_of_fold(labels, values, fold_of))
        )
        how["log_loss"] = {"raw": before, "calibrated": after}
        say(f"{chosen.method} calibration: log-loss {before:.4f} before, {after:.4f} after, out of fold")
    return {**chosen.as_dict(), "how": how}


def _design(method: str, scores: np.ndarray) -> np.ndarray:
    """(…, F): what is multiplied by the slopes, and ones for the intercept."""
    clipped = np.clip(scores, _CERTAIN, 1 - _CERTAIN)
    logs = [np.log(clipped), -np.log1p(-clipped)]
    return np.stack([*(logs if method == "beta" else [logs[0] + logs[1]]), np.ones_like(clipped)], axis=-1)
