"""A built folder → a version of a Kaggle dataset that is ready, whole and private.

A version is a full copy. It is not there when its files are: Kaggle unpacks and stores them first, and whatever is
pushed before that gets the old one. So this waits until the version number has gone up and the version is ready, then
looks at its list of files. A dataset's description says which files its version was made of, so that an upload whose
answer or whose ledger was lost is found again.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsna_kit.runtime.files import sha256_file
from rsna_lab.kaggle.credentials import CredentialError
from rsna_lab.kaggle.metadata import DATASET_FILE, MetadataError, dataset_problems, filled, read_metadata
from rsna_lab.kaggle.push.account import Account, commit_of
from rsna_lab.kaggle.push.api import LOOKS
from rsna_lab.kaggle.push.errors import KaggleError, UnreachableError
from rsna_lab.kaggle.push.project import LIBRARY, build, build_command, built_folder
from rsna_lab.kaggle.push.waiting import Waiting

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

    @property
    def size(self) -> int:
        """Of all files."""
        return sum(self.sizes.values())

    def mark(self, version: int) -> str:
        """What the description of the version says that is made of it."""
        return f"rsna_kit: version {version}, files {self.digest[:16]}"


@dataclass(frozen=True)
class Found:
    """A dataset on Kaggle: status and number of its newest version that shows, and its description."""

    status: str
    version: int
    description: str


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
    if secret := account.scrub.found_in(paths):
        raise CredentialError(
            f"not uploaded: these files hold a credential, or are made for one: {', '.join(secret)}.\n"
            "  What to do: take it out of the folder, and make a new one at https://www.kaggle.com/settings if anybody "
            "else may have seen it."
        )
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    sums = {name: sha256_file(folder / name) for name in sizes}
    about = json.dumps(sums, sort_keys=True) + json.dumps(metadata, sort_keys=True).casefold()
    digest = hashlib.sha256(about.encode()).hexdigest()
    return Contents(metadata["id"], folder, metadata, sizes, digest)


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
    sent = account.ledger.last("send", dataset=name)
    now = find(account, name)
    if now and now.status not in _BROKEN:
        shown = 0 if sent.get("problem") else int(sent.get("version") or 0)  # sent from here, and not shown yet
        now = now if now.status == "READY" and now.version >= shown else wait_ready(account, name, at_least=shown)
    number = now.version if now else 0
    if now and now.status == "READY" and not account.again:
        if is_there(account, contents, number):
            account.events.say(f"{name}: version {number} is there already, with the same files")
            return number
        if contents.mark(number) in now.description and not sent.get("problem"):
            account.events.say(f"{name}: version {number} was made of the same files; it is looked at now")
            return _check(account, contents, number)
    return _check(account, contents, _send(account, contents, now))


def find(account: Account, name: str, private: bool = True) -> Found | None:
    """A dataset as Kaggle shows it; None when there is none, or none for this account. `private`: it has to be that.

    Raises:
        KaggleError: everybody can see it, and nobody asked for that.
    """
    owner, slug = name.split("/")[:2]
    state = account.kaggle.find("datasets/get_dataset_status", ownerSlug=owner, datasetSlug=slug)
    data = state and account.kaggle.find("datasets/get_dataset", ownerSlug=owner, datasetSlug=slug)
    if not state or not data:
        return None
    if private and not data.get("isPrivate") and not account.public:
        raise KaggleError(
            f"{name} can be seen by everybody.",
            "isPrivate is false",
            f"Make it private at https://www.kaggle.com/datasets/{name}/settings, or say --public if that is meant.",
        )
    return Found(str(state["status"]), int(data.get("currentVersionNumber") or 0), str(data.get("description") or ""))


def is_there(account: Account, contents: Contents, version: int) -> bool:
    """Whether this version was uploaded from here, and holds the same files."""
    known = account.ledger.last("upload", dataset=contents.reference)
    return not account.again and known.get("digest") == contents.digest and known.get("version") == version


def _send(account: Account, contents: Contents, now: Found | None) -> int:
    """Bring the files and make a version of them; returns its number once it is ready."""
    (owner, slug), data, number = contents.reference.split("/"), contents.metadata, (now.version if now else 0) + 1
    account.events.say(f"{contents.reference}: version {number} is sent, {contents.size / 1e6:.1f} MB")
    body = {
        "files": _send_files(account, contents),
        **({"subtitle": data["subtitle"]} if data.get("subtitle") else {}),
        "description": f"{data.get('description') or ''}\n\n{contents.mark(number)}".strip(),
    }
    what = f"The upload of {contents.reference}"
    try:
        if now is None:
            body |= {"slug": slug, "title": data["title"], "licenseName": data["licenses"][0]["name"]}
            account.kaggle.change(
                "datasets/create_dataset", what, ownerSlug=owner, isPrivate=not account.public, **body
            )
        else:
            body["versionNotes"] = f"{commit_of(account.project)[:8]}, files {contents.digest[:12]}"
            account.kaggle.change("datasets/create_dataset_version", what, ownerSlug=owner, datasetSlug=slug, body=body)
    except UnreachableError:
        if not _arrived(account, contents, number, now):
            raise
        account.events.say(f"{contents.reference}: the answer was lost, and version {number} is there")
    account.ledger.add("send", dataset=contents.reference, version=number, digest=contents.digest)
    return wait_ready(account, contents.reference, at_least=number).version


def _arrived(account: Account, contents: Contents, number: int, before: Found | None) -> bool:
    """Whether Kaggle has begun a version, although nobody heard its answer."""
    for _ in range(LOOKS):
        time.sleep(account.poll_s)
        now = find(account, contents.reference)
        if now and (now.version >= number or (before is None or now.status not in (before.status, "READY"))):
            return True
    return False


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


def wait_ready(account: Account, name: str, at_least: int) -> Found:
    """Wait until a dataset is ready and has this version or a later one.

    Raises:
        KaggleError: Kaggle could not make it, does not show the dataset, or took too long.
    """
    label = f"{name}: waiting for version {at_least}" if at_least else f"{name}: waiting for what is under way"
    page = f"https://www.kaggle.com/datasets/{name}"
    waiting = Waiting(account.events, label, account.limit_s, account.poll_s, page)
    while True:
        now = find(account, name)
        if now and now.status == "READY" and now.version >= at_least:
            waiting.close()
            return now
        if now and now.status in _BROKEN:
            problem = f"{name}: Kaggle could not make a version of what was uploaded."
            account.ledger.add("send", dataset=name, version=at_least, problem=problem)  # so it is sent again
            raise KaggleError(
                problem,
                f"status {now.status}",
                f"See https://www.kaggle.com/datasets/{name}, then run "
                "the same command again: it uploads a new version.",
            )
        waiting.look(f"{now.status} at version {now.version}" if now else None)


def _check(account: Account, contents: Contents, version: int) -> int:
    """Every file must have arrived as it is; a folder may be listed as the archive it travelled in."""
    (owner, slug), name = contents.reference.split("/"), contents.reference
    listed = account.kaggle.every("datasets/list_dataset_files", "datasetFiles", ownerSlug=owner, datasetSlug=slug)
    there = {str(row["name"]): int(row.get("totalBytes") or 0) for row in listed}
    wrong = [
        f"lacks {file}" for file in contents.sizes if file not in there and f"{file.split('/')[0]}.zip" not in there
    ]
    wrong += [
        f"has {there[file]} bytes of {file}, which has {size} here"
        for file, size in contents.sizes.items()
        if there.get(file, 0) not in (0, size)
    ]
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        problem = f"{name}: version {version} {shown}."
        account.ledger.add("send", dataset=name, version=version, problem=problem)  # so it is sent again
        raise KaggleError(problem, advice="Run the same command again: it uploads a new version.")
    account.ledger.add(
        "upload", dataset=name, version=version, digest=contents.digest, files=len(contents.sizes), bytes=contents.size
    )
    find(account, name)  # once more: a new one may have become public
    size = f"{len(contents.sizes)} files, {contents.size / 1e6:.1f} MB"
    account.events.say(f"{name}: version {version} is ready, {size}")
    return version
