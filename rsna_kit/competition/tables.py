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

from pathlib import Path

import pandas as pd

from rsna_kit.competition.rows import Rows, read_rows
from rsna_kit.competition.submission import prediction_id
from rsna_kit.runtime.errors import TableError

TRAIN_COLUMNS = (
    "site_id",
    "patient_id",
    "image_id",
    "laterality",
    "view",
    "age",
    "cancer",
    "biopsy",
    "invasive",
    "BIRADS",
    "implant",
    "density",
    "machine_id",
    "difficult_negative_case",
)
TEST_COLUMNS = (
    "site_id",
    "patient_id",
    "image_id",
    "laterality",
    "view",
    "age",
    "implant",
    "machine_id",
    "prediction_id",
)
_NEEDED = ("patient_id", "image_id", "laterality", "prediction_id")  # without these there is no submission
_OLDEST = 130
_LARGEST_ID = 2**53  # a float64 holds every whole number up to here


def read_train(path: Path) -> pd.DataFrame:
    """The 14 columns of train.csv and `prediction_id`, one row per image.

    Raises:
        TableError: a missing column, a duplicate image_id, or a cell outside its type.
    """
    rows = read_rows(path)
    rows.require(TRAIN_COLUMNS)
    table = pd.DataFrame({name: _column(rows, name) for name in TRAIN_COLUMNS})
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
    table = pd.DataFrame({name: _column(rows, name, lenient=name not in _NEEDED) for name in TEST_COLUMNS})
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


def _column(rows: Rows, name: str, lenient: bool = False) -> pd.Series:
    """One column with the type that the module's docstring promises; when `lenient`, as text if it has another."""
    try:
        return _typed(rows, name)
    except TableError:
        if lenient:
            return rows.text(name, blank=True)
        raise


def _typed(rows: Rows, name: str) -> pd.Series:
    match name:
        case "image_id" | "patient_id":
            ids = rows.ids(name, once=name == "image_id")
            rows.file_name(name)
            return ids
        case "prediction_id":
            return rows.ids(name)
        case "view":
            return rows.text(name, blank=True)
        case "laterality":
            return rows.choice(name, ("L", "R"))
        case "density":
            return rows.choice(name, ("A", "B", "C", "D"), blank=True)
        case "age":
            return rows.number(name, 0, _OLDEST, blank=True).astype("float32")
        case "site_id" | "machine_id":
            return rows.whole(name, 0, _LARGEST_ID, blank=True)
        case "BIRADS":
            return rows.whole(name, 0, 6, blank=True)
        case "difficult_negative_case":
            return rows.flag(name)
        case "cancer" | "biopsy" | "invasive" | "implant":
            return rows.flag(name).astype("int8")
    raise TableError(f"{rows.path}: column {name!r} has no type in rsna_kit.competition.tables")
