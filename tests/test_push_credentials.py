"""Credentials: those that others can read are refused, and a good one is found nowhere else; the ledger holds none."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from kaggle_double import write_keys
from kaggle_site import KEY, TOKEN, USER

from rsna_kit.runtime.events import Events
from rsna_lab.kaggle.credentials import CredentialError, Scrubber, check_permissions
from rsna_lab.kaggle.push.account import Ledger, open_account


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with every file in which credentials may lie, readable by its owner alone."""
    folder = tmp_path / ".kaggle"
    folder.mkdir(mode=0o700)
    for name, text in (
        ("kaggle.json", json.dumps({"username": USER, "key": KEY})),
        ("access_token", TOKEN),
        ("credentials.json", json.dumps({"refresh_token": "refresh-0123456789", "access_token": "access-0123456789"})),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    return tmp_path


@pytest.mark.parametrize("name", ["kaggle.json", "access_token", "credentials.json"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_credentials_that_others_can_read_are_refused_with_the_remedy(home: Path, name: str, mode: int) -> None:
    path = home / ".kaggle" / name
    check_permissions({"HOME": str(home)})
    path.chmod(mode)
    with pytest.raises(CredentialError, match=f"What to do: chmod 600 {path}"):
        check_permissions({"HOME": str(home)})


def test_the_folder_and_other_places_are_looked_at_too(home: Path) -> None:
    (home / ".kaggle").chmod(0o777)
    with pytest.raises(CredentialError, match="chmod 700"):
        check_permissions({"HOME": str(home)})
    (home / ".kaggle").chmod(0o700)
    (home / ".kaggle").chmod(0o1777)  # as /tmp is: nobody replaces a file of others there
    check_permissions({"HOME": str(home)})
    token = home / "elsewhere"
    token.write_text(TOKEN)
    token.chmod(0o644)
    with pytest.raises(CredentialError, match=f"chmod 600 {token}"):
        check_permissions({"HOME": str(home), "KAGGLE_API_TOKEN": str(token)})


def test_every_secret_is_taken_out_of_text(home: Path) -> None:
    basic = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
    secrets = [KEY, TOKEN, basic, "refresh-0123456789", "access-0123456789", "of-the-environment-1"]
    scrub = Scrubber({"HOME": str(home), "MY_SECRET": "of-the-environment-1"})
    clean = scrub(" ".join(secrets) + f" {USER}")
    assert not any(secret in clean for secret in secrets)
    assert clean.endswith(USER)


def test_files_with_a_secret_are_found_wherever_it_stands(home: Path, tmp_path: Path) -> None:
    scrub = Scrubber({"HOME": str(home)})
    edge = tmp_path / "edge.bin"
    edge.write_bytes(b"\0" * ((1 << 22) - 5) + KEY.encode())  # across the border of two chunks
    (tmp_path / "notes.txt").write_text("nothing here")
    (tmp_path / ".netrc").write_text("")
    assert scrub.found_in([edge, tmp_path / "notes.txt", tmp_path / ".netrc"]) == [
        f"{edge}: holds your Kaggle credentials",
        f"{tmp_path}/.netrc: credentials, by its name",
    ]


def test_open_permissions_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    path = write_keys(tmp_path, mode=0o644)
    with pytest.raises(CredentialError, match=f"chmod 600 {path}"):
        open_account(tmp_path, Events(stream=io.StringIO()), environment={"HOME": str(tmp_path)})


def test_the_ledger_only_grows_and_survives_a_killed_writer(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, lambda text: text.replace("secret", "***"))
    ledger.add("upload", dataset="me/a", version=1)
    with open(ledger.path, "a") as file:
        file.write('{"kind": "upl')
    before = ledger.path.read_bytes()
    ledger.add("upload", dataset="me/a", version=2, note="secret")
    assert ledger.path.read_bytes().startswith(before)
    assert [line["version"] for line in ledger.lines()] == [1, 2]
    assert ledger.last("upload", dataset="me/a") == ledger.lines()[1]
    assert ledger.last("upload", dataset="me/b") == {}
    assert "secret" not in ledger.path.read_text()
