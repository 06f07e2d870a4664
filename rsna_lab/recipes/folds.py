"""A prepared folder → how even its folds are, and the patients that are in two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from rsna_kit.competition.folds import assign_folds
from rsna_kit.competition.rows import read_rows
from rsna_kit.config import TrainConfig
from rsna_kit.runtime.errors import TableError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_csv
from rsna_lab.analysis.subgroups import breast_facts

_MOST_FOLDS = 1000


def folds(
    prepared_dir: Path,
    settings: TrainConfig,
    events: Events,
    given: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Show the folds of a prepared folder and look for patients that are in two of them.

    Args:
        prepared_dir: folder written by `prepare`.
        settings: its `folds`, `seed` and `hold_out` deal the patients, as `train` does.
        events: progress.
        given: a CSV file with `image_id` and `fold` whose folds are shown instead; the `oof.csv` of a run fits. Images
            that it does not name are left out.
        out: folder for `folds.csv`.

    Returns:
        `folds` (what is in each), `balance` (breasts and cancers of every level of every fact in each fold, and the
        difference between the largest and the smallest share), `shared_patients`; ready for JSON. `ok` is False where
        a patient is in two folds.

    Raises:
        UsageError: folds that cannot be dealt.
        TableError: a file of folds that cannot be read, or that names none of the images.
        ShardError: a prepared folder that is not whole.
    """
    from rsna_kit.data.shards import open_prepared

    table = open_prepared(prepared_dir, verify=False).table
    if given is None:
        table = table.assign(fold=assign_folds(table, settings.folds, settings.seed, settings.hold_out))
        dealt = f"{settings.folds} folds, seed {settings.seed}, held out: {settings.hold_out}"
    else:
        table, dealt = _with_given(table, given), str(given)
    events.say(f"folds: {len(table)} images of {table['patient_id'].nunique()} patients; {dealt}")
    totals, balance = _totals(table), _balance(table)
    events.say("\n" + totals.T.to_string() + "\n\n" + balance.to_string(index=False) + "\n")
    pairs = table[["patient_id", "fold"]].drop_duplicates()
    shared = pairs[pairs["patient_id"].duplicated(keep=False)].groupby("patient_id")["fold"].agg(sorted)
    for patient, into in shared.items():
        events.say(f"LEAK: patient {patient} is in folds {' and '.join(map(str, into))}", kind="leak")
    result: dict[str, Any] = {
        "ok": not len(shared),
        "dealt": dealt,
        "folds": totals.reset_index().to_dict("records"),
        "balance": balance.to_dict("records"),
        "shared_patients": {str(patient): into for patient, into in shared.items()},
    }
    if out is not None:
        write_csv(out / "folds.csv", table[["image_id", "patient_id", "fold"]])
        result["out"] = str(out)
    return result


def _with_given(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows of the table that the file names, with its folds."""
    rows = read_rows(path)
    rows.require(["image_id", "fold"])
    fold_of = pd.Series(rows.whole("fold", 0, _MOST_FOLDS).to_numpy(), index=rows.ids("image_id", once=True))
    known = table[table["image_id"].isin(fold_of.index)]
    if known.empty:
        raise TableError(f"{path}: names none of the {len(table)} prepared images. Is it of another prepared folder?")
    return known.assign(fold=known["image_id"].map(fold_of).astype("int64")).reset_index(drop=True)


def _totals(table: pd.DataFrame) -> pd.DataFrame:
    """What is in each fold: patients, breasts and images, and those with cancer, by fold."""
    ill = table[table["cancer"] == 1]
    columns = {}
    for name, ids in (("patients", "patient_id"), ("breasts", "prediction_id"), ("images", "image_id")):
        columns[name] = table.groupby("fold")[ids].nunique()
        columns[f"{name} with cancer"] = ill.groupby("fold")[ids].nunique()
    return pd.DataFrame(columns).fillna(0).astype("int64")


def _balance(table: pd.DataFrame) -> pd.DataFrame:
    """`fact`, `level`, `breasts` and `cancers` (lists, by fold), `spread` of the shares of a fold's breasts."""
    facts = breast_facts(table)
    breasts = table.groupby("prediction_id", sort=False).agg({"fold": "first", "cancer": "max"}).reindex(facts.index)
    rows = []
    for fact in facts.columns:
        counts, ill = (
            pd.crosstab(facts[fact], breasts["fold"], values=values, aggfunc="sum").fillna(0).astype(int)
            for values in (breasts["cancer"] >= 0, breasts["cancer"])
        )
        shares = counts / counts.sum()
        for level in counts.index.drop("no", errors="ignore") if len(counts) > 1 else ():
            spread = round(float(shares.loc[level].max() - shares.loc[level].min()), 4)
            levels = {"breasts": counts.loc[level].tolist(), "cancers": ill.loc[level].tolist()}
            rows.append({"fact": fact, "level": level, **levels, "spread": spread})
    return pd.DataFrame(rows)
