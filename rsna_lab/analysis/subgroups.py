"""Scored breasts and what is known of them → the metrics of every subgroup with their intervals.

A model can be good on the whole and bad at one site, on one machine or in dense breasts. A subgroup's interval is by
patient, as everywhere; it is wide where the subgroup is small, and with some thirty subgroups one or two are expected
to lie off the whole by chance alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError, did_you_mean
from rsna_kit.scoring.intervals import Interval, bootstrap

SHOWN = ("roc_auc", "sensitivity", "specificity", "pf1_binary")
SMALL = 10  # with fewer cancers, or fewer breasts without, a subgroup's metrics are mostly noise
UNKNOWN, OTHERS = "not known", "others"
_MOST = 12  # levels of a column; of more, the rarest are taken together

_NONE = Interval(math.nan, math.nan, math.nan)
_FLAGS = {"0": "no", "1": "yes", "False": "no", "True": "yes"}


def _plain(value: object) -> str:
    return str(value).removesuffix(".0")  # a whole number beside missing ones is read as a float


def _flag(value: object) -> str:
    return _FLAGS.get(_plain(value), UNKNOWN)


def _decade(age: object) -> str:
    years = pd.to_numeric(str(age), errors="coerce")
    return UNKNOWN if pd.isna(years) else f"{int(years // 10 * 10)} to {int(years // 10 * 10 + 9)}"


# Column of an image table → the subgroup's name, how the images of a breast become one value, how a value is called.
_COLUMNS: dict[str, tuple[str, str, Callable[[object], str]]] = {
    "site_id": ("site", "first", _plain),
    "machine_id": ("machine", "first", _plain),
    "age": ("age", "first", _decade),
    "density": ("density", "first", _plain),
    "implant": ("implant", "max", _flag),
    "invasive": ("invasive cancer", "max", _flag),
    "difficult_negative_case": ("difficult negative", "max", _flag),
}
# These say something of one class only: the others are not asked.
_CLASS = {"invasive cancer": 1, "difficult negative": 0}


def breast_facts(images: pd.DataFrame) -> pd.DataFrame:
    """What an image table says about each breast.

    Args:
        images: `prediction_id`, and any of the columns of train.csv; one row per image.

    Returns:
        One row per breast with the index `prediction_id`, and of `site`, `machine`, `age` (in decades), `density`,
        `implant`, `invasive cancer`, `difficult negative` what the table knows, and `number of images`. Texts; what
        is missing is "not known".

    Raises:
        TableError: no column `prediction_id`.

    Example:
        >>> table = pd.DataFrame({"prediction_id": ["1_L", "1_L", "1_R"], "age": [61.0, 61.0, None]})
        >>> breast_facts(table).to_dict("list")
        {'age': ['60 to 69', 'not known'], 'number of images': ['2', '1']}
    """
    if "prediction_id" not in images.columns:
        hint = did_you_mean("prediction_id", list(images.columns))
        raise TableError(f"image table: no column 'prediction_id', got {', '.join(map(str, images.columns))}.{hint}")
    breasts = images.groupby("prediction_id", sort=False)
    facts = pd.DataFrame(index=breasts.size().index)
    for column, (name, how, called) in _COLUMNS.items():
        if column in images.columns:
            values = breasts[column].agg(how)
            facts[name] = [UNKNOWN if pd.isna(value) or value == "" else called(value) for value in values]
    facts["number of images"] = breasts.size().astype(str)
    return facts


def subgroups(breasts: pd.DataFrame, facts: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Metrics of every subgroup.

    Args:
        breasts: `prediction_id`, `patient_id`, `cancer` (0/1), `score` (in [0, 1]) and `called` (0/1).
        facts: texts, indexed by `prediction_id`, a column for each way to divide the breasts, as `breast_facts` makes
            them. A breast without a row is "not known". A column that does not divide the breasts is left out, of one
            with many levels the rarest are taken together as "others". "invasive cancer" divides the cancers only,
            "difficult negative" the breasts without.

    Returns:
        A row per level: `group`, `level`, `breasts`, `cancers`, `small` (fewer than 10 cancers or 10 breasts without,
        among those that are asked), and of each of SHOWN an `rsna_kit.scoring.intervals.Interval`, NaN where it is not
        defined: of one class, all but its share called. What resampling cannot move has no ends.

    Example:
        >>> breasts = pd.DataFrame({"prediction_id": list("abcd"), "patient_id": list("abcd"),
        ...                         "cancer": [0, 1, 0, 1], "score": [0.1, 0.9, 0.2, 0.1], "called": [0, 1, 0, 0]})
        >>> facts = pd.DataFrame({"site": list("1122")}, index=list("abcd"))
        >>> subgroups(breasts, facts)[["group", "level", "breasts", "cancers"]].values.tolist()
        [['site', '1', 2, 1], ['site', '2', 2, 1]]
    """
    known = facts.reindex(breasts["prediction_id"]).fillna(UNKNOWN)
    rows = []
    for group in known.columns:
        asked = np.full(len(breasts), True) if group not in _CLASS else breasts["cancer"].to_numpy() == _CLASS[group]
        levels = known[group][asked]
        if levels.nunique() > _MOST:
            levels = levels.where(~levels.isin(levels.value_counts().index[_MOST - 1 :]), OTHERS)
        names = sorted(set(levels), key=lambda name: (name in (UNKNOWN, OTHERS), *natural(name)))
        for name in names if len(names) > 1 else []:
            members = breasts[asked][(levels == name).to_numpy()]
            cancers = int(members["cancer"].sum())
            counts = {1: cancers, 0: len(members) - cancers}
            small = min(counts[label] for label in counts if _CLASS.get(group, label) == label) < SMALL
            found = bootstrap(members, SHOWN, resamples, seed)
            # All cancers found, say: what resampling cannot move has no interval, which is not a sure number.
            found = {
                metric: Interval(one.value, math.nan, math.nan) if one.low == one.high else one
                for metric, one in found.items()
            }
            if not all(counts.values()):  # F1 and PR-AUC of cancers alone would be numbers, no news
                share = "sensitivity" if cancers else "specificity"
                found = {metric: found[metric] if metric == share else _NONE for metric in SHOWN}
            head = {"group": group, "level": name, "breasts": len(members), "cancers": cancers, "small": small}
            rows.append({**head, **found})
    return pd.DataFrame(rows, columns=["group", "level", "breasts", "cancers", "small", *SHOWN])


def natural(name: str) -> tuple[float, str]:
    """A key that sorts texts which begin with a whole number by that number, before all others."""
    first = name.split(" ")[0]
    return (float(first), "") if first.isdecimal() else (math.inf, name)
