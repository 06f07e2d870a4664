"""A train table → the fold of every image: patients stay whole, cancers are spread evenly; or whole machines stay out.

Patients with and without cancer are dealt out separately, in blocks of one patient per fold. A block holds
neighbours in the order (site, machine, density, age, number of images), so folds agree in these; inside a block the
patient with most images goes to the fold that has fewest. So the folds' numbers of cancer patients differ by at most
one, and so do their numbers of patients without cancer. On a table of the competition's size the folds are as even in
age and density as scikit-learn's StratifiedGroupKFold makes them on strata of all these facts, and evener in cancers.

The hidden test has machines that nobody trained on. Folds that hold out machines (or sites) ask that question: every
machine is in one fold, and so is every patient, so machines that share a patient stay together. Such folds differ
in size as the machines do.

With a patient in two folds the out-of-fold scores flatter, and so does every threshold chosen on them: her pictures
look alike. So do those of a network that starts from one that has seen her, so the patients that a model has seen stand
as a digest in its bundle.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError, UsageError

HELD_OUT = {"patient": "patient_id", "machine": "machine_id", "site": "site_id"}
_STRATA = ["site_id", "machine_id", "density"]  # in this order: the first are balanced best
_GRADES = {"A": 1, "B": 2, "C": 3, "D": 4}
EVERYONE = "*"
_MARK_BYTES = 5  # of a patient in a digest
_AGES = 10.0  # years that are taken together: by the single year the seed would have little left to decide


def assign_folds(train: pd.DataFrame, folds: int, seed: int, hold_out: str = "patient") -> np.ndarray:
    """Fold numbers 0 … folds-1, one per row of `train`.

    The same patients, folds and seed give the same folds, whatever the order of the rows.

    Args:
        train: `patient_id` (str) and `cancer` (0/1); `site_id`, `machine_id`, `density` ("A" to "D") and `age` are
            balanced where they are known. What is missing is a level of its own.
        folds: at least 2.
        seed: decides between equals.
        hold_out: what is never in two folds: `"patient"`, or patients and `"machine"`, or patients and `"site"`.

    Returns:
        int64 of shape (len(train),).

    Raises:
        UsageError: fewer than 2 folds, or more folds than patients with (or without) cancer; more folds than
            machines (sites) that could be held out.
        TableError: no rows, or machines (sites) are to be held out and the table does not say them.
    """
    if folds < 2:
        raise UsageError(f"folds: got {folds}, expected at least 2")
    if train.empty:
        raise TableError("folds: the table has no rows, expected one per image")
    if hold_out != "patient":
        return _hold_out(train, folds, hold_out)
    patients = _patients(train)
    patients = patients.assign(draw=np.random.default_rng(seed).permutation(len(patients)))
    fold_of: dict[str, int] = {}
    filled = np.zeros(folds, dtype=np.int64)  # images dealt to each fold so far
    for cancer, name in ((1, "with"), (0, "without")):
        group = _in_order(patients[patients["cancer"] == cancer])
        if len(group) < folds:
            raise UsageError(
                f"folds: got {folds}, but the table has {len(group)} patients {name} cancer and every fold needs one."
                f" Use {f'at most {len(group)} folds or ' if len(group) >= 2 else ''}more patients."
            )
        ids, images, draw = (column.to_numpy() for column in (group.index, group["images"], group["draw"]))
        for start in range(0, len(ids), folds):
            block = slice(start, start + folds)
            largest = start + np.lexsort((draw[block], -images[block]))
            emptiest = np.argsort(filled, kind="stable")[: len(largest)]
            fold_of.update(zip(ids[largest], emptiest, strict=True))
            filled[emptiest] += images[largest]
    return train["patient_id"].map(fold_of).to_numpy(dtype=np.int64)


def _hold_out(train: pd.DataFrame, folds: int, what: str) -> np.ndarray:
    """Whole machines (sites): the one with most cancers first, to the fold that has fewest cancers, then images."""
    column = HELD_OUT[what]
    if column not in train.columns or train[column].isna().any():
        raise TableError(f"folds: {column} is missing, and train.hold_out={what} needs it for every image")
    group = _connected(train["patient_id"], train[column])
    facts = pd.DataFrame({"group": group, "cancer": train["cancer"].astype(int).to_numpy()}).groupby("group")["cancer"]
    sizes = pd.DataFrame({"cancers": facts.sum(), "images": facts.size()})
    with_cancer, without = int((sizes["cancers"] > 0).sum()), int((sizes["cancers"] < sizes["images"]).sum())
    if min(len(sizes), with_cancer, without) < folds:
        raise UsageError(
            f"folds: got {folds} and train.hold_out={what}, but the table has {len(sizes)} groups of {what}s that "
            f"share no patient, {with_cancer} of them with cancer. Use fewer folds, or hold out patients."
        )
    filled, fold_of = np.zeros((folds, 2), np.int64), {}
    for name, row in sizes.sort_values(["cancers", "images"], ascending=False, kind="stable").iterrows():
        fold = int(np.lexsort((filled[:, 1], filled[:, 0]))[0])
        filled[fold] += row.to_numpy()
        fold_of[name] = fold
    return pd.Series(group).map(fold_of).to_numpy(dtype=np.int64)


def _connected(patients: pd.Series, machines: pd.Series) -> np.ndarray:
    """One name per row, the same for machines that a chain of shared patients connects: the lowest machine of them."""
    name: np.ndarray = machines.to_numpy()
    while True:
        by_patient = pd.Series(name).groupby(patients.to_numpy()).transform("min")
        lowest: np.ndarray = by_patient.groupby(machines.to_numpy()).transform("min").to_numpy()
        if (lowest == name).all():
            return name
        name = lowest


def _patients(train: pd.DataFrame) -> pd.DataFrame:
    """One row per patient, sorted by id: cancer in any image, number of images, the lowest of each fact, else -1."""
    facts = pd.DataFrame({"patient_id": train["patient_id"], "cancer": train["cancer"].astype(int)})
    for name in (*_STRATA, "age"):
        values = train[name] if name in train.columns else pd.Series(np.nan, index=train.index)
        facts[name] = (values.map(_GRADES) if name == "density" else values).astype("float64")
    facts["age"] //= _AGES
    patients = facts.groupby("patient_id", sort=True)
    lowest = patients[[*_STRATA, "age"]].min().fillna(-1)
    return lowest.assign(cancer=patients["cancer"].max(), images=patients.size())


def _in_order(patients: pd.DataFrame) -> pd.DataFrame:
    """Neighbours are alike: age rises in one stratum and falls in the next, so that it does not jump between them."""
    falls = patients.groupby(_STRATA).ngroup() % 2 == 1
    ordered = patients.assign(age=patients["age"].where(~falls, -patients["age"]))
    return ordered.sort_values([*_STRATA, "age", "images", "draw"], kind="stable")


def digest_patients(patients: Iterable[str], others: str = "") -> str:
    """Patients as a text in which each can be looked up: 5 bytes of every id's SHA-256, sorted, in base64.

    `EVERYONE` in the place of a digest has every patient in it: of weights that others trained on the competition.

    Args:
        patients: ids.
        others: a digest whose patients are to be in this one, too.

    Raises:
        TableError: `others` is no digest.

    Example:
        >>> digest_patients(["7"]), digest_patients(["8"], digest_patients(["7"])) == digest_patients(["8", "7", "7"])
        ('eQJpm+Q=', True)
    """
    if others == EVERYONE:
        return EVERYONE
    marks = {_mark(patient) for patient in patients} | _marks(others)
    return base64.b64encode(b"".join(sorted(marks))).decode()


def known_patients(digest: str, patients: Iterable[str]) -> list[str]:
    """Those of `patients` that are in a digest, sorted. One in 10^8 is taken for one of 10,000 others.

    Raises:
        TableError: it is no digest.
    """
    marks = set() if digest == EVERYONE else _marks(digest)
    return sorted({str(patient) for patient in patients if digest == EVERYONE or _mark(patient) in marks})


def _mark(patient: str) -> bytes:
    return hashlib.sha256(str(patient).encode()).digest()[:_MARK_BYTES]


def _marks(digest: str) -> set[bytes]:
    try:
        content = base64.b64decode(digest, validate=True)
    except ValueError as error:
        raise TableError(f"digest of patients: got {digest[:40]!r}, expected base64 as a bundle has it") from error
    return {content[at : at + _MARK_BYTES] for at in range(0, len(content), _MARK_BYTES)}
