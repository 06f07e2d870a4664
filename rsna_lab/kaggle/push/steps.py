"""The steps from this checkout to a score: build, upload, prepare, train, weights, infer, submit.

Every step can be run again: what is done already for the same files, scripts and inputs is looked up in the ledger and
on Kaggle, and not done twice. A training that the clock stopped is no failure: its version is complete, and says in its
verdict which folds are not done. The next push attaches its output to a further version, which goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rsna_kit.runtime.files import read_json
from rsna_kit.session.verdict import VERDICT
from rsna_lab.kaggle.push import checks, kernels, runs, staging, submissions, uploads
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.choices import Choices
from rsna_lab.kaggle.push.errors import KaggleError
from rsna_lab.kaggle.push.project import WEIGHTS, Run, build, latest_run, look, own_datasets, read_kernel_metadata
from rsna_lab.kaggle.push.staging import Staged

_SMALL = r"\.(?:json|jsonl|csv|txt|md)$"  # of a prepared competition only this is fetched: its shards stay at Kaggle
_FREE = {"FOLDS", "TIME_LIMIT", "REQUIRE_GPU"}  # settings that may differ between a training and what goes on with it


def run_all(account: Account, choices: Choices) -> dict[str, Any]:
    """Take every step that is not skipped; returns what came of each.

    Raises:
        KaggleError: at the first thing that is not as it should be.
    """
    done: dict[str, Any] = {"owner": account.owner}
    checks.check_here(account, choices)
    checks.check_there(account, choices)
    checks.ask_first(
        account,
        choices,
        [name for name in ("prepare", "train", "infer") if name not in choices.skip],
        "submit" not in choices.skip,
    )
    if not choices.skip >= {"build", "upload"}:
        done["datasets"] = {
            name: uploads.bring(account, name, choices.skip) for name in own_datasets(account) if name != WEIGHTS
        }
    if "prepare" not in choices.skip:
        run = _run_kernel(account, staging.stage(account, choices, "prepare"))
        runs.fetch(account, run, only=_SMALL, needed=False)
        done["prepare"] = run.version
    if "train" not in choices.skip:
        trained = train(account, choices)
        done["train"] = trained.version
    else:
        trained = latest_run(account, "train")
        if not trained.version and (there := look(account, trained)):  # pushed from elsewhere, or the ledger was lost
            trained = replace(trained, version=there.version)
    if "weights" not in choices.skip:
        sources = _bring_weights(account, choices, trained)
    elif "infer" not in choices.skip:
        sources = infer_sources(account, choices.weights)
    if "infer" not in choices.skip:
        run = _run_kernel(account, staging.stage(account, choices, "infer", sources))
        runs.fetch(account, run)
        done["infer"] = run.version
    else:
        run = latest_run(account, "infer")
    if "submit" not in choices.skip:
        done |= submissions.submit_and_wait(account, run, choices.file_name)
    return done


def push_one(account: Account, choices: Choices, kernel: str, wait: bool = True) -> Run:
    """Push one kernel with what is to be attached, verify it, and follow its run unless told not to."""
    staged = staging.stage(account, choices, kernel)
    checks.check_attached(account, choices, kernel)
    checks.ask_first(account, choices, [kernel], False)
    if kernel == "train":
        return train(account, choices, wait)
    run = kernels.push(account, staged)
    if wait:
        runs.follow(account, run)
    return run


def _run_kernel(account: Account, staged: Staged) -> Run:
    """Push a kernel, verify it, follow its run to the end."""
    run = kernels.push(account, staged)
    runs.follow(account, run)
    return run


def train(account: Account, choices: Choices, wait: bool = True) -> Run:
    """Push the training, or what goes on with it, and follow it to its end.

    Raises:
        KaggleError: it failed, or the clock stopped it.
    """
    staged = staging.stage(account, choices, "train")
    covers = staged.digest(staging.inputs_of(account, staged))
    earlier = None if account.again else _earlier(account, staged)
    left = _folds_left(runs.read_verdict(account, earlier)) if earlier else []
    if earlier and left and choices.partial:
        _check_finished(account, earlier, choices.partial)
        return earlier
    if earlier and left and _is_newest(account, earlier):
        account.events.say(
            f"{earlier.reference}: going on from version {earlier.version}, folds {_shown(left)} are left"
        )
        run = kernels.push(account, _going_on(account, choices, earlier), covers)
    elif earlier and not left and _covers(account, earlier) == covers and kernels.stands(account, staged, earlier):
        run = earlier
    else:
        # Of an unfinished training that something else was trained after, the output cannot be attached any more.
        lost = earlier is not None and bool(left) and _covers(account, earlier) == covers
        run = kernels.push(replace(account, again=account.again or lost), staged, covers)
    if wait:
        runs.follow(account, run)
        _check_finished(account, run, choices.partial)
    return run


def planned_training(account: Account, choices: Choices) -> Staged:
    """What would be pushed now, as far as it can be known without asking Kaggle."""
    staged = staging.stage(account, choices, "train")
    earlier = None if account.again else _earlier(account, staged)
    path = runs.output_folder(account, earlier) / VERDICT if earlier else None
    unfinished = path and path.is_file() and _folds_left(read_json(path))
    return _going_on(account, choices, earlier) if earlier and unfinished and _is_newest(account, earlier) else staged


def _going_on(account: Account, choices: Choices, earlier: Run) -> Staged:
    """The kernel with the output of its own newest version attached."""
    sources = read_kernel_metadata(account, "train").get("kernel_sources", [])
    return staging.stage(account, choices, "train", {"kernel_sources": [*sources, earlier.reference]})


def _check_finished(account: Account, run: Run, partial: bool) -> None:
    """Stop where the clock stopped the training, unless the folds that are there are enough.

    Raises:
        KaggleError: folds are not done, and how to go on.
    """
    if not (left := _folds_left(runs.read_verdict(account, run))):
        return
    stopped = f"{run.reference}: version {run.version} was stopped by the clock: folds {_shown(left)} are not done."
    if not partial:
        raise KaggleError(
            stopped,
            advice="Run the same command again, without --again and --skip train: it pushes train with the output of "
            f"version {run.version} attached, and that goes on. With the folds that are there: scripts/push --partial",
        )
    account.events.say(f"{stopped} Going on without them, as --partial says")


def _bring_weights(account: Account, choices: Choices, run: Run) -> dict[str, list[str]]:
    """Take the bundles of a training to where infer reads them; returns the sources infer gets instead.

    Raises:
        KaggleError: the training is not finished, or its bundles do not come whole.
    """
    if "train" in choices.skip:
        _check_finished(account, run, choices.partial)
    if choices.weights == "output":
        if not _is_newest(account, run) and "train" not in choices.skip:
            raise KaggleError(
                f"{run.reference}: version {run.version} is not the newest, whose output alone can be attached.",
                advice="Leave out --weights output: its bundles then travel as a dataset. Or train anew: --again",
            )
        return infer_sources(account, choices.weights)
    runs.fetch(account, run)
    built = build(account, WEIGHTS, "--from", runs.output_folder(account, run))
    uploads.upload(account, built)
    return {}


def infer_sources(account: Account, weights: str) -> dict[str, list[str]]:
    """The sources that infer gets in the place of its own, with the bundles as a "dataset" or the "output" of train."""
    if weights == "dataset":
        return {}
    sources = read_kernel_metadata(account, "infer").get("dataset_sources", [])
    others = [source for source in sources if source.split("/")[1] != WEIGHTS]
    return {"dataset_sources": others, "kernel_sources": [latest_run(account, "train").reference]}


def _earlier(account: Account, staged: Staged) -> Run | None:
    """The newest complete version that was trained with the same settings."""
    complete = {line["version"] for line in account.ledger.lines("run", kernel=staged.reference, status="COMPLETE")}
    wanted = _decisive(staged.settings)
    lines = account.ledger.lines("push", kernel=staged.reference)
    versions = [
        int(line["version"])
        for line in lines
        if line["version"] in complete and _decisive(line.get("settings", staged.settings)) == wanted
    ]
    return Run(staged.reference, max(versions)) if versions else None


def _is_newest(account: Account, run: Run) -> bool:
    """Whether no later version is complete: what is attached of a kernel is its newest output."""
    return account.ledger.last("run", kernel=run.reference, status="COMPLETE").get("version") == run.version


def _covers(account: Account, run: Run) -> str:
    """The digest of the training that a version began or went on with."""
    line = account.ledger.last("push", kernel=run.reference, version=run.version)
    return str(line.get("covers") or line.get("digest"))


def _decisive(settings: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name not in _FREE}


def _folds_left(verdict: Mapping[str, Any]) -> list[int]:
    """The folds that a complete version of train did not finish."""
    counts = verdict.get("counts") or {}
    return sorted({*counts.get("stopped_by_clock", []), *counts.get("skipped", [])})


def _shown(folds: list[int]) -> str:
    return ", ".join(map(str, folds))
