"""A kernel's folder → the copy of it that goes out: the account's name in it, checked, and what it would read.

The repository's files stay as they are. What a run depends on beside its script are the versions of its sources, so
they are part of what tells one run from another.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsna_kit.runtime.files import write_json
from rsna_lab.kaggle.credentials import CredentialError
from rsna_lab.kaggle.metadata import KERNEL_FILE, SOURCE_KEYS, check_folders, filled, is_true
from rsna_lab.kaggle.options import fill_settings, read_settings
from rsna_lab.kaggle.push import uploads
from rsna_lab.kaggle.push.account import Account, same
from rsna_lab.kaggle.push.choices import Choices, check_settings
from rsna_lab.kaggle.push.errors import KaggleError
from rsna_lab.kaggle.push.project import Run, kernel_folder, look, read_kernel_metadata

# Keys of the metadata as Kaggle's interface calls them.
FIELDS = {
    "is_private": "isPrivate",
    "enable_gpu": "enableGpu",
    "enable_tpu": "enableTpu",
    "enable_internet": "enableInternet",
    "dataset_sources": "datasetDataSources",
    "competition_sources": "competitionDataSources",
    "kernel_sources": "kernelDataSources",
    "model_sources": "modelDataSources",
    "language": "language",
    "kernel_type": "kernelType",
    "machine_shape": "machineShape",
    "docker_image": "dockerImage",
    "docker_image_pinning_type": "dockerImagePinningType",
}


@dataclass(frozen=True)
class Staged:
    """A copy of a kernel with the account's name in it."""

    folder: Path
    metadata: dict[str, Any]
    text: str
    timeout_s: int | None
    settings: Mapping[str, str]

    @property
    def reference(self) -> str:
        """owner/slug."""
        return str(self.metadata["id"])

    def digest(self, inputs: Mapping[str, Any]) -> str:
        """Of everything that decides what the run does; names are the same in any case."""
        around = json.dumps([self.metadata, self.timeout_s, dict(inputs)], sort_keys=True).casefold()
        return hashlib.sha256(f"{self.text}\0{around}".encode()).hexdigest()

    def body(self, mark: str) -> dict[str, Any]:
        """What Kaggle is told."""
        data = self.metadata
        booleans = {key: is_true(data[key]) for key in ("is_private", "enable_gpu", "enable_tpu", "enable_internet")}
        body = {FIELDS[key]: value for key, value in {**data, **booleans}.items() if key in FIELDS}
        text = f"{self.text.rstrip()}\n{mark}\n"
        timeout = {"sessionTimeoutSeconds": self.timeout_s} if self.timeout_s else {}
        return {"slug": data["id"], "newTitle": data["title"], "text": text, **body, **timeout}


def stage(account: Account, choices: Choices, name: str, sources: Mapping[str, list[str]] | None = None) -> Staged:
    """Check a kernel of the project and make the copy that goes out.

    Args:
        account: whose name it gets.
        choices: what the command line says of it.
        name: its folder in kernels/.
        sources: key of the metadata → sources in the place of its own.

    Raises:
        MetadataError: Kaggle would refuse or misread it.
        UsageError: a setting that its run would refuse.
        CredentialError: it holds a secret.
    """
    folder = kernel_folder(account.project, name)
    check_folders([folder], account.public)
    metadata = read_kernel_metadata(account, name)
    script = folder / metadata["code_file"]
    if choices.accelerator and is_true(metadata["enable_gpu"]):
        metadata["machine_shape"] = choices.accelerator
    if choices.image:
        metadata |= {"docker_image": choices.image, "docker_image_pinning_type": "original"}
    if account.public:
        metadata["is_private"] = False
    metadata |= filled(dict(sources or {}), account.owner)
    more = filled(list(choices.attached.get(name, [])), account.owner)
    metadata["dataset_sources"] = list(dict.fromkeys([*metadata.get("dataset_sources", []), *more]))
    text = fill_settings(script.read_text(encoding="utf-8"), choices.settings.get(name, {}))
    settings = read_settings(text)
    every = [source for key in SOURCE_KEYS for source in metadata.get(key, [])]
    check_settings(name, settings, every, choices.timeout_s)
    out = account.staging / "kernels" / name
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
    check_folders([out], account.public)  # of what was changed
    return Staged(out, metadata, text, choices.timeout_s, settings)


def inputs_of(account: Account, staged: Staged) -> dict[str, Any]:
    """The version of each source that a push now would attach.

    Raises:
        KaggleError: an own dataset that is not there, or not ready.
    """
    inputs: dict[str, Any] = {}
    for source in staged.metadata.get("dataset_sources", []):
        name = "/".join(source.split("/")[:2])
        now, own = uploads.find(account, name, private=False), same(name.split("/")[0], account.owner)
        if now is None and own:
            raise KaggleError(
                f"{staged.reference} reads the dataset {name}, which Kaggle does not have.",
                advice=f"Upload it first: scripts/push upload {name.split('/')[1]}",
            )
        if now is None:
            continue  # of somebody else, who need not show its status; what is attached is looked at after the push
        sent = int(account.ledger.last("upload", dataset=name).get("version") or 0)
        if now.status != "READY" or now.version < sent:  # Kaggle may show the version before for a while
            now = uploads.wait_ready(account, name, at_least=sent)
        inputs[source] = now.version
    for source in staged.metadata.get("kernel_sources", []):
        name = "/".join(source.split("/")[:2])
        version = account.ledger.last("run", kernel=name, status="COMPLETE").get("version")
        if version is None:  # not from here, or the ledger was lost
            there = look(account, Run(name, 0))
            version = there.version if there else None
        inputs[source] = version
    return inputs
