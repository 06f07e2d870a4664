"""A kernel's folder → a version of it on Kaggle that has everything attached, or the one that is there already.

What goes out is a copy: the account's name in its metadata, the settings in its script, and a last line that says what
it was made of: script, metadata and the versions of what it reads. By that line a run whose answer was lost is found
again instead of started twice. After a push, Kaggle is asked what it really made of it.
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
from rsna_lab.kaggle.metadata import KERNEL_FILE, SOURCE_KEYS, check_folders, filled, is_true
from rsna_lab.kaggle.options import fill_settings, read_settings
from rsna_lab.kaggle.push import uploads
from rsna_lab.kaggle.push.account import Account, same
from rsna_lab.kaggle.push.choices import Choices, check_settings
from rsna_lab.kaggle.push.errors import KaggleError, UnreachableError
from rsna_lab.kaggle.push.expected import parts
from rsna_lab.kaggle.push.project import (
    PREPARE,
    Run,
    kernel_folder,
    look,
    missing_sources,
    newest_complete,
    read_kernel_metadata,
    reference_of,
    state_of,
)
from rsna_lab.kaggle.push.waiting import look_again, once
from rsna_lab.kaggle.secrecy import CredentialError

GOING = ("QUEUED", "RUNNING", "NEW_SCRIPT", "CANCEL_REQUESTED")
_MARK = "# rsna_kit pushed this: "
# Keys of the metadata as Kaggle's interface calls them.
_FIELDS = {
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


class AcceleratorError(KaggleError):
    """The version runs on another accelerator than the one it asked for."""


@dataclass(frozen=True)
class Staged:
    """A copy of a kernel with the account's name in it."""

    folder: Path
    metadata: dict[str, Any]
    text: str
    timeout_s: int | None

    @property
    def reference(self) -> str:
        """owner/slug."""
        return str(self.metadata["id"])

    def digest(self, inputs: Mapping[str, Any]) -> str:
        """16 hex digits of everything that decides what the run does; names are the same in any case."""
        around = json.dumps([self.metadata, self.timeout_s, dict(inputs)], sort_keys=True).casefold()
        return hashlib.sha256(f"{self.text}\0{around}".encode()).hexdigest()[:16]

    def body(self, mark: str) -> dict[str, Any]:
        """What Kaggle is told."""
        data = self.metadata
        booleans = {key: is_true(data[key]) for key in ("is_private", "enable_gpu", "enable_tpu", "enable_internet")}
        body = {_FIELDS[key]: value for key, value in {**data, **booleans}.items() if key in _FIELDS}
        timeout = {"sessionTimeoutSeconds": self.timeout_s} if self.timeout_s else {}
        text = f"{self.text.rstrip()}\n{mark}\n"
        return {"slug": data["id"], "newTitle": data["title"], "text": text, **body, **timeout}


def stage(
    account: Account, choices: Choices, name: str, sources: Mapping[str, list[str]] | None = None, part: str = ""
) -> Staged:
    """Check a kernel of the project and make the copy that goes out.

    Args:
        account: whose name it gets.
        choices: what the command line says of it.
        name: its folder in kernels/.
        sources: key of the metadata → sources in the place of its own.
        part: one of `parts`. Whatever reads the output of prepare gets all parts attached.

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
    settings = dict(choices.settings.get(name, {}))
    if part:
        settings["PART"], own = part, str(metadata["id"])
        metadata["id"] = parts(account, choices, name)[part]
        metadata["title"] += metadata["id"].removeprefix(own)
    if (account.project / "kernels" / PREPARE).is_dir() and name != PREPARE:
        one = {reference_of(account, PREPARE): list(parts(account, choices, PREPARE).values())}
        kernels = metadata.get("kernel_sources", [])
        metadata["kernel_sources"] = [each for source in kernels for each in one.get(source, [source])]
    more = filled(list(choices.attached.get(name, [])), account.owner)
    metadata["dataset_sources"] = list(dict.fromkeys([*metadata.get("dataset_sources", []), *more]))
    text = fill_settings(script.read_text(encoding="utf-8"), settings)
    every = [source for key in SOURCE_KEYS for source in metadata.get(key, [])]
    check_settings(name, read_settings(text), every, choices.timeout_s)
    out = account.staging / "kernels" / f"{name}{'-' + part.partition('/')[0] if part else ''}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / script.name).write_text(text, encoding="utf-8")
    write_json(out / KERNEL_FILE, metadata)
    if account.secrets.found_in(out.iterdir()):
        shutil.rmtree(out)
        raise CredentialError(
            f"not pushed: {script}, its metadata or its settings hold a credential.\n"
            "  What to do: take it out, and make a new one."
        )
    check_folders([out], account.public)  # of what was changed
    return Staged(out, metadata, text, choices.timeout_s)


def inputs_of(account: Account, staged: Staged) -> dict[str, int]:
    """The version of each source that a push now would attach.

    Raises:
        KaggleError: an own dataset that is not there, or not ready.
    """
    inputs: dict[str, int] = {}
    for source in staged.metadata.get("dataset_sources", []):
        name = "/".join(source.split("/")[:2])
        now = uploads.find_shown(account, name)
        if now is None and same(name.split("/")[0], account.owner):
            raise KaggleError(
                f"{staged.reference} reads the dataset {name}, which Kaggle does not have.",
                advice=f"Upload it first: scripts/push upload {name.split('/')[1]}",
            )
        if now:  # one of somebody else need not show its status; what is attached is looked at after the push
            inputs[source] = now.version
    for source in staged.metadata.get("kernel_sources", []):
        inputs[source] = newest_complete(account, "/".join(source.split("/")[:2])).version
    return inputs


def push(account: Account, staged: Staged, covers: str = "") -> Run:
    """Push a kernel, or take up the newest run where it is of the same script on the same inputs, and verify it.

    Args:
        account: who pushes.
        staged: the copy that goes out.
        covers: digest of the training that this begins or goes on with.

    Raises:
        KaggleError: refused, or not what was asked for.
    """
    inputs = inputs_of(account, staged)
    digest = staged.digest(inputs)
    mark = f"{_MARK}{digest} {covers or digest}"
    before = look(account, staged.reference)
    if before.version:
        account.check_private(before.metadata, staged.reference, before.page)
    facts = {"kernel": staged.reference, "digest": digest, "inputs": inputs}
    if made_of(before)[:1] == [digest] and not account.again and stands(account, staged, before):
        if not account.ledger.last("push", kernel=staged.reference, version=str(before.version)):
            account.ledger.add("push", version=before.version, **facts)
        return before
    what = f"The push of {staged.reference}"

    def send() -> int:
        return _judge(account, staged, account.kaggle.change("kernels/save_kernel", what, **staged.body(mark)), what)

    def find() -> int:
        now = look(account, staged.reference)
        return now.version if now.version > before.version and made_of(now) == mark.split()[-2:] else 0

    run = Run(staged.reference, once(account, staged.reference, "version", send, find))
    account.events.say(f"{staged.reference}: version {run.version} pushed, {run.page}")
    try:
        there = verify(account, staged, run)
    except KaggleError as error:
        account.ledger.add("push", version=run.version, **facts, problem=str(error).splitlines()[0])
        raise
    seen = {"image": there.metadata.get("dockerImage"), "accelerator": there.metadata.get("machineShape")}
    account.ledger.add("push", version=run.version, **facts, **seen)
    return run


def _judge(account: Account, staged: Staged, answer: Mapping[str, Any], what: str) -> int:
    """The version that a push made; an error for one that is not whole, which the ledger notes."""
    version = int(answer.get("versionNumber") or 0)
    kinds = ("Dataset", "Competition", "Kernel", "Model")
    lost = [f"{name} ({kind})" for kind in kinds for name in answer.get(f"invalid{kind}Sources") or []]
    there = "/".join(str(answer.get("url") or staged.reference).split("?")[0].rstrip("/").split("/")[-2:])
    problem = advice = ""
    if version < 1:
        problem, advice = f"{what} made no version.", "Kaggle threw the push away. Push again."
    elif not same(there, staged.reference):
        problem = f"{what} went to another address, {there}."
        advice = (
            "The address of a new kernel is made of its title. Make `title` in kernel-metadata.json lead to the "
            f"slug in `id`, delete https://www.kaggle.com/code/{there} in the browser, and push again."
        )
    elif lost:
        problem = f"{what} made version {version}, and these are not attached: {', '.join(lost)}."
        advice = (
            "Check the name, that your account may use it, and that it is ready (`scripts/push status`). This "
            "version runs without it: stop it in the browser, it cannot be stopped from here."
        )
    if problem:
        account.ledger.add("push", kernel=staged.reference, version=version, problem=problem)
        raise KaggleError(problem, advice=advice)
    return version


def stands(account: Account, staged: Staged, run: Run) -> bool:
    """Whether a version runs or ran, and is as it was pushed; then that is said."""
    if state_of(account, run)["status"] not in (*GOING, "COMPLETE"):
        return False
    try:
        verify(account, staged, run)
    except (AcceleratorError, UnreachableError):
        raise
    except KaggleError:
        return False  # another version lies above it, or somebody changed it
    account.events.say(
        f"{run.reference}: version {run.version} is the same script on the same inputs; not pushed again"
    )
    return True


def verify(account: Account, staged: Staged, run: Run) -> Run:
    """Compare what Kaggle has with what was sent; returns it.

    Raises:
        KaggleError: a source is missing, everybody can see it, the internet is on, or it is another text or image.
        AcceleratorError: it runs on another accelerator than the one it asked for.
    """
    words = _words_of(staged.text)
    there = look_again(  # right after a push the one before may still be shown
        account, lambda: look(account, run.reference, run.version), lambda found: _words_of(found.text) == words
    )
    if not there.version:
        raise KaggleError(
            f"{run.reference}: version {run.version} is not there, or not for this account.",
            advice=f"Look at {run.page}.",
        )
    wanted, data = staged.metadata, there.metadata
    account.check_private(data, run.reference, run.page)
    lost = {key: missing_sources(wanted.get(key, []), data.get(_FIELDS[key]) or []) for key in SOURCE_KEYS}
    problems = [f"not attached: {', '.join(names)} ({key})" for key, names in lost.items() if names]
    if data.get("enableInternet") and not is_true(wanted["enable_internet"]):
        problems.append("the internet is on")
    if wanted.get("docker_image") and data.get("dockerImage") != wanted["docker_image"]:
        problems.append(f"the image is {data.get('dockerImage')}, not {wanted['docker_image']}")
    if _words_of(there.text) != words:
        problems.append("the text is another one; was a newer version pushed from elsewhere?")
    if problems:
        raise KaggleError(
            f"{run.reference}: version {run.version} is not what was sent: {'; '.join(problems)}.",
            advice="Check the names, and that the account may use them; then push again. This version runs as it is: "
            f"stop it in the browser ({run.page}), it cannot be stopped from here.",
        )
    asked, got = wanted.get("machine_shape") or "", str(data.get("machineShape") or "")
    if asked and not same(asked, got):
        told = f"{run.reference}: version {run.version} asked for {asked}, and Kaggle says {got or 'nothing'}"
        if not account.accept_accelerator:
            raise AcceleratorError(
                f"{told}.",
                advice="It runs as it is. If that will do, the same command with --accept-accelerator goes on with it; "
                f"else stop it ({run.page}) and name another: --accelerator",
            )
        account.events.say(told)
    return there


def made_of(run: Run) -> list[str]:
    """What a version says it was made of: the digests of this run and of the training it is part of; else empty."""
    last = run.text.rstrip().rpartition("\n")[2]
    return last.removeprefix(_MARK).split() if last.startswith(_MARK) else []


def _words_of(text: str) -> list[str]:
    """A source without our mark and without what a server may do to line ends."""
    return [line.rstrip() for line in text.strip().splitlines() if not line.startswith(_MARK)]
