"""The interval of a difference between two models → a plain sentence, and how many cancers would settle it."""

from __future__ import annotations

import math
from statistics import NormalDist

from rsna_kit.runtime.errors import UsageError
from rsna_kit.scoring.uncertainty import Interval

_NAMES = {
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "average_precision": "average precision",
    "pf1": "pF1",
    "pf1_binary": "pF1 after the threshold",
    "f1": "F1",
    "f1_max": "highest F1",
    "log_loss": "log-loss",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "recall_rate": "recall rate",
    "ppv": "PPV",
}
_LOWER_IS_BETTER = {"log_loss", "brier", "calibration_error"}
_NEITHER_IS_BETTER = {"recall_rate"}
_SIZE = 0.05  # of the two-sided test whose power is computed


def sentence(difference: Interval, metric: str, first: str, second: str) -> str:
    """What the difference second - first says, for a person who is no statistician.

    The difference is evidence when its interval leaves out 0. "Better" and "worse" follow the metric: a lower log-loss
    or Brier score is better. The numbers are turned so that they say by how much `second` is what the sentence claims;
    a negative end of the interval means the opposite.

    Args:
        difference: what `rsna_kit.scoring.uncertainty.paired` returns for the metric.
        metric: its name; of the names it does not know, higher is better and the name is shown as it is.
        first, second: the models.

    Example:
        >>> print(sentence(Interval(0.012, -0.008, 0.031), "roc_auc", "A", "B"))
        B is better than A by 0.012 ROC-AUC, 95 % interval -0.008 to 0.031: not evidence, other patients may reverse it.
        >>> print(sentence(Interval(0.02, 0.006, 0.035), "log_loss", "A", "B"))
        B is worse than A by 0.020 log-loss, 95 % interval 0.006 to 0.035: evidence.
    """
    name, value = _NAMES.get(metric, metric.replace("_", " ")), difference.value
    if math.isnan(value):
        return f"{second} and {first} cannot be compared: {name} is not defined on these breasts."
    if value == 0:
        claim = f"{second} and {first} have the same {name}"
    else:
        claim = f"{second} is {_word(metric, value)} than {first} by {_number(abs(value))} {name}"
    low, high = difference.low, difference.high
    if math.isnan(low) or math.isnan(high):
        return f"{claim}, without an interval: not evidence, other patients may reverse it."
    if value < 0:
        low, high = -high, -low
    claim += f", {100 * difference.level:g} % interval {_number(low)} to {_number(high)}"
    if value == 0:
        return f"{claim}: no difference." if low == high == 0 else f"{claim}: no evidence of a difference."
    return f"{claim}: evidence." if low > 0 else f"{claim}: not evidence, other patients may reverse it."


def cancers_needed(difference: Interval, cancers: int, effect: float = 0.02, power: float = 0.8) -> int:
    """How many cancers it takes until a true difference of `effect` is found with probability `power`.

    Half the width of the interval, divided by the normal quantile of its level, is the standard error with the
    cancers there are. It shrinks with the square root of their number (with the other breasts in proportion), and a
    two-sided test of 5 % finds `effect` with probability `power` when it is (z(0.975) + z(power)) standard errors:

        n = cancers · ((z(0.975) + z(power)) · standard error / effect)²

    The usual formula for an estimate that is normally distributed; for ROC areas Hanley & McNeil, Radiology 143 (1982)
    29, and of the same cases 148 (1983) 839. It holds for two models as alike as these: the more two models agree on
    what is hard, the fewer cancers tell them apart.

    Args:
        difference: what `rsna_kit.scoring.uncertainty.paired` returns, measured with `cancers`.
        cancers: breasts with cancer behind `difference`, at least 1.
        effect: the difference that should be visible, more than 0.
        power: between 0.05 and 1.

    Returns:
        a whole number, rounded up.

    Raises:
        UsageError: an argument that cannot be, or an interval without width (undefined, or the same models).

    Example:
        >>> cancers_needed(Interval(0.012, -0.008, 0.031), cancers=492)
        956
    """
    if cancers < 1 or not effect > 0 or not _SIZE < power < 1:
        raise UsageError(
            f"power: got {cancers} cancers, effect {effect}, power {power}; expected at least 1 cancer, an effect above"
            f" 0 and a power between {_SIZE} and 1"
        )
    if not difference.high > difference.low:
        raise UsageError(
            f"power: the interval {difference.low} to {difference.high} has no width, so it says nothing about how"
            " the difference varies; expected the interval of two models that differ"
        )
    z = NormalDist().inv_cdf
    standard_error = (difference.high - difference.low) / 2 / z((1 + difference.level) / 2)
    return math.ceil(cancers * ((z(1 - _SIZE / 2) + z(power)) * standard_error / effect) ** 2)


def _word(metric: str, value: float) -> str:
    if metric in _NEITHER_IS_BETTER:
        return "higher" if value > 0 else "lower"
    return "better" if (value > 0) != (metric in _LOWER_IS_BETTER) else "worse"


def _number(value: float) -> str:
    """Three decimals, or as many as it takes to show that it is not 0."""
    decimals = 3
    if value == 0:
        return "0"
    while round(value, decimals) == 0:
        decimals += 1
    return f"{value:.{decimals}f}"
