"""train.csv, test.csv, sample_submission.csv → tables with fixed types, or one clear error before any work starts.

    patient_id image_id prediction_id view   str (never numbers: leading zeros and 10-digit ids survive)
    laterality                               "L" or "R"
    cancer biopsy invasive implant           int8, 0 or 1
    difficult_negative_case                  bool
    site_id machine_id BIRADS                Int64, missing is <NA>
    age                                      float32 years, missing is NaN
    density                                  "A" to "D", missing is None

Rows keep the order of the file. Extra columns are ignored. Missing ages, densities and BIRADS are legal (the
whole of site 2 has no density and no BIRADS); an unknown view is legal too (the real table has six).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from rsna_kit.competition.rows import Rows, read_rows
from rsna_kit.competition.submission import prediction_id
from rsna_kit.runtime.errors import TableError

_OLDEST = 130
_LARGEST_ID = 2**53  # a float64 holds every whole number up to here
Column = Callable[[Rows, str], pd.Series]


def _ids(rows: Rows, name: str) -> pd.Series:
    """Ids that are names of files, too."""
    ids = rows.ids(name, once=name == "image_id")
    rows.file_name(name)
    return ids


def _flag(rows: Rows, name: str) -> pd.Series:
    return rows.flag(name).astype("int8")


def _number(rows: Rows, name: str) -> pd.Series:
    return rows.whole(name, 0, _LARGEST_ID, blank=True)


# Every column with its type, in the order of train.csv.
_TYPES: dict[str, Column] = {
    "site_id": _number,
    "patient_id": _ids,
    "image_id": _ids,
    "laterality": lambda rows, name: rows.choice(name, ("L", "R")),
    "view": lambda rows, name: rows.text(name, blank=True),
    "age": lambda rows, name: rows.number(name, 0, _OLDEST, blank=True).astype("float32"),
    "cancer": _flag,
    "biopsy": _flag,
    "invasive": _flag,
    "BIRADS": lambda rows, name: rows.whole(name, 0, 6, blank=True),
    "implant": _flag,
    "density": lambda rows, name: rows.choice(name, ("A", "B", "C", "D"), blank=True),
    "machine_id": _number,
    "difficult_negative_case": Rows.flag,
}
TRAIN_COLUMNS = tuple(_TYPES)
_NEEDED = ("patient_id", "image_id", "laterality", "prediction_id")  # without these there is no submission
_FURTHER = ("site_id", "view", "age", "implant", "machine_id")
TEST_COLUMNS = tuple(name for name in (*_TYPES, "prediction_id") if name in (*_NEEDED, *_FURTHER))


def read_train(path: Path) -> pd.DataFrame:
    """The 14 columns of train.csv and `prediction_id`, one row per image.

    Raises:
        TableError: a missing column, a duplicate image_id, or a cell outside its type.
    """
    rows = read_rows(path)
    rows.require(TRAIN_COLUMNS)
    table = pd.DataFrame({name: column(rows, name) for name, column in _TYPES.items()})
    pairs = zip(table["patient_id"], table["laterality"], strict=True)
    table["prediction_id"] = [prediction_id(patient, laterality) for patient, laterality in pairs]
    return table


def read_test(path: Path) -> pd.DataFrame:
    """The 9 columns of test.csv, one row per image.

    Inference needs the ids and the side. A cell of another column that is outside its type must not cost the run:
    that column then comes as text.

    Raises:
        TableError: a missing column, a duplicate image_id, a cell outside its type, or a prediction_id that
            stands for two patients or two sides.
    """
    rows = read_rows(path)
    rows.require(TEST_COLUMNS)
    columns = {}
    for name in TEST_COLUMNS:
        try:
            columns[name] = _TYPES.get(name, Rows.ids)(rows, name)
        except TableError:
            if name in _NEEDED:
                raise
            columns[name] = rows.text(name, blank=True)
    table = pd.DataFrame(columns)
    first = table.drop_duplicates("prediction_id").set_index("prediction_id")
    for name in ("patient_id", "laterality"):
        bad = table[name] != table["prediction_id"].map(first[name])
        rows.refuse(bad, "prediction_id", f"one {name} for each prediction_id", "Correct the row.")
    return table


def read_sample(path: Path) -> pd.DataFrame:
    """sample_submission.csv: `prediction_id` (str, unique) and `cancer` (float64 in [0, 1]).

    Raises:
        TableError: a missing column, a duplicate prediction_id, or a cell outside its type.
    """
    rows = read_rows(path)
    rows.require(("prediction_id", "cancer"))
    return pd.DataFrame({"prediction_id": rows.ids("prediction_id", once=True), "cancer": rows.number("cancer", 0, 1)})
