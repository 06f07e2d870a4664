"""A folder that is to become a Kaggle dataset → a version of it that is ready, whole and private.

A version is a full copy. It is not there when the program has ended: Kaggle unpacks and stores it first, and whatever
is pushed before that gets the old one. So this waits until the version number has gone up and the version is ready,
then looks at its list of files and at who may see it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsna_kit.runtime.files import sha256_file, write_json
from rsna_lab.kaggle.credentials import CredentialError
from rsna_lab.kaggle.metadata import DATASET_FILE, NOT_UPLOADED, MetadataError, dataset_problems, filled, read_metadata
from rsna_lab.kaggle.push import judge
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.advice import KaggleError
from rsna_lab.kaggle.push.ledger import short_commit
from rsna_lab.kaggle.push.waiting import Waiting

PAGE = ("--page-size", "200", "--format", "json")
_SLOWEST_BYTES_S = 50_000  # an upload slower than this is stopped


@dataclass(frozen=True)
class Parcel:
    """A folder that is ready to go out: a copy of its metadata with the account's name, links to everything else."""

    reference: str
    folder: Path
    sizes: dict[str, int]  # bytes by name, the metadata left out
    digest: str

    @property
    def size(self) -> int:
        """Of all files."""
        return sum(self.sizes.values())

    @property
    def entries(self) -> int:
        """Files and folders at the top: each is one upload."""
        return len({name.split("/")[0] for name in self.sizes})


def pack(account: Account, folder: Path) -> Parcel:
    """Check a dataset's folder and make the copy that goes out.

    Raises:
        MetadataError: Kaggle would refuse or lose something of it.
        CredentialError: a file holds a secret.
    """
    if problems := dataset_problems(folder):
        raise MetadataError([f"{folder}: {problem}" for problem in problems])
    metadata = filled(read_metadata(folder / DATASET_FILE), account.owner)
    return wrap(account, folder, metadata["id"], {DATASET_FILE: metadata})


def wrap(account: Account, folder: Path, reference: str, extra: dict[str, Any]) -> Parcel:
    """The copy of a folder with other metadata beside its own files; refuses secrets.

    Args:
        account: whose name it gets.
        folder: its files are linked to, not copied; its metadata files stay here.
        reference: names the copy.
        extra: metadata file → JSON value, written into the copy.
    """
    own = {folder / name for name in NOT_UPLOADED}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in own]
    if secret := account.scrub.found_in(paths):
        raise CredentialError(
            f"not uploaded: these files hold a credential, or are made for one: {', '.join(secret)}.\n"
            "  What to do: take it out of the folder, and make a new one at https://www.kaggle.com/settings if anybody "
            "else may have seen it."
        )
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    sums = {name: sha256_file(folder / name) for name in sizes}
    digest = hashlib.sha256(json.dumps([sums, extra], sort_keys=True).encode()).hexdigest()
    out = account.staging / "datasets" / reference.split("/")[1]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for entry in folder.iterdir():
        if entry not in own:
            (out / entry.name).symlink_to(entry.resolve())
    for name, value in extra.items():
        write_json(out / name, value)
    return Parcel(reference, out, sizes, digest)


def upload(account: Account, folder: Path) -> int:
    """Bring a folder's files to Kaggle as a dataset, unless they are there already; returns the version.

    Raises:
        KaggleError: refused, not whole, not ready in time, or not private.
    """
    parcel = pack(account, folder)
    name = parcel.reference
    before = status(account, name)
    if before is not None:
        check_privacy(account, name)
        before = before if before[0] == "ready" else wait_ready(account, name, at_least=0)
    number = before[1] if before else 0
    if is_there(account, parcel, number):
        account.events.say(f"{name}: version {number} is there already, with the same files")
        return number
    sent = account.ledger.last("send", dataset=name) or {}
    if not account.again and sent.get("digest") == parcel.digest and sent.get("version") == number:
        account.events.say(f"{name}: version {number} was sent before; it is looked at now")
    else:
        _send(account, parcel, exists=before is not None)
        number += 1
        account.ledger.add("send", dataset=name, version=number, digest=parcel.digest)
        number = wait_ready(account, name, at_least=number)[1]
    check_files(account, parcel, number)
    if before is None:
        check_privacy(account, name)
    account.ledger.add(
        "upload", dataset=name, version=number, digest=parcel.digest, files=len(parcel.sizes), bytes=parcel.size
    )
    account.events.say(f"{name}: version {number} is ready, {len(parcel.sizes)} files, {parcel.size / 1e6:.1f} MB")
    return number


def is_there(account: Account, parcel: Parcel, version: int) -> bool:
    """Whether this version was uploaded from here, and holds the same files."""
    known = account.ledger.last("upload", dataset=parcel.reference) or {}
    return not account.again and known.get("digest") == parcel.digest and known.get("version") == version


def upload_command(account: Account, parcel: Parcel, exists: bool) -> list[str]:
    """What is said to the program."""
    if not exists:
        return ["datasets", "create", "-p", str(parcel.folder), "-r", "zip", *(["--public"] if account.public else [])]
    note = f"{short_commit(account.project)}, files {parcel.digest[:12]}"
    return ["datasets", "version", "-p", str(parcel.folder), "-r", "zip", "-m", note]


def _send(account: Account, parcel: Parcel, exists: bool) -> None:
    words = upload_command(account, parcel, exists)
    answer = call_with_progress(account, words, parcel)
    judge.created(answer, f"The upload of {parcel.reference}")


def call_with_progress(account: Account, words: list[str], parcel: Parcel) -> judge.Answer:
    """Run an upload and show how far it is."""
    limit_s = 900 + parcel.size / _SLOWEST_BYTES_S
    with account.events.progress(parcel.entries, parcel.reference, unit="uploads") as progress:

        def listen(line: str) -> None:
            if found := re.match(r"(\d+%)\|", line):
                progress.advance(0, note=f"this one {found[1]}")
            elif line.startswith("Upload successful"):
                progress.advance(1, note=line.partition(": ")[2])

        return account.program.call(*words, limit_s=limit_s, listen=listen, corner=parcel.digest[:16])


def status(account: Account, name: str) -> tuple[str, int] | None:
    """`(status, version)` of a dataset; None when there is none."""
    answer = account.program.ask("datasets", "status", name, "--format", "json")
    return None if answer.absent else judge.dataset_status(answer, f"The status of {name}")


def wait_ready(account: Account, name: str, at_least: int) -> tuple[str, int]:
    """Wait until a dataset is ready and has this version or a later one."""
    label = f"{name}: waiting for version {at_least}" if at_least else f"{name}: waiting for what is under way"
    waiting = Waiting(account.events, label, account.limit_s)
    while True:
        now = status(account, name) or ("not listed yet", 0)
        if now[0] == "ready" and now[1] >= at_least:
            waiting.close()
            return now
        if now[0] in ("failed", "deleted") and at_least:
            raise KaggleError(
                f"{name}: Kaggle could not make a version of what was uploaded.",
                f"status {now[0]}",
                f"See https://www.kaggle.com/datasets/{name}, then run the same command again.",
            )
        if now[0] in ("failed", "deleted"):
            return now
        waiting.look(f"{now[0]} at version {now[1]}")
        time.sleep(account.poll_s)


def check_files(account: Account, parcel: Parcel, version: int) -> None:
    """Every file must have arrived; a sub-folder may be listed as the archive it travelled in."""
    there = dict(list_files(account, ["datasets", "files", parcel.reference]))
    lost = [name for name in parcel.sizes if name not in there and f"{name.split('/')[0]}.zip" not in there]
    if lost:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        problem = f"{parcel.reference}: version {version} lacks {shown}."
        account.ledger.add("send", dataset=parcel.reference, version=version, problem=problem)  # so it is sent again
        raise KaggleError(problem, "", "Run the same command again: it uploads a new version.")
    for name, size in parcel.sizes.items():
        if name in there and there[name] not in (0, size):
            account.events.say(f"{parcel.reference}: {name} has {size} bytes here and {there[name]} at Kaggle")


def list_files(account: Account, words: list[str]) -> list[tuple[str, int]]:
    """Names and sizes of all pages of a list of files."""
    found: list[tuple[str, int]] = []
    token = ""
    while True:
        answer = account.program.told(*words, *PAGE, *(["--page-token", token] if token else []))
        rows, token = judge.rows(answer, f"The list of files of {words[-1]}")
        found += [(str(row.get("name")), int(row.get("size") or 0)) for row in rows]
        if not token:
            return found


def check_privacy(account: Account, name: str) -> None:
    """A dataset must be as private as it was asked to be."""
    with tempfile.TemporaryDirectory() as scratch:
        account.program.told("datasets", "metadata", name, "-p", scratch)
        data = json.loads((Path(scratch) / DATASET_FILE).read_text())
    private = bool((data.get("info") or data).get("isPrivate"))
    if not private and not account.public:
        raise KaggleError(
            f"{name} can be seen by everybody.",
            "isPrivate is false",
            f"Make it private at https://www.kaggle.com/datasets/{name}/settings, or say --public if that is meant.",
        )
