"""A train table → the fold of every image: patients stay whole, cancers are spread evenly; or whole machines stay out.

Patients with and without cancer are dealt out separately, in blocks of one patient per fold. A block holds
neighbours in the order (site, machine, number of images), so folds agree in these; inside a block the patient
with most images goes to the fold that has fewest. So the folds' numbers of cancer patients differ by at most one,
and so do their numbers of patients without cancer.

The hidden test has machines that nobody trained on. Folds that hold out machines (or sites) ask that question: every
machine is in one fold, and so is every patient, so machines that share a patient stay together. Such folds differ
in size as the machines do.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError, UsageError

HELD_OUT = {"patient": "patient_id", "machine": "machine_id", "site": "site_id"}


def assign_folds(train: pd.DataFrame, folds: int, seed: int, hold_out: str = "patient") -> np.ndarray:
    """Fold numbers 0 … folds-1, one per row of `train`.

    The same patients, folds and seed give the same folds, whatever the order of the rows.

    Args:
        train: `patient_id` (str) and `cancer` (0/1); `site_id` and `machine_id` are balanced when present.
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
    patients = patients.iloc[np.random.default_rng(seed).permutation(len(patients))]
    fold_of: dict[str, int] = {}
    filled = np.zeros(folds, dtype=np.int64)  # images dealt to each fold so far
    for cancer, name in ((1, "with"), (0, "without")):
        group = patients[patients["cancer"] == cancer].sort_values(["site", "machine", "images"], kind="stable")
        if len(group) < folds:
            raise UsageError(
                f"folds: got {folds}, but the table has {len(group)} patients {name} cancer and every fold needs one."
                f" Use {f'at most {len(group)} folds or ' if len(group) >= 2 else ''}more patients."
            )
        ids, images = group.index.to_numpy(), group["images"].to_numpy()
        for start in range(0, len(ids), folds):
            largest = start + np.argsort(-images[start : start + folds], kind="stable")
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
    """One row per patient, sorted by id: cancer (in any image), site and machine (the lowest), image count."""
    facts = pd.DataFrame({"patient_id": train["patient_id"], "cancer": train["cancer"].astype(int)})
    for name, column in (("site", "site_id"), ("machine", "machine_id")):
        values = train[column] if column in train.columns else pd.Series(-1, index=train.index)
        facts[name] = values.fillna(-1).astype("int64")
    grouped = facts.groupby("patient_id", sort=True)
    return pd.DataFrame(
        {
            "cancer": grouped["cancer"].max(),
            "site": grouped["site"].min(),
            "machine": grouped["machine"].min(),
            "images": grouped.size(),
        }
    )
