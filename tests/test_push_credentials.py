"""Credentials: bad ones are named with the remedy, and a good one is found nowhere else."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest
from kaggle_double import Double, environment, installed, program, served, write_keys
from kaggle_site import KEY, SLUG, TOKEN, USER, Session
from push_world import World, make_site, write_kernel
from waiting import wait_until

from rsna_kit.runtime.errors import MissingDependencyError
from rsna_kit.runtime.events import Events
from rsna_lab.kaggle.credentials import CredentialError
from rsna_lab.kaggle.push.account import Account, open_account
from rsna_lab.kaggle.push.advice import KaggleError
from rsna_lab.kaggle.push.program import Program, find_program

EXPIRED = "KGAT_ffffffffffffffffffffffffffffffff"


def newest() -> Path:
    version = next((v for v in ("2.2.5", "2.2.4") if installed(v)), "2.2.5")
    return program(version)


def open_here(double: Double, home: Path, **variables: str) -> Account:
    """An account in this home."""
    surroundings = {**environment(double, home), **variables}
    return open_account(home / "project", Events(stream=io.StringIO()), kaggle=newest(), poll_s=0.05,
                        environment=surroundings)  # fmt: skip


def test_each_kind_of_credentials_leads_to_the_account(tmp_path: Path) -> None:
    with served(make_site(tmp_path / "site")) as double:
        for name in ("keys", "token", "file"):
            (tmp_path / name).mkdir()
        write_keys(tmp_path / "keys")
        (tmp_path / "file/.kaggle").mkdir(mode=0o700)
        (tmp_path / "file/.kaggle/access_token").write_text(TOKEN)
        (tmp_path / "file/.kaggle/access_token").chmod(0o600)
        for name, variables in (("keys", {}), ("token", {"KAGGLE_API_TOKEN": TOKEN}), ("file", {})):
            account = open_here(double, tmp_path / name, **variables)
            assert account.owner == USER


def test_no_credentials_and_bad_ones_end_with_the_way_to_new_ones(tmp_path: Path) -> None:
    with served(make_site(tmp_path / "site")) as double:
        with pytest.raises(KaggleError, match=r"https://www\.kaggle\.com/settings") as none:
            open_here(double, tmp_path / "none")
        assert "No credentials were found" in str(none.value)
        assert str(tmp_path / "none/.kaggle/kaggle.json") in str(none.value)
        assert "older ones" not in str(none.value)
        write_keys(tmp_path / "bad", key="f" * 32)
        account = open_here(double, tmp_path / "bad")
        with pytest.raises(KaggleError, match="does not accept the credentials"):
            account.program.told("quota")


def test_an_expired_token_beside_good_keys_is_named(tmp_path: Path) -> None:
    """The program says that it uses the keys, and sends the dead token all the same."""
    with served(make_site(tmp_path / "site")) as double:
        write_keys(tmp_path / "home")
        with pytest.raises(CredentialError, match="unset KAGGLE_API_TOKEN") as error:
            open_here(double, tmp_path / "home", KAGGLE_API_TOKEN=EXPIRED)
        assert EXPIRED not in str(error.value)
        path = tmp_path / "home/.kaggle/access_token"
        path.write_text(EXPIRED)
        path.chmod(0o600)
        with pytest.raises(CredentialError, match=f"rm {path}"):
            open_here(double, tmp_path / "home")


def test_open_permissions_are_refused_before_the_program_runs(tmp_path: Path) -> None:
    with served(make_site(tmp_path / "site")) as double:
        path = write_keys(tmp_path / "home", mode=0o644)
        with pytest.raises(CredentialError, match=f"chmod 600 {path}"):
            open_here(double, tmp_path / "home")
        assert double.arrived == []


def test_a_network_that_is_gone_is_told_as_such(tmp_path: Path) -> None:
    with served(make_site(tmp_path / "site")) as double:
        pass
    with pytest.raises(KaggleError, match="Kaggle cannot be reached"):
        open_here(double, tmp_path / "home", KAGGLE_API_TOKEN=TOKEN)


def test_nothing_that_goes_out_or_is_kept_holds_a_secret(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in the environment, in the configuration, in what a kernel prints and in folders that are uploaded."""
    planted = "planted-secret-of-the-environment"
    monkeypatch.setenv("SOME_API_TOKEN", planted)
    world.account = open_account(
        world.project, Events(stream=io.StringIO()), kaggle=newest(), poll_s=0.05, limit_s=60,
        environment={**environment(world.double, world.home), "SOME_API_TOKEN": planted, "VERBOSE": "true"},
    )  # fmt: skip

    def talkative(session: Session) -> int:
        session.say(f"key {KEY} token {TOKEN} and {planted}")
        return int(not wait_until(lambda: any("/logs/stream/" in path for _, path, _ in world.double.arrived)))

    world.site.executor = talkative
    write_kernel(world.project / "kernels/extra", "print('well')", competition_sources=[SLUG])
    talk = [world.push("push", "extra").talk, str(world.push("logs", "extra").value), world.push("status").value]
    write_kernel(world.project / "kernels/leaky", f"print('{planted}')")
    talk.append(world.fails("push", "leaky"))
    talk.append(world.fails("upload", world.dataset(**{"sub/notes.txt": f"remember {planted}"}).name))
    talk.append(json.dumps(world.account.ledger.lines()))
    assert "  | key *** token *** and ***" in talk[0]
    assert talk[1] == "key *** token *** and ***"
    assert "Authorization" not in world.account.program.call("quota").out  # which VERBOSE would print
    kept = [
        path.read_bytes()
        for folder in ("build/push", "runs", "runs.jsonl")
        for path in files_of(world.project / folder)
    ]
    sent = [body for _, _, body in world.double.arrived] + [path.encode() for _, path, _ in world.double.arrived]
    for secret in (KEY, TOKEN, planted):
        assert not any(secret in text for text in talk)
        assert not any(secret.encode() in content for content in [*kept, *sent])


def files_of(path: Path) -> list[Path]:
    """A file, or every file below a folder."""
    return [path] if path.is_file() else [child for child in path.rglob("*") if child.is_file()]


def test_what_the_program_keeps_is_for_this_user_alone(world: World) -> None:
    """Its addresses of unfinished uploads would let others exchange files; 2.2.4 keeps them in the common /tmp."""
    world.traps.fail_blobs = {"a.txt"}
    world.fails("upload", world.dataset().name)
    folder = world.account.program.temporary
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert any(path.is_file() for path in folder.rglob("*.json"))
    assert [path for path in (world.home / "tmp").rglob("*") if path.is_file()] == []


def fake(folder: Path, text: str) -> Path:
    """A program that is not the real one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kaggle"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo 'Kaggle CLI 1.6.17'", "too old"),
        ("echo \"ModuleNotFoundError: No module named 'six'\" >&2; exit 1", "pip install kaggle six"),
    ],
)
def test_a_program_that_cannot_be_used_is_told_with_the_remedy(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises((KaggleError, MissingDependencyError), match=said):
        Program(fake(tmp_path / "bin", text), os.environ, str, tmp_path / "tmp")


def test_a_missing_program_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDependencyError, match="no such file"):
        find_program(tmp_path / "kaggle")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MissingDependencyError, match="pip install kaggle six"):
        find_program()


def test_a_program_that_hangs_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    text = 'if [ "$1" = --version ]; then echo "Kaggle CLI 2.2.5"; else sleep 600 & echo $!; wait; fi'
    started = Program(fake(tmp_path / "bin", text), os.environ, str, tmp_path / "tmp", pause_s=0.01)
    answer = started.call("hang", limit_s=0.5)
    assert answer.transient
    assert "no end after" in answer.said
    child = Path(f"/proc/{int(answer.out)}/stat")
    assert wait_until(lambda: not child.exists() or child.read_text().split()[2] == "Z")
