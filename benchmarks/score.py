#!/usr/bin/env python3
"""Bootstrap intervals of a table as large as the competition's: rsna_kit against a loop and against plain SciPy.

    python benchmarks/score.py --out build/score.json           tables, half a minute on a free core

23,826 breasts of 11,913 patients, 492 cancers, simulated scores; ROC-AUC, average precision, pF1 and F1 at a threshold
of every resample. Peers are what a notebook does: `loop` writes the rows of the drawn patients out, one patient after
the other, and asks scikit-learn; `scipy` takes the rows by one index, ranks with SciPy and sums with NumPy. All draw
the same patients, and a peer whose intervals differ ends the run. Seconds are CPU time for each resample,
median of the rounds; peers do fewer resamples a round, since each of theirs takes as long as any other, and 10,000 are
scaled from that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from measure import cost
from report import machine
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_json
from rsna_kit.scoring.intervals import bootstrap

PATIENTS, CANCERS, THRESHOLD, SEED = 11_913, 492, 0.3, 0
MANY = 10_000  # resamples that are promised in seconds
METRICS = ("roc_auc", "pr_auc", "pf1", "pf1_binary")
Table = tuple[np.ndarray, np.ndarray, np.ndarray]


def table() -> Table:
    """Labels, scores with four digits, so that some are equal, and patients of two breasts each.

    Ids have five digits: the kit numbers patients by their ids as text, which then sort as numbers do.
    """
    rng = np.random.default_rng(SEED)
    labels = np.zeros(2 * PATIENTS, dtype=int)
    labels[rng.choice(2 * PATIENTS, CANCERS, replace=False)] = 1
    scores = 1 / (1 + np.exp(-(rng.normal(size=2 * PATIENTS) + 2 * labels - 4)))
    return labels, np.round(scores, 4), np.repeat(10_000 + np.arange(PATIENTS), 2)


def frame(data: Table) -> pd.DataFrame:
    """The same as the kit takes it."""
    labels, scores, patients = data
    called = (scores >= THRESHOLD).astype(int)
    return pd.DataFrame({"patient_id": patients, "cancer": labels, "score": scores, "called": called})


def kit(data: Table, resamples: int) -> np.ndarray:
    """Low and high of every metric, shape (4, 2)."""
    found = bootstrap(frame(data), METRICS, resamples, SEED)
    return np.array([(interval.low, interval.high) for interval in found.values()])


def loop(data: Table, resamples: int) -> np.ndarray:
    """The same in Python and scikit-learn."""
    labels, scores, patients = data
    rows_of: dict[int, list[int]] = {}
    for row, patient in enumerate(patients - patients.min()):
        rows_of.setdefault(int(patient), []).append(row)
    rng, values = np.random.default_rng(SEED), []
    for _ in range(resamples):
        rows = [row for patient in rng.integers(0, PATIENTS, size=PATIENTS) for row in rows_of[patient]]
        y, s = labels[rows], scores[rows]
        values.append((roc_auc_score(y, s), average_precision_score(y, s), soft_f1(y, s), f1_score(y, s >= THRESHOLD)))
    return np.quantile(values, [0.025, 0.975], axis=0).T


def plain(data: Table, resamples: int) -> np.ndarray:
    """The same in NumPy and SciPy, everything vectorised within a resample."""
    labels, scores, patients = data
    rows_of = np.argsort(patients, kind="stable").reshape(PATIENTS, 2)
    rng, values = np.random.default_rng(SEED), []
    for _ in range(resamples):
        rows = rows_of[rng.integers(0, PATIENTS, size=PATIENTS)].ravel()
        y, s = labels[rows], scores[rows]
        positives = y.sum()
        auc = (rankdata(s)[y == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(y) - positives))
        order = np.argsort(-s)
        ends = np.flatnonzero(np.diff(s[order], append=np.inf))
        tp = np.cumsum(y[order])[ends]
        precision = np.diff(tp, prepend=0) @ (tp / (ends + 1)) / positives
        called = s >= THRESHOLD
        values.append((auc, precision, soft_f1(y, s), 2 * (y & called).sum() / (called.sum() + positives)))
    return np.quantile(values, [0.025, 0.975], axis=0).T


def soft_f1(labels: np.ndarray, scores: np.ndarray) -> float:
    """The competition's pF1, as its page writes it."""
    soft_tp = scores[labels == 1].sum()
    precision, recall = soft_tp / scores.sum(), soft_tp / labels.sum()
    return 2 * precision * recall / (precision + recall)


# Contender → its function, and resamples a round.
CONTENDERS: dict[str, tuple[Callable[[Table, int], np.ndarray], int]] = {
    "rsna_kit": (kit, 1000),
    "scipy": (plain, 50),
    "loop": (loop, 10),
}


def in_turn(rounds: int, events: Events) -> dict[str, list[float]]:
    """CPU seconds a resample of every contender, one number a round, after a round that only compares results."""
    data = table()
    for name, (work, _) in CONTENDERS.items():
        if not np.allclose(work(data, 5), kit(data, 5), rtol=1e-9, atol=0):
            raise SystemExit(f"{name} and rsna_kit disagree: nothing was measured")
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with events.progress(rounds, "in turn", "rounds") as progress:
        for _ in range(rounds):
            for name, (work, resamples) in CONTENDERS.items():
                seconds[name].append(cost(partial(work, data, resamples))[0] / resamples)
            progress.advance()
    return seconds


def lines(result: dict[str, Any]) -> list[str]:
    """A Markdown table."""
    ours, promised = result["seconds"]["rsna_kit"], f"{MANY:,} resamples"
    text = [f"| | CPU ms a resample | {promised} | x rsna_kit |", "|---|---|---|---|"]
    for name, theirs in result["seconds"].items():
        ratios = [other / own for other, own in zip(theirs, ours, strict=True)]
        middle = median(theirs)
        span = f"{median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f})"
        scaled = f"{middle * MANY:.1f} s, scaled from {CONTENDERS[name][1]}"
        text.append(f"| {name} | {1000 * middle:.2f} | {scaled} | {span} |")
    return text


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "rounds": options.rounds}
    result["seconds"] = in_turn(options.rounds, Events())
    print(*lines(result), sep="\n")
    where = f"{result['machine']['cores']} cores of {result['machine']['cpu']}, load {result['machine']['load'][0]}"
    print(f"median of {options.rounds} rounds (lowest to highest); {where} before")
    if options.out:
        write_json(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
