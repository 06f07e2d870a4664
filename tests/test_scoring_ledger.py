"""Image scores on disk: what the next run takes up again, and what it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_kit.runtime.errors import BundleError
from rsna_kit.scoring.ledger import ScoreLedger

IDENTITY = {"bundles": ["abc"], "images": "def"}
FAILURE = {"image_id": "3", "stage": "decode", "reason": "no decoder, of five"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    ledger = ScoreLedger(tmp_path, IDENTITY)
    ledger.add(["01", "2"], np.array([0.1, 0.9]))
    ledger.fail(FAILURE)
    ledger.save(["2", "3", "01"])
    return tmp_path


def test_both_tables_keep_the_order_asked_for(saved: Path) -> None:
    scores = pd.read_csv(saved / "image_scores.csv", dtype={"image_id": str})
    assert list(scores.itertuples(index=False, name=None)) == [("2", 0.9), ("01", 0.1)]
    assert pd.read_csv(saved / "failures.csv", dtype=str).to_dict("records") == [FAILURE]


def test_scores_are_taken_up_again_and_failures_are_tried_again(saved: Path) -> None:
    again = ScoreLedger(saved, IDENTITY)
    assert again.scores == {"01": 0.1, "2": 0.9}
    assert not again.done("3")


def test_another_run_starts_from_nothing(saved: Path) -> None:
    assert ScoreLedger(saved, {**IDENTITY, "bundles": ["xyz"]}).scores == {}
    assert ScoreLedger(saved, IDENTITY).scores == {}


@pytest.mark.parametrize("score", [np.nan, np.inf, -0.1, 1.1])
def test_a_score_that_is_none_is_refused(tmp_path: Path, score: float) -> None:
    ledger = ScoreLedger(tmp_path, IDENTITY)
    with pytest.raises(BundleError, match=r"expected numbers in \[0, 1\]"):
        ledger.add(["1", "2"], np.array([0.5, score]))
    assert ledger.scores == {}
