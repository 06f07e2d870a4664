"""A kernel, folders for its inputs and limits → two runs as Kaggle would make them, a score, and one verdict.

The commit run sees the competition as a competitor does. The scoring run, if one is asked for, sees a hidden test set
in the place of the visible one and KAGGLE_IS_COMPETITION_RERUN; its output is scored. Beside OUT, the folder that was
/kaggle/working:

    OUT.log  OUT.verdict.json                what was said, and this rehearsal's result
    OUT.hidden/  OUT.rerun/  OUT.rerun.log   the hidden test set, and the scoring run's /kaggle/working and log

OUT.verdict.json is a permit to delete what lies at OUT the next time: it is written when OUT has become the
rehearsal's own, after all inputs were found good.
"""

from __future__ import annotations

import ast
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rsna_kit.runtime.clock import format_duration, parse_duration
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_json, write_json
from rsna_kit.runtime.hardware import cpu_count, memory_gib
from rsna_lab.kaggle.build import Wanted, build
from rsna_lab.kaggle.metadata import kernel_problems
from rsna_lab.kaggle.options import fill_settings
from rsna_lab.kaggle.rehearse import verdict
from rsna_lab.kaggle.rehearse.hidden import check_source, make_hidden, score
from rsna_lab.kaggle.rehearse.mounts import Kernel, competition_files, find_mounts, read_given, read_kernel
from rsna_lab.kaggle.rehearse.sandbox import GPUS, HOW_TO_INSTALL, TOKENS, Cell, open_jail, session_environment
from rsna_lab.kaggle.rehearse.verdict import Verdict
from rsna_lab.kaggle.rehearse.watching import Limits, watch
from rsna_lab.kaggle.secrecy import Secrets
from rsna_lab.kaggle.wheels import KAGGLE_PYTHON, wheel_problems

ROOT = Path(__file__).resolve().parents[3]
SUBMISSION, SAMPLE = "submission.csv", "sample_submission.csv"
LIBRARY = "rsna-kit"
LARGE_LOG_BYTES = 20_000_000
CPU_MEMORY_GB, GPU_MEMORY_GB, WORKING_GB, CORES = 30.0, 29.0, 20.0, 4
RUNS = {"commit": "commit run", "rerun": "scoring run"}
NOT_READY = "Not Ready For Kaggle"  # no word of Kaggle's: nothing was run


@dataclass(frozen=True)
class Plan:
    """What is to be rehearsed: the options of scripts/rehearse, whose --help says what each means."""

    kernel: Path
    out: Path
    competition: Path | None = None
    dataset: Sequence[str] = ()
    settings: Sequence[str] = ()
    layout: str = "new"
    hidden: Path | None = None
    rerun: bool = False
    broken: int = 6
    time_limit: str = "9h"
    memory_limit: float | None = None
    disk_limit: float = WORKING_GB
    cores: int = CORES
    sandbox: bool = True
    checks: bool = True


def beside(folder: Path, end: str) -> Path:
    """`runs/a` and `.log` → `runs/a.log`."""
    return folder.with_name(folder.name + end)


def rehearse(plan: Plan, events: Events) -> dict[str, Any]:
    """Check, run, run again on the hidden test set, score.

    Returns:
        Ready for JSON; `verdict` is "Complete" only when Kaggle would have nothing to say about either run.

    Raises:
        UsageError: inputs that are not there, or an output folder that this is not the owner of.
    """
    kernel = read_kernel(plan.kernel)
    competition = _check(plan, kernel)
    names = SUBMISSION in kernel.script.read_text(encoding="utf-8", errors="replace")
    submits = competition is not None and (plan.rerun or plan.hidden is not None or names)
    if competition is not None and submits and SAMPLE not in competition:
        raise UsageError(f"{plan.competition}: no {SAMPLE}, which says what a submission holds")
    memory = plan.memory_limit or (GPU_MEMORY_GB if kernel.gpu else CPU_MEMORY_GB)
    limits = Limits(parse_duration(plan.time_limit), memory * 1e9, plan.disk_limit * 1e9, plan.cores)
    with tempfile.TemporaryDirectory(prefix="rehearse-") as scratch:
        given = read_given(plan.dataset)
        inputs = [kernel.folder, *given.values(), *(path for path in (plan.competition, plan.hidden) if path)]
        attached = [source for source in kernel.sources() if source.slug == LIBRARY and source.kind == "dataset"]
        if attached and not {LIBRARY, attached[0].reference} & given.keys():  # it is this checkout
            given[LIBRARY] = Path(scratch) / LIBRARY
            build(ROOT, Wanted(LIBRARY), given[LIBRARY], lambda line: None)
        text = kernel.script.read_text(encoding="utf-8", errors="surrogateescape")
        script = Path(scratch) / "script.py"
        filled = fill_settings(text, dict(pair.split("=", 1) for pair in plan.settings)) if plan.settings else text
        script.write_text(filled, encoding="utf-8", errors="surrogateescape")
        mounted, absent = find_mounts(kernel, plan.layout, given, competition)
        problems = _problems(kernel, given, submits)
        found: dict[str, Any] = {"kernel": kernel.metadata.get("id"), "verdict": NOT_READY, "explanation": ""}
        found |= {"out": str(plan.out), "problems": problems, "warnings": [], "sandbox": None, "score": None}
        found |= {"not_checked": [], "commit": None, "rerun": None}
        if problems and plan.checks:
            return found | {"explanation": "The checks before the run found what will fail at Kaggle; nothing was run."}
        _empty(plan, inputs)
        made = _make_hidden(plan, events)
        plan.out.resolve().mkdir(parents=True, exist_ok=True)
        write_json(beside(plan.out, ".verdict.json"), {"verdict": None, "out": str(plan.out)})
        runs = [("rerun" if plan.rerun else "commit", plan.out, competition or {}, plan.competition)]
        if made is not None and plan.competition is not None:
            runs.append(("rerun", beside(plan.out, ".rerun"), competition_files(plan.competition, made), made))
        for name, working, files, truth in runs:
            mounted, absent = find_mounts(kernel, plan.layout, given, files if plan.competition else None)
            run = _Run(name, kernel, script, mounted, working, limits, plan.sandbox)
            outcome = run.make(found)
            if outcome.good and submits:
                outcome = verdict.of_submission(working / SUBMISSION, files[SAMPLE])
                if outcome.good and name == "rerun" and truth is not None and (truth / "truth.csv").is_file():
                    found["score"] = score(working / SUBMISSION, truth / "truth.csv")
            facts = {"verdict": outcome.word, "explanation": outcome.explanation, "advice": outcome.advice}
            found[name] = {**facts, "log": outcome.log, **found[name]}
            if not outcome.good:
                break
    found["not_checked"] += _not_checked(kernel, limits)
    found["not_checked"] += [f"{one.kind} {one.slug}: no folder was given, so it is not mounted" for one in absent]
    found |= {"verdict": outcome.word, "explanation": outcome.explanation}
    if outcome.good and problems:
        said = "The run went well here; the checks before it found what will fail at Kaggle."
        found |= {"verdict": NOT_READY, "explanation": said}
    write_json(beside(plan.out, ".verdict.json"), found)
    return found


def told(result: Mapping[str, Any]) -> str:
    """The result of a rehearsal for people."""
    lines = [f"== {result['verdict']}: {result['kernel']}"]
    if not result["commit"] and not result["rerun"]:
        lines.append(result["explanation"])
    for name, shown in RUNS.items():
        if run := result[name]:
            lines.append(
                f"{shown}: {run['verdict']} after {format_duration(run['seconds'])}, {run['memory_gb']} GB "
                f"of memory, {run['files']} files of {run['working_mb']} MB in {run['out']}"
            )
            if run["explanation"]:
                lines += [run["explanation"], *(f"What to do: {advice}" for advice in run["advice"])]
                lines += [f"  | {line}" for line in run["log"]]
    if found := result["score"]:
        shown = "undefined (no cancer)" if found["value"] is None else f"{found['value']:.3f}"
        interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
        breasts = f"{found['breasts']} breasts, {found['positives']} with cancer"
        lines.append(f"score of the hidden test set: {found['metric']} {shown}{interval}, {breasts}")
    for key, word in (("problems", "will fail at Kaggle"), ("warnings", "may fail"), ("not_checked", "not checked")):
        lines += [f"{word}: {line}" for line in result[key]]
    return "\n".join(lines)


def _check(plan: Plan, kernel: Kernel) -> dict[str, Path] | None:
    """Refuse what a person mistyped; returns the files of the competition, if one is given."""
    if plan.cores < 1:
        raise UsageError(f"--cores: got {plan.cores}, expected at least 1")
    if bad := [pair for pair in plan.settings if "=" not in pair]:
        raise UsageError(f"--settings {bad[0]}: expected NAME=VALUE")
    if plan.hidden is not None and (plan.competition is None or not kernel.metadata.get("competition_sources")):
        raise UsageError(
            "--hidden takes the place of a competition's test set: give its folder, --competition DIR, "
            f"and attach the competition in {kernel.folder}/kernel-metadata.json"
        )
    if plan.hidden is not None:
        check_source(plan.hidden)
    return None if plan.competition is None else competition_files(plan.competition)


def _problems(kernel: Kernel, given: Mapping[str, Path], submits: bool) -> list[str]:
    """What is sure to fail at Kaggle and cannot be seen by running it here, in sentences."""
    found = kernel_problems(kernel.folder, public=True)  # who may see it is not what a rehearsal is about
    try:
        ast.parse(text := kernel.script.read_bytes(), feature_version=KAGGLE_PYTHON)
        compile(text, kernel.script.name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        found.append(f"{kernel.script.name} is no Python {'.'.join(map(str, KAGGLE_PYTHON))}: {error}")
    if submits and kernel.internet:
        found.append("enable_internet is not false: Kaggle takes no submission from a kernel with the internet on")
    return found + [f"{slug}: {problem}" for slug, folder in given.items() for problem in wheel_problems(folder)]


def _empty(plan: Plan, inputs: Sequence[Path]) -> None:
    """Make room for the runs: /kaggle/working begins empty. What no rehearsal has written is left alone.

    Raises:
        UsageError: a folder that is to be emptied holds something else, or an input; nothing was touched.
    """
    mark, ours = beside(plan.out, ".verdict.json"), False
    with suppress(OSError, ValueError, AttributeError):  # a file of that name that is none of ours is no permit
        ours = {"verdict", "out"} <= read_json(mark).keys()
    places = [plan.out, *(beside(plan.out, end) for end in ((".hidden", ".rerun") if plan.hidden else ()))]
    for place in places:
        if inside := [path for path in inputs if path.resolve().is_relative_to(place.resolve())]:
            raise UsageError(f"{inside[0]} is an input and lies in {place}, which is emptied. Name another --out")
        if place.exists() and not (ours and place.is_dir()) and (not place.is_dir() or any(place.iterdir())):
            raise UsageError(
                f"{place} is not empty and no rehearsal wrote it (no {mark.name} beside it); /kaggle/working begins "
                "empty. Name a new folder, or remove it."
            )
    for place in places:
        shutil.rmtree(place.resolve(), ignore_errors=True)  # behind a link, to a larger disk perhaps
    if ours:
        mark.unlink()


def _make_hidden(plan: Plan, events: Events) -> Path | None:
    """The hidden test set, before anything is run: what is wrong with its source is said in the first minute."""
    if plan.hidden is None:
        return None
    folder = beside(plan.out, ".hidden")
    try:
        make_hidden(plan.hidden, folder, plan.broken, 0, events)
    except BaseException:  # half of it would be somebody else's folder for the next rehearsal
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


@dataclass(frozen=True)
class _Run:
    """One run: "commit" or "rerun", of which kernel and script, with what mounted, where, and held to what."""

    name: str
    kernel: Kernel
    script: Path
    mounted: Mapping[str, Path]
    working: Path
    limits: Limits
    sandbox: bool

    def make(self, found: dict[str, Any]) -> Verdict:
        """What Kaggle would say of the process; its facts join those that were found."""
        self.working.mkdir(parents=True, exist_ok=True)
        log, limits = beside(self.working, ".log"), self.limits
        with tempfile.TemporaryDirectory(prefix="rehearse-", ignore_cleanup_errors=True) as scratch:
            tokens = {variable: f"rehearsal-{secrets.token_hex(16)}" for variable in TOKENS}
            environment = session_environment(tokens, self.name == "rerun")
            cell = Cell(self.mounted, self.script, self.working.resolve(), Path(scratch), environment)
            jail = open_jail(cell, self.sandbox)
            if jail.name is None:
                sees = "can read and change every file that you can, your Kaggle credentials too"
                warning = f"Warning: the kernel runs as a plain process and {sees}: rehearse only what you trust."
                print(f"{warning} {HOW_TO_INSTALL}", file=sys.stderr, flush=True)
            held = f"in {jail.name}" if jail.name else "as a plain process"
            told = f"== {RUNS[self.name]}, {held}, {format_duration(limits.seconds)} at most"
            print(told, file=sys.stderr, flush=True)
            ended = watch(jail.command, jail.environment, self.working, limits, log)
        siblings = [path.name for path in self.kernel.folder.iterdir() if path != self.kernel.script]
        outcome = verdict.of_run(ended, limits, siblings)
        if outcome.good or ended.said:
            outcome = verdict.of_secrets(tokens, log, self.working, Secrets(), ended.said)
        if jail.name is None and outcome.word == verdict.EXCEPTION:
            outcome = replace(outcome, advice=(*outcome.advice, f"A plain process has no /kaggle. {HOW_TO_INSTALL}"))
        found |= {"sandbox": jail.name, "not_checked": jail.unchecked.copy()}
        found[self.name] = {
            "seconds": round(ended.seconds, 1),
            "memory_gb": round(ended.memory_bytes / 1e9, 2),
            "files": ended.files,
            "working_mb": round(ended.working_bytes / 1e6, 1),
            "out": str(self.working),
        }
        if (size := log.stat().st_size) > LARGE_LOG_BYTES:
            found["warnings"].append(
                f"{RUNS[self.name]}: it printed {size / 1e6:.0f} MB ({log}). Kaggle keeps all of it, and every look at "
                "the run fetches it: print less"
            )
        return outcome


def _not_checked(kernel: Kernel, limits: Limits) -> list[str]:
    """What no run here can show."""
    unchecked = ["versions of Kaggle's image: the packages are this environment's"]
    here = sys.version_info[:2]
    if here != KAGGLE_PYTHON:
        unchecked.append("Kaggle's Python {}.{}: this run had {}.{}".format(*KAGGLE_PYTHON, *here))
    if kernel.internet:
        unchecked.append("the internet, which this kernel will have")
    if kernel.gpu and not GPUS:
        unchecked.append("GPU: there is none here")
    if memory_gib() * 2**30 < limits.memory_bytes:
        unchecked.append(f"{limits.memory_bytes / 1e9:g} GB of memory: this machine has {memory_gib():.0f} GiB")
    if cpu_count() < limits.cores:
        unchecked.append(f"speed of {limits.cores} cores: this machine has {cpu_count()}")
    own = [name for name in os.environ if name.startswith("RSNA_KIT_")]
    return unchecked + [f"without {name}, which is set here and will not be at Kaggle" for name in own]
