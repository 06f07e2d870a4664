"""Breasts scored by several models → what each model is worth, and which differences between them are evidence.

`rsna_kit.scoring.contrast` compares columns of scores of one table; here every model comes with breasts, folds and
calls of its own, and what two of them share is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError, UsageError, did_you_mean
from rsna_kit.scoring import metrics, rules
from rsna_kit.scoring.metrics import Metric
from rsna_kit.scoring.uncertainty import Interval, bootstrap, paired
from rsna_lab.analysis.evidence import cancers_needed

_CALLED = "pf1_binary"  # F1 of the calls; all other metrics look at the scores
METRICS: Mapping[str, Metric] = {
    "roc_auc": metrics.roc_auc, "pr_auc": metrics.average_precision, _CALLED: metrics.at("f1", 0.5),
    "pf1": metrics.pf1, "f1_max": metrics.f1_max, "log_loss": metrics.log_loss, "brier": metrics.brier,
}  # fmt: skip
USUAL = ("roc_auc", "pr_auc", _CALLED)
RESAMPLES = 2000
EFFECT = 0.02  # a difference that would be worth something


@dataclass(frozen=True)
class Model:
    """A model's breasts with the column `called`: 0/1, by thresholds that `how` tells of."""

    name: str
    breasts: pd.DataFrame
    how: str

    @property
    def cancers(self) -> int:
        """How many of the breasts have cancer."""
        return int(self.breasts["cancer"].sum())


@dataclass(frozen=True)
class Difference:
    """Second minus first, by metric, on the breasts that both scored."""

    breasts: int
    cancers: int
    intervals: dict[str, Interval]

    def cancers_needed(self, metric: str) -> int | None:
        """How many cancers would show a true difference of 0.02; None where the interval has no width."""
        try:
            return cancers_needed(self.intervals[metric], self.cancers, EFFECT)
        except UsageError:
            return None


def with_calls(name: str, breasts: pd.DataFrame) -> Model:
    """Call each breast by the plateau's threshold: the one that the other folds chose, where folds are known.

    Args:
        name: of the model.
        breasts: `prediction_id`, `patient_id`, `cancer` (0/1), `score` in [0, 1], and `fold` (int) where known.

    Raises:
        TableError: no breast with cancer.
    """
    labels, scores = breasts["cancer"].to_numpy(), breasts["score"].to_numpy(np.float64)
    ill = breasts.loc[breasts["cancer"] == 1]
    if "fold" in breasts.columns and ill["fold"].nunique() > 1:  # so the other folds have a cancer, whatever the fold
        chosen = rules.nested(labels, scores, breasts["fold"], rules.plateau).thresholds
        cuts, how = breasts["fold"].map(chosen).to_numpy(), "of each fold chosen on the other folds"
    else:
        cuts = np.full(len(scores), rules.plateau(labels, scores)(scores))
        how = "chosen on the breasts that it is judged on, so too good"
    return Model(name, breasts.assign(called=(scores >= cuts).astype("int8")), how)


def worth(model: Model, measured: Sequence[str] = USUAL) -> dict[str, Interval]:
    """Every metric of a model with its interval by patient.

    Args:
        model: with at least one cancer.
        measured: names of METRICS.

    Raises:
        UsageError: an unknown metric.
    """
    labels, patients = model.breasts["cancer"], model.breasts["patient_id"]
    return _measure(measured, lambda column, some: bootstrap(labels, model.breasts[column], patients, some, RESAMPLES))


def difference(first: Model, second: Model, measured: Sequence[str] = USUAL) -> Difference:
    """Second minus first on the breasts that both scored, the same patients drawn for both.

    Raises:
        TableError: no common breast, or models that disagree about a patient or a label.
        UsageError: an unknown metric.
    """
    one, two = common({model.name: model.breasts for model in (first, second)}).values()

    def pair(column: str, some: Mapping[str, Metric]) -> dict[str, Interval]:
        return paired(one["cancer"], one[column], two[column], one["patient_id"], some, RESAMPLES)

    return Difference(len(one), int(one["cancer"].sum()), _measure(measured, pair))


def common(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The breasts that every table has, in the order of the first.

    Args:
        tables: name → `prediction_id` (each once), `patient_id`, `cancer` and further columns.

    Raises:
        TableError: no common breast, or another patient or label for one of them in two tables.
    """
    name, first = next(iter(tables.items()))
    shared = first["prediction_id"]
    for table in tables.values():
        shared = shared[shared.isin(table["prediction_id"])]
    if shared.empty:
        raise TableError(f"{', '.join(tables)}: no breast in common. Nothing was compared.")
    cut = {other: table.set_index("prediction_id").loc[shared].reset_index() for other, table in tables.items()}
    for other, table in cut.items():
        for column, what in (("patient_id", "patient"), ("cancer", "label")):
            differ = table.loc[(table[column] != cut[name][column]).to_numpy(), "prediction_id"]
            if len(differ):
                raise TableError(
                    f"{name} and {other}: {len(differ)} breasts (first: {differ.iloc[0]}) have another {what} in each."
                    " Nothing was compared."
                )
    return cut


def _measure(
    measured: Sequence[str], intervals: Callable[[str, dict[str, Metric]], dict[str, Interval]]
) -> dict[str, Interval]:
    """Metrics of the scores and that of the calls, in the order asked for."""
    for name in measured:
        if name not in METRICS:
            known = f"expected some of {', '.join(METRICS)}.{did_you_mean(name, METRICS)}"
            raise UsageError(f"metric: got {name!r}, {known}")
    found: dict[str, Interval] = {}
    for column, names in (("score", set(measured) - {_CALLED}), ("called", set(measured) & {_CALLED})):
        if names:
            found |= intervals(column, {name: METRICS[name] for name in METRICS if name in names})
    return {name: found[name] for name in measured}
