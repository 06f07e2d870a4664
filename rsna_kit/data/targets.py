"""A training table → what a network learns to tell: cancer first, then the further targets, missing as NaN.

Further targets are things that train.csv knows and test.csv does not: they can be learned beside cancer and can never
be an input. Each is one column or several of 0 and 1:

    biopsy, invasive, difficult_negative_case   as in the table
    BIRADS                                      1: not a routine result (0 "recalled", or 3 to 6); 0: 1 or 2
    density                                     three columns, "density>A", "density>B", "density>C" (Frank and Hall,
                                                A simple approach to ordinal classification, 2001)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError, UsageError, did_you_mean

CANCER = "cancer"
_FLAG: dict[object, float] = {0: 0.0, 1: 1.0}
_BIRADS: dict[object, float] = {0: 1.0, 1: 0.0, 2: 0.0, 3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0}
# Column of the table → target columns, each with what the cells mean.
_TARGETS: dict[str, dict[str, dict[object, float]]] = {
    CANCER: {CANCER: _FLAG},
    "biopsy": {"biopsy": _FLAG},
    "invasive": {"invasive": _FLAG},
    "difficult_negative_case": {"difficult_negative_case": _FLAG},
    "BIRADS": {"BIRADS": _BIRADS},
    "density": {f"density>{least}": {cell: float(cell > least) for cell in "ABCD"} for least in "ABC"},
}


def target_names(further: str) -> tuple[str, ...]:
    """Names of the target columns, "cancer" first.

    Args:
        further: `train.targets`: names of the table's columns with commas between them, or nothing.

    Raises:
        UsageError: an unknown name (with the nearest known one), one that is given twice, or cancer itself.

    Example:
        >>> target_names("biopsy,density")
        ('cancer', 'biopsy', 'density>A', 'density>B', 'density>C')
    """
    return tuple(name for column in _columns(further) for name in _TARGETS[column])


def _columns(further: str) -> list[str]:
    """The table's columns that make the targets."""
    given = [name.strip() for name in further.split(",") if name.strip()]
    known = [name for name in _TARGETS if name != CANCER]
    for name in given:
        if name == CANCER:
            raise UsageError("train.targets: cancer is always learned, leave it out")
        if name not in known:
            expected = f"expected some of {', '.join(known)}, with commas between them"
            raise UsageError(f"train.targets: got {name!r}, {expected}.{did_you_mean(name, known)}")
        if given.count(name) > 1:
            raise UsageError(f"train.targets: {name} is given twice, expected each name once")
    return [CANCER, *given]


def target_values(rows: pd.DataFrame, further: str) -> np.ndarray:
    """The targets of every row.

    Args:
        rows: N rows of a training table with the columns that are asked for.
        further: `train.targets`.

    Returns:
        float32 (N, K) of 0, 1 and, where the cell is empty, NaN; columns in the order of `target_names`.

    Raises:
        UsageError: as `target_names`.
        TableError: a column is absent, or a cell has no meaning there.
    """
    values = []
    for column in _columns(further):
        if column not in rows.columns:
            raise TableError(
                f"training table: no column {column!r}, which train.targets asks for. Got "
                f"{', '.join(map(str, rows.columns))}.{did_you_mean(column, rows.columns)}"
            )
        cells = rows[column]
        for meaning in _TARGETS[column].values():
            made = np.array([meaning.get(cell, np.nan) for cell in cells], np.float32)  # True is 1 here, 1.0 too
            strange = cells[np.isnan(made) & cells.notna().to_numpy()]
            if len(strange):
                raise TableError(
                    f"training table: {column} is {str(strange.iloc[0])!r} in {len(strange)} rows, expected one of "
                    f"{', '.join(map(str, meaning))}, or nothing"
                )
            values.append(made)
    return np.stack(values, axis=1)


def without_idle(values: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Take further targets that teach nothing out of the loss.

    Args:
        values: float32 (N, K) from `target_values`, of the rows that will be trained on.
        names: K names; the first is never taken out.

    Returns:
        A copy in which a column that is all missing or all the same is NaN, and one line for each such column.
    """
    values, notes = values.copy(), []
    for column, name in enumerate(names[1:], start=1):
        present = np.unique(values[~np.isnan(values[:, column]), column])
        if len(present) < 2:
            why = "missing in all training rows" if len(present) == 0 else f"{present[0]:g} in all training rows"
            notes.append(f"target {name}: {why}, left out")
            values[:, column] = np.nan
    return values, tuple(notes)
