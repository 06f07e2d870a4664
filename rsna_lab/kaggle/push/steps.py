"""The steps from this checkout to a score: build, upload, prepare, train, weights, infer, submit.

Every step can be run again: what is done already for the same files, scripts and inputs is looked up on Kaggle, and not
done twice. A training that the clock stopped is no failure: its version is complete, and says in its verdict which
folds are not done. The next push attaches its output to a further version, which goes on from there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.files import read_json
from rsna_kit.session.verdict import VERDICT
from rsna_lab.kaggle.options import read_settings
from rsna_lab.kaggle.push import checks, kernels, runs, submissions, uploads
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.choices import KERNELS, Choices
from rsna_lab.kaggle.push.errors import KaggleError, UnreachableError
from rsna_lab.kaggle.push.expected import parts
from rsna_lab.kaggle.push.kernels import Staged, stage
from rsna_lab.kaggle.push.project import (
    WEIGHTS,
    Run,
    build,
    find_run,
    newest_complete,
    own_datasets,
    read_kernel_metadata,
    reference_of,
)

# Kernel → what of its output is fetched when it has run: a regular expression. The shards of prepare stay at Kaggle.
CPU_SESSIONS = 5  # that an account may run at once
FETCHED = {"prepare": r"\.(?:json|jsonl|csv|txt|md)$", "infer": ""}
_FREE = {"FOLDS", "HOURS", "TIME_LIMIT", "REQUIRE_GPU"}  # may differ between a training and what goes on with it


def run_all(account: Account, choices: Choices) -> dict[str, Any]:
    """Take every step that is not skipped; returns what came of each.

    Raises:
        KaggleError: at the first thing that is not as it should be.
    """
    done: dict[str, Any] = {"owner": account.owner}
    skip = choices.skip
    checks.check_here(account, choices)
    checks.check_there(account, choices)
    checks.ask_first(account, choices, [name for name in KERNELS if name not in skip], "submit" not in skip)
    if not skip >= {"build", "upload"}:
        names = [name for name in own_datasets(account) if name != WEIGHTS]
        done["datasets"] = {name: uploads.bring(account, name, skip) for name in names}
    run = None
    for name in KERNELS:
        if name == "infer" and "weights" not in skip:
            _bring_weights(account, choices)
        if name not in skip:
            *_, run = several = run_kernel(account, choices, name)
            done[name] = run.version if len(several) == 1 else [each.version for each in several]
    if "submit" not in skip:
        run = run if run and "infer" not in skip else find_run(account, "infer")
        done |= submissions.submit_and_wait(account, run, choices.file_name)
    return done


def push_one(account: Account, choices: Choices, kernel: str, wait: bool = True) -> list[Run]:
    """Push one kernel with what is to be attached, verify it, and follow its run unless told not to; or its parts."""
    for part in parts(account, choices, kernel):
        stage(account, choices, kernel, part=part)
    checks.check_attached(account, choices, kernel)
    checks.ask_first(account, choices, [kernel], False)
    return run_kernel(account, choices, kernel, wait, fetch=False)


def run_kernel(account: Account, choices: Choices, name: str, wait: bool = True, fetch: bool = True) -> list[Run]:
    """Push a kernel, or take up what is there, follow its run to the end, and fetch of its output what is needed here.

    The parts of prepare are pushed before the first is waited for, as many as Kaggle runs side by side.

    Raises:
        KaggleError: it failed, or the clock stopped a training.
    """
    done: list[Run] = []
    pushed: list[Run] = []

    def finish(run: Run) -> None:
        runs.follow(account, run)
        if name == "train":
            _check_finished(account, run, choices.partial)
        elif fetch and name in FETCHED:
            runs.fetch(account, run, only=FETCHED[name], needed=False)
        done.append(run)

    for part in parts(account, choices, name):
        if wait and len(pushed) - len(done) == CPU_SESSIONS:
            finish(pushed[len(done)])
        whole = name == "train"
        push = (
            _push_training(account, choices)
            if whole
            else kernels.push(account, stage(account, choices, name, part=part))
        )
        pushed.append(push)
    for run in pushed[len(done) :] if wait else ():
        finish(run)
    return pushed


def planned(account: Account, choices: Choices, name: str, part: str = "") -> Staged:
    """What would be pushed now, as far as it can be known without fetching anything."""
    staged = stage(account, choices, name, part=part)
    if name == "train":
        with contextlib.suppress(UnreachableError):
            earlier = _earlier(account, staged)
            path = runs.output_folder(account, earlier) / VERDICT
            if earlier.version and path.is_file() and _folds_left(read_json(path)):
                return _going_on(account, choices, earlier)
    return staged


def _push_training(account: Account, choices: Choices) -> Run:
    """Push the training, or what goes on with one that the clock stopped; or bring the one that is there already."""
    staged = stage(account, choices, "train")
    covers = staged.digest(kernels.inputs_of(account, staged))
    earlier = _earlier(account, staged)
    left = _folds_left(runs.read_verdict(account, earlier)) if earlier.version else []
    if left and choices.partial:
        return earlier
    if left:
        account.events.say(
            f"{earlier.reference}: going on from version {earlier.version}, folds {_told(left)} are left"
        )
        return kernels.push(account, _going_on(account, choices, earlier), covers)
    if earlier.version and kernels.made_of(earlier)[1:] == [covers] and kernels.stands(account, staged, earlier):
        return earlier
    return kernels.push(account, staged, covers)


def _earlier(account: Account, staged: Staged) -> Run:
    """The newest complete version, whose output can be attached, if it was trained with the same settings."""

    def decisive(text: str) -> dict[str, str]:
        with contextlib.suppress(UsageError, SyntaxError, ValueError):  # pushed by somebody else
            return {name: value for name, value in read_settings(text).items() if name not in _FREE}
        return {}

    nothing = Run(staged.reference)
    earlier = nothing if account.again else newest_complete(account, staged.reference)
    return earlier if decisive(earlier.text) == decisive(staged.text) else nothing


def _going_on(account: Account, choices: Choices, earlier: Run) -> Staged:
    """The training with the output of its own newest version attached."""
    sources = read_kernel_metadata(account, "train").get("kernel_sources", [])
    return stage(account, choices, "train", {"kernel_sources": [*sources, earlier.reference]})


def _check_finished(account: Account, run: Run, partial: bool) -> None:
    """Stop where the clock stopped the training, unless the folds that are there are enough.

    Raises:
        KaggleError: folds are not done, and how to go on.
    """
    if not (left := _folds_left(runs.read_verdict(account, run))):
        return
    stopped = f"{run.reference}: version {run.version} was stopped by the clock: folds {_told(left)} are not done."
    if not partial:
        raise KaggleError(
            stopped,
            advice="Run the same command again, without --again and --skip train: it pushes train with the output of "
            f"version {run.version} attached, and that goes on. With the folds that are there: scripts/push --partial",
        )
    account.events.say(f"{stopped} Going on without them, as --partial says")


def _bring_weights(account: Account, choices: Choices) -> None:
    """Take the bundles of the newest training to where infer reads them.

    Raises:
        KaggleError: the training is not finished, or its bundles do not come whole.
    """
    run = newest_complete(account, reference_of(account, "train"))
    if "train" in choices.skip:
        _check_finished(account, run, choices.partial)
    runs.fetch(account, run)
    uploads.upload(account, build(account, WEIGHTS, "--from", runs.output_folder(account, run)))


def _folds_left(verdict: Mapping[str, Any]) -> list[int]:
    """The folds that a complete version of train did not finish."""
    counts = verdict.get("counts") or {}
    return sorted({*counts.get("stopped_by_clock", []), *counts.get("skipped", [])})


def _told(folds: list[int]) -> str:
    return ", ".join(map(str, folds))
