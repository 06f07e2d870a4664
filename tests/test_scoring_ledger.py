"""Image scores on disk: what the next run takes up again, and what it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_kit.runtime.errors import BundleError
from rsna_kit.scoring.ledger import ScoreLedger

IDENTITY = {"bundles": ["abc"], "weights": [1.0], "tta": "none", "images": "def"}
MIXED = ["score", "score_1", "attention_1"]
FAILURE = {"image_id": "3", "stage": "decode", "reason": "no decoder, of five"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    ledger = ScoreLedger(tmp_path, IDENTITY)
    ledger.add(["01", "2"], np.array([[0.1], [0.9]]))
    ledger.fail(FAILURE)
    ledger.save(["2", "3", "01"])
    return tmp_path


def test_scores_are_taken_up_again_in_the_order_asked_for_and_failures_are_tried_again(saved: Path) -> None:
    scores = pd.read_csv(saved / "image_scores.csv", dtype={"image_id": str})
    assert list(scores.itertuples(index=False, name=None)) == [("2", 0.9), ("01", 0.1)]
    assert pd.read_csv(saved / "failures.csv", dtype=str).to_dict("records") == [FAILURE]
    again = ScoreLedger(saved, IDENTITY)
    assert again.scores == {"01": (0.1,), "2": (0.9,)}
    assert not again.done("3")
    assert ScoreLedger(saved, IDENTITY, MIXED).scores == {}  # another run


@pytest.mark.parametrize("change", [{"bundles": ["xyz"]}, {"weights": [0.5]}, {"tta": "flip"}, {"images": "x"}])
def test_another_run_starts_from_nothing(saved: Path, change: dict) -> None:
    assert ScoreLedger(saved, IDENTITY | change).scores == {}
    assert ScoreLedger(saved, IDENTITY).scores == {}


def test_all_columns_survive_to_the_last_bit_and_so_does_what_is_missing(tmp_path: Path) -> None:
    ledger = ScoreLedger(tmp_path, IDENTITY, MIXED)
    rows = np.array([[0.1 + 0.2, 1 / 3, -17.123456789012345], [np.nan, 0.5, 3.0], [0.25, np.nan, np.nan]])
    ledger.add(["1", "2", "3"], rows)
    ledger.save(["1", "2", "3"])
    again = ScoreLedger(tmp_path, IDENTITY, MIXED)
    np.testing.assert_array_equal([again.scores[i] for i in "123"], rows)
    table = again.table(["3", "9", "1"])
    assert table["image_id"].tolist() == ["3", "1"]
    assert list(table.columns) == ["image_id", *MIXED]
    assert table["score_1"].isna().tolist() == [True, False]


def test_what_was_given_up_stays_with_the_scores(saved: Path) -> None:
    ledger = ScoreLedger(saved, IDENTITY)
    assert ledger.given_up == {}
    ledger.given_up = {"coarser": 1, "given_up": []}
    ledger.save(["1"])
    assert ScoreLedger(saved, IDENTITY).given_up == {"coarser": 1, "given_up": []}
    assert ScoreLedger(saved, IDENTITY | {"tta": "flip"}).given_up == {}
    assert not (saved / "given_up.json").exists()


@pytest.mark.parametrize(
    "row", [[np.nan, np.nan, 1.0], [0.5, 0.5, np.inf], [0.5, 2.0, 0.0], [-0.1, 0.5, 0.0], [np.inf, 0.5, 0.0]]
)
def test_a_row_without_a_score_or_with_an_infinite_attention_is_refused(tmp_path: Path, row: list[float]) -> None:
    ledger = ScoreLedger(tmp_path, IDENTITY, MIXED)
    with pytest.raises(BundleError, match=r"scores of 1, 2, .*expected numbers in \[0, 1\]"):
        ledger.add(["1", "2"], np.array([[0.5, 0.5, 0.0], row]))
    assert ledger.scores == {}
