"""How the road is to be taken, and what of the project lies on it: kernels, datasets, versions that were pushed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rsna_kit.runtime.errors import UsageError
from rsna_lab.kaggle.metadata import (
    DATASET_FILE,
    KERNEL_FILE,
    MetadataError,
    dataset_problems,
    filled,
    is_true,
    kernel_problems,
    read_metadata,
)
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.names import kernel_folder
from rsna_lab.kaggle.push.staging import Changes, Run

STEPS = ("build", "upload", "prepare", "train", "weights", "infer", "submit")
WEIGHTS = "rsna-weights"


@dataclass(frozen=True)
class Journey:
    """How the road is to be taken.

    Args:
        skip: steps that are left out.
        changes: what is changed in every kernel.
        settings: name of a kernel → its settings.
        attached: name of a kernel → key of its metadata → further sources.
        weights: how infer gets its bundles: "dataset", "model" (a version of a Kaggle Model) or "output" (of train).
        partial: whether to go on with the folds that are there when the clock stopped the training.
        file_name: the output that is submitted.
    """

    skip: frozenset[str] = frozenset()
    changes: Changes = field(default_factory=Changes)
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    attached: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    weights: str = "dataset"
    partial: bool = False
    file_name: str = "submission.csv"

    def for_kernel(self, name: str, sources: Mapping[str, list[str]] | None = None) -> Changes:
        """What is changed in one kernel."""
        return replace(
            self.changes, settings=self.settings.get(name, {}), sources=sources or {},
            attached=self.attached.get(name, {}),
        )  # fmt: skip


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
        UsageError: a folder that is not there.
    """
    wrong = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder. Expected one in kernels/, datasets/ or build/datasets/")
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


def reference_of(account: Account, kernel: str) -> str:
    """owner/slug of a kernel.

    Args:
        account: whose it is.
        kernel: a folder in kernels/, or owner/slug.

    Raises:
        UsageError: no such kernel.
    """
    reference = kernel
    if "/" not in kernel:
        folder = kernel_folder(account.project, kernel)
        reference = str(filled(read_metadata(folder / KERNEL_FILE), account.owner)["id"])
    if not re.fullmatch(r"[\w-]+/[\w-]+", reference):
        raise UsageError(f"kernel: got {kernel!r}, expected a folder in kernels/, or owner/slug")
    return reference


def latest_run(account: Account, kernel: str, version: int | None = None) -> Run:
    """The version of a kernel that was pushed last from here, or the one that is named.

    Args:
        account: who asks.
        kernel: a folder in kernels/, or owner/slug.
        version: None for the last one.
    """
    reference = reference_of(account, kernel)
    pushes = [line for line in account.ledger.lines() if line["kind"] == "push" and line["kernel"] == reference]
    newest = max((int(line["version"]) for line in pushes), default=0)
    if version and not account.program.precise and newest and version != newest:
        raise UsageError(
            f"{reference}: kaggle {'.'.join(map(str, account.program.version))} answers for the newest version alone "
            f"({newest}), whatever is asked. Use kaggle 2.2.5 to look at version {version}"
        )
    return Run(reference, version or newest)
