"""Several columns of scores of the same breasts → what each is worth, and its paired difference to one of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from rsna_kit.scoring.metrics import Metric, at, average_precision, roc_auc
from rsna_kit.scoring.threshold import choose_threshold
from rsna_kit.scoring.uncertainty import Interval, bootstrap, paired


def contrast(
    y_true: ArrayLike,
    columns: Mapping[str, np.ndarray],
    patients: ArrayLike,
    reference: str,
    calls: Mapping[str, np.ndarray] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Interval]]:
    """Compare ways to score the same breasts.

    Args:
        y_true: 0/1 of shape (N,), with at least one cancer.
        columns: name → scores of shape (N,).
        patients: of shape (N,); resampled as a whole.
        reference: the column that the others are compared with.
        calls: name → 0/1 of shape (N,) of columns that are not called by a threshold. The others are called by the
            plateau's threshold on these very breasts, which flatters all alike; the intervals take it as given.
        resamples, seed: of the bootstrap.

    Returns:
        A row for each column: `roc_auc`, `pr_auc`, `pf1_binary` (F1 of the calls) and, but for the reference, the
        differences `roc_auc - <reference>` and so on.

    Example:
        >>> scores = np.array([0.1, 0.9, 0.2, 0.8])
        >>> rows = contrast([0, 1, 0, 1], {"a": scores, "b": scores / 2}, list("wxyz"), "a", resamples=20)
        >>> rows["b"]["pf1_binary - a"].value
        0.0
    """
    ranked: dict[str, Metric] = {"roc_auc": roc_auc, "pr_auc": average_precision}
    called: dict[str, Metric] = {"pf1_binary": at("f1", 0.5)}
    given = calls or {}
    decided = {
        name: given[name] if name in given else (scores >= choose_threshold(y_true, scores).value).astype(float)
        for name, scores in columns.items()
    }
    rows: dict[str, dict[str, Interval]] = {}
    for name in columns:
        rows[name] = {}
        for kind, metrics in ((columns, ranked), (decided, called)):
            rows[name] |= bootstrap(y_true, kind[name], patients, metrics, resamples, seed)
        if name == reference:
            continue
        for kind, metrics in ((columns, ranked), (decided, called)):
            differences = paired(y_true, kind[reference], kind[name], patients, metrics, resamples, seed)
            rows[name] |= {f"{metric} - {reference}": interval for metric, interval in differences.items()}
    return rows
