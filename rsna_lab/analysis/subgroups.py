"""Scored breasts and what is known of them → the metrics of every subgroup with their intervals.

A model can be good on the whole and bad at one site, on one machine or in dense breasts. A subgroup's interval is by
patient, as everywhere; it is wide where the subgroup is small, and with some thirty subgroups one or two are expected
to lie off the whole by chance alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError, did_you_mean
from rsna_kit.scoring.metrics import Metric, UndefinedMetricWarning, at, average_precision, roc_auc
from rsna_kit.scoring.uncertainty import Interval, bootstrap, wilson

SMALL = 10  # with fewer cancers, or fewer breasts without, a subgroup's metrics are mostly noise
UNKNOWN, OTHERS = "not known", "others"
_MOST = 12  # levels of a column; of more, the rarest are taken together

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


def subgroups(
    breasts: pd.DataFrame,
    facts: pd.DataFrame,
    threshold: float,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Metrics of every subgroup.

    Args:
        breasts: `prediction_id`, `patient_id`, `cancer` (0/1), `score` (in [0, 1]).
        facts: texts, indexed by `prediction_id`, a column for each way to divide the breasts, as `breast_facts` makes
            them. A breast without a row is "not known". A column that does not divide the breasts is left out, of one
            with many levels the rarest are taken together as "others". "invasive cancer" divides the cancers only,
            "difficult negative" the breasts without.
        threshold: a breast is called positive from this score.

    Returns:
        A row per level: `group`, `level`, `breasts`, `cancers`, `small` (fewer than 10 cancers or 10 breasts without,
        among those that are asked), and `roc_auc`, `pr_auc`, `f1`, `sensitivity`, `specificity`, each with `_low` and
        `_high`. NaN where a metric is not defined: of one class, all but its share called. Where resampling cannot
        move a metric (all cancers found, say), a share has Wilson's interval and the others have none.

    Example:
        >>> breasts = pd.DataFrame({"prediction_id": list("abcd"), "patient_id": list("abcd"),
        ...                         "cancer": [0, 1, 0, 1], "score": [0.1, 0.9, 0.2, 0.1]})
        >>> facts = pd.DataFrame({"site": list("1122")}, index=list("abcd"))
        >>> subgroups(breasts, facts, 0.5)[["group", "level", "breasts", "cancers", "sensitivity"]].values.tolist()
        [['site', '1', 2, 1, 1.0], ['site', '2', 2, 1, 0.0]]
    """
    known = facts.reindex(breasts["prediction_id"]).fillna(UNKNOWN)
    metrics: dict[str, Metric] = {"roc_auc": roc_auc, "pr_auc": average_precision}
    metrics |= {name: at(name, threshold) for name in ("f1", *_SHARES)}
    rows = []
    for group in known.columns:
        asked = np.full(len(breasts), True) if group not in _CLASS else breasts["cancer"].to_numpy() == _CLASS[group]
        levels = _levels(known[group].to_numpy()[asked])
        for name in _ordered(levels):
            members = breasts[asked].loc[levels == name]
            rows.append({"group": group, "level": name, **_row(members, metrics, group, resamples, seed, level)})
    return pd.DataFrame(rows, columns=[*_HEAD, *(f"{name}{end}" for name in metrics for end in ("", "_low", "_high"))])


_SHARES = ("sensitivity", "specificity")
_HEAD = ("group", "level", "breasts", "cancers", "small")


def _levels(values: np.ndarray) -> np.ndarray:
    """The level of every breast; none where there is but one."""
    names, counts = np.unique(values.astype(str), return_counts=True)
    if len(names) > _MOST:
        rare = names[np.argsort(-counts, kind="stable")][_MOST - 1 :]
        values = np.where(np.isin(values, rare), OTHERS, values)
    return values if len(names) > 1 else np.full(len(values), "")


def _ordered(levels: np.ndarray) -> list[str]:
    """Numbers by value, then texts, what is not known or lumped together last."""
    names = [str(name) for name in np.unique(levels.astype(str)) if name]
    return sorted(names, key=lambda name: (name in (UNKNOWN, OTHERS), *_natural(name)))


def _natural(name: str) -> tuple[float, str]:
    first = name.split(" ")[0]
    return (float(first), "") if first.isdigit() else (math.inf, name)


def _row(
    members: pd.DataFrame, metrics: dict[str, Metric], group: str, resamples: int, seed: int, level: float
) -> dict[str, object]:
    labels, scores = members["cancer"].to_numpy(), members["score"].to_numpy(np.float64)
    cancers = int(labels.sum())
    asked = [count for label, count in ((1, cancers), (0, len(labels) - cancers)) if _CLASS.get(group, label) == label]
    row: dict[str, object] = {"breasts": len(labels), "cancers": cancers, "small": min(asked) < SMALL}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)  # of one patient; NaN says it
        intervals = bootstrap(labels, scores, members["patient_id"], metrics, resamples, seed, level)
    for name, found in intervals.items():
        if name not in _SHARES and not 0 < cancers < len(labels):
            found = Interval(math.nan, math.nan, math.nan)  # F1 and PR-AUC of cancers alone would be numbers, no news
        elif found.low == found.high:
            trials = {"sensitivity": cancers, "specificity": len(labels) - cancers}.get(name)
            low, high = (math.nan, math.nan) if trials is None else map(float, wilson(found.value, trials, level))
            found = Interval(found.value, low, high)
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return row
