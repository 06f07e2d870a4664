"""Columns of scores beside each other: the numbers are those of each alone, the differences are paired."""

from __future__ import annotations

import numpy as np
import pytest

from rsna_kit.scoring.contrast import contrast
from rsna_kit.scoring.metrics import at, average_precision_score, f1_at, roc_auc, roc_auc_score
from rsna_kit.scoring.threshold import choose_threshold
from rsna_kit.scoring.uncertainty import bootstrap, paired


def columns() -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(4)
    labels = (rng.random(300) < 0.2).astype(int)
    line = rng.normal(size=300) + labels
    scores = {"good": line, "worse": line + rng.normal(size=300)}
    scores = {name: 1 / (1 + np.exp(-values)) for name, values in scores.items()}
    return labels, scores, np.arange(300) // 2


def test_each_column_is_measured_as_if_alone() -> None:
    labels, scores, patients = columns()
    rows = contrast(labels, scores, patients, "good", resamples=100, seed=5)
    for name, values in scores.items():
        cut = choose_threshold(labels, values).value
        assert rows[name]["roc_auc"] == bootstrap(labels, values, patients, {"a": roc_auc}, 100, 5)["a"]
        assert rows[name]["pr_auc"].value == average_precision_score(labels, values)
        assert rows[name]["pf1_binary"] == bootstrap(labels, values, patients, {"f": at("f1", cut)}, 100, 5)["f"]


def test_differences_are_to_the_reference_by_the_same_patients() -> None:
    labels, scores, patients = columns()
    rows = contrast(labels, scores, patients, "good", resamples=100, seed=5)
    assert [key for key in rows["good"] if "-" in key] == []
    found = rows["worse"]["roc_auc - good"]
    assert found == paired(labels, scores["good"], scores["worse"], patients, {"a": roc_auc}, 100, 5)["a"]
    assert found.value == pytest.approx(roc_auc_score(labels, scores["worse"]) - roc_auc_score(labels, scores["good"]))
    f1 = {name: f1_at(labels, values, choose_threshold(labels, values).value) for name, values in scores.items()}
    assert rows["worse"]["pf1_binary - good"].value == pytest.approx(f1["worse"] - f1["good"])


def test_a_column_may_bring_its_own_calls() -> None:
    labels, scores, patients = columns()
    rows = contrast(labels, scores, patients, "good", {"worse": np.ones(300)}, resamples=20)
    assert rows["worse"]["pf1_binary"].value == pytest.approx(f1_at(labels, np.ones(300), 0.5))
    assert rows["good"]["pf1_binary"].value > rows["worse"]["pf1_binary"].value
