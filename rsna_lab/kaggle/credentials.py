"""Kaggle's credentials: where they lie, whether they can be used and by whom, and text without them.

The `kaggle` program only warns of a key that everybody can read, and takes a damaged file for none; here both are
refused before a request is made. What it prints, what is sent and what is written to the ledger goes through a
`Scrubber`; a rehearsed kernel's log through a `Censor`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import RsnaKitError
from rsna_lab.kaggle.secrecy import secret_in

_FILES = {
    "kaggle.json": ("username", "key"),
    "access_token": (),
    "access_token.txt": (),
    "credentials.json": ("refresh_token",),
}
_SECRET_KEYS = ("key", "refresh_token", "access_token")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|KEY$|CREDENTIAL", re.IGNORECASE)
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_SHORTEST = 8  # anything shorter would be found everywhere
_CALLED = "your Kaggle credentials"


class CredentialError(RsnaKitError):
    """Credentials that others can read, that cannot be used or no longer work, or that were about to be sent."""


def credential_files(environment: Mapping[str, str]) -> list[Path]:
    """Every file in which the program may find credentials, whether or not it is there."""
    home = Path(environment.get("HOME") or Path.home())
    folders = [home / ".kaggle", Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"]
    if given := environment.get("KAGGLE_CONFIG_DIR"):
        folders.insert(0, Path(given))
    files = [folder / name for folder in folders for name in _FILES]
    token = environment.get("KAGGLE_API_TOKEN", "")
    return [*files, Path(token)] if token and _is_file(Path(token)) else files


def check_permissions(environment: Mapping[str, str]) -> None:
    """Refuse credentials that other people on this machine can read or replace, and files that are damaged.

    Raises:
        CredentialError: the file, its fault, and what mends it.
    """
    for path in dict.fromkeys(credential_files(environment)):
        if not _is_file(path):
            continue
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
    content = path.read_bytes()
    if any(content.startswith(mark) for mark in _MARKS):
        return "begins with a byte-order mark, as some editors write it, and the kaggle program does not read it"
    needed = _FILES.get(path.name, ())
    if not needed:
        return ""
    try:
        value = json.loads(content)
    except ValueError:
        return f"is cut off, or no JSON: expected an object with {' and '.join(needed)}"
    missing = [name for name in needed if not isinstance(value, dict) or not value.get(name)]
    return f"has no {' and no '.join(missing)}: expected an object with {' and '.join(needed)}" if missing else ""


def known_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Every secret this process could give away → what a person calls it, longest first; damaged files count, too."""
    named = {name: value for name, value in environment.items() if _SECRET_NAME.search(name)}
    found = {value: name for name, value in named.items() if not _is_file(Path(value))}
    for path in filter(_is_file, credential_files(environment)):
        text = _text(path).strip()
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        if isinstance(value, dict) and any(value.get(key) for key in _SECRET_KEYS):
            values = [str(value.get(key) or "") for key in _SECRET_KEYS]
            if value.get("username") and value.get("key"):
                values.append(_basic(str(value["username"]), str(value["key"])))
        else:  # a token; or what is left of a damaged file, without the account's name
            values = [text, *re.findall(r"[\w.+/=~-]{16,}", re.sub(r'"username"\s*:\s*"[^"]*', "", text))]
        found |= {secret: _CALLED for secret in values if secret not in found}
    if environment.get("KAGGLE_USERNAME") and environment.get("KAGGLE_KEY"):
        found[_basic(environment["KAGGLE_USERNAME"], environment["KAGGLE_KEY"])] = "KAGGLE_KEY"
    return {secret: found[secret] for secret in sorted(found, key=len, reverse=True) if len(secret) >= _SHORTEST}


def _text(path: Path) -> str:
    """A file of credentials in whatever an editor made of it; "" where it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    return content.decode(encoding, "replace")


def _basic(user: str, key: str) -> str:
    """What stands behind `Authorization: Basic`."""
    return base64.b64encode(f"{user}:{key}".encode()).decode()


class Censor:
    """Takes secrets out of a stream, wherever it is cut into pieces; `found` says what they are called.

    What may be the beginning of a secret is held back until the next piece shows whether it is.

    Example:
        >>> censor = Censor({"abcd": "a key"})
        >>> censor(b"x ab"), censor(b"cd y"), censor(b"a"), censor.rest(), censor.found
        (b'x ', b'*** y', b'', b'a', ['a key'])
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        longest_first = sorted(secrets.items(), key=lambda item: -len(item[0]))
        self._secrets = {value.encode(): name for value, name in longest_first}
        self._held = b""
        self.found: list[str] = []

    def __call__(self, piece: bytes) -> bytes:
        """What can be passed on now."""
        text = self._held + piece
        for secret, name in self._secrets.items():
            if secret in text:
                text = text.replace(secret, b"***")
                self.found += [name] if name not in self.found else []
        beginnings = (secret[:n] for secret in self._secrets for n in range(1, len(secret)))
        begun = max((len(beginning) for beginning in beginnings if text.endswith(beginning)), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]

    def rest(self) -> bytes:
        """What was held back, once nothing will follow."""
        rest, self._held = self._held, b""
        return rest


class Scrubber:
    """Takes known secrets out of text, and finds them in files."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._known = known_secrets(environment)

    def __call__(self, text: str) -> str:
        """The text with *** for each secret, and for whatever looks like a token of Kaggle's."""
        for secret in self._known:
            text = text.replace(secret, "***")
        return re.sub(r"KGAT_[0-9a-f]{32}", "***", text)

    def found_in(self, paths: Iterable[Path]) -> list[str]:
        """Files that must not be sent, each with the reason; their contents are not repeated."""
        return [f"{path}: {reason}" for path in paths if path.is_file() and (reason := secret_in(path, self._known))]
