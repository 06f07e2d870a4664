"""A train table → the fold of every image: patients stay whole, cancers are spread evenly.

Patients with and without cancer are dealt out separately, in blocks of one patient per fold. A block holds
neighbours in the order (site, machine, number of images), so folds agree in these; inside a block the patient
with most images goes to the fold that has fewest. So the folds' numbers of cancer patients differ by at most one,
and so do their numbers of patients without cancer.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError, UsageError


def assign_folds(train: pd.DataFrame, folds: int, seed: int) -> np.ndarray:
    """Fold numbers 0 … folds-1, one per row of `train`.

    The same patients, folds and seed give the same folds, whatever the order of the rows.

    Args:
        train: `patient_id` (str) and `cancer` (0/1); `site_id` and `machine_id` are balanced when present.
        folds: at least 2.
        seed: decides between equals.

    Returns:
        int64 of shape (len(train),).

    Raises:
        UsageError: fewer than 2 folds, or more folds than patients with (or without) cancer.
    """
    if folds < 2:
        raise UsageError(f"folds: got {folds}, expected at least 2")
    if train.empty:
        raise TableError("folds: the table has no rows, expected one per image")
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
