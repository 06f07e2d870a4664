"""The one search for secrets: in files that are about to travel, and in what a rehearsed kernel leaves behind.

A file is refused for its name, for a secret of this person's that stands in it, and for a line that looks like one. The
rules for lines are those of detect-secrets, and a few for what it does not know. No message repeats what was found.
"""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.lazy import require

_SECRET_NAMES = (
    (r"kaggle\.json|credentials\.json|access_token(\.txt)?", "Kaggle's credentials"),
    (r"\.env(\..*)?|.*\.env|\.netrc|_netrc|\.pypirc|\.git-credentials|\.npmrc", "credentials"),
    (r"id_(rsa|dsa|ecdsa|ed25519)(\..*)?|.*\.(pem|key|p12|pfx|jks|kdbx)", "a private key"),
)
_OTHER_NAMES = (
    (r"\.git|\.ssh|\.aws|\.kaggle|\.config|\.gnupg", "a folder of settings or history"),
    (r"__pycache__|.*\.py[co]|\.ipynb_checkpoints|\.mypy_cache|\.pytest_cache|\.ruff_cache|\.DS_Store", "a cache"),
    (r".*\.tmp-.*|.*~|.*\.swp", "a half-written file"),
)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ ()=,-]*")
_IS = r"""["']?\s*(?:[:=]|=>)\s*["']?"""
# What detect-secrets does not know, or only between quotes.
_OWN_RULES = (
    ("an API key", rf"(?i)key{_IS}(?:[0-9a-f]{{32}}|[0-9a-f]{{40}})(?![0-9a-z])"),
    ("Kaggle's credentials", r"""(?i)["']key["']\s*:\s*["'][0-9a-f]{16,32}(?![0-9a-z])"""),  # cut off, perhaps
    ("a Kaggle key or token", rf"(?i)kaggle_(?:key|api_token|api_v1_token){_IS}[\w/+.-]{{16}}"),
    ("a Kaggle token", r"(?i)KGAT_[0-9a-z]{16}"),
    ("a GitHub token", r"github_pat_\w{36}"),
    ("a Hugging Face token", r"hf_[0-9A-Za-z]{30}"),
    ("a Google key or token", r"AIza[\w-]{35}|ya29\.[\w-]{35}"),
    ("an API key", r"sk-(?<!\wsk-)[\w-]{32}"),
    ("an Authorization header", rf"(?i)authorization{_IS}(?:basic|bearer)\s+[\w/+.=-]{{16}}"),
    ("a line of .netrc", r"machine\s+\S+\s+login\s+\S+\s+password\s+\S"),
    ("the address of a webhook", r"(?i)https://\S*(?:/api/webhooks/\d|webhook\.office\.com/|hooks\.\S+/)[\w/@-]{8}"),
    ("a secret, by the name in front of it",
     r"""(?i)(?:secret|passw(?:or)?d|passphrase|token|api_?key|access_?key|private_?key|credential)\w*["']?"""
     r"""\s*(?::|=>?)\s*(?:["'][^\s"'<>{}()\[\]]{16,}["']|(?=\S*\d)(?=\S*[a-z])[\w/+~-]{16,}=*(?=[\s"',;]|$))"""),
)  # fmt: skip
_HEX = re.compile(r"(?<![\w+/=-])(?:[0-9a-f]{40}|[0-9A-F]{40})(?![\w+/=-])")
_COMMIT = re.compile(r"(?i)commit|sha-?1|revision|git|/tree/|/blob/|@$")  # 40 hex digits behind these are no secret
# Not taken: the first finds version numbers; the others cost three quarters of the time for what our last rule finds.
_NOT_TAKEN = ("ip_public", "cloudant", "ibm_cloud_iam", "ibm_cos_hmac", "softlayer")
_CHUNK, _OVERLAP = 1 << 24, 1 << 12
_TEXT = re.compile(rb"[\t\x20-\x7e]{16,}")


def find_secret(line: str) -> str | None:
    """What a line of text seems to hold: `an API key`, `AWS Access Key`, …; None for nothing.

    Raises:
        MissingDependencyError: detect-secrets is not installed.

    Example:
        >>> find_secret('{"username": "me", "key": "0123456789abcdef0123456789abcdef"}')
        'an API key'
    """
    for found in _HEX.finditer(line):
        if not _COMMIT.search(line, max(0, found.start() - 24), found.start()):
            return "a key of 40 hexadecimal digits"
    return next((what for what, pattern in _rules() if pattern.search(line)), None)


def known_in(path: Path, known: Mapping[str, str]) -> list[str]:
    """What the secrets are called that stand in a file of any size. `known`: secret → what a person calls it."""
    wanted = {code: name for value, name in known.items() for code in (value.encode(), value.encode("utf-16-le"))}
    found = {name for piece in _pieces(path) for code, name in wanted.items() if code in piece}
    return [name for name in dict.fromkeys(known.values()) if name in found]


def secret_in(path: Path, known: Mapping[str, str]) -> str | None:
    """Why a file must not be given away, None where nothing speaks against it.

    Args:
        path: a file of any size and kind.
        known: secret → what a person calls it (`credentials.known_secrets`).

    Raises:
        MissingDependencyError: detect-secrets is not installed.
        OSError: the file cannot be read.
    """
    if kind := _by_name(path.name, _SECRET_NAMES):
        return kind
    if names := known_in(path, known):
        return f"holds {' and '.join(names)}"
    for piece in _pieces(path):
        for run in _TEXT.findall(piece.replace(bytes(1), b"")):  # without the NULs of UTF-16
            text = f"{path.name}: {run.decode('ascii')}"  # commit.txt holds a commit
            for start in range(0, len(text), _OVERLAP):
                if found := find_secret(text[start : start + 2 * _OVERLAP]):
                    return f"holds what looks like {found}"
    return None


def check_folder(
    folder: Path, kinds: Sequence[str], known: Mapping[str, str], published: Collection[str] = ()
) -> list[str]:
    """Refuse a folder with anything in it that should not travel.

    Args:
        folder: what would be uploaded.
        kinds: regular expressions; the path of every file, relative and with forward slashes, must match one whole.
        known: as in `secret_in`.
        published: files whose bytes are known to be what someone else published; they are not searched.

    Returns:
        The relative paths of its files, sorted.

    Raises:
        RsnaKitError: every file that is refused, with its reason.
        MissingDependencyError: detect-secrets is not installed.
        OSError: a file or folder that cannot be read.
    """
    names = sorted(
        (Path(place) / name).relative_to(folder).as_posix()
        for place, folders, files in os.walk(folder, onerror=_cannot_read)
        for name in [*folders, *files]
    )
    reasons = {name: _why(folder / name, name, kinds, known, name not in published) for name in names}
    refused = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    if refused:
        raise RsnaKitError(
            "this must not travel:\n  " + "\n  ".join(refused) + "\nRemove it where it comes from. A secret that "
            "others could read there has to be renewed as well."
        )
    return [name for name in names if (folder / name).is_file()]


def _by_name(name: str, kinds: Sequence[tuple[str, str]]) -> str | None:
    """Why a name alone speaks against a file or folder."""
    found = (what for pattern, what in kinds if re.fullmatch(pattern, name, re.IGNORECASE))
    return next((f"{what}, by its name" for what in found), None)


def _cannot_read(error: OSError) -> None:
    """A folder that cannot be listed is not an empty one."""
    raise error


def _why(path: Path, name: str, kinds: Sequence[str], known: Mapping[str, str], search: bool) -> str | None:
    """Why a file or folder is refused."""
    if kind := _by_name(path.name, (*_SECRET_NAMES, *_OTHER_NAMES)):
        return kind
    if path.is_symlink():
        return "a link: what it points to would travel"
    if path.is_dir():
        return None
    if not path.is_file():
        return "neither a file nor a folder"
    if not _FILE_NAME.fullmatch(path.name):
        return "a name that Kaggle may refuse: expected letters, digits and ._-+ only, no dot in front"
    if not any(re.fullmatch(kind, name) for kind in kinds):
        return "no kind of file that this dataset holds"
    return secret_in(path, known) if search else None


def _pieces(path: Path) -> Iterator[bytes]:
    """A file of any size, in pieces that overlap."""
    with open(path, "rb") as file:
        before = b""
        while piece := file.read(_CHUNK):
            yield before + piece
            before = piece[-_OVERLAP:]


@cache
def _rules() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Our own rules, then those of detect-secrets."""
    plugins = require("detect_secrets.plugins", "kaggle")
    rules = [(what, re.compile(pattern)) for what, pattern in _OWN_RULES]
    for module in pkgutil.iter_modules(plugins.__path__):
        for plugin in vars(import_module(f"detect_secrets.plugins.{module.name}")).values():
            patterns = getattr(plugin, "denylist", ())
            if module.name not in _NOT_TAKEN and isinstance(patterns, list | tuple):
                rules += [(str(plugin.secret_type), pattern) for pattern in patterns]
    return tuple(dict.fromkeys(rules))
