"""A folder that travels ↔ its contents.json: what it was built from, and size and sha256 of every file.

An upload that fails half-way can leave a dataset without one of its files, and nobody is told: whoever reads the folder
compares it with this list.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import RsnaKitError, listed
from rsna_kit.runtime.files import read_json, sha256_file, write_json

CONTENTS = "contents.json"


def write_contents(folder: Path, said: Mapping[str, Any], files: Iterable[str]) -> dict[str, Any]:
    """List `files` (relative, with forward slashes) in `folder/contents.json`, behind what is `said` of the folder.

    Returns:
        What was written: `said`, `bytes`, `sha256` (over all names and files: the same files, the same digest) and
        `files`.
    """
    entries = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in sorted(files)
    }
    content = {
        **said,
        "bytes": sum(entry["bytes"] for entry in entries.values()),
        "sha256": _digest(entries),
        "files": entries,
    }
    write_json(folder / CONTENTS, content)
    return content


def check_contents(folder: Path, digests: bool) -> dict[str, Any]:
    """Hold a folder against its list.

    Args:
        folder: has a contents.json. Further files in it are nobody's business here.
        digests: compare the sha256 of every file, not its size alone.

    Returns:
        The list.

    Raises:
        RsnaKitError: files are missing or others, or the list itself is damaged; names them and what to do.
    """
    again = "Build the dataset again (scripts/build), upload it, and attach the new version."
    try:
        content: dict[str, Any] = read_json(folder / CONTENTS)
        files = content["files"]
        whole = _digest(files) == content["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RsnaKitError(f"{folder / CONTENTS}: no list of a built folder ({error}). {again}") from error
    if not whole:
        raise RsnaKitError(f"{folder / CONTENTS}: damaged: its digest is not the one it says. {again}")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise RsnaKitError(
            f"{folder}: {listed(missing)} of {len(files)} files missing, so the upload failed in part. {again}"
        )
    other = [
        name
        for name, entry in files.items()
        if (folder / name).stat().st_size != entry["bytes"]
        or (digests and sha256_file(folder / name) != entry["sha256"])
    ]
    if other:
        raise RsnaKitError(f"{folder}: {listed(other)} damaged or exchanged: not as {CONTENTS} says. {again}")
    return content


def _digest(entries: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
