"""A prepared folder → how even its folds are, and what leaks between them: shared patients, films there twice."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rsna_kit.competition.folds import assign_folds
from rsna_kit.competition.rows import read_rows
from rsna_kit.config import TrainConfig
from rsna_kit.runtime.errors import TableError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_bytes, write_csv
from rsna_kit.runtime.lazy import require
from rsna_lab.analysis.subgroups import breast_facts

if TYPE_CHECKING:
    from rsna_kit.data.shards import Prepared

_NEAREST = 4  # pairs below the limit that the sheet shows beside the duplicates, for comparison
_MOST_DRAWN = 40
_MOST_FOLDS = 1000


def folds(
    prepared_dir: Path,
    settings: TrainConfig,
    events: Events,
    given: Path | None = None,
    out: Path | None = None,
    pictures: bool = True,
) -> dict[str, Any]:
    """Show the folds of a prepared folder and look for leaks.

    Args:
        prepared_dir: folder written by `prepare`.
        settings: its `folds`, `seed` and `hold_out` deal the patients, as `train` does.
        events: progress.
        given: a CSV file with `image_id` and `fold` whose folds are shown instead; the `oof.csv` of a run fits. Images
            that it does not name are left out.
        out: folder for `folds.csv` and, where pictures are compared, `duplicates.csv` and `duplicates.png`.
        pictures: look for films that are there twice.

    Returns:
        `folds` (what is in each), `balance` (breasts and cancers of every level of every fact in each fold, and the
        difference between the largest and the smallest share), `shared_patients`, `duplicates`; ready for JSON. `ok`
        is False where a patient is in two folds, or one film is in two folds under different patients.

    Raises:
        UsageError: folds that cannot be dealt.
        TableError: a file of folds that cannot be read, or that names none of the images.
        ShardError: a prepared folder that is not whole.
    """
    from rsna_kit.data.shards import open_prepared

    prepared = open_prepared(prepared_dir, verify=False)
    table = prepared.table
    if given is None:
        table = table.assign(fold=assign_folds(table, settings.folds, settings.seed, settings.hold_out))
        dealt = f"{settings.folds} folds, seed {settings.seed}, held out: {settings.hold_out}"
    else:
        table, dealt = _with_given(table, given), str(given)
    events.say(f"folds: {len(table)} images of {table['patient_id'].nunique()} patients; {dealt}")
    totals, balance = _totals(table), _balance(table)
    _tell(totals, balance, events)
    pairs = table[["patient_id", "fold"]].drop_duplicates()
    shared = pairs[pairs["patient_id"].duplicated(keep=False)].groupby("patient_id")["fold"].agg(sorted)
    for patient, into in shared.items():
        events.say(f"LEAK: patient {patient} is in folds {' and '.join(map(str, into))}", kind="leak")
    result: dict[str, Any] = {
        "ok": not len(shared),
        "dealt": dealt,
        "folds": [{"fold": int(str(fold)), **row} for fold, row in totals.to_dict("index").items()],
        "balance": balance.to_dict("records"),
        "shared_patients": {str(patient): into for patient, into in shared.items()},
    }
    if out is not None:
        write_csv(out / "folds.csv", table[["image_id", "patient_id", "fold"]])
        result["out"] = str(out)
    if pictures:
        pairs = _pairs(prepared, table, events)
        same = pairs[pairs["same"]]
        across = same[same["first_fold"] != same["second_fold"]]
        result["ok"] = result["ok"] and across.empty
        result["duplicates"] = {
            "looked_at": len(pairs),
            "same": len(same),
            "across_folds": len(across),
            "pairs": same.to_dict("records"),
        }
        if out is not None:
            write_csv(out / "duplicates.csv", pairs)
            _draw(prepared, pairs, out / "duplicates.png")
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
    """What is in each fold: images, patients, breasts and those with cancer, by fold."""
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
        counts = pd.crosstab(facts[fact], breasts["fold"])
        if len(counts) == 1:
            continue
        ill = pd.crosstab(facts[fact], breasts["fold"], values=breasts["cancer"], aggfunc="sum").fillna(0).astype(int)
        shares = counts / counts.sum()
        for level in counts.index.drop("no", errors="ignore"):
            rows.append(
                {
                    "fact": fact,
                    "level": level,
                    "breasts": counts.loc[level].tolist(),
                    "cancers": ill.loc[level].tolist(),
                    "spread": round(float(shares.loc[level].max() - shares.loc[level].min()), 4),
                }
            )
    return pd.DataFrame(rows)


def _tell(totals: pd.DataFrame, balance: pd.DataFrame, events: Events) -> None:
    def line(name: str, cells: list[str], last: str = "") -> str:
        return (f"{name:<24}" + "".join(f"{cell:>14}" for cell in cells) + f"{last:>10}").rstrip()

    events.say(line("fold", [str(fold) for fold in totals.index]))
    for name in totals.columns:
        events.say(line(str(name), [str(count) for count in totals[name]]))
    events.say(line("breasts (cancers)", [], "spread".rjust(14 * len(totals) + 10)))
    for row in balance.to_dict("records"):
        cells = [f"{breasts} ({cancers})" for breasts, cancers in zip(row["breasts"], row["cancers"], strict=True)]
        events.say(line(f"{row['fact']} {row['level']}", cells, f"{100 * row['spread']:.2f} %"))


def _pairs(prepared: Prepared, table: pd.DataFrame, events: Events) -> pd.DataFrame:
    """Similar pictures of different patients, with their patients and folds."""
    from rsna_kit.data.shards import read_picture
    from rsna_lab.analysis.duplicates import find_duplicates

    ids, patients = table["image_id"].tolist(), table["patient_id"].tolist()
    pairs = find_duplicates(lambda image_id: read_picture(prepared, image_id), ids, patients, events)
    rows = table.set_index("image_id")
    for side in ("first", "second"):
        pairs[f"{side}_patient"] = pairs[side].map(rows["patient_id"])
        pairs[f"{side}_fold"] = pairs[side].map(rows["fold"])
    same = pairs[pairs["same"]]
    across = same["first_fold"] != same["second_fold"]
    events.say(
        f"films that are there twice under different patients: {len(same)}, {int(across.sum())} of them in two folds "
        f"({len(pairs)} similar pairs were looked at)"
    )
    for pair, leak in zip(same.to_dict("records"), across, strict=True):
        events.say(
            f"{'LEAK' if leak else 'twice'}: {_named(pair, 'first')} and {_named(pair, 'second')} show the same film, "
            f"{pair['turn']} (agreement {pair['agreement']:.2f})",
            kind="leak" if leak else "duplicate",
        )
    return pairs


def _named(pair: Mapping[Any, Any], side: str) -> str:
    return f"{pair[side]} (patient {pair[f'{side}_patient']}, fold {pair[f'{side}_fold']})"


def _draw(prepared: Prepared, pairs: pd.DataFrame, path: Path) -> None:
    """The duplicates and the nearest pairs that are none, side by side; nothing where no pair is similar."""
    from rsna_kit.data.shards import read_picture
    from rsna_lab.analysis.duplicates import turned

    shown = pd.concat([pairs[pairs["same"]].head(_MOST_DRAWN), pairs[~pairs["same"]].head(_NEAREST)])
    if shown.empty:
        path.unlink(missing_ok=True)
        return
    size = (8, 3.4 * len(shown))
    figure = require("matplotlib.figure", "train").Figure(figsize=size, layout="constrained")
    rows = figure.subplots(len(shown), 2, squeeze=False)
    for axes, pair in zip(rows, shown.to_dict("records"), strict=True):
        two = [read_picture(prepared, pair["first"]), turned(read_picture(prepared, pair["second"]), pair["turn"])]
        judged = "same film" if pair["same"] else "not the same film"
        told = (f"{judged}, agreement {pair['agreement']:.2f}", pair["turn"])
        for one, picture, side, text in zip(axes, two, ("first", "second"), told, strict=True):
            one.imshow(picture, cmap="gray", vmin=0, vmax=255)
            one.set_title(f"{_named(pair, side)}\n{text}", fontsize=8)
            one.axis("off")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=140, format="png")
    write_bytes(path, drawn.getbuffer())
