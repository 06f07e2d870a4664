"""The whole road: validate → build → upload → prepare → train → weights → infer → submit → score.

It reads top to bottom, and every step can be run again: what is done already for the same files, scripts and inputs is
looked up in the ledger, checked on Kaggle, and not done twice.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from road import kernels, models, outputs, staging, submissions, uploads
from road.account import Account
from road.metadata import (
    DATASET_FILE,
    KERNEL_FILE,
    MetadataError,
    dataset_problems,
    filled,
    is_true,
    kernel_problems,
    read_metadata,
)
from road.staging import Changes, Run
from rsna_kit.runtime.errors import RsnaKitError, UsageError

STEPS = ("build", "upload", "prepare", "train", "weights", "infer", "submit")
KERNELS = ("prepare", "train", "infer")
WEIGHTS = "rsna-weights"
_SMALL = r"\.(?:json|jsonl|csv|txt|md)$"  # of a prepared competition only this is fetched: its shards stay at Kaggle


@dataclass(frozen=True)
class Journey:
    """How the road is to be taken.

    Args:
        skip: steps that are left out.
        changes: what is changed in every kernel.
        settings: name of a kernel → its settings.
        weights: how infer gets its bundles: "dataset", "model" (a version of a Kaggle Model) or "output" (of train).
        file_name: the output that is submitted.
    """

    skip: frozenset[str] = frozenset()
    changes: Changes = field(default_factory=Changes)
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    weights: str = "dataset"
    file_name: str = "submission.csv"

    def for_kernel(self, name: str, sources: Mapping[str, list[str]] | None = None) -> Changes:
        """What is changed in one kernel."""
        return replace(self.changes, settings=self.settings.get(name, {}), sources=sources or {})


def travel(account: Account, journey: Journey) -> dict[str, Any]:
    """Go the whole road; returns what came of each step.

    Raises:
        KaggleError: at the first thing that is not as it should be.
    """
    done: dict[str, Any] = {"owner": account.owner}
    check_folders(folders_of(account.project), account.public)
    check_offline(account.project, journey)
    if not journey.skip >= {"build", "upload"}:
        done["datasets"] = {
            name: bring(account, name, journey.skip) for name in own_datasets(account) if name != WEIGHTS
        }
    if "prepare" not in journey.skip:
        run = run_kernel(account, "prepare", journey.for_kernel("prepare"))
        outputs.fetch(account, run, only=_SMALL)
        done["prepare"] = run.version
    if "train" not in journey.skip:
        done["train"] = run_kernel(account, "train", journey.for_kernel("train")).version
    sources = bring_weights(account, journey) if "weights" not in journey.skip else {}
    if "infer" not in journey.skip:
        run = run_kernel(account, "infer", journey.for_kernel("infer", sources))
        outputs.fetch(account, run)
        done["infer"] = run.version
    if "submit" not in journey.skip:
        done |= submit_and_wait(account, latest_run(account, "infer"), journey.file_name)
    return done


def folders_of(project: Path) -> list[Path]:
    """Every kernel and every dataset of a project; of built datasets the folder with all their files.

    Raises:
        UsageError: there are none.
    """
    patterns = (f"kernels/*/{KERNEL_FILE}", f"datasets/*/{DATASET_FILE}", f"build/datasets/*/{DATASET_FILE}")
    found = [path.parent for pattern in patterns for path in sorted(project.glob(pattern))]
    if not found:
        raise UsageError(f"{project} has neither kernels/ nor datasets/")
    return found


def check_folders(folders: Iterable[Path], public: bool = False) -> None:
    """Check kernels and datasets without asking Kaggle.

    Raises:
        MetadataError: with every problem of every folder.
    """
    wrong = []
    for folder in folders:
        is_kernel = (folder / KERNEL_FILE).is_file()
        problems = kernel_problems(folder, public) if is_kernel else dataset_problems(folder)
        wrong += [f"{folder}: {problem}" for problem in problems]
    if wrong:
        raise MetadataError(wrong)


def check_offline(project: Path, journey: Journey) -> None:
    """A kernel with the internet on is never scored: better known before training than after.

    Raises:
        MetadataError: infer asks for the internet, and is to be submitted.
    """
    path = project / "kernels" / "infer" / KERNEL_FILE
    if "submit" not in journey.skip and is_true(read_metadata(path).get("enable_internet"), default=True):
        raise MetadataError(
            [f"{path}: enable_internet is not false, and Kaggle scores no kernel that has the internet"]
        )


def own_datasets(account: Account) -> list[str]:
    """Names of this account's datasets that the kernels read, in a fixed order."""
    found = set()
    for path in account.project.glob(f"kernels/*/{KERNEL_FILE}"):
        for source in filled(read_metadata(path), account.owner).get("dataset_sources", []):
            owner, name, *_ = source.split("/")
            found |= {name} if owner == account.owner else set()
    return sorted(found)


def bring(account: Account, name: str, skip: frozenset[str] = frozenset()) -> int | None:
    """Build a dataset and upload it; returns its version, None when it stays here."""
    folder = account.project / "build" / "datasets" / name
    # Wheels and ImageNet weights are fetched from the network and change by hand only; the library with every commit.
    if "build" not in skip and (name == "rsna-kit" or not folder.is_dir()):
        build(account, name)
    return None if "upload" in skip else uploads.upload(account, folder)


def build(account: Account, name: str, *arguments: str | Path) -> Path:
    """Fill build/datasets/<name> with the project's own scripts/build.

    Raises:
        RsnaKitError: it failed; its message is on standard error.
    """
    folder = account.project / "build" / "datasets" / name
    command = [sys.executable, account.project / "scripts" / "build", name, "--out", folder, *arguments]
    words = [str(word) for word in command]
    account.events.say(f"building {name}")
    if subprocess.run(words, cwd=account.project, stdout=sys.stderr.fileno()).returncode != 0:
        raise RsnaKitError(f"{name} could not be built. What to do: run {shlex.join(words[1:])} and mend what it says")
    return folder


def run_kernel(account: Account, name: str, changes: Changes) -> Run:
    """Push a kernel, verify it, follow its run to the end."""
    staged = staging.stage(account, account.project / "kernels" / name, changes)
    run = kernels.push(account, staged)
    kernels.follow(account, run)
    return run


def bring_weights(account: Account, journey: Journey) -> dict[str, list[str]]:
    """Take the bundles of the newest training to where infer reads them; returns the sources infer gets instead."""
    metadata = filled(read_metadata(account.project / "kernels" / "infer" / KERNEL_FILE), account.owner)
    run = latest_run(account, "train")
    others = [source for source in metadata.get("dataset_sources", []) if source.split("/")[1] != WEIGHTS]
    if journey.weights == "output":
        return {"dataset_sources": others, "kernel_sources": [run.reference]}
    folder = outputs.output_folder(account, run)
    outputs.fetch(account, run)
    if reason := outputs.read_verdict(folder).get("reason"):
        account.events.say(f"{run.reference}: {reason}")
    built = build(account, WEIGHTS, "--from", folder)
    if journey.weights == "model":
        source = models.publish(account, built)
        return {"dataset_sources": others, "model_sources": [source]}
    uploads.upload(account, built)
    return {}


def submit_and_wait(account: Account, run: Run, file_name: str) -> dict[str, Any]:
    """Submit a version and wait for its score."""
    number = submissions.submit(account, run, file_name)
    verdict = submissions.wait_for_score(account, run, number)
    return {"submission": number, "public": verdict.public, "private": verdict.private}


def latest_run(account: Account, kernel: str, version: int | None = None) -> Run:
    """The version of a kernel that was pushed last from here, or the one that is named.

    Args:
        account: who asks.
        kernel: a folder in kernels/, or owner/slug.
        version: None for the last one.
    """
    reference = kernel
    if "/" not in kernel:
        reference = filled(read_metadata(account.project / "kernels" / kernel / KERNEL_FILE), account.owner)["id"]
    pushes = [line for line in account.ledger.lines() if line["kind"] == "push" and line["kernel"] == reference]
    newest = max((int(line["version"]) for line in pushes), default=0)
    if version and not account.program.precise and newest and version != newest:
        raise UsageError(
            f"{reference}: kaggle {'.'.join(map(str, account.program.version))} answers for the newest version alone "
            f"({newest}), whatever is asked. Use kaggle 2.2.5 to look at version {version}"
        )
    if not re.fullmatch(r"[\w-]+/[\w-]+", reference):
        raise UsageError(f"kernel: got {kernel!r}, expected a folder in kernels/, or owner/slug")
    return Run(reference, version or newest)
