"""Scores of several models → which differences are more than chance: a table, and rows for docs/results.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from rsna_kit.recipes.score import read_breasts, short_names
from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_text
from rsna_kit.runtime.hardware import commit
from rsna_kit.scoring.threshold import with_calls
from rsna_lab.analysis import comparison

COLUMNS = ("date", "commit", "what", "data", "metric", "value", "low", "high", "hardware", "minutes", "command")


def compare(
    models: Sequence[Path],
    events: Events,
    truth: Path | None = None,
    measured: Sequence[str] = comparison.USUAL,
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
        about), `metrics` and `differences` as `rsna_lab.analysis.comparison.compare` has them. Ready for JSON.

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
    cut = comparison.in_common({name: breasts for name, (_, breasts) in read.items()})
    for name, breasts in cut.items():
        if len(breasts) < len(read[name][1]):
            events.say(f"{name}: {len(read[name][1]) - len(breasts)} breasts are not in all models and left out")
    judged = {name: with_calls(breasts) for name, breasts in cut.items()}
    called = {name: breasts for name, (breasts, _) in judged.items()}
    reference, first = next(iter(called.items()))
    patients, cancers = int(first["patient_id"].nunique()), int(first["cancer"].sum())
    on = f"{len(first)} breasts, {cancers} with cancer"
    times = comparison.RESAMPLES
    events.say(f"compare: {on}, of {patients} patients; {times} resamples, differences to {reference} paired")
    found = comparison.compare(called, reference, measured)
    events.say("\n" + comparison.markdown(found, reference))
    for name, row in found.items():
        for metric, apart in row.get("differences", {}).items():
            needed = apart["cancers_needed"]
            if apart["verdict"] == "not told apart" and needed:
                takes = f"takes about {needed} cancers, there are {cancers}" if needed > cancers else "would have shown"
                events.say(f"{name}, {metric}: a true difference of {comparison.EFFECT} {takes}.")
    for how in dict.fromkeys(how for _, how in judged.values()):
        events.say(f"thresholds of {', '.join(name for name in judged if judged[name][1] == how)}: {how}")
    result: dict[str, Any] = {"ok": True, "breasts": len(first), "patients": patients, "cancers": cancers}
    result["models"] = {
        name: {"source": str(read[name][0]), "threshold": judged[name][1], **row} for name, row in found.items()
    }
    if results is not None:
        rows = result_rows(found, reference)
        append_results(results, [{**row, "data": f"{data} ({on})".lstrip(), "command": command} for row in rows])
        events.say(f"{len(rows)} rows appended: {results}")
        result["csv"] = str(results)
    return result


def result_rows(compared: Mapping[str, Mapping[str, Mapping[str, Any]]], reference: str) -> list[dict[str, Any]]:
    """Rows for docs/results.csv of all models and differences; the caller adds the other columns that it knows."""
    stamp = {"date": str(date.today()), "commit": (commit() or "")[:7]}
    parts = [(name, row["metrics"]) for name, row in compared.items()]
    parts += [(f"{name} - {reference}", row["differences"]) for name, row in compared.items() if "differences" in row]
    ends = ("value", "low", "high")
    return [
        {**stamp, "what": what, "metric": metric}
        | {end: None if one[end] is None else round(one[end], 4) for end in ends}
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
