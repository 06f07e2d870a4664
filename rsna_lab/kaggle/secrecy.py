"""Kaggle's credentials and other secrets: where they lie, who can read them, and in which text and files they stand.

The `kaggle` program only warns of a key that everybody can read, and takes a damaged file for none; here both are
refused before a request is made. Text that is shown or kept goes through `Secrets.hide`. A file that is about to travel
is refused for its name, for a secret of this person's that stands in it, and for a line that looks like one. The rules
for lines are those of detect-secrets, and a few for what it does not know. No message repeats what was found.
"""

from __future__ import annotations

import base64
import json
import os
import pkgutil
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.lazy import require

# Files in which the program finds credentials, and what they must hold.
_FILES = {
    "kaggle.json": ("username", "key"),
    "access_token": (),
    "access_token.txt": (),
    "credentials.json": ("refresh_token",),
}
_SECRET_KEYS = ("key", "refresh_token", "access_token")
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|KEY$|CREDENTIAL", re.IGNORECASE)
_ENCODINGS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # by byte-order mark
_SHORTEST = 8  # anything shorter would be found everywhere
_CALLED = "your Kaggle credentials"
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


class CredentialError(RsnaKitError):
    """Credentials that others can read, that cannot be used, or that were about to be sent."""


def credential_files(environment: Mapping[str, str]) -> list[Path]:
    """Every file in which the program may find credentials, whether or not it is there."""
    home = Path(environment.get("HOME") or Path.home())
    folders = [home / ".kaggle", Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"]
    if given := environment.get("KAGGLE_CONFIG_DIR"):
        folders.insert(0, Path(given))
    files = [folder / name for folder in folders for name in _FILES]
    token = environment.get("KAGGLE_API_TOKEN", "")
    return list(dict.fromkeys([*files, Path(token)] if token and _is_file(Path(token)) else files))


def check_permissions(environment: Mapping[str, str]) -> None:
    """Refuse credentials that other people on this machine can read or replace, and files that are damaged.

    Raises:
        CredentialError: the file, its fault, and what mends it.
    """
    for path in filter(_is_file, credential_files(environment)):
        for place, forbidden, right in ((path, 0o077, "600"), (path.parent, 0o022, "700")):
            mode = stat.S_IMODE(place.stat().st_mode)
            if mode & forbidden and not mode & stat.S_ISVTX:  # in a folder like /tmp nobody replaces a file of others
                raise CredentialError(
                    f"{place} is open to others (mode {mode:o}): they could use your Kaggle account.\n"
                    f"  What to do: chmod {right} {place}"
                )
        if fault := _fault(path):
            raise CredentialError(
                f"{path} {fault}. Nothing was asked of Kaggle.\n  What to do: put a new one there, from "
                f"https://www.kaggle.com/settings (API), or remove it: rm {path}"
            )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a token that is no path may be too long for one
        return False


def _fault(path: Path) -> str:
    """What keeps the program from reading a file of credentials, "" where nothing does."""
    content, needed = path.read_bytes(), _FILES.get(path.name, ())
    if any(content.startswith(mark) for mark in _ENCODINGS):
        return "begins with a byte-order mark, as some editors write it, and the kaggle program does not read it"
    try:
        value = json.loads(content) if needed else {}
    except ValueError:
        return f"is cut off, or no JSON: expected an object with {' and '.join(needed)}"
    missing = [name for name in needed if not isinstance(value, dict) or not value.get(name)]
    return f"has no {' and no '.join(missing)}: expected an object with {' and '.join(needed)}" if missing else ""


def known_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Every secret this process could give away → what a person calls it, longest first; damaged files count, too."""

    def basic(user: str, key: str) -> str:  # what stands behind `Authorization: Basic`
        return base64.b64encode(f"{user}:{key}".encode()).decode()

    named = {name: value for name, value in environment.items() if _SECRET_VARIABLE.search(name)}
    found = {value: name for name, value in named.items() if not _is_file(Path(value))}
    for path in filter(_is_file, credential_files(environment)):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        encoding = next((name for mark, name in _ENCODINGS.items() if content.startswith(mark)), "utf-8")
        text = content.decode(encoding, "replace").strip()
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        if isinstance(value, dict) and any(value.get(key) for key in _SECRET_KEYS):
            values = [str(value.get(key) or "") for key in _SECRET_KEYS]
            values += [basic(str(value["username"]), values[0])] if value.get("username") and values[0] else []
        else:  # a token; or what is left of a damaged file, without the account's name
            values = [text, *re.findall(r"[\w.+/=~-]{16,}", re.sub(r'"username"\s*:\s*"[^"]*', "", text))]
        found |= {secret: _CALLED for secret in values if secret not in found}
    if environment.get("KAGGLE_USERNAME") and environment.get("KAGGLE_KEY"):
        found[basic(environment["KAGGLE_USERNAME"], environment["KAGGLE_KEY"])] = "KAGGLE_KEY"
    return {secret: found[secret] for secret in sorted(found, key=len, reverse=True) if len(secret) >= _SHORTEST}


class Secrets:
    """A person's secrets, taken out of text and found in files.

    `known`: secret → what a person calls it. `seen`: what those are called that `hide` has met.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.known = known_secrets(environment)
        self.seen: list[str] = []

    def hide(self, text: str) -> str:
        """The text with *** for each secret, and for whatever looks like a token of Kaggle's."""
        for secret, name in self.known.items():
            if secret in text:
                text = text.replace(secret, "***")
                self.seen += [name] if name not in self.seen else []
        return re.sub(r"KGAT_[0-9a-f]{32}", "***", text)

    def found_in(self, paths: Iterable[Path]) -> list[str]:
        """Files that must not be sent, each with the reason; their contents are not repeated."""
        return [f"{path}: {reason}" for path in paths if path.is_file() and (reason := secret_in(path, self.known))]


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
        known: secret → what a person calls it (`known_secrets`).

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
