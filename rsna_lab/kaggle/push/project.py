"""The project's kernels and datasets by name, the versions that were pushed, and how a dataset is built."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import RsnaKitError, UsageError, did_you_mean
from rsna_lab.kaggle.build.datasets import FROM
from rsna_lab.kaggle.metadata import DATASET_FILE, KERNEL_FILE, filled, read_metadata
from rsna_lab.kaggle.push.account import Account, same

LIBRARY, WEIGHTS = "rsna-kit", "rsna-weights"


@dataclass(frozen=True)
class Run:
    """A version of a kernel on Kaggle; version 0 stands for the newest."""

    reference: str
    version: int

    @property
    def match(self) -> dict[str, Any]:
        """How the ledger's lines about it are found."""
        return {"kernel": self.reference, "version": self.version}

    @property
    def body(self) -> dict[str, str]:
        """How Kaggle is asked about it."""
        owner, slug = self.reference.split("/")
        label = {"versionLabel": f"v{self.version}"} if self.version else {}
        return {"userName": owner, "kernelSlug": slug, **label}


@dataclass(frozen=True)
class There:
    """A kernel's version as Kaggle has it."""

    version: int
    metadata: dict[str, Any]
    text: str


def look(account: Account, run: Run) -> There | None:
    """What Kaggle has of a version; None when there is no such kernel, or none for this account."""
    answer = account.kaggle.find("kernels/get_kernel", **run.body)
    if answer is None:
        return None
    metadata = answer.get("metadata") or {}
    version = run.version or int(metadata.get("currentVersionNumber") or 0)
    return There(version, metadata, str((answer.get("blob") or {}).get("source") or ""))


def kernel_folder(project: Path, name: str) -> Path:
    """The folder of a kernel of this project.

    Raises:
        UsageError: there is none of this name.
    """
    folder = project / "kernels" / name
    if "/" in name or not folder.is_dir():
        raise _no_such("kernel", name, (path.parent.name for path in project.glob(f"kernels/*/{KERNEL_FILE}")))
    return folder


def read_kernel_metadata(account: Account, name: str) -> dict[str, Any]:
    """The metadata of a kernel of this project, with the account's name in it."""
    return dict(filled(read_metadata(kernel_folder(account.project, name) / KERNEL_FILE), account.owner))


def built_folder(project: Path, name: str) -> Path:
    """Where a dataset of this project lies once it is built.

    Raises:
        UsageError: there is none of this name, built or to be built.
    """
    patterns = (f"datasets/*/{DATASET_FILE}", f"build/datasets/*/{DATASET_FILE}")
    known = {path.parent.name for pattern in patterns for path in project.glob(pattern)}
    folder = project / "build" / "datasets" / name
    if name not in known and ("/" in name or not folder.is_dir()):
        raise _no_such("dataset", name, known)
    return folder


def _no_such(kind: str, name: str, known: Iterable[str]) -> UsageError:
    there = sorted(known)
    names = ", ".join(there) or "none"
    return UsageError(f"no such {kind}: {name!r}; there are {names}.{did_you_mean(name, there)}")


def all_folders(project: Path) -> list[Path]:
    """Every kernel and every dataset of a project; of built datasets the folder with all their files.

    Raises:
        UsageError: there are none.
    """
    patterns = (f"kernels/*/{KERNEL_FILE}", f"datasets/*/{DATASET_FILE}", f"build/datasets/*/{DATASET_FILE}")
    found = [path.parent for pattern in patterns for path in sorted(project.glob(pattern))]
    if not found:
        raise UsageError(f"{project} has neither kernels/ nor datasets/")
    return found


def own_datasets(account: Account) -> list[str]:
    """Names of this account's datasets that the kernels read, in a fixed order."""
    found = set()
    for path in account.project.glob(f"kernels/*/{KERNEL_FILE}"):
        for source in filled(read_metadata(path), account.owner).get("dataset_sources", []):
            owner, name, *_ = source.split("/")
            found |= {name} if same(owner, account.owner) else set()
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
        reference = str(read_kernel_metadata(account, kernel)["id"])
    if not re.fullmatch(r"[\w-]+/[\w-]+", reference):
        raise UsageError(f"kernel: got {kernel!r}, expected a folder in kernels/, or owner/slug")
    return reference


def is_own(account: Account, run: Run) -> bool:
    """Whether a run is of a kernel of this project, which leaves a verdict whatever happens."""
    paths = account.project.glob(f"kernels/*/{KERNEL_FILE}")
    return any(same(str(filled(read_metadata(path), account.owner).get("id")), run.reference) for path in paths)


def latest_run(account: Account, kernel: str, version: int | None = None) -> Run:
    """The version of a kernel that was pushed last from here, or the one that is named.

    Args:
        account: who asks.
        kernel: a folder in kernels/, or owner/slug.
        version: None for the last one.
    """
    reference = reference_of(account, kernel)
    pushes = account.ledger.lines("push", kernel=reference)
    return Run(reference, version or max((int(line["version"]) for line in pushes), default=0))


def build_command(name: str) -> str:
    """What a person types to build a dataset."""
    return f"scripts/build {name}" + (f" --from {FROM[name]}" if name in FROM else "")


def build(account: Account, name: str, *arguments: str | Path) -> Path:
    """Fill build/datasets/<name> with the project's own scripts/build.

    Raises:
        RsnaKitError: it needs to be told where from, or failed; its own message is on standard error.
    """
    if name in FROM and not arguments:
        raise RsnaKitError(f"{name} is not built. What to do: {build_command(name)}, then run this again")
    folder = account.project / "build" / "datasets" / name
    command = [sys.executable, account.project / "scripts" / "build", name, "--out", folder, *arguments]
    words = [str(word) for word in command]
    account.events.say(f"building {name}")
    if subprocess.run(words, cwd=account.project, stdout=sys.stderr.fileno()).returncode != 0:
        raise RsnaKitError(f"{name} could not be built. What to do: run {shlex.join(words[1:])} and mend what it says")
    return folder
