"""Breast scores and labels → a rising map from score to probability of cancer, and how far it can be trusted.

Networks that are trained on resampled batches rank well and say probabilities that are far off. A calibration turns no
order round, so what a threshold calls stays the same. What gets better is the number itself, the raw pF1, and every
rule that reads scores as probabilities. It is fitted on scores of breasts that the network has not learned from:
the out-of-fold ones.

    isotonic      any rising function, by pooling adjacent violators (Zadrozny and Elkan 2002)
    platt         sigmoid(slope * logit(s) + intercept) (Platt 1999, on logits)
    beta          sigmoid(a * log(s) - b * log(1 - s) + c) (Kull, Silva Filho and Flach 2017)
    temperature   sigmoid(slope * logit(s)), slope = 1 / temperature (Guo et al. 2017); it cannot move a prevalence, so
                  it is of use only to networks that were trained at the natural one

Beta is kept where there are 30 cancers, ten for each of its numbers, Platt's below, and none below 5. In log-loss on
new patients beta is best or nearly so whatever the shape of the scores, unless a network squeezes them; Platt's never
did worse than the plain prevalence from 5 cancers on (figures: scripts/threshold-rules calibrations).

All slopes are at least 0. All are fitted to Platt's targets, (P + 1) / (P + 2) for the P cancers and 1 / (N + 2) for
the N others: no probability is 0 or 1, and classes that do not overlap still have a finite slope.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.runtime.lazy import require
from rsna_kit.scoring.logits import logits, rising_regression, sigmoid
from rsna_kit.scoring.metrics import Ranking, mean_log_loss
from rsna_kit.scoring.uncertainty import wilson

# Each method and the numbers that it keeps.
METHODS: Mapping[str, tuple[str, ...]] = {
    "isotonic": ("scores", "probabilities"),
    "platt": ("slope", "intercept"),
    "beta": ("a", "b", "c"),
    "temperature": ("slope",),
}
KEPT = "auto"  # what is fitted where nobody says more: beta from BETA_FROM cancers on, platt below
BETA_FROM, FEWEST_CANCERS = 30, 5
_CERTAIN = 1e-7  # networks compute in float32, where nothing below 1 is nearer to it than 6e-8


@dataclass(frozen=True)
class Calibration:
    """A fitted map; `parameters` are plain numbers, or lists of them for isotonic."""

    method: str
    parameters: Mapping[str, Any]

    def apply(self, scores: ArrayLike) -> np.ndarray:
        """Probabilities, float64, of scores in [0, 1] of any shape; never falling where scores rise.

        Example:
            >>> Calibration("platt", {"slope": 1.0, "intercept": -1.0}).apply([0.1, 0.5]).round(3).tolist()
            [0.039, 0.269]
        """
        values = np.asarray(scores, dtype=np.float64)
        if not ((values >= 0) & (values <= 1)).all():
            raise TableError("calibration: got a score that is NaN or outside [0, 1]")
        if self.method == "isotonic":
            knots, heights = (np.array(self.parameters[name], np.float64) for name in METHODS["isotonic"])
            next_knot = np.minimum(np.searchsorted(knots, values), len(knots) - 1)
            return np.minimum(np.interp(values, knots, heights), heights[next_knot])  # interp rounds beyond a knot
        numbers = [float(self.parameters[name]) for name in METHODS[self.method]]
        intercept = 0.0 if self.method == "temperature" else numbers.pop()
        return sigmoid(_features(self.method, values) @ np.array(numbers) + intercept)

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
        method, parameters = (
            content.get(key) if isinstance(content, Mapping) else None for key in ("method", "parameters")
        )
        if not isinstance(method, str) or method not in METHODS:
            raise TableError(f"calibration: got method {method!r}, expected one of {', '.join(METHODS)}")
        names = METHODS[method]
        if not isinstance(parameters, Mapping) or set(parameters) != set(names) or not _rises(method, parameters):
            raise TableError(f"calibration: parameters of {method} are not {', '.join(names)} of a rising map")
        return cls(method, dict(parameters))


def fit(method: str, y_true: ArrayLike, scores: ArrayLike) -> Calibration:
    """Fit a calibration.

    Scores that rank worse than chance would need a falling map; they get a constant one (a slope of 0).

    Args:
        method: one of METHODS, or "auto": "beta" with 30 cancers or more, else "platt".
        y_true: 0/1 of shape (N,).
        scores: float (N,) in [0, 1], of breasts that the network has not learned from.

    Raises:
        UsageError: an unknown method.
        TableError: labels or scores that are none, or only one class.
        MissingDependencyError: isotonic, and scikit-learn is not installed.

    Example:
        >>> rising = fit("isotonic", [0, 0, 0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
        >>> rising.apply([0.1, 0.45, 0.6]).round(3).tolist()
        [0.167, 0.5, 0.75]
    """
    if method not in (*METHODS, KEPT):
        raise UsageError(f"calibration: got method {method!r}, expected one of {', '.join(METHODS)} or {KEPT}")
    labels, values = _checked(y_true, scores)
    positives = int(labels.sum())
    if method == KEPT:
        method = "beta" if positives >= BETA_FROM else "platt"
    if not 0 < positives < len(labels):
        raise TableError(f"calibration: got {positives} cancers among {len(labels)} breasts, expected some of both")
    low, high = 1 / (len(labels) - positives + 2), (positives + 1) / (positives + 2)
    if method == "isotonic":
        model = require("sklearn.isotonic", "train").IsotonicRegression(y_min=low, y_max=high)
        model.fit(values, labels)
        found = (model.X_thresholds_.tolist(), model.y_thresholds_.tolist())
        return Calibration(method, dict(zip(METHODS[method], found, strict=True)))
    targets = np.where(labels == 1, high, low)
    numbers = rising_regression(_features(method, values), targets, with_intercept=method != "temperature")
    return Calibration(method, dict(zip(METHODS[method], numbers.tolist(), strict=True)))


def cross_fitted(method: str, y_true: ArrayLike, scores: ArrayLike, folds: ArrayLike) -> np.ndarray:
    """Probability of each breast by a calibration that was fitted on the other folds: float64 (N,).

    Args:
        method, y_true, scores: as for `fit`.
        folds: of shape (N,), at least two; both classes lie outside each.
    """
    labels, values = _checked(y_true, scores)
    fold_of = np.asarray(folds)
    probabilities = np.empty(len(values))
    for fold in np.unique(fold_of):
        held = fold_of == fold
        probabilities[held] = fit(method, labels[~held], values[~held]).apply(values[held])
    return probabilities


def calibrate(
    y_true: ArrayLike, scores: ArrayLike, folds: ArrayLike, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any] | None:
    """The calibration that travels with a network, and what it is worth.

    Args:
        y_true, scores, folds: out of fold, as for `cross_fitted`; a single fold will do.
        say: told what was fitted, or why nothing was.

    Returns:
        What `Calibration.from_dict` takes, and `how`: `cancers` and, from two folds on, `log_loss` and
        `calibration_error` of the raw scores and of probabilities cross-fitted by the same method. Ready for JSON.
        None for fewer than `FEWEST_CANCERS` cancers, or without any healthy breast.
    """
    labels, values = _checked(y_true, scores)
    cancers, fold_of = int(labels.sum()), np.asarray(folds)
    if not FEWEST_CANCERS <= cancers < len(labels):
        say(f"no calibration: {cancers} cancers among {len(labels)} breasts, expected {FEWEST_CANCERS} or more")
        return None
    chosen = fit(KEPT, labels, values)
    how: dict[str, Any] = {"cancers": cancers}
    outside = [labels[fold_of != fold] for fold in np.unique(fold_of)]
    if all(0 < rest.sum() < len(rest) for rest in outside):
        honest = cross_fitted(chosen.method, labels, values, fold_of)
        for name, measure in (("log_loss", mean_log_loss), ("calibration_error", expected_calibration_error)):
            how[name] = {"raw": measure(labels, values), "calibrated": measure(labels, honest)}
        losses = how["log_loss"]
        before, after = losses["raw"], losses["calibrated"]
        say(f"{chosen.method} calibration: log-loss {before:.4f} before, {after:.4f} after, out of fold")
    return {**chosen.as_dict(), "how": how}


def reliability(y_true: ArrayLike, scores: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """What was said and what came true, in bins of about equally many breasts.

    Equal scores stay in one bin, so there may be fewer bins than asked for.

    Args:
        y_true: 0/1 of shape (N,).
        scores: float (N,) in [0, 1], probabilities.
        bins: at least 1.

    Returns:
        One row a bin, by rising score: `low`, `high` (lowest and highest score), `breasts`, `cancers`, `mean_score`,
        `share` (cancers / breasts), `share_low` and `share_high` (Wilson's 95 % interval, 1927; breasts are taken as
        independent).

    Example:
        >>> reliability([0, 1, 0, 1], [0.1, 0.1, 0.3, 0.8], bins=2)[["low", "high", "share"]].values.tolist()
        [[0.1, 0.1, 0.5], [0.3, 0.8, 0.5]]
    """
    if bins < 1:
        raise UsageError(f"bins: got {bins}, expected at least 1")
    labels, values = _checked(y_true, scores)
    # A breast's bin is that of the first of its equals: a tie is never split.
    first = np.searchsorted(np.sort(values), values, side="left")
    groups = pd.DataFrame({"score": values, "cancer": labels}).groupby(first * bins // len(values))
    table = pd.DataFrame({
        "low": groups["score"].min(), "high": groups["score"].max(), "breasts": groups.size(),
        "cancers": groups["cancer"].sum().astype("int64"), "mean_score": groups["score"].mean(),
    }).reset_index(drop=True)  # fmt: skip
    table["share"] = table["cancers"] / table["breasts"]
    table["share_low"], table["share_high"] = wilson(table["share"], table["breasts"])
    return table


def expected_calibration_error(y_true: ArrayLike, scores: ArrayLike, bins: int = 10) -> float:
    """Mean distance of share and mean score over the bins of `reliability`, weighted by their breasts.

    With equally filled bins it is small for anything that says the right prevalence where nearly all breasts are: at
    2 % cancers compare it with 0.02, not with 1. Too few breasts make it too large (Naeini et al. 2015).

    Example:
        >>> expected_calibration_error([0, 1, 0, 1], [0.25, 0.25, 0.75, 0.75], bins=2)
        0.25
    """
    table = reliability(y_true, scores, bins)
    return float(np.average((table["share"] - table["mean_score"]).abs(), weights=table["breasts"]))


def at_prevalence(probabilities: ArrayLike, fitted: float, seen: float) -> np.ndarray:
    """Probabilities for a population with more or fewer cancers, by the ratio of odds (Saerens et al. 2002).

    Cancers and healthy breasts each are taken to look as they did; only their shares differ.

    Args:
        probabilities: calibrated where the share of cancers was `fitted`.
        fitted, seen: shares of cancers, more than 0 and less than 1.

    Example:
        >>> at_prevalence([0.5, 0.02], 0.02, 0.04).round(4).tolist()
        [0.6712, 0.04]
    """
    for name, share in (("fitted", fitted), ("seen", seen)):
        if not 0 < share < 1:
            raise UsageError(f"prevalence {name}: got {share}, expected a share between 0 and 1 such as 0.0207")
    known = np.asarray(probabilities, dtype=np.float64)
    with_cancer, without = known * (seen / fitted), (1 - known) * ((1 - seen) / (1 - fitted))
    return with_cancer / (with_cancer + without)


def _checked(y_true: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    ranking = Ranking(y_true, scores)  # refuses what is no label or no score
    if ranking.scores.min() < 0 or ranking.scores.max() > 1:
        raise TableError(f"scores: got {ranking.scores.min():g} to {ranking.scores.max():g}, expected [0, 1]")
    return np.asarray(y_true, dtype=np.float64), np.asarray(scores, dtype=np.float64)


def _features(method: str, scores: np.ndarray) -> np.ndarray:
    """(…, F): what is multiplied by the slopes."""
    if method == "beta":
        clipped = np.clip(scores, _CERTAIN, 1 - _CERTAIN)
        return np.stack([np.log(clipped), -np.log1p(-clipped)], axis=-1)
    return logits(scores, _CERTAIN)[..., None]


def _rises(method: str, parameters: Mapping[str, Any]) -> bool:
    """Whether the parameters are finite numbers of a map that never falls and stays in [0, 1]."""
    try:
        numbers = [np.asarray(parameters[name], dtype=np.float64) for name in METHODS[method]]
    except (TypeError, ValueError):
        return False
    if not all(np.isfinite(values).all() for values in numbers):
        return False
    if method != "isotonic":
        slopes = numbers[: 2 if method == "beta" else 1]
        return all(values.ndim == 0 for values in numbers) and all(slope >= 0 for slope in slopes)
    scores, heights = numbers
    if scores.ndim != 1 or scores.shape != heights.shape or not scores.size:
        return False
    rising = (np.diff(scores) > 0).all() and (np.diff(heights) >= 0).all()
    return bool(rising and heights[0] >= 0 and heights[-1] <= 1)
