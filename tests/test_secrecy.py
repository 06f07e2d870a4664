"""Secrets: what a line gives away, what is none, and files of any size and encoding; damaged credentials too."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsna_kit.runtime.errors import MissingDependencyError
from rsna_lab.kaggle import secrecy
from rsna_lab.kaggle.push.account import Ledger
from rsna_lab.kaggle.secrecy import CredentialError, Secrets, check_permissions, find_secret, known_secrets, secret_in

ROOT = Path(__file__).parent.parent
KEY, TOKEN, USER = "0123456789abcdef" * 2, "KGAT_00112233445566778899aabbccddeeff", "tester"
SHA1 = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "line",
    [
        f"key = {KEY}",
        f"'key':'{KEY.upper()}'",
        '{"username": "me", "key": "0123456789abcdef012',  # a kaggle.json that was cut off
        "export KAGGLE_API_TOKEN=abcdefgh.ijklmnop",
        "token KGAT_0123456789abcdef0123",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "ghp_" + "a1" * 18,
        "hf_" + "aB3" * 11,
        "AKIAABCDEFGHIJKLMNOP",
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEK1",
        "https://me:hunter2@example.org/data.git",
        "https://hooks.slack.com/services/T0123ABCD/B0123ABCD/0123456789abcdefghijklmn",
        "https://discord.com/api/webhooks/123456789012345678/abcdefghijklmnop",
        SHA1,
        f"API: {SHA1.upper()}",
        "Authorization: Bearer abcdefghijklmnop",
        "machine api.example.org login me password hunter2",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4",
        'password = "correct-horse-battery"',
        'client_secret: "abcdefghijklmnopqrst"',
    ],
)
def test_a_secret_is_known_by_its_looks(line: str, tmp_path: Path) -> None:
    assert find_secret(line)
    for content in (line.encode(), b"\x00\xff" * 50 + line.encode() + b"\n", line.encode("utf-16")):
        (tmp_path / "file").write_bytes(content)
        assert str(secret_in(tmp_path / "file", {})).startswith("holds what looks like")


@pytest.mark.parametrize(
    "line",
    [
        f"sha256: {KEY}{KEY}",
        f'"commit": "{SHA1}", "made": 1',
        f"git+https://example.org/me/project@{SHA1}",
        f'"efficientnetb0": "{KEY}"',
        "key = 'val_roc_auc'",
        "KAGGLE_KEY=<your key>",
        'os.environ["KAGGLE_KEY"]',
        "the secret of a good mammogram",
        "password: …",
        "https://example.org:443/a@b",
    ],
)
def test_what_is_no_secret_passes(line: str) -> None:
    assert find_secret(line) is None


def test_nothing_that_we_publish_looks_like_a_secret() -> None:
    files = [path for name in ("rsna_kit", "kernels", "datasets") for path in (ROOT / name).rglob("*")]
    assert [path for path in files if path.is_file() and path.suffix != ".pyc" and secret_in(path, {})] == []


def test_a_commit_is_one_by_the_name_of_its_file(tmp_path: Path) -> None:
    for name in ("commit.txt", "token.txt"):
        (tmp_path / name).write_text(SHA1 + "\n")
    assert secret_in(tmp_path / "commit.txt", {}) is None
    assert secret_in(tmp_path / "token.txt", {})


def test_a_secret_across_the_seam_of_two_pieces_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrecy, "_CHUNK", 1000)
    monkeypatch.setattr(secrecy, "_OVERLAP", 200)
    (tmp_path / "a.txt").write_bytes(b"." * 980 + f"key={KEY}\n".encode() + b"." * 500)
    assert secret_in(tmp_path / "a.txt", {}) == "holds what looks like an API key"
    assert secret_in(tmp_path / "a.txt", {KEY: "MY_KEY"}) == "holds MY_KEY"


def test_without_the_scanner_nothing_is_searched_and_it_is_named(tmp_path: Path) -> None:
    absent = "import sys; sys.modules['detect_secrets'] = None; "
    code = f"{absent}from rsna_lab.kaggle.secrecy import find_secret; find_secret('a')"
    surroundings = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True)
    assert "pip install 'rsna-kit[kaggle]'" in done.stderr
    assert MissingDependencyError.__name__ in done.stderr


# What an editor or a broken copy makes of kaggle.json, and what is said of it.
DAMAGED = {
    "a byte-order mark": (b"\xef\xbb\xbf" + json.dumps({"username": "me", "key": KEY}).encode(), "byte-order mark"),
    "UTF-16": (json.dumps({"username": "me", "key": KEY}).encode("utf-16"), "byte-order mark"),
    "cut": (f'{{"username": "me", "key": "{KEY}'.encode(), "cut off, or no JSON"),
    "another name": (json.dumps({"username": "me", "token": KEY}).encode(), "has no key"),
    "a list": (json.dumps([KEY]).encode(), "has no username and no key"),
    "empty": (b"", "cut off, or no JSON"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_kaggle_json_is_named_with_its_fault_and_is_a_secret_all_the_same(case: str, tmp_path: Path) -> None:
    content, said = DAMAGED[case]
    path = tmp_path / ".kaggle/kaggle.json"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(CredentialError, match=rf"{path} .*{said}") as error:
        check_permissions({"HOME": str(tmp_path)})
    assert KEY not in str(error.value)
    if case not in ("a list", "empty"):  # in a dataset, whoever's it is and whatever it is called
        (tmp_path / "backup.txt").write_bytes(content)
        assert secret_in(tmp_path / "backup.txt", {})
    if case != "empty":
        (tmp_path / "notes.md").write_text(f"remember {KEY}")
        secrets = Secrets({"HOME": str(tmp_path)})
        assert secrets.hide(f"me: {KEY}") == "me: ***"
        assert secrets.found_in([tmp_path / "notes.md"]) == [f"{tmp_path}/notes.md: holds your Kaggle credentials"]


def test_an_accounts_name_is_no_secret_however_long(tmp_path: Path) -> None:
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/kaggle.json").write_text(f'{{"username": "a-very-long-account-name", "key": "{KEY}')
    assert "a-very-long-account-name" not in known_secrets({"HOME": str(tmp_path)})


# ---- files that others can read; text; the ledger


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
    values = [KEY, TOKEN, basic, "refresh-0123456789", "access-0123456789", "of-the-environment-1"]
    secrets = Secrets({"HOME": str(home), "MY_SECRET": "of-the-environment-1"})
    clean = secrets.hide(" ".join(values) + f" {USER}")
    assert not any(value in clean for value in values)
    assert clean.endswith(USER)


def test_files_with_a_secret_are_found_wherever_it_stands(home: Path, tmp_path: Path) -> None:
    secrets = Secrets({"HOME": str(home)})
    edge = tmp_path / "edge.bin"
    edge.write_bytes(b"\0" * ((1 << 22) - 5) + KEY.encode())  # across the border of two chunks
    (tmp_path / "notes.txt").write_text("nothing here")
    (tmp_path / ".netrc").write_text("")
    assert secrets.found_in([edge, tmp_path / "notes.txt", tmp_path / ".netrc"]) == [
        f"{edge}: holds your Kaggle credentials",
        f"{tmp_path}/.netrc: credentials, by its name",
    ]


def test_the_ledger_only_grows_and_survives_a_killed_writer(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, lambda text: text.replace("secret", "***"))
    ledger.add("upload", dataset="me/a", version=1)
    with open(ledger.path, "a") as file:
        file.write('{"kind": "upl')
    before = ledger.path.read_bytes()
    ledger.add("upload", dataset="me/a", version=2, note="secret")
    assert ledger.path.read_bytes().startswith(before)
    assert [line["version"] for line in ledger.lines()] == [1, 2]
    assert ledger.last("upload", dataset="Me/a") == ledger.lines()[1]
    assert ledger.last("upload", dataset="me/b") == {}
    assert "secret" not in ledger.path.read_text()
