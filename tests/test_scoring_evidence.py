"""What is said about two models: which is better, whether that is evidence, and how many cancers would settle it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rsna_kit.runtime.errors import UsageError
from rsna_kit.scoring.metrics import average_precision, roc_auc
from rsna_kit.scoring.uncertainty import Interval, paired
from rsna_lab.analysis.evidence import cancers_needed, sentence

MAY = "not evidence, other patients may reverse it."


@pytest.mark.parametrize(
    ("metric", "difference", "expected"),
    [
        ("roc_auc", (0.012, -0.008, 0.031), f"better than A by 0.012 ROC-AUC, 95 % interval -0.008 to 0.031: {MAY}"),
        ("roc_auc", (-0.012, -0.031, 0.008), f"worse than A by 0.012 ROC-AUC, 95 % interval -0.008 to 0.031: {MAY}"),
        ("pf1", (0.03, 0.0104, 0.05), "better than A by 0.030 pF1, 95 % interval 0.010 to 0.050: evidence."),
        ("ppv", (-0.03, -0.05, -0.01), "worse than A by 0.030 PPV, 95 % interval 0.010 to 0.050: evidence."),
        ("log_loss", (-0.03, -0.05, -0.01), "better than A by 0.030 log-loss, 95 % interval 0.010 to 0.050: evidence."),
        ("brier", (0.03, 0.01, 0.05), "worse than A by 0.030 Brier score, 95 % interval 0.010 to 0.050: evidence."),
        ("f1", (-2e-5, -4.4e-5, -8e-6), "worse than A by 0.00002 F1, 95 % interval 0.00001 to 0.00004: evidence."),
        ("recall_rate", (-0.02, -0.03, 0.0), f"lower than A by 0.020 recall rate, 95 % interval 0 to 0.030: {MAY}"),
        ("recall_rate", (0.2, 0.1, 0.3), "higher than A by 0.200 recall rate, 95 % interval 0.100 to 0.300: evidence."),
        ("my_score", (0.1, 0.0, 0.2), f"better than A by 0.100 my score, 95 % interval 0 to 0.200: {MAY}"),
        ("f1_max", (0.01, -0.03, -0.01), f"better than A by 0.010 highest F1, 95 % interval -0.030 to -0.010: {MAY}"),
        ("f1", (0.1, math.nan, math.nan), f"better than A by 0.100 F1, without an interval: {MAY}"),
    ],
)  # fmt: skip
def test_sentences(metric: str, difference: tuple[float, float, float], expected: str) -> None:
    assert sentence(Interval(*difference), metric, "A", "B") == f"B is {expected}"


def test_sentences_without_a_better_one() -> None:
    said = {ends: sentence(Interval(0.0, *ends), "f1", "A", "B") for ends in ((-0.1, 0.1), (0.0, 0.0))}
    assert said[-0.1, 0.1] == "B and A have the same F1, 95 % interval -0.100 to 0.100: no evidence of a difference."
    assert said[0.0, 0.0] == "B and A have the same F1, 95 % interval 0 to 0: no difference."
    undefined = sentence(Interval(math.nan, math.nan, math.nan), "f1", "A", "B")
    assert undefined == "B and A cannot be compared: F1 is not defined on these breasts."


def test_the_level_of_the_interval_is_said() -> None:
    assert "99.9 % interval" in sentence(Interval(0.1, 0.05, 0.2, level=0.999), "f1", "A", "B")


def test_equal_models_are_called_equal() -> None:
    scores = np.random.default_rng(0).random(60)
    labels = np.arange(60) % 5 == 0
    found = paired(labels, scores, scores, np.arange(60), {"average_precision": average_precision}, resamples=50)
    said = sentence(found["average_precision"], "average_precision", "A", "B")
    assert said == "B and A have the same average precision, 95 % interval 0 to 0: no difference."


def test_cancers_needed_by_hand() -> None:
    """Standard error 0.02 with 100 cancers; (1.959964 + 0.841621) · 0.02 / 0.02 = 2.801585, squared 7.8489."""
    half = 0.02 * 1.959964
    assert cancers_needed(Interval(0.0, -half, half), 100) == 785
    assert cancers_needed(Interval(0.5, 0.5 - half, 0.5 + half), 100) == 785
    assert cancers_needed(Interval(0.0, -half, half), 100, effect=0.04) == 197
    assert cancers_needed(Interval(0.0, -half, half), 100, power=0.9) == 1051
    half = 0.02 * 1.644854
    assert cancers_needed(Interval(0.0, -half, half, level=0.9), 100) == 785


def test_cancers_needed_are_enough_in_the_power_that_was_asked_for() -> None:
    """Two models of AUC 0.80 and 0.84. Of 200 tables as large as 100 cancers foretell, 80 % find the difference.

    The share is within three of its standard errors, 8.5 %, or a little more, since what is foretold varies too.
    """
    rng = np.random.default_rng(3)

    def table(cancers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = np.repeat([1, 0], [cancers, 5 * cancers])
        hard = rng.normal(size=(2, 6 * cancers))
        noise = 0.7**0.5 * rng.normal(size=6 * cancers)
        first, second = (
            shift * labels + noise + 0.3**0.5 * own for shift, own in zip((1.1902, 1.4064), hard, strict=True)
        )
        return labels, first, second

    labels, first, second = table(100)
    measured = paired(labels, first, second, np.arange(600), {"auc": roc_auc}, resamples=2000)["auc"]
    needed = cancers_needed(measured, 100, effect=0.04)
    hits = 0
    for number in range(200):
        labels, first, second = table(needed)
        found = paired(labels, first, second, np.arange(len(labels)), {"auc": roc_auc}, 200, seed=number)["auc"]
        hits += found.low > 0
    assert 0.7 < hits / 200 < 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cancers": 0}, "0 cancers"),
        ({"effect": 0.0}, "effect 0"),
        ({"effect": math.nan}, "effect nan"),
        ({"power": 1.0}, "power 1"),
        ({"power": 0.05}, "power 0.05"),
        ({"difference": Interval(0.0, 0.0, 0.0)}, "no width"),
        ({"difference": Interval(0.1, math.nan, math.nan)}, "no width"),
    ],
)
def test_power_of_nothing_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cancers_needed(**{"difference": Interval(0.0, -0.1, 0.1), "cancers": 100} | change)
