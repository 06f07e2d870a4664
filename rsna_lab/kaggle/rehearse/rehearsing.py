"""A kernel, folders for its inputs and limits → two runs as Kaggle would make them, a score, and one verdict.

The commit run sees the competition as a competitor does. The scoring run, if one is asked for, sees a hidden test set
in the place of the visible one and KAGGLE_IS_COMPETITION_RERUN; its output is scored. Beside OUT, the folder that was
/kaggle/working:

    OUT.log  OUT.verdict.json                what was said, and this rehearsal's result
    OUT.hidden/  OUT.rerun/  OUT.rerun.log   the hidden test set, and the scoring run's /kaggle/working and log
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rsna_kit.runtime.clock import format_duration
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_json
from rsna_kit.runtime.hardware import cpu_count, memory_gib
from rsna_lab.kaggle.build.datasets import Wanted, build
from rsna_lab.kaggle.credentials import known_secrets
from rsna_lab.kaggle.options import fill_settings
from rsna_lab.kaggle.rehearse import inspection, verdict
from rsna_lab.kaggle.rehearse.claim import beside, claim, empty
from rsna_lab.kaggle.rehearse.hidden import Hidden, check_source, compare_failures, make_hidden, score
from rsna_lab.kaggle.rehearse.mounts import Kernel, competition_files, find_mounts
from rsna_lab.kaggle.rehearse.sandbox import HOW_TO_INSTALL, TOKEN_FILE, Cell, open_jail
from rsna_lab.kaggle.rehearse.verdict import Verdict
from rsna_lab.kaggle.rehearse.watching import Limits, watch
from rsna_lab.kaggle.wheels import KAGGLE_PYTHON

ROOT = Path(__file__).resolve().parents[3]
SUBMISSION, SAMPLE = "submission.csv", "sample_submission.csv"
LIBRARY = "rsna-kit"
LARGE_LOG_BYTES = 20_000_000
CPU_MEMORY_GB, GPU_MEMORY_GB, WORKING_GB, CORES = 30.0, 29.0, 20.0, 4
RUNS = {"commit": "commit run", "rerun": "scoring run"}
NOT_READY = "Not Ready For Kaggle"  # no word of Kaggle's: nothing was run
_SHOWN = 5
_GPUS = list(Path("/dev").glob("nvidia[0-9]*"))
_TOKENS = ("KAGGLE_USER_SECRETS_TOKEN", "KAGGLE_DATA_PROXY_TOKEN", TOKEN_FILE)
_PLACES = {
    "KAGGLE_URL_BASE": "https://www.kaggle.com", "KAGGLE_DATA_PROXY_URL": "https://dp.kaggle.net",
    "KAGGLE_GRPC_DATA_PROXY_URL": "dp.kaggle.net:443", "KAGGLE_DATA_PROXY_PROJECT": "rehearsal",
    "KAGGLE_KERNEL_INTEGRATIONS": "", "KAGGLE_GCP_ZONE": "rehearsal", "KAGGLE_GCP_PROJECT": "rehearsal",
    "KAGGLE_CONTAINER_NAME": "rehearsal", "KAGGLE_DOCKER_IMAGE": "rehearsal",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is to be rehearsed.

    Attributes:
        kernel: the kernel.
        out: becomes /kaggle/working.
        given: slug of an attached dataset, kernel or model → folder.
        competition: folder that stands for it.
        hidden: None, "train", "phantom" or a folder: a scoring run follows the commit run.
        patients, broken, seed: of the hidden test set.
        rerun: the one run is the scoring run itself, on the competition as it is.
        submits: whether a submission is expected of the commit run; None finds out.
        settings: what the script's SETTINGS say instead of their defaults, as scripts/push fills them.
        layout, sandbox, python, limits, checks: see scripts/rehearse --help.
    """

    kernel: Kernel
    out: Path
    given: Mapping[str, Path]
    competition: Path | None
    limits: Limits
    hidden: str | None = None
    patients: int = 24
    broken: int = 6
    seed: int = 0
    rerun: bool = False
    submits: bool | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    layout: str = "new"
    sandbox: str = "auto"
    python: str = sys.executable
    checks: bool = True


def rehearse(plan: Plan, events: Events) -> dict[str, Any]:
    """Check, run, run again on the hidden test set, score.

    Returns:
        Ready for JSON; `verdict` is "Complete" only when Kaggle would have nothing to say about either run.

    Raises:
        UsageError: inputs that are not there, or an output folder that this is not the owner of.
    """
    kernel, submits = plan.kernel, _submits(plan)
    if plan.hidden is not None and (plan.competition is None or not kernel.metadata.get("competition_sources")):
        raise UsageError("--hidden takes the place of a competition's test set: give its folder, --competition DIR, "
                         f"and attach the competition in {kernel.folder}/kernel-metadata.json")  # fmt: skip
    competition = None if plan.competition is None else competition_files(plan.competition)
    if competition is not None and submits and SAMPLE not in competition:
        raise UsageError(f"{plan.competition}: no {SAMPLE}, which says what a submission holds. Give a folder that "
                         "has it, or --no-submission.")  # fmt: skip
    if plan.hidden is not None and plan.competition is not None:
        check_source(plan.hidden, plan.competition)
    with tempfile.TemporaryDirectory(prefix="rehearse-") as scratch:
        given = _with_library(plan, Path(scratch))
        script = kernel.script.resolve()
        if plan.settings:
            script = Path(scratch) / "script.py"
            filled = fill_settings(kernel.script.read_text(encoding="utf-8"), plan.settings)
            script.write_text(filled, encoding="utf-8")
        mounted, absent = find_mounts(kernel, plan.layout, given, competition)
        problems = inspection.problems(kernel, given, submits)
        found: dict[str, Any] = {
            "kernel": kernel.metadata.get("id"), "verdict": NOT_READY, "explanation": "", "seconds": 0.0,
            "out": str(plan.out), "sandbox": None, "problems": problems, "warnings": inspection.warnings(kernel),
            "not_checked": [], "commit": None, "rerun": None, "hidden": None, "score": None,
        }  # fmt: skip
        if problems and plan.checks:
            return found | {"explanation": "The checks before the run found what will fail at Kaggle; nothing was run."}
        _try_sandbox(plan, Path(scratch))
        inputs = [kernel.folder, *plan.given.values(), plan.competition, Path(plan.hidden or ".")]
        ends = () if plan.hidden is None else (".hidden", ".rerun")
        empty(plan.out, ends, [path for path in inputs if path is not None])
        secret = None if plan.hidden is None else _make_hidden(plan, plan.hidden, found, events)
        claim(plan.out)
        runs: dict[str, Verdict] = {}
        first, sample = "rerun" if plan.rerun else "commit", competition[SAMPLE] if submits and competition else None
        runs[first] = _run(plan, script, mounted, plan.out, first, sample, found)
        if secret is not None and runs[first].good:
            runs["rerun"] = _hidden_run(plan, script, secret, given, found)
        elif plan.competition is not None and submits and runs[first].good and plan.rerun:
            truth = plan.competition / "truth.csv"
            found["score"] = score(plan.out / SUBMISSION, truth) if truth.is_file() else None
    found["not_checked"] += _not_checked(plan)
    found["not_checked"] += [f"{source.kind} {source.slug}: no folder was given, so it is not mounted"
                             for source in absent]  # fmt: skip
    last = next((run for run in runs.values() if not run.good), None)
    if last is not None:
        found |= {"verdict": last.word, "explanation": last.explanation}
    elif problems:
        found["explanation"] = "The run went well here; the checks before it found what will fail at Kaggle."
    else:
        found["verdict"] = verdict.COMPLETE
    write_json(beside(plan.out, ".verdict.json"), found)
    return found


def _submits(plan: Plan) -> bool:
    """Whether a submission is expected: said so, or a scoring run is asked for, or the script names the file."""
    if plan.submits is not None:
        return plan.submits
    named = SUBMISSION in plan.kernel.script.read_text(encoding="utf-8", errors="replace")
    return plan.competition is not None and (plan.rerun or plan.hidden is not None or named)


def _run(
    plan: Plan,
    script: Path,
    mounted: Mapping[str, Path],
    working: Path,
    name: str,
    sample: Path | None,
    found: dict[str, Any],
) -> Verdict:
    """One run, "commit" or "rerun", and what Kaggle would say of it; its facts join `found`."""
    working.mkdir(parents=True, exist_ok=True)
    log, own = beside(working, ".log"), known_secrets(os.environ)
    with tempfile.TemporaryDirectory(prefix="rehearse-", ignore_cleanup_errors=True) as scratch:
        tokens = {variable: f"rehearsal-{secrets.token_hex(16)}" for variable in _TOKENS}
        environment = _environment(plan, tokens, name == "rerun")
        jail = open_jail(
            Cell(mounted, script, working.resolve(), Path(scratch), environment, plan.python), plan.sandbox
        )
        held = f"in {jail.name}" if jail.name else "as a plain process"
        print(f"== {RUNS[name]}, {held}, {format_duration(plan.limits.seconds)} at most", file=sys.stderr, flush=True)
        ended = watch(jail.command, jail.environment, working, plan.limits, log, own)
    siblings = [path.name for path in plan.kernel.folder.iterdir() if path != plan.kernel.script]
    outcome = verdict.of_run(ended, plan.limits, siblings)
    if outcome.good or ended.said:
        outcome = verdict.of_secrets(tokens, log, working, own, ended.said)
    if outcome.good and sample is not None:
        outcome = verdict.of_submission(working / SUBMISSION, sample)
    if jail.name is None and outcome.word == verdict.EXCEPTION:
        outcome = replace(outcome, advice=(*outcome.advice, f"A plain process has no /kaggle. {HOW_TO_INSTALL}"))
    found |= {"sandbox": jail.name, "seconds": round(found["seconds"] + ended.seconds, 1)}
    found["not_checked"] = jail.unchecked.copy()
    found[name] = {
        "verdict": outcome.word,
        "explanation": outcome.explanation,
        "advice": outcome.advice,
        "log": outcome.log,
        "seconds": round(ended.seconds, 1),
        "memory_gb": round(ended.memory_bytes / 1e9, 2),
        "files": ended.files,
        "working_mb": round(ended.working_bytes / 1e6, 1),
        "out": str(working),
        "log_file": str(log),
    }
    if (size := log.stat().st_size) > LARGE_LOG_BYTES:
        found["warnings"].append(
            f"{RUNS[name]}: it printed {size / 1e6:.0f} MB ({log}). Kaggle keeps all of it, and every look at the run "
            "fetches it: print less"
        )
    return outcome


def _make_hidden(plan: Plan, choice: str, found: dict[str, Any], events: Events) -> Hidden:
    """The hidden test set, before anything is run: what is wrong with its source is said in the first minute."""
    assert plan.competition is not None
    folder = beside(plan.out, ".hidden")
    print("== the hidden test set", file=sys.stderr, flush=True)
    try:
        made = make_hidden(choice, plan.competition, folder, plan.patients, plan.broken, plan.seed, events)
    except BaseException:  # half of it would be somebody else's folder for the next rehearsal
        shutil.rmtree(folder, ignore_errors=True)
        raise
    found["hidden"] = {"folder": str(folder), "from": choice, "patients": made.patients, "images": made.images,
                       "broken": made.broken}  # fmt: skip
    samples = [path / SAMPLE for path in (plan.competition, folder)]
    if samples[0].is_file() and len({len(path.read_text(encoding="utf-8").splitlines()) for path in samples}) == 1:
        found["warnings"].append(
            "the hidden test set is as large as the visible one, Kaggle's is not: a kernel that counts on the size "
            "would not be found out"
        )
    return made


def _hidden_run(plan: Plan, script: Path, made: Hidden, given: Mapping[str, Path], found: dict[str, Any]) -> Verdict:
    """The scoring run on a hidden test set, and its score."""
    assert plan.competition is not None
    working, files = beside(plan.out, ".rerun"), competition_files(plan.competition, made.folder)
    mounted, _ = find_mounts(plan.kernel, plan.layout, given, files)
    outcome = _run(plan, script, mounted, working, "rerun", files[SAMPLE], found)
    if not outcome.good:
        return outcome
    found["score"] = score(working / SUBMISSION, made.truth)
    if failures := compare_failures(working, made):
        found["hidden"] |= failures
        for key, what in (("others", "whole images could not be used"),
                          ("unnoticed", "broken images are not among the failures")):  # fmt: skip
            if ids := failures[key]:
                shown = ", ".join(ids[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")
                found["warnings"].append(f"{len(ids)} {what} ({shown}): compare {working}/failures.csv with "
                                         f"{made.folder}/broken.csv")  # fmt: skip
    return outcome


def _try_sandbox(plan: Plan, scratch: Path) -> None:
    """Refuse a sandbox that does not work here before anything is written, and say what a plain process can do."""
    trial = scratch / "trial"
    trial.mkdir()
    if open_jail(Cell({}, plan.kernel.script, trial, trial, {}, plan.python), plan.sandbox).name is None:
        sees = "can read and change every file that you can, your Kaggle credentials too: rehearse only what you trust."
        print(f"Warning: the kernel runs as a plain process and {sees} {HOW_TO_INSTALL}", file=sys.stderr, flush=True)


def _environment(plan: Plan, tokens: Mapping[str, str], rerun: bool) -> dict[str, str]:
    """The variables of a Kaggle session, with stand-ins for its tokens; and what the person sets for the kernels."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("RSNA_KIT_")}
    if _GPUS and "LD_LIBRARY_PATH" in os.environ:
        kept["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    path = os.pathsep.join([str(Path(plan.python).parent), "/usr/local/bin", "/usr/bin", "/bin"])
    common = {"PATH": path, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    scoring = {"KAGGLE_IS_COMPETITION_RERUN": "1"} if rerun else {}
    return {**common, "KAGGLE_KERNEL_RUN_TYPE": "Batch", **_PLACES, **tokens, **scoring, **kept}


def _with_library(plan: Plan, scratch: Path) -> dict[str, Path]:
    """The given folders; the dataset rsna-kit is this checkout where it is attached and not given."""
    given = dict(plan.given)
    attached = [source for source in plan.kernel.sources() if source.slug == LIBRARY and source.kind == "dataset"]
    if attached and not {LIBRARY, attached[0].reference} & given.keys():
        given[LIBRARY] = scratch / LIBRARY
        build(ROOT, Wanted(LIBRARY), given[LIBRARY], lambda line: None)
    return given


def _not_checked(plan: Plan) -> list[str]:
    """What no run here can show."""
    unchecked = ["versions of Kaggle's image: the packages are this environment's"]
    asked = [plan.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    here = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    wanted = ".".join(map(str, KAGGLE_PYTHON))
    if here != wanted:
        unchecked.append(f"Kaggle's Python {wanted}: this run had {here}")
    if plan.kernel.internet:
        unchecked.append("the internet, which this kernel will have")
    if plan.kernel.gpu and not _GPUS:
        unchecked.append("GPU: there is none here")
    if memory_gib() * 2**30 < plan.limits.memory_bytes:
        unchecked.append(f"{plan.limits.memory_bytes / 1e9:g} GB of memory: this machine has {memory_gib():.0f} GiB")
    if cpu_count() < plan.limits.cores:
        unchecked.append(f"speed of {plan.limits.cores} cores: {platform.node() or 'this machine'} has {cpu_count()}")
    own = [name for name in os.environ if name.startswith("RSNA_KIT_")]
    return unchecked + [f"without {name}, which is set here and will not be at Kaggle" for name in own]
