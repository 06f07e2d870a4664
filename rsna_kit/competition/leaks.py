"""A table and its folds → the patients that are in more than one, or an error that names them.

The pictures of a patient look alike: a model that has trained on one of them knows the others. With a patient in two
folds the out-of-fold scores flatter, and so does every threshold chosen on them. So they do where a network starts
from one that has trained on the patients it is judged by: a bundle carries a digest of its patients to find that out.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rsna_kit.runtime.errors import TableError, did_you_mean

_MARK_BYTES = 5


def shared_patients(table: pd.DataFrame, folds: ArrayLike) -> pd.Series:
    """Patients in more than one fold, sorted by id.

    Args:
        table: `patient_id`; one row per image or per breast.
        folds: of shape (len(table),), none missing.

    Returns:
        Index `patient_id`, values the sorted list of her folds.

    Raises:
        TableError: no column `patient_id`, another number of folds than rows, or a missing patient or fold.

    Example:
        >>> shared_patients(pd.DataFrame({"patient_id": ["7", "8", "8"]}), [0, 0, 1]).to_dict()
        {'8': [0, 1]}
    """
    known = [str(name) for name in table.columns]
    if "patient_id" not in known:
        raise TableError(
            f"folds: no column 'patient_id', got {', '.join(known)}.{did_you_mean('patient_id', known)} Without it"
            " nobody can say whether a patient is in two folds."
        )
    values = np.asarray(folds)
    if values.shape != (len(table),):
        raise TableError(f"folds: got shape {values.shape}, expected one fold for each of the {len(table)} rows")
    patients = table["patient_id"].to_numpy()
    missing = np.flatnonzero(pd.isna(values) | pd.isna(patients))
    if len(missing):
        raise TableError(f"folds: {len(missing)} rows without a patient or a fold (first: row {missing[0] + 1})")
    pairs = pd.DataFrame({"patient_id": patients, "fold": values}).drop_duplicates()
    several = pairs[pairs["patient_id"].duplicated(keep=False)]
    return several.groupby("patient_id")["fold"].agg(sorted)


def check_folds(table: pd.DataFrame, folds: ArrayLike, where: str = "folds") -> None:
    """Refuse folds that share a patient.

    Args:
        table, folds: as in `shared_patients`.
        where: begins the message: the file that says the folds.

    Raises:
        TableError: a patient in more than one fold; patients and folds are named.
    """
    shared = shared_patients(table, folds)
    if len(shared):
        named = ", ".join(f"{patient} in {' and '.join(map(str, into))}" for patient, into in shared.head(5).items())
        raise TableError(
            f"{where}: {len(shared)} {'patient is' if len(shared) == 1 else 'patients are'} in more than one fold"
            f" ({named}{', …' if len(shared) > 5 else ''}), expected each in one. Scores of such folds are too good:"
            " deal the patients anew."
        )


def digest_patients(patients: Iterable[str], others: str = "") -> str:
    """Patients as a text in which each can be looked up: 5 bytes of every id's SHA-256, sorted, in base64.

    Args:
        patients: ids.
        others: a digest whose patients are to be in this one, too.

    Raises:
        TableError: `others` is no digest.

    Example:
        >>> digest_patients(["7"]), digest_patients(["8"], digest_patients(["7"])) == digest_patients(["8", "7", "7"])
        ('eQJpm+Q=', True)
    """
    marks = {_mark(patient) for patient in patients} | _marks(others)
    return base64.b64encode(b"".join(sorted(marks))).decode()


def known_patients(digest: str, patients: Iterable[str]) -> list[str]:
    """Those of `patients` that are in a digest, sorted. One in 10^8 is taken for one of 10,000 others.

    Raises:
        TableError: it is no digest.
    """
    marks = _marks(digest)
    return sorted({str(patient) for patient in patients if _mark(patient) in marks})


def _mark(patient: str) -> bytes:
    return hashlib.sha256(str(patient).encode()).digest()[:_MARK_BYTES]


def _marks(digest: str) -> set[bytes]:
    try:
        content = base64.b64decode(digest, validate=True)
    except ValueError as error:
        raise TableError(f"digest of patients: got {digest[:40]!r}, expected base64 as a bundle has it") from error
    return {content[at : at + _MARK_BYTES] for at in range(0, len(content), _MARK_BYTES)}
