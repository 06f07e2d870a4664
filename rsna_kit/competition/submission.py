"""Breast scores → submission.csv, which is valid from the first minute and only ever replaced whole.

Door 10: the header `prediction_id,cancer`, exactly the ids of the sample in its order, finite numbers in [0, 1].
What would not score is refused here, with the ids and their number, instead of by Kaggle without a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import SubmissionError, TableError, did_you_mean
from rsna_kit.runtime.files import replacing

COLUMNS = ("prediction_id", "cancer")


def prediction_id(patient_id: str, laterality: str) -> str:
    """The id of a breast.

    Example:
        >>> prediction_id("10008", "L")
        '10008_L'
    """
    return f"{patient_id}_{laterality}"


def expected_ids(test: pd.DataFrame, sample: pd.DataFrame | None) -> list[str]:
    """The ids that a submission must have, in order: the sample's, or without one those of test.csv.

    Raises:
        TableError: the two tables name different breasts.
    """
    ids = list(dict.fromkeys(test["prediction_id"]))
    if sample is None:
        return ids
    wanted = list(sample["prediction_id"])
    problems = [
        _named("only in test.csv", pd.Index(ids).difference(wanted, sort=False)),
        _named("only in sample_submission.csv", pd.Index(wanted).difference(ids, sort=False)),
    ]
    if any(problems):
        raise TableError(
            f"test.csv ({len(ids)} breasts) and sample_submission.csv ({len(wanted)}) disagree: "
            f"{'; '.join(filter(None, problems))}. Take both from the same download."
        )
    return wanted


def prior_submission(sample: pd.DataFrame, prior: float) -> pd.DataFrame:
    """Every id of `sample` with the same score: the file that is written before any work.

    Raises:
        SubmissionError: `prior` is not a number in [0, 1].
    """
    if not 0 <= prior <= 1:
        raise SubmissionError(f"prior: got {prior}, expected a number from 0 to 1")
    return pd.DataFrame({"prediction_id": list(sample["prediction_id"]), "cancer": float(prior)})


def check_submission(frame: pd.DataFrame, sample: pd.DataFrame) -> None:
    """Refuse a frame that Kaggle would refuse; row order and further columns do not matter.

    Raises:
        SubmissionError: a missing column, text instead of numbers, or rows that are missing, extra, duplicate,
            NaN or outside [0, 1]; all problems at once, each with its number and the first ids.
    """
    for name in COLUMNS:
        if name not in frame.columns:
            known = [str(column) for column in frame.columns]
            raise SubmissionError(
                f"submission: no column {name!r}, expected {' and '.join(COLUMNS)} but got {', '.join(known)}."
                f"{did_you_mean(name, known)}"
            )
    if not pd.api.types.is_numeric_dtype(frame["cancer"]):
        raise SubmissionError(f"submission: column 'cancer' is of type {frame['cancer'].dtype}, expected numbers")
    ids, wanted = frame["prediction_id"], pd.Index(sample["prediction_id"])
    scores = frame["cancer"].to_numpy(dtype="float64", na_value=np.nan)
    problems = [
        _named("missing", wanted[~wanted.isin(ids)]),
        _named("extra", ids[~ids.isin(wanted)]),
        _named("duplicate", ids[ids.duplicated()].drop_duplicates()),
        _named("not a number", ids[np.isnan(scores)]),
        _named("outside [0, 1]", ids[(scores < 0) | (scores > 1)]),
    ]
    if any(problems):
        raise SubmissionError(
            f"submission of {len(frame)} rows, expected {len(wanted)}: {'; '.join(filter(None, problems))}."
        )


def write_submission(frame: pd.DataFrame, sample: pd.DataFrame, path: Path) -> None:
    """Check `frame`, put it in the order of `sample` and replace `path` in one step.

    Args:
        frame: `prediction_id` and `cancer`, any row order; further columns are not written.
        sample: at least `prediction_id`.

    Raises:
        SubmissionError: see `check_submission`; an existing file stays as it was.
    """
    check_submission(frame, sample)
    scores = frame.set_index("prediction_id")["cancer"].reindex(sample["prediction_id"])
    if pd.api.types.is_bool_dtype(scores):
        scores = scores.astype("int8")
    with replacing(path) as temporary:
        scores.rename("cancer").rename_axis("prediction_id").to_csv(temporary, index=True, lineterminator="\n")


def _named(problem: str, ids: Iterable[str]) -> str:
    """`3 missing (10008_L, 10008_R, 10009_L)`, at most five ids, or an empty string."""
    names = [str(name) for name in ids]
    if not names:
        return ""
    return f"{len(names)} {problem} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
