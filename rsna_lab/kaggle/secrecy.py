"""The one search for secrets: in files that are about to travel, and in what a rehearsed kernel leaves behind.

A file is refused for its name, for a secret of this person's that stands in it, and for a line that looks like one. The
rules for lines are those of detect-secrets, and a few for what it does not know. No message repeats what was found.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

from rsna_kit.runtime.lazy import require

_SECRET_NAMES = (
    (r"kaggle\.json|credentials\.json|access_token(\.txt)?", "Kaggle's credentials"),
    (r"\.env(\..*)?|.*\.env|\.netrc|_netrc|\.pypirc|\.git-credentials|\.npmrc", "credentials"),
    (r"id_(rsa|dsa|ecdsa|ed25519)(\..*)?|.*\.(pem|key|p12|pfx|jks|kdbx)", "a private key"),
)
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
    (
        "a secret, by the name in front of it",
        r"""(?i)(?:secret|passw(?:or)?d|passphrase|token|api_?key|access_?key|private_?key|credential)\w*["']?"""
        r"""\s*(?::|=>?)\s*(?:["'][^\s"'<>{}()\[\]]{16,}["']|(?=\S*\d)(?=\S*[a-z])[\w/+~-]{16,}=*(?=[\s"',;]|$))""",
    ),
)
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


def secret_by_name(path: Path) -> str | None:
    """Why a file's name alone speaks against giving it away."""
    found = (what for pattern, what in _SECRET_NAMES if re.fullmatch(pattern, path.name, re.IGNORECASE))
    return next((f"{what}, by its name" for what in found), None)


def secret_in(path: Path, known: Mapping[str, str]) -> str | None:
    """Why a file must not be given away, None where nothing speaks against it.

    Args:
        path: a file of any size and kind.
        known: secret → what a person calls it (`credentials.known_secrets`).

    Raises:
        MissingDependencyError: detect-secrets is not installed.
        OSError: the file cannot be read.
    """
    if kind := secret_by_name(path):
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
