"""The whole road: validate → build → upload → prepare → train → weights → infer → submit → score.

It reads top to bottom, and every step can be run again: what is done already for the same files, scripts and inputs is
looked up in the ledger, checked on Kaggle, and not done twice.
"""

from __future__ import annotations

from typing import Any

from rsna_lab.kaggle.push import ahead, kernels, outputs, staging, submissions, training
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.building import bring
from rsna_lab.kaggle.push.journey import WEIGHTS, Journey, latest_run, own_datasets
from rsna_lab.kaggle.push.names import kernel_folder
from rsna_lab.kaggle.push.staging import Changes, Run

_SMALL = r"\.(?:json|jsonl|csv|txt|md)$"  # of a prepared competition only this is fetched: its shards stay at Kaggle


def travel(account: Account, journey: Journey) -> dict[str, Any]:
    """Go the whole road; returns what came of each step.

    Raises:
        KaggleError: at the first thing that is not as it should be.
    """
    done: dict[str, Any] = {"owner": account.owner}
    ahead.check_here(account, journey)
    ahead.check_there(account, journey)
    if not journey.skip >= {"build", "upload"}:
        done["datasets"] = {
            name: bring(account, name, journey.skip) for name in own_datasets(account) if name != WEIGHTS
        }
    if "prepare" not in journey.skip:
        run = run_kernel(account, "prepare", journey.for_kernel("prepare"))
        outputs.fetch(account, run, only=_SMALL, needed=False)
        done["prepare"] = run.version
    if "train" not in journey.skip:
        done["train"] = training.train(account, journey).version
    if "weights" not in journey.skip:
        sources = training.bring_weights(account, journey)
    elif "infer" not in journey.skip:
        sources = training.sources(account, journey.weights)
    if "infer" not in journey.skip:
        run = run_kernel(account, "infer", journey.for_kernel("infer", sources))
        outputs.fetch(account, run)
        done["infer"] = run.version
    if "submit" not in journey.skip:
        done |= submit_and_wait(account, latest_run(account, "infer"), journey.file_name)
    return done


def push_one(account: Account, journey: Journey, kernel: str, wait: bool = True) -> Run:
    """Push one kernel with what is to be attached, verify it, and follow its run unless told not to."""
    folder = kernel_folder(account.project, kernel)
    staged = staging.stage(account, folder, journey.for_kernel(kernel))
    ahead.check_attached(account, journey, kernel)
    if kernel == "train":
        return training.train(account, journey, wait)
    run = kernels.push(account, staged)
    if wait:
        kernels.follow(account, run)
    return run


def run_kernel(account: Account, name: str, changes: Changes) -> Run:
    """Push a kernel, verify it, follow its run to the end."""
    run = kernels.push(account, staging.stage(account, kernel_folder(account.project, name), changes))
    kernels.follow(account, run)
    return run


def submit_and_wait(account: Account, run: Run, file_name: str) -> dict[str, Any]:
    """Submit a version and wait for its score."""
    number = submissions.submit(account, run, file_name)
    verdict = submissions.wait_for_score(account, run, number)
    return {"submission": number, "public": verdict.public, "private": verdict.private}
