"""Where Kaggle's credentials lie → whether others can read them, and text and files without them.

The `kaggle` program only warns of a key that everybody can read; here it is refused. What it prints, what is sent and
what is written to the ledger goes through a `Scrubber`, and folders are searched before they are uploaded.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from rsna_kit.runtime.errors import RsnaKitError
from rsna_lab.kaggle.secrecy import find_secret

_CREDENTIAL_FILES = {"kaggle.json", "access_token", "access_token.txt", "credentials.json", ".env", ".netrc", ".pypirc",
                     "id_rsa", "id_ed25519"}  # fmt: skip
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|KEY$|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 8  # anything shorter would be found everywhere
_CHUNK = 1 << 22


class CredentialError(RsnaKitError):
    """Credentials that others can read, that no longer work, or that were about to be sent."""


def credential_files(environment: Mapping[str, str]) -> list[Path]:
    """Every file in which the program may find credentials, whether or not it is there."""
    home = Path(environment.get("HOME") or Path.home())
    folders = [home / ".kaggle", Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"]
    if given := environment.get("KAGGLE_CONFIG_DIR"):
        folders.insert(0, Path(given))
    names = ("kaggle.json", "access_token", "access_token.txt", "credentials.json")
    files = [folder / name for folder in folders for name in names]
    token = environment.get("KAGGLE_API_TOKEN", "")
    return [*files, Path(token)] if token and _is_file(Path(token)) else files


def check_permissions(environment: Mapping[str, str]) -> None:
    """Refuse credentials that other people on this machine can read or replace.

    Raises:
        CredentialError: with the command that mends it.
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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a token that is no path may be too long for one
        return False


def known_secrets(environment: Mapping[str, str]) -> list[str]:
    """Every secret this process could give away, longest first: in the environment and in Kaggle's files."""
    found = [value for name, value in environment.items() if _SECRET_NAME.search(name) and not _is_file(Path(value))]
    for path in credential_files(environment):
        if not _is_file(path):
            continue
        try:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if isinstance(value, dict):
            found += [str(value.get(key) or "") for key in ("key", "refresh_token", "access_token")]
            if value.get("username") and value.get("key"):
                found.append(base64.b64encode(f"{value['username']}:{value['key']}".encode()).decode())
        else:
            found.append(text)
    if environment.get("KAGGLE_USERNAME") and environment.get("KAGGLE_KEY"):
        pair = f"{environment['KAGGLE_USERNAME']}:{environment['KAGGLE_KEY']}"
        found.append(base64.b64encode(pair.encode()).decode())
    return sorted({secret for secret in found if len(secret) >= _SHORTEST}, key=len, reverse=True)


class Scrubber:
    """Takes known secrets out of text."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._secrets = known_secrets(environment)

    def __call__(self, text: str) -> str:
        """The text with *** for each secret, and for whatever looks like a token of Kaggle's."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return re.sub(r"KGAT_[0-9a-f]{32}", "***", text)

    def found_in(self, paths: Iterable[Path]) -> list[str]:
        """Files that hold a secret, or are made for holding one; their contents are not repeated."""
        return [str(path) for path in paths if path.name in _CREDENTIAL_FILES or self._holds_secret(path)]

    def _holds_secret(self, path: Path) -> bool:
        secrets = [secret.encode() for secret in self._secrets]
        tail = b""
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                window = tail + chunk
                if any(secret in window for secret in secrets) or find_secret(window):
                    return True
                tail = window[-4096:]
        return False
