"""Boards drawn from what was scored: their mean is what the calls are worth, and they know the prevalence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rsna_kit.runtime.errors import TableError
from rsna_lab.analysis.shakeup import PREVALENCE, PRIVATE_PATIENTS, PUBLIC_PATIENTS, boards


def called(sensitivity: float, false: float, patients: int = 4000, seed: int = 0) -> pd.DataFrame:
    """Two breasts a patient, 5 % with cancer, called independently."""
    cancer = (np.random.default_rng(1).random(2 * patients) < 0.05).astype(int)
    chance = np.where(cancer == 1, sensitivity, false)
    calls = (np.random.default_rng(seed).random(2 * patients) < chance).astype(int)
    return pd.DataFrame({"patient_id": np.repeat(np.arange(patients), 2), "cancer": cancer, "called": calls})


def expected_f1(model: pd.DataFrame) -> float:
    """F1 at the competition's prevalence, from the shares of this table."""
    ill = model["cancer"] == 1
    tp, fp = PREVALENCE * model["called"][ill].mean(), (1 - PREVALENCE) * model["called"][~ill].mean()
    return float(2 * tp / (tp + fp + PREVALENCE))


def test_boards_lie_around_what_the_calls_are_worth() -> None:
    models = {"good": called(0.6, 0.01), "poor": called(0.4, 0.02, seed=3)}
    drawn = boards(models, draws=2000)
    assert PRIVATE_PATIENTS + PUBLIC_PATIENTS == 8000
    for number, model in enumerate(models.values()):
        for board in ("public", "private"):
            assert drawn[board][:, number].mean() == pytest.approx(expected_f1(model), abs=0.01)
    ratio = drawn["public"].std(axis=0) / drawn["private"].std(axis=0)
    assert ratio == pytest.approx(np.sqrt(PRIVATE_PATIENTS / PUBLIC_PATIENTS), rel=0.1)
    np.testing.assert_array_equal(drawn["public"], boards(models, draws=2000)["public"])


def test_models_that_call_alike_get_the_same_board() -> None:
    """Each draw has the same patients for all: only so can a choice between models be judged."""
    model = called(0.5, 0.02)
    drawn = boards({"a": model, "b": model.copy()}, draws=50)
    np.testing.assert_array_equal(drawn["private"][:, 0], drawn["private"][:, 1])


@pytest.mark.parametrize("cancer", [0, 1])
def test_one_class_alone_is_refused(cancer: int) -> None:
    with pytest.raises(TableError, match="expected both"):
        boards({"a": called(0.5, 0.1, patients=5).assign(cancer=cancer)})
