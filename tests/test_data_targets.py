"""Further targets: what the columns mean, what is missing, and that none of them is ever an input."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_pictures import write_toys

from rsna_kit.competition.tables import TRAIN_COLUMNS, read_train
from rsna_kit.config import Config, DataConfig, ImageConfig, ModelConfig, TrainConfig
from rsna_kit.data.batches import Pictures, TrainingSet, training_stream
from rsna_kit.data.targets import target_names, target_values, without_idle
from rsna_kit.runtime.errors import TableError, UsageError

EVERY = "biopsy,invasive,difficult_negative_case,BIRADS,density"
NAMES = ("cancer", "biopsy", "invasive", "difficult_negative_case", "BIRADS", "density>A", "density>B", "density>C")
NAN = np.nan
ROWS = """
2,10006,462822612,L,CC,61.0,0,0,0,,0,,29,False
1,10011,220375232,L,CC,55.0,0,0,0,0,0,A,21,True
1,10038,1967300488,L,CC,61.0,1,1,1,2,0,C,29,False
1,10038,1967300489,R,CC,61.0,0,1,0,1,0,D,29,False
"""
EXPECTED = [
    [0, 0, 0, 0, NAN, NAN, NAN, NAN],
    [0, 0, 0, 1, 1, 0, 0, 0],
    [1, 1, 1, 0, 0, 1, 1, 0],
    [0, 1, 0, 0, 0, 1, 1, 1],
]
CONFIG = Config(
    image=ImageConfig(height=24, width=16),
    data=DataConfig(augment="flip"),
    train=TrainConfig(batch_size=4, targets=EVERY),
)


def train_table(folder: Path) -> pd.DataFrame:
    (folder / "train.csv").write_text(",".join(TRAIN_COLUMNS) + ROWS)
    return read_train(folder / "train.csv")


def with_targets(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The toy table with random further columns, some cells empty."""
    rng = np.random.default_rng(seed)
    count = len(table)
    return table.assign(
        biopsy=rng.integers(0, 2, count),
        invasive=rng.integers(0, 2, count),
        difficult_negative_case=rng.integers(0, 2, count) == 1,
        BIRADS=np.where(rng.random(count) < 0.3, NAN, rng.integers(0, 3, count)),
        density=rng.choice(np.array(["A", "B", "C", "D", None], object), count),
    )


def test_the_names_of_the_columns() -> None:
    assert target_names("") == ("cancer",)
    assert target_names(EVERY) == NAMES
    assert target_names(" density , biopsy ") == ("cancer", "density>A", "density>B", "density>C", "biopsy")


def test_the_meaning_of_the_cells(tmp_path: Path) -> None:
    values = target_values(train_table(tmp_path), EVERY)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.array(EXPECTED, np.float32))


def test_a_table_that_was_written_and_read_gives_the_same(tmp_path: Path) -> None:
    """table.csv of a prepared folder is read by pandas alone: BIRADS comes back as float, flags as bool."""
    train_table(tmp_path).to_csv(tmp_path / "table.csv", index=False)
    table = pd.read_csv(tmp_path / "table.csv", dtype={"density": str})
    np.testing.assert_array_equal(target_values(table, EVERY), np.array(EXPECTED, np.float32))


def test_birads_of_other_collections() -> None:
    """CBIS-DDSM has 0 to 5: what is not a routine result is 1."""
    table = pd.DataFrame({"cancer": 0, "BIRADS": [0, 1, 2, 3, 4, 5, 6]})
    assert target_values(table, "BIRADS")[:, 1].tolist() == [1, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ("biopsi", r"train.targets: got 'biopsi', expected some of biopsy, .*density.* Did you mean 'biopsy'"),
        ("age", r"got 'age', expected some of biopsy"),
        ("cancer", "cancer is always learned"),
        ("biopsy,density,biopsy", "biopsy is given twice"),
    ],
)
def test_names_that_are_no_targets_are_refused(further: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        target_names(further)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": ["A", "E", None, "E"]}, r"density is 'E' in 2 rows, expected one of A, B, C, D"),
        ({"BIRADS": [0, 1, 9, NAN]}, r"BIRADS is '9.0' in 1 rows"),
        ({"biopsy": [0, 1, 2, 1]}, r"biopsy is '2' in 1 rows, expected one of 0, 1"),
    ],
)
def test_cells_without_a_meaning_are_refused(tmp_path: Path, change: dict[str, list[object]], message: str) -> None:
    with pytest.raises(TableError, match=message):
        target_values(train_table(tmp_path).assign(**change), EVERY)


def test_an_absent_column_is_refused(tmp_path: Path) -> None:
    table = train_table(tmp_path).rename(columns={"biopsy": "biopsied"})
    with pytest.raises(TableError, match=r"no column 'biopsy', which train.targets asks for.* Did you mean 'biopsied'"):
        target_values(table, "biopsy")


def test_targets_that_teach_nothing_are_left_out() -> None:
    values = np.array([[0, 0, NAN, 1], [1, 0, NAN, 0], [0, NAN, NAN, NAN]], np.float32)
    kept, notes = without_idle(values, ("cancer", "biopsy", "density>A", "BIRADS"))
    assert notes == (
        "target biopsy: 0 in all training rows, left out",
        "target density>A: missing in all training rows, left out",
    )
    np.testing.assert_array_equal(kept, [[0, NAN, NAN, 1], [1, NAN, NAN, 0], [0, NAN, NAN, NAN]])
    assert values[0, 1] == 0  # the caller's array is as it was


@pytest.mark.tf
@pytest.mark.parametrize("kind", ["image", "breast"])
def test_targets_are_never_an_input(tmp_path: Path, kind: str) -> None:
    """Other further columns: the same pictures in the same order, and only the targets differ."""
    prepared = write_toys(tmp_path, CONFIG.image, 16)
    config = dataclasses.replace(CONFIG, model=ModelConfig(kind=kind))
    first, second = (
        list(training_stream(TrainingSet(Pictures(prepared), with_targets(prepared.table, seed), config), 1))
        for seed in (1, 2)
    )
    different = 0
    for (pictures, targets, weights), (others, other_targets, other_weights) in zip(first, second, strict=True):
        np.testing.assert_array_equal(pictures, others)
        np.testing.assert_array_equal(weights, other_weights)
        np.testing.assert_array_equal(targets[:, 0], other_targets[:, 0])
        assert targets.shape == (4, len(NAMES))
        different += int((targets[:, 1:] != other_targets[:, 1:]).sum())
    assert different > 10
