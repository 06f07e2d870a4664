"""Scores of several models → which differences are more than chance: a table, and rows for docs/results.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pandas as pd

from rsna_kit.recipes.score import read_breasts, short_names
from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_text
from rsna_kit.runtime.hardware import commit
from rsna_kit.scoring.intervals import LEVEL, Interval, bootstrap, shown
from rsna_kit.scoring.metrics import METRICS
from rsna_kit.scoring.threshold import with_calls

USUAL = ("roc_auc", "pr_auc", "pf1_binary")
RESAMPLES = 2000
EFFECT = 0.02  # a difference that would be worth something
COLUMNS = ("date", "commit", "what", "data", "metric", "value", "low", "high", "hardware", "minutes", "command")


def compare(
    models: Sequence[Path],
    events: Events,
    truth: Path | None = None,
    measured: Sequence[str] = USUAL,
    results: Path | None = None,
    data: str = "",
    command: str = "",
) -> dict[str, Any]:
    """Compare models with the first one, on the breasts that all of them scored.

    Args:
        models: two or more files or folders, as `rsna_kit.recipes.score.read_breasts` takes them.
        events: gets a Markdown table, and how many cancers would settle what is not told apart.
        truth: labels of the files that have no column `cancer`.
        measured: names of `rsna_kit.scoring.metrics.METRICS`.
        results: CSV file to which rows in the columns of docs/results.csv are appended; begun where it is absent.
        data, command: what the rows in `results` call the data, and what was typed.

    Returns:
        `breasts`, `patients` and `cancers` in common; `models`: name → `source`, `threshold` (how the calls came
        about), `metrics` (name → value, low, high) and, but for the first, `differences` (name → the same, with
        `verdict` and `cancers_needed`). Ready for JSON.

    Raises:
        UsageError: fewer than two models, the same one twice, or an unknown metric.
        TableError: files that cannot be read, no common breast, files that disagree about a patient or a label, or
            a results file with other columns.
    """
    if len(models) < 2 or len({path.resolve() for path in models}) < len(models):
        raise UsageError(f"compare: got {', '.join(map(str, models)) or 'none'}, expected two or more different models")
    if results is not None:
        _read_results(results)
    read = dict(zip(short_names(models), [read_breasts(path, truth) for path in models], strict=True))
    cut = in_common({name: breasts for name, (_, breasts) in read.items()})
    for name, breasts in cut.items():
        if len(breasts) < len(read[name][1]):
            events.say(f"{name}: {len(read[name][1]) - len(breasts)} breasts are not in all models and left out")
    judged = {name: with_calls(breasts) for name, breasts in cut.items()}
    reference, (first, _) = next(iter(judged.items()))
    patients, cancers = int(first["patient_id"].nunique()), int(first["cancer"].sum())
    on = f"{len(first)} breasts, {cancers} with cancer"
    events.say(f"compare: {on}, of {patients} patients; {RESAMPLES} resamples, differences to {reference} paired")
    found: dict[str, dict[str, Any]] = {}
    for name, (breasts, how) in judged.items():
        worth = bootstrap(breasts, measured, RESAMPLES)
        found[name] = {"source": str(read[name][0]), "threshold": how}
        found[name]["metrics"] = {metric: interval.as_dict() for metric, interval in worth.items()}
        if name == reference:
            continue
        differences = found[name]["differences"] = {}
        for metric, interval in bootstrap(breasts, measured, RESAMPLES, against=first).items():
            told, needed = verdict(metric, interval), cancers_needed(interval, cancers)
            differences[metric] = {**interval.as_dict(), "verdict": told, "cancers_needed": needed}
            if told == "not told apart" and needed:
                takes = f"takes about {needed} cancers, there are {cancers}" if needed > cancers else "would have shown"
                events.say(f"{name}, {metric}: a true difference of {EFFECT} {takes}.")
    events.say("\n" + markdown(found, reference))
    for how in dict.fromkeys(how for _, how in judged.values()):
        events.say(f"thresholds of {', '.join(name for name in judged if judged[name][1] == how)}: {how}")
    result = {"ok": True, "breasts": len(first), "patients": patients, "cancers": cancers, "models": found}
    if results is not None:
        rows = _result_rows(found, reference)
        append_results(results, [{**row, "data": f"{data} ({on})".lstrip(), "command": command} for row in rows])
        events.say(f"{len(rows)} rows appended: {results}")
        result["csv"] = str(results)
    return result


def in_common(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
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
        for column in ("patient_id", "cancer"):
            differ = table.loc[(table[column] != cut[name][column]).to_numpy(), "prediction_id"]
            if len(differ):
                raise TableError(
                    f"{name} and {other}: {len(differ)} breasts (first: {differ.iloc[0]}) have another {column} in "
                    "each. Nothing was compared."
                )
    return cut


def verdict(metric: str, difference: Interval) -> str:
    """`better` or `worse` where the interval leaves out 0 (`higher` or `lower` for a rate), else `not told apart`.

    Example:
        >>> verdict("log_loss", Interval(0.02, 0.006, 0.035))
        'worse'
    """
    if not (difference.low > 0 or difference.high < 0):
        return "not told apart"
    if metric.endswith("_rate"):
        return "higher" if difference.low > 0 else "lower"
    return "better" if (difference.low > 0) != metric.endswith("_loss") else "worse"


def cancers_needed(difference: Interval, cancers: int) -> int | None:
    """How many cancers it takes until a true difference of EFFECT is found with a probability of 80 %.

    Half the width of the interval, divided by the normal quantile of its level, is the standard error with the cancers
    there are; it shrinks with the square root of their number. A two-sided test of 5 % finds the effect when it is
    z(0.975) + z(0.8) standard errors (Hanley & McNeil, Radiology 148 (1983) 839). It holds for two models as alike
    as these: the more two models agree on what is hard, the fewer cancers tell them apart.

    Returns:
        a whole number, rounded up; None where the interval has no width.

    Example:
        >>> cancers_needed(Interval(0.012, -0.008, 0.031), cancers=492)
        956
    """
    if not difference.high > difference.low:
        return None
    z = NormalDist().inv_cdf
    standard_error = (difference.high - difference.low) / 2 / z((1 + LEVEL) / 2)
    return math.ceil(cancers * ((z(0.975) + z(0.8)) * standard_error / EFFECT) ** 2)


def markdown(compared: Mapping[str, Mapping[str, Any]], reference: str) -> str:
    """A table for people: a row for each model, of each metric its value, its difference and the verdict."""
    measured = list(compared[reference]["metrics"])
    heads = [head for metric in measured for head in (METRICS[metric].label, f"less {reference}", "")]
    lines = [f"| {' | '.join(['model', *heads])} |", "|---" * (len(heads) + 1) + "|"]
    for name, row in compared.items():
        cells = [name]
        for metric in measured:
            apart = row.get("differences", {}).get(metric)
            told = ["", ""] if apart is None else [shown(apart, "+"), apart["verdict"]]
            cells += [shown(row["metrics"][metric]), *told]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _result_rows(compared: Mapping[str, Mapping[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Rows for docs/results.csv of all models and differences."""
    parts = [(name, row["metrics"]) for name, row in compared.items()]
    parts += [(f"{name} - {reference}", row["differences"]) for name, row in compared.items() if "differences" in row]
    return [
        {"date": str(date.today()), "commit": (commit() or "")[:7], "what": what, "metric": metric}
        | {end: None if one[end] is None else round(one[end], 4) for end in ("value", "low", "high")}
        for what, intervals in parts
        for metric, one in intervals.items()
    ]


def append_results(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a CSV file with the columns COLUMNS, whole or not at all; a file that is absent is begun.

    Raises:
        TableError: the file has other columns.
    """
    before, added = _read_results(path), io.StringIO()
    csv.DictWriter(added, COLUMNS, restval="", lineterminator="\n").writerows(rows)
    write_text(path, before + added.getvalue())


def _read_results(path: Path) -> str:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text:
        return ",".join(COLUMNS) + "\n"
    header = next(csv.reader(io.StringIO(text)))
    if tuple(header) != COLUMNS:
        raise TableError(f"{path}, line 1: got columns {', '.join(header)}, expected {', '.join(COLUMNS)}")
    return text if text.endswith("\n") else text + "\n"
