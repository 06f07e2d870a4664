"""Scores of several models → which differences are evidence: a table, sentences, and rows for docs/results.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from rsna_kit.recipes.score import read_breasts
from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_text
from rsna_kit.runtime.hardware import commit
from rsna_kit.scoring.uncertainty import Interval
from rsna_lab.analysis.comparison import (
    EFFECT,
    RESAMPLES,
    USUAL,
    Difference,
    Model,
    common,
    difference,
    with_calls,
    worth,
)  # fmt: skip
from rsna_lab.analysis.evidence import sentence
from rsna_lab.analysis.shakeup import PREVALENCE, simulate_calls

COLUMNS = ("date", "commit", "what", "data", "metric", "value", "low", "high", "hardware", "minutes", "command")
_HEADS = {"roc_auc": "ROC-AUC", "pr_auc": "PR-AUC", "pf1_binary": "pF1, called", "pf1": "pF1, uncalled",
          "f1_max": "highest F1", "log_loss": "log-loss", "brier": "Brier score"}  # fmt: skip


def compare(
    models: Sequence[Path],
    events: Events,
    truth: Path | None = None,
    measured: Sequence[str] = USUAL,
    results: Path | None = None,
    shake_up: bool = False,
    data: str = "",
    command: str = "",
) -> dict[str, Any]:
    """Compare models with the first one, on the breasts that all of them scored.

    Args:
        models: two or more files or folders, as `rsna_kit.recipes.score.read_breasts` takes them.
        events: gets a Markdown table and the sentences.
        truth: labels of the files that have no column `cancer`.
        measured: names of `rsna_lab.analysis.comparison.METRICS`.
        results: CSV file to which rows in the columns of docs/results.csv are appended; begun where it is absent.
        shake_up: draw public and private boards of the competition's size for all models together.
        data, command: what the rows in `results` call the data, and what was typed.

    Returns:
        `breasts`, `patients` and `cancers` in common; `models`: name → `source`, `threshold` (how the calls came
        about), `metrics`, and, but for the first, `differences`, `sentences` and `cancers_needed` by metric; with
        `shake_up` the boards. Ready for JSON.

    Raises:
        UsageError: fewer than two models, the same one twice, or an unknown metric.
        TableError: files that cannot be read, no common breast, files that disagree about a patient or a label, or
            a results file with other columns.
    """
    if len(models) < 2 or len({path.resolve() for path in models}) < len(models):
        raise UsageError(f"compare: got {', '.join(map(str, models)) or 'none'}, expected two or more different models")
    if results is not None:
        _read_results(results)
    read = [read_breasts(path, truth) for path in models]
    given = {name: breasts for name, (_, breasts) in zip(_names(models), read, strict=True)}
    cut = common(given)
    for name, breasts in cut.items():
        if len(breasts) < len(given[name]):
            events.say(f"{name}: {len(given[name]) - len(breasts)} breasts are not in all models and left out")
    judged = [with_calls(name, breasts) for name, breasts in cut.items()]
    first, *others = judged
    patients = int(first.breasts["patient_id"].nunique())
    on = f"{len(first.breasts)} breasts, {first.cancers} with cancer"
    events.say(f"compare: {on}, of {patients} patients; {RESAMPLES} resamples, differences to {first.name} paired")
    values = {model.name: worth(model, measured) for model in judged}
    apart = {model.name: difference(first, model, measured) for model in others}
    found = {
        model.name: {"source": str(path), "threshold": model.how, "metrics": _as_dict(values[model.name])}
        | (_told(first.name, model.name, apart[model.name]) if model.name in apart else {})
        for model, (path, _) in zip(judged, read, strict=True)
    }
    events.say("\n" + markdown(judged, values, apart, dict.fromkeys(apart, first.name)))
    _tell(judged, found, events)
    result: dict[str, Any] = {"ok": True, "breasts": len(first.breasts), "patients": patients, "cancers": first.cancers}
    result["models"] = found
    if shake_up:
        result["shake_up"] = _shake_up(judged, events)
    if results is not None:
        rows = [row for name, intervals in values.items() for row in result_rows(name, intervals)]
        rows += [row for name, one in apart.items() for row in result_rows(f"{name} - {first.name}", one.intervals)]
        append_results(results, [{**row, "data": f"{data} ({on})".lstrip(), "command": command} for row in rows])
        events.say(f"{len(rows)} rows appended: {results}")
        result["csv"] = str(results)
    return result


def markdown(
    models: Sequence[Model], values: Mapping[str, Mapping[str, Interval]], differences: Mapping[str, Difference],
    against: Mapping[str, str],
) -> str:  # fmt: skip
    """A table for people: a row for each model, each metric with the difference to the model it stands against."""
    measured = list(next(iter(values.values())))
    heads = [head for metric in measured for head in (_HEADS[metric], "difference")]
    lines = [f"| {' | '.join(['model', 'breasts (cancers)', *heads, 'to'])} |", "|---" * (len(heads) + 3) + "|"]
    for model in models:
        cells, apart = [model.name, f"{len(model.breasts)} ({model.cancers})"], differences.get(model.name)
        for metric in measured:
            cells += [shown(values[model.name][metric]), shown(apart.intervals[metric], "+") if apart else ""]
        part = "" if apart is None or apart.breasts == len(model.breasts) else f" ({apart.breasts} common breasts)"
        lines.append(f"| {' | '.join([*cells, against.get(model.name, '') + part])} |")
    return "\n".join(lines) + "\n"


def shown(interval: Interval, sign: str = "") -> str:
    """`0.712 [0.655, 0.770]`"""
    if math.isnan(interval.value):
        return "not defined"
    value, low, high = (f"{number:{sign}.3f}" for number in (interval.value, interval.low, interval.high))
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def result_rows(what: str, intervals: Mapping[str, Interval]) -> list[dict[str, Any]]:
    """Rows for docs/results.csv of one model or one difference; the caller adds the other columns that it knows."""
    stamp = {"date": str(date.today()), "commit": (commit() or "")[:7], "what": what}
    return [
        {
            **stamp,
            "metric": metric,
            **{end: None if v is None else round(v, 4) for end, v in interval.as_dict().items()},
        }
        for metric, interval in intervals.items()
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


def _names(models: Sequence[Path]) -> list[str]:
    """A folder's or file's own name, with as much of what lies above it as tells all apart."""
    paths = [path.resolve() for path in models]
    paths = [path if path.is_dir() else path.with_suffix("") for path in paths]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in models]  # the same name with two suffixes


def _as_dict(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    return {metric: interval.as_dict() for metric, interval in intervals.items()}


def _told(first: str, second: str, apart: Difference) -> dict[str, Any]:
    return {
        "differences": _as_dict(apart.intervals),
        "sentences": {metric: sentence(one, metric, first, second) for metric, one in apart.intervals.items()},
        "cancers_needed": {metric: apart.cancers_needed(metric) for metric in apart.intervals},
    }


def _tell(judged: Sequence[Model], found: Mapping[str, Mapping[str, Any]], events: Events) -> None:
    """The sentences, what would settle them, and where the calls come from."""
    for name, row in found.items():
        for metric, text in row.get("sentences", {}).items():
            count, there = row["cancers_needed"][metric], judged[0].cancers
            if count and "not evidence" in text:
                takes = f"takes about {count} cancers, there are {there}" if count > there else "would have shown"
                text += f" A true difference of {EFFECT} {takes}."
            events.say(text, kind="sentence", model=name, metric=metric)
    for how in dict.fromkeys(model.how for model in judged):
        events.say(f"thresholds of {', '.join(model.name for model in judged if model.how == how)}: {how}")


def _shake_up(judged: Sequence[Model], events: Events) -> dict[str, Any]:
    """Boards of all models together, told in a line each."""
    breasts = judged[0].breasts
    calls = {model.name: model.breasts["called"].to_numpy() for model in judged}
    boards = simulate_calls(breasts["cancer"], calls, breasts["patient_id"])
    events.say(f"boards of the competition's size, {PREVALENCE:.2%} of the breasts with cancer, 95 % of the draws:")
    for row in boards.table().to_dict("records"):
        cells = [f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
                 for name in ("public", "private", "fall")]  # fmt: skip
        events.say(f"  {row['model']}: public {cells[0]}, private {cells[1]}, private - public {cells[2]}")
    choice = boards.choice()
    events.say(
        f"  the best on public is the best on private in {choice['public_is_best']:.0%} of the draws; choosing by "
        f"public loses {choice['public_loss']:.3f} on average, choosing by these scores {choice['honest_loss']:.3f}"
    )
    return boards.as_dict()
