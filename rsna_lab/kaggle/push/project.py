"""The project's kernels and datasets by name, what Kaggle has of a kernel's version, and how a dataset is built."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import RsnaKitError, UsageError, did_you_mean
from rsna_lab.kaggle.build import KINDS
from rsna_lab.kaggle.metadata import DATASET_FILE, KERNEL_FILE, filled, read_metadata
from rsna_lab.kaggle.push.account import Account, same

LIBRARY, WEIGHTS, PREPARE = "rsna-kit", "rsna-weights", "prepare"


@dataclass(frozen=True)
class Run:
    """A version of a kernel on Kaggle, 0 for one that there is not; with its metadata and text where it was looked at.

    `body` is how Kaggle is asked about it; version 0 then stands for the newest.
    """

    reference: str
    version: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)
    text: str = field(default="", compare=False)

    @property
    def body(self) -> dict[str, str]:
        """How Kaggle is asked about it."""
        owner, slug = self.reference.split("/")
        label = {"versionLabel": f"v{self.version}"} if self.version else {}
        return {"userName": owner, "kernelSlug": slug, **label}

    @property
    def page(self) -> str:
        """Where a person sees it."""
        return f"https://www.kaggle.com/code/{self.reference}"


def look(account: Account, reference: str, version: int = 0) -> Run:
    """What Kaggle has of a version, or of the newest; with version 0 when there is none, or none for this account."""
    answer = account.kaggle.find("kernels/get_kernel", **Run(reference, version).body) or {}
    data = answer.get("metadata") or {}
    found = (version or int(data.get("currentVersionNumber") or 0)) if answer else 0
    return Run(reference, found, data, str((answer.get("blob") or {}).get("source") or ""))


def state_of(account: Account, run: Run) -> dict[str, Any]:
    """`status` of a run, "" when it is not there; and `failureMessage`."""
    return {"status": "", **(account.kaggle.find("kernels/get_kernel_session_status", **run.body) or {})}


def newest_complete(account: Account, reference: str) -> Run:
    """The newest version of a kernel that ran to its end, whose output is what others read; version 0 for none."""
    newest = look(account, reference)
    for version in range(newest.version, 0, -1):
        if state_of(account, Run(reference, version))["status"] == "COMPLETE":
            return newest if version == newest.version else look(account, reference, version)
    return Run(reference)


def reference_of(account: Account, kernel: str) -> str:
    """owner/slug of a folder in kernels/, or of owner/slug itself.

    Raises:
        UsageError: no such kernel.
    """
    reference = kernel if "/" in kernel else str(read_kernel_metadata(account, kernel)["id"])
    if not re.fullmatch(r"[\w-]+/[\w-]+", reference):
        raise UsageError(f"kernel: got {kernel!r}, expected a folder in kernels/, or owner/slug")
    return reference


def find_run(account: Account, kernel: str, version: int | None = None) -> Run:
    """The version of a kernel (a folder in kernels/, or owner/slug) that is named, or else the newest on Kaggle.

    Raises:
        UsageError: no such kernel, here or on Kaggle.
    """
    reference = reference_of(account, kernel)
    run = Run(reference, version) if version else look(account, reference)
    if not run.version:
        raise UsageError(f"Kaggle has no {reference} of this account. Push it, or say which version: --version N")
    return run


def read_kernel_metadata(account: Account, name: str) -> dict[str, Any]:
    """The metadata of a kernel of this project, with the account's name in it."""
    return dict(filled(read_metadata(kernel_folder(account.project, name) / KERNEL_FILE), account.owner))


def own_kernels(account: Account) -> dict[str, dict[str, Any]]:
    """Name → metadata, with the account's name in it, of every kernel of this project."""
    paths = sorted(account.project.glob(f"kernels/*/{KERNEL_FILE}"))
    return {path.parent.name: filled(read_metadata(path), account.owner) for path in paths}


def own_datasets(account: Account) -> list[str]:
    """Names of this account's datasets that the kernels read, in a fixed order."""
    sources = [source for data in own_kernels(account).values() for source in data.get("dataset_sources", [])]
    return sorted({source.split("/")[1] for source in sources if same(source.split("/")[0], account.owner)})


def kernel_folder(project: Path, name: str) -> Path:
    """The folder of a kernel of this project.

    Raises:
        UsageError: there is none of this name.
    """
    _check_name("kernel", name, project.glob(f"kernels/*/{KERNEL_FILE}"))
    return project / "kernels" / name


def built_folder(project: Path, name: str) -> Path:
    """Where a dataset of this project lies once it is built.

    Raises:
        UsageError: there is none of this name, built or to be built.
    """
    patterns = (f"datasets/*/{DATASET_FILE}", f"build/datasets/*/{DATASET_FILE}")
    _check_name("dataset", name, (path for pattern in patterns for path in project.glob(pattern)))
    return project / "build" / "datasets" / name


def _check_name(kind: str, name: str, metadata: Iterable[Path]) -> None:
    known = sorted({path.parent.name for path in metadata})
    if name not in known:
        there = ", ".join(known) or "none"
        raise UsageError(f"no such {kind}: {name!r}; there are {there}.{did_you_mean(name, known)}")


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


def build_command(name: str) -> str:
    """What a person types to build a dataset."""
    source = KINDS[name].source if name in KINDS else ""
    return f"scripts/build {name}" + (f" --from {source}" if source else "")


def build(account: Account, name: str, *arguments: str | Path) -> Path:
    """Fill build/datasets/<name> with the project's own scripts/build.

    Raises:
        RsnaKitError: it needs to be told where from, or failed; its own message is on standard error.
    """
    if name in KINDS and KINDS[name].source and not arguments:
        raise RsnaKitError(f"{name} is not built. What to do: {build_command(name)}, then run this again")
    folder = account.project / "build" / "datasets" / name
    command = [sys.executable, account.project / "scripts" / "build", name, "--out", folder, *arguments]
    words = [str(word) for word in command]
    account.events.say(f"building {name}")
    if subprocess.run(words, cwd=account.project, stdout=sys.stderr.fileno()).returncode != 0:
        raise RsnaKitError(f"{name} could not be built. What to do: run {shlex.join(words[1:])} and mend what it says")
    return folder


def missing_sources(wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    """Those of `wanted` that are not among `there`, whatever prefix, case or version the server writes."""

    def core(source: str) -> str:
        prefixes = r"^(?:datasets|code|kernels|notebooks|c|competitions|models|m)/(?=.)"
        parts = re.sub(prefixes, "", source.strip("/").lower()).split("/")
        return "/".join(parts if len(parts) > 3 else parts[:2])

    found = set(map(core, there))
    return [source for source in wanted if core(source) not in found]
