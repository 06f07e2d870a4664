"""A kernel's folder → the copy of it that goes out: the account's name in it, checked, and what it would read.

The repository's files stay as they are. What a run depends on beside its script are the versions of its sources, so
they are part of what tells one run from another.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.files import write_json
from rsna_lab.kaggle.credentials import CredentialError
from rsna_lab.kaggle.metadata import (
    KERNEL_FILE,
    RETIRED,
    SOURCE_KEYS,
    MetadataError,
    filled,
    is_true,
    kernel_problems,
    read_metadata,
)
from rsna_lab.kaggle.options import fill_settings, read_settings
from rsna_lab.kaggle.push import uploads
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.advice import KaggleError
from rsna_lab.kaggle.push.values import check_settings


@dataclass(frozen=True)
class Changes:
    """What differs from the repository's files in the copy that is pushed."""

    accelerator: str | None = None
    image: str | None = None
    timeout_s: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, list[str]] = field(default_factory=dict)  # key of the metadata → sources instead
    attached: Mapping[str, list[str]] = field(default_factory=dict)  # key of the metadata → sources besides


@dataclass(frozen=True)
class Staged:
    """A copy of a kernel with the account's name in it."""

    folder: Path
    metadata: dict[str, Any]
    text: str
    timeout_s: int | None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """owner/slug."""
        return str(self.metadata["id"])

    def words(self) -> list[str]:
        """What is said to the program."""
        timeout = ["-t", str(self.timeout_s)] if self.timeout_s else []
        return ["kernels", "push", "-p", str(self.folder), *timeout]

    def digest(self, inputs: Mapping[str, Any]) -> str:
        """Of everything that decides what the run does."""
        parts = [self.text, self.metadata, self.timeout_s, dict(inputs)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """A version of a kernel on Kaggle; version 0 stands for the newest."""

    reference: str
    version: int

    def label(self, account: Account) -> str:
        """How the program is asked about it: only newer ones can be asked about a version."""
        return f"{self.reference}/{self.version}" if account.program.precise and self.version else self.reference


def stage(account: Account, folder: Path, changes: Changes) -> Staged:
    """Check a kernel and make the copy that goes out.

    Raises:
        MetadataError: Kaggle would refuse or misread it.
        UsageError: a setting that its run would refuse.
        CredentialError: it holds a secret.
    """
    if problems := kernel_problems(folder, account.public):
        raise MetadataError([f"{folder}: {problem}" for problem in problems])
    metadata = filled(read_metadata(folder / KERNEL_FILE), account.owner)
    script = folder / metadata["code_file"]
    if changes.accelerator and is_true(metadata["enable_gpu"]):
        if instead := RETIRED.get(changes.accelerator.lower()):
            raise UsageError(
                f"--accelerator {changes.accelerator} is retired: Kaggle would take {instead} without a word"
            )
        metadata["machine_shape"] = changes.accelerator
    if changes.image:
        metadata |= {"docker_image": changes.image, "docker_image_pinning_type": "original"}
    if account.public:
        metadata["is_private"] = False
    metadata |= {key: filled(list(sources), account.owner) for key, sources in changes.sources.items()}
    for key, sources in filled(dict(changes.attached), account.owner).items():
        metadata[key] = list(dict.fromkeys([*metadata.get(key, []), *sources]))
    text = script.read_text(encoding="utf-8")
    if changes.settings:
        text = fill_settings(text, changes.settings)
    settings = read_settings(text) if script.suffix == ".py" else {}
    every = [source for key in SOURCE_KEYS for source in metadata.get(key, [])]
    check_settings(folder.name, settings, every, changes.timeout_s)
    out = account.staging / "kernels" / folder.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / script.name).write_text(text, encoding="utf-8")
    write_json(out / KERNEL_FILE, metadata)
    if account.scrub.found_in(out.iterdir()):
        shutil.rmtree(out)
        raise CredentialError(
            f"not pushed: {script}, its metadata or its settings hold a credential.\n"
            "  What to do: take it out, and make a new one."
        )
    if problems := kernel_problems(out, account.public):  # of what was changed
        raise MetadataError([f"{folder}: {problem}" for problem in problems])
    return Staged(out, metadata, text, changes.timeout_s, settings)


def sources_of(account: Account, folder: Path, keys: Sequence[str] = SOURCE_KEYS) -> list[str]:
    """What a kernel reads as the repository has it, with the account's name."""
    metadata = filled(read_metadata(folder / KERNEL_FILE), account.owner)
    return [source for key in keys for source in metadata.get(key, [])]


def inputs_of(account: Account, staged: Staged) -> dict[str, Any]:
    """The version of each source that a push now would attach.

    Raises:
        KaggleError: an own dataset that is not there, or not ready.
    """
    found: dict[str, Any] = {}
    for source in staged.metadata.get("dataset_sources", []):
        name = "/".join(source.split("/")[:2])
        now = uploads.status(account, name)
        if now is None and not name.startswith(f"{account.owner}/"):
            continue  # of somebody else, who need not show its status; what is attached is looked at after the push
        if now is None:
            advice = f"Upload it first: scripts/push upload {name.split('/')[1]}"
            raise KaggleError(f"{staged.reference} reads the dataset {name}, which Kaggle does not have.", "", advice)
        if now[0] != "ready":
            now = uploads.wait_ready(account, name, at_least=0)
        found[source] = now[1]
    for source in staged.metadata.get("kernel_sources", []):
        run = account.ledger.last("run", kernel="/".join(source.split("/")[:2]), status="COMPLETE") or {}
        found[source] = run.get("version")
    return found
