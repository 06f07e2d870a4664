"""A folder that is about to travel → what in it must not: secrets by name and by content, caches, unexpected files.

What may be in a dataset is listed, and everything else is refused; what is listed is searched all the same. A refusal
names file and reason and never shows what was found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from rsna_kit.runtime.errors import RsnaKitError

_NAMES = (
    (r"kaggle\.json|credentials\.json|access_token(\.txt)?", "Kaggle's credentials"),
    (r"\.env(\..*)?|.*\.env|\.netrc|_netrc|\.pypirc|\.git-credentials|\.npmrc", "credentials"),
    (r"id_(rsa|dsa|ecdsa|ed25519)(\..*)?|.*\.(pem|key|p12|pfx|jks|kdbx)", "a private key"),
    (r"\.git|\.ssh|\.aws|\.kaggle|\.config|\.gnupg", "a folder of settings or history"),
    (r"__pycache__|.*\.py[co]|\.ipynb_checkpoints|\.mypy_cache|\.pytest_cache|\.ruff_cache|\.DS_Store", "a cache"),
    (r".*\.tmp-.*|.*~|.*\.swp", "a half-written file"),
)
_IS = rb"""["']?\s*[:=]\s*["']?"""
_TEXT = rb"[\w/+.!@#$%^&*-]{16,}[\"'\s]"
# What it is, the bytes it is found by, and what must follow them; all in lower case. Few beginnings: each is one pass.
_CONTENTS = (
    ("a private key", b"-----begin ", rb"[a-z ]*private key-----"),
    ("an API key", b"key", _IS + rb"(?:[0-9a-f]{32}|[0-9a-f]{40})(?![0-9a-z])"),
    ("a Kaggle key or token", b"kaggle_", rb"(?:key|api_token|api_v1_token)" + _IS + rb"[\w/+.-]{16}"),
    ("a Kaggle token", b"kgat_", rb"[0-9a-z]{16}"),
    ("a GitHub token", b"gh", rb"[pousr]_[0-9a-z]{36}"),
    ("a GitHub token", b"github_pat_", rb"\w{36}"),
    ("a Hugging Face token", b"hf_", rb"[0-9a-z]{30}"),
    ("an AWS key", b"akia", rb"[0-9a-z]{16}(?![0-9a-z])"),
    ("a Google key", b"aiza", rb"[\w-]{35}"),
    ("a Google token", b"ya29.", rb"[\w-]{35}"),
    ("a Slack token", b"xox", rb"[abprs]-[\w-]{10}"),
    ("an API key", b"sk-", rb"[\w-]{32}"),
    ("a signed token", b"eyj", rb"[\w-]{10,}\.eyj[\w-]{10,}\.[\w-]{10}"),
    ("an Authorization header", b"authorization", _IS + rb"(?:basic|bearer)\s+[\w/+.=-]{16}"),
    ("a line of .netrc", b"machine ", rb"\s*\S+\s+login\s+\S+\s+password\s+\S"),
    ("a password", b"passw", rb"(?:or)?d" + _IS + _TEXT),
    ("a secret", b"secret", _IS + _TEXT),
    ("an API key", b"api", rb"[_-]?key" + _IS + _TEXT),
    ("a token", b"_token", _IS + _TEXT),
)  # fmt: skip
_CHUNK, _OVERLAP = 1 << 24, 1 << 12
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ ()=,-]*")


def find_secret(data: bytes) -> str | None:
    """What a text or file seems to hold: `an API key`, `a private key`, …; None for nothing.

    Example:
        >>> find_secret(b'{"username": "me", "key": "0123456789abcdef0123456789abcdef"}')
        'an API key'
    """
    lower = data.lower()
    for what, beginning, pattern in _COMPILED:
        for found in beginning.finditer(lower):
            if pattern.match(lower, found.end()):
                return what
    return None


def check_folder(folder: Path, kinds: Sequence[str], published: Collection[str] = ()) -> list[str]:
    """Refuse a folder with anything in it that should not travel.

    Args:
        folder: what would be uploaded.
        kinds: regular expressions; the path of every file, relative and with forward slashes, must match one whole.
        published: files whose bytes are known to be what someone else published; they are not searched.

    Returns:
        The relative paths of its files, sorted.

    Raises:
        RsnaKitError: every file that is refused, with its reason.
    """
    paths = sorted(Path(place) / name for place, folders, names in os.walk(folder) for name in [*folders, *names])
    names = [path.relative_to(folder).as_posix() for path in paths]
    reasons = {name: _why(folder / name, name, kinds, name not in published) for name in names}
    refused = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    if refused:
        raise RsnaKitError(
            "this must not travel:\n  "
            + "\n  ".join(refused)
            + "\nRemove it where it comes from. A secret that others "
            "could read there has to be renewed as well."
        )
    return [name for name in names if (folder / name).is_file()]


def _why(path: Path, name: str, kinds: Sequence[str], search: bool) -> str | None:
    """Why a file or folder is refused."""
    for pattern, what in _NAMES:
        if re.fullmatch(pattern, path.name, re.IGNORECASE):
            return f"{what}, by its name"
    if path.is_symlink():
        return "a link: what it points to would travel"
    if path.is_dir():
        return None
    if not path.is_file():
        return "neither a file nor a folder"
    if not _WORD.fullmatch(path.name):
        return "a name that Kaggle may refuse: expected letters, digits and ._-+ only, no dot in front"
    if not any(re.fullmatch(kind, name) for kind in kinds):
        return "no kind of file that this dataset holds"
    found = next((what for what in map(find_secret, _pieces(path)) if what), None) if search else None
    return f"holds what looks like {found}" if found else None


def _pieces(path: Path) -> Iterator[bytes]:
    """A file of any size, in pieces that overlap."""
    with open(path, "rb") as file:
        before = b""
        while piece := file.read(_CHUNK):
            yield before + piece
            before = piece[-_OVERLAP:]


_COMPILED = tuple(
    (what, re.compile(re.escape(beginning)), re.compile(pattern)) for what, beginning, pattern in _CONTENTS
)
