"""A built folder → a version of a Kaggle dataset that is ready, whole and private.

A version is a full copy. It is not there when its files are: Kaggle unpacks and stores them first, and whatever is
pushed before that gets the old one. So this waits until the version number has gone up and the version is ready, then
looks at its list of files. A dataset's description says which files its version was made of, so that an upload whose
answer or whose ledger was lost is found again.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsna_kit.runtime.files import sha256_file
from rsna_lab.kaggle.metadata import DATASET_FILE, MetadataError, dataset_problems, filled, read_metadata
from rsna_lab.kaggle.push.account import Account, commit_of
from rsna_lab.kaggle.push.errors import KaggleError
from rsna_lab.kaggle.push.project import LIBRARY, build, build_command, built_folder
from rsna_lab.kaggle.push.waiting import Waiting, once
from rsna_lab.kaggle.secrecy import CredentialError

_SLOWEST_BYTES_S = 50_000  # an upload slower than this is stopped
_BROKEN = ("FAILED", "DELETED")


@dataclass(frozen=True)
class Contents:
    """A folder that is ready to go out.

    Attributes:
        reference: owner/slug.
        folder: its files stay where they are.
        metadata: with the account's name in it.
        sizes: bytes by name, the metadata left out.
        digest: of files and metadata.
    """

    reference: str
    folder: Path
    metadata: dict[str, Any]
    sizes: dict[str, int]
    digest: str

    def mark(self, version: int) -> str:
        """What the description of the version says that is made of it."""
        return f"rsna_kit: version {version}, files {self.digest[:16]}"

    def __str__(self) -> str:
        return f"{len(self.sizes)} files, {sum(self.sizes.values()) / 1e6:.1f} MB"


@dataclass(frozen=True)
class Found:
    """A dataset on Kaggle: status and number of its newest version that shows, and what Kaggle says of it."""

    status: str
    version: int
    data: dict[str, Any]


def pack(account: Account, folder: Path) -> Contents:
    """Check a folder and list what goes out.

    Raises:
        MetadataError: Kaggle would refuse or lose something of it.
        CredentialError: a file holds a secret.
    """
    if problems := dataset_problems(folder):
        raise MetadataError([f"{folder}: {problem}" for problem in problems])
    metadata = filled(read_metadata(folder / DATASET_FILE), account.owner)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / DATASET_FILE]
    if secret := account.secrets.found_in(paths):
        raise CredentialError(
            f"not uploaded: these files hold a credential, or are made for one: {', '.join(secret)}.\n"
            "  What to do: take it out of the folder, and make a new one at https://www.kaggle.com/settings if anybody "
            "else may have seen it."
        )
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    sums = {name: sha256_file(folder / name) for name in sizes}
    about = json.dumps(sums, sort_keys=True) + json.dumps(metadata, sort_keys=True).casefold()
    return Contents(metadata["id"], folder, metadata, sizes, hashlib.sha256(about.encode()).hexdigest())


def bring(account: Account, name: str, skip: frozenset[str] = frozenset()) -> int | None:
    """Build a dataset of the project and upload it; returns its version, None when it stays here.

    Raises:
        RsnaKitError: no such dataset, or one that has to be built by hand first.
    """
    folder = built_folder(account.project, name)
    # Wheels and ImageNet weights are fetched from the network and change by hand only; the library with every commit.
    if "build" not in skip and (name == LIBRARY or not folder.is_dir()):
        build(account, name)
    if "upload" in skip:
        return None
    if not folder.is_dir():
        raise MetadataError([f"{name} is not built. What to do: {build_command(name)}, then run this again"])
    return upload(account, folder)


def upload(account: Account, folder: Path) -> int:
    """Bring a folder's files to Kaggle as a dataset, unless they are there already; returns the version.

    Raises:
        KaggleError: refused, not whole, not ready in time, or not private.
    """
    contents = pack(account, folder)
    name = contents.reference
    now = find_shown(account, name)
    if now:
        _check_private(account, name, now)
        if now.status == "READY" and not account.again and is_made_of(account, now, contents):
            if not (wrong := _wrong(account, contents)):
                _note(account, name, now.version, "ready", contents.digest)
                account.events.say(f"{name}: version {now.version} is there already, with the same files")
                return now.version
            account.events.say(f"{name}: version {now.version} {wrong}; it is sent again")
    version = _send(account, contents, now)
    if wrong := _wrong(account, contents):
        _note(account, name, version, "failed", contents.digest)
        advice = "Run the same command again: it uploads a new version."
        raise KaggleError(f"{name}: version {version} {wrong}.", advice=advice)
    _note(account, name, version, "ready", contents.digest)
    if made := find(account, name):
        _check_private(account, name, made)  # a new one may have become public
    account.events.say(f"{name}: version {version} is ready, {contents}")
    return version


def find(account: Account, name: str) -> Found | None:
    """A dataset as Kaggle shows it; None when there is none, or none for this account."""
    owner, slug = name.split("/")[:2]
    state = account.kaggle.find("datasets/get_dataset_status", ownerSlug=owner, datasetSlug=slug)
    data = state and account.kaggle.find("datasets/get_dataset", ownerSlug=owner, datasetSlug=slug)
    return Found(str(state["status"]), int(data.get("currentVersionNumber") or 0), data) if state and data else None


def find_shown(account: Account, name: str) -> Found | None:
    """The same once what was sent from here last is shown, and ready or failed; Kaggle may show the one before."""
    now, sent = find(account, name), account.ledger.last("upload", dataset=name)
    at_least = 0 if sent.get("state") == "failed" else int(sent.get("version") or 0)
    if now is None or now.status in _BROKEN or (now.status == "READY" and now.version >= at_least):
        return now
    return _wait_ready(account, name, at_least)


def is_made_of(account: Account, now: Found, contents: Contents) -> bool:
    """Whether the version that shows was made of these files, as its description or the ledger says."""
    sent = account.ledger.last("upload", dataset=contents.reference, version=str(now.version))
    if sent:
        return bool(sent["state"] != "failed" and sent["digest"] == contents.digest)
    return contents.mark(now.version) in str(now.data.get("description"))


def _check_private(account: Account, name: str, now: Found) -> None:
    account.check_private(now.data, name, f"https://www.kaggle.com/datasets/{name}/settings")


def _note(account: Account, name: str, version: int, state: str, digest: str) -> None:
    facts = {"dataset": name, "version": version, "state": state, "digest": digest}
    if not facts.items() <= account.ledger.last("upload", dataset=name).items():
        account.ledger.add("upload", **facts)


def _send(account: Account, contents: Contents, now: Found | None) -> int:
    """Bring the files and make a version of them; returns its number once it is ready."""
    (owner, slug), data, number = contents.reference.split("/"), contents.metadata, (now.version if now else 0) + 1
    account.events.say(f"{contents.reference}: version {number} is sent, {contents}")
    body = {
        "files": _send_files(account, contents),
        **({"subtitle": data["subtitle"]} if data.get("subtitle") else {}),
        "description": f"{data.get('description') or ''}\n\n{contents.mark(number)}".strip(),
    }
    what = f"The upload of {contents.reference}"

    def send() -> int:
        if now is None:
            new = {"slug": slug, "title": data["title"], "licenseName": data["licenses"][0]["name"]}
            private = {"ownerSlug": owner, "isPrivate": not account.public}
            account.kaggle.change("datasets/create_dataset", what, **new, **private, **body)
        else:
            notes = {"versionNotes": f"{commit_of(account.project)[:8]}, files {contents.digest[:12]}"}
            place = {"ownerSlug": owner, "datasetSlug": slug}
            account.kaggle.change("datasets/create_dataset_version", what, **place, body={**body, **notes})
        return number

    def begun() -> int:
        there = find(account, contents.reference)
        begins = there and (now is None or there.status not in (now.status, "READY"))
        return number if there and (there.version >= number or begins) else 0

    once(account, contents.reference, "version", send, begun)
    _note(account, contents.reference, number, "sent", contents.digest)
    return _wait_ready(account, contents.reference, number).version


def _send_files(account: Account, contents: Contents) -> list[dict[str, str]]:
    """Bring every file and, as an archive that Kaggle unpacks, every folder at the top; returns their tokens."""
    tops = sorted({name.split("/")[0] for name in contents.sizes})
    archive = account.staging / "tmp" / "archive"
    found = []
    with account.events.progress(len(tops), contents.reference, unit="uploads") as progress:

        def listen(event: dict[str, Any]) -> None:
            if "bytes" in event:
                progress.advance(0, note=f"{event['bytes'] / 1e6:.0f} MB of this one")

        for top in tops:
            path = contents.folder / top
            if path.is_dir():
                archive.mkdir(parents=True, exist_ok=True)
                path = archive / f"{top}.zip"
                with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as pack:
                    for name in contents.sizes:
                        if name.startswith(f"{top}/"):
                            pack.write(contents.folder / name, name.removeprefix(f"{top}/"))
            found.append({"token": account.kaggle.upload(path, listen, _SLOWEST_BYTES_S)})
            if path.parent == archive:
                path.unlink()
            progress.advance(1, note=top)
    return found


def _wait_ready(account: Account, name: str, at_least: int) -> Found:
    """Wait until a dataset is ready and has this version or a later one.

    Raises:
        KaggleError: Kaggle could not make it, does not show the dataset, or took too long.
    """
    label = f"{name}: waiting for version {at_least}" if at_least else f"{name}: waiting for what is under way"
    page = f"https://www.kaggle.com/datasets/{name}"
    waiting = Waiting(account, label, page)
    while True:
        now = find(account, name)
        if now and now.status == "READY" and now.version >= at_least:
            return now
        if now and now.status in _BROKEN:
            _note(account, name, at_least, "failed", "")  # so it is sent again, and not waited for
            raise KaggleError(
                f"{name}: Kaggle could not make a version of what was uploaded.",
                f"status {now.status}",
                f"See {page}, then run the same command again: it uploads a new version.",
            )
        waiting.look(f"{now.status} at version {now.version}" if now else None)


def _wrong(account: Account, contents: Contents) -> str:
    """Which files did not arrive as they are; a folder may be listed as the archive it travelled in. "" for none."""
    owner, slug = contents.reference.split("/")
    listed = account.kaggle.every("datasets/list_dataset_files", "datasetFiles", ownerSlug=owner, datasetSlug=slug)
    there = {str(row["name"]): int(row.get("totalBytes") or 0) for row in listed}
    sizes = contents.sizes
    wrong = [f"lacks {file}" for file in sizes if file not in there and f"{file.split('/')[0]}.zip" not in there]
    wrong += [
        f"has {there[file]} bytes of {file}, which has {size} here"
        for file, size in sizes.items()
        if there.get(file, 0) not in (0, size)
    ]
    return ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
