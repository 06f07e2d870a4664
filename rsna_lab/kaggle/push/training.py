"""The kernel train: pushed, gone on with where the clock stopped it, and its bundles brought to where infer reads them.

A training that the clock stopped is no failure: its version is complete, and says in its verdict which folds are not
done. The next push attaches its output to a further version, which goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rsna_lab.kaggle.push import kernels, models, outputs, staging, uploads
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.advice import KaggleError
from rsna_lab.kaggle.push.building import build
from rsna_lab.kaggle.push.journey import WEIGHTS, Journey, latest_run
from rsna_lab.kaggle.push.names import kernel_folder
from rsna_lab.kaggle.push.staging import Run, Staged

_FREE = {"FOLDS", "TIME_LIMIT", "REQUIRE_GPU"}  # settings that may differ between a training and what goes on with it


def train(account: Account, journey: Journey, wait: bool = True) -> Run:
    """Push the training, or what goes on with it, and follow it to its end.

    Raises:
        KaggleError: it failed, or the clock stopped it.
    """
    staged = stage(account, journey)
    covers = staged.digest(staging.inputs_of(account, staged))
    earlier = None if account.again else _earlier(account, staged)
    left = folds_left(account, earlier) if earlier else []
    if earlier and left and journey.partial:
        check_finished(account, earlier, journey.partial)
        return earlier
    if earlier and left and _is_newest(account, earlier):
        account.events.say(
            f"{earlier.reference}: going on from version {earlier.version}, folds {_shown(left)} are left"
        )
        run = kernels.push(account, going_on(account, journey), covers)
    elif earlier and not left and _covers(account, earlier) == covers and kernels.stands(account, staged, earlier):
        run = earlier
    else:
        # Of an unfinished training that something else was trained after, the output cannot be attached any more.
        lost = earlier is not None and bool(left) and _covers(account, earlier) == covers
        run = kernels.push(replace(account, again=account.again or lost), staged, covers)
    if wait:
        kernels.follow(account, run)
        check_finished(account, run, journey.partial)
    return run


def stage(account: Account, journey: Journey) -> Staged:
    """The kernel as it begins a training."""
    return staging.stage(account, kernel_folder(account.project, "train"), journey.for_kernel("train"))


def going_on(account: Account, journey: Journey) -> Staged:
    """The kernel with the output of its own newest version attached."""
    changes = journey.for_kernel("train")
    reference = stage(account, journey).reference
    attached = {**changes.attached, "kernel_sources": [*changes.attached.get("kernel_sources", []), reference]}
    return staging.stage(account, kernel_folder(account.project, "train"), replace(changes, attached=attached))


def planned(account: Account, journey: Journey) -> Staged:
    """What would be pushed now, as far as it can be known without asking Kaggle."""
    staged = stage(account, journey)
    earlier = None if account.again else _earlier(account, staged)
    unfinished = earlier and _left_in(outputs.read_verdict(outputs.output_folder(account, earlier)))
    return going_on(account, journey) if earlier and unfinished and _is_newest(account, earlier) else staged


def folds_left(account: Account, run: Run) -> list[int]:
    """The folds that a complete version of train did not finish."""
    return _left_in(outputs.fetch_verdict(account, run))


def check_finished(account: Account, run: Run, partial: bool) -> None:
    """Stop where the clock stopped the training, unless the folds that are there are enough.

    Raises:
        KaggleError: folds are not done, and how to go on.
    """
    if not (left := folds_left(account, run)):
        return
    stopped = f"{run.reference}: version {run.version} was stopped by the clock: folds {_shown(left)} are not done."
    if partial:
        account.events.say(f"{stopped} Going on without them, as --partial says")
        return
    raise KaggleError(
        stopped,
        "",
        "Run the same command again, without --again and --skip train: it pushes train again with the output of "
        f"version {run.version} attached, and that goes on. With the folds that are there: scripts/push --partial",
    )


def bring_weights(account: Account, journey: Journey) -> dict[str, list[str]]:
    """Take the bundles of the newest training to where infer reads them; returns the sources infer gets instead.

    Raises:
        KaggleError: the training is not finished, or its bundles do not come whole.
    """
    run = latest_run(account, "train")
    if "train" in journey.skip:
        check_finished(account, run, journey.partial)
    if journey.weights == "output":
        return sources(account, journey.weights)
    outputs.fetch(account, run)
    built = build(account, WEIGHTS, "--from", outputs.output_folder(account, run))
    if journey.weights == "model":
        return sources(account, journey.weights, models.publish(account, built))
    uploads.upload(account, built)
    return {}


def sources(account: Account, weights: str, model: str = "") -> dict[str, list[str]]:
    """The sources that infer gets in the place of its own.

    Args:
        account: whose they are.
        weights: "dataset", "model" or "output".
        model: version of the model; "" for the newest that is published.
    """
    if weights == "dataset":
        return {}
    own = staging.sources_of(account, kernel_folder(account.project, "infer"), ("dataset_sources",))
    others = [source for source in own if source.split("/")[1] != WEIGHTS]
    if weights == "model":
        return {"dataset_sources": others, "model_sources": [model or models.newest(account)]}
    return {"dataset_sources": others, "kernel_sources": [latest_run(account, "train").reference]}


def _earlier(account: Account, staged: Staged) -> Run | None:
    """The newest complete version that was trained with the same settings."""
    lines = account.ledger.lines()
    mine = [line for line in lines if line.get("kernel") == staged.reference]
    complete = {line["version"] for line in mine if line["kind"] == "run" and line["status"] == "COMPLETE"}
    wanted = _decisive(staged.settings)
    same = [int(line["version"]) for line in mine if line["kind"] == "push" and line["version"] in complete
            and _decisive(line.get("settings", staged.settings)) == wanted]  # fmt: skip
    return Run(staged.reference, max(same)) if same else None


def _is_newest(account: Account, run: Run) -> bool:
    """Whether no later version is complete: what is attached of a kernel is its newest output."""
    last = account.ledger.last("run", kernel=run.reference, status="COMPLETE") or {}
    return last.get("version") == run.version


def _covers(account: Account, run: Run) -> str:
    """The digest of the training that a version began or went on with."""
    line = account.ledger.last("push", kernel=run.reference, version=run.version) or {}
    return str(line.get("covers") or line.get("digest"))


def _decisive(settings: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name not in _FREE}


def _left_in(verdict: Mapping[str, Any]) -> list[int]:
    counts = verdict.get("counts") or {}
    return sorted({*counts.get("stopped_by_clock", []), *counts.get("skipped", [])})


def _shown(folds: list[int]) -> str:
    return ", ".join(map(str, folds))
