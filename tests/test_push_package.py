"""The few things that only the real `kaggle` package, over HTTP, can prove: shapes of answers, errors, credentials."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kaggle_double import Double, environment, program, served, write_keys
from kaggle_site import BASE, KEY, SLUG, TOKEN, USER, Kernel, Refused, Session
from push_world import make_site, run_script, write_project

from rsna_kit.runtime.errors import MissingDependencyError
from rsna_kit.runtime.events import Events
from rsna_lab.kaggle.push.account import Account, open_account
from rsna_lab.kaggle.push.api import Client, find_python
from rsna_lab.kaggle.push.errors import KaggleError, RefusedError, UnreachableError

EXPIRED = "KGAT_ffffffffffffffffffffffffffffffff"


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    program()
    with served(make_site(tmp_path / "site")) as made:
        yield made


def account_of(double: Double, home: Path, **variables: str) -> Account:
    surroundings = {**environment(double, home), **variables}
    return open_account(home, Events(stream=io.StringIO()), None, program(), surroundings, poll_s=0.05)


def test_from_a_checkout_to_a_score_and_nothing_twice(tmp_path: Path, double: Double) -> None:
    project, home = write_project(tmp_path / "project"), tmp_path / "home"
    done = run_script(project, double, home, "all", KAGGLE_NOISE="1", VERBOSE="1")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["public"] == "0.5"
    assert "GPU quota: 27.5 of 30.0 hours left" in done.stderr  # kagglesdk's own JSON would say 3.5 of 6
    double.site.calls.clear()
    again = run_script(project, double, home, "all")
    assert (again.returncode, json.loads(again.stdout)) == (0, value), again.stderr
    assert double.site.changes == []
    kept = [path for path in [*project.rglob("*"), *(tmp_path / "site").rglob("*")] if path.is_file()]
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]
    assert KEY not in done.stdout + done.stderr + again.stderr


def test_no_credentials_and_dead_ones_end_with_the_way_to_new_ones(tmp_path: Path, double: Double) -> None:
    with pytest.raises(KaggleError, match=r"No credentials were found(.|\n)*https://www\.kaggle\.com/settings"):
        account_of(double, tmp_path / "none")
    write_keys(tmp_path / "keys", key="f" * 32)
    with pytest.raises(RefusedError, match=r"does not take the credentials(.|\n)*Make new ones"):
        account_of(double, tmp_path / "keys").kaggle.ask(
            "kernels/get_kernel", userName=USER, kernelSlug="rsna-kit-infer"
        )
    said = r"KAGGLE_API_TOKEN is one that Kaggle does not take(.|\n)*Put a new token"
    with pytest.raises(KaggleError, match=said) as dead:
        account_of(double, tmp_path / "keys", KAGGLE_API_TOKEN=EXPIRED)
    assert "wrong kernel slug" not in str(dead.value)
    assert EXPIRED not in str(dead.value)
    hiccup = [Refused(503, "Service Unavailable")] * 2
    double.site.traps.refuse["introspect_token"] = hiccup  # that costs no token
    assert account_of(double, tmp_path / "token", KAGGLE_API_TOKEN=TOKEN).owner == USER


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (Refused(503, "Backend is on fire"), "Backend is on fire"),
        (Refused(0, "We are doing maintenance", "garbled"), "We are doing maintenance"),
        (Refused(0, "", "network"), "Kaggle cannot be reached"),
    ],
)
def test_what_passes_is_asked_again_and_ends_with_kaggles_words(
    tmp_path: Path, double: Double, refused: Refused, said: str
) -> None:
    write_keys(tmp_path / "keys")
    account = account_of(double, tmp_path / "keys")
    double.site.traps.refuse["list_submissions"] = [refused] * 2
    assert account.kaggle.ask("competitions/list_submissions", competitionName=SLUG)["submissions"] == []
    double.site.traps.refuse["list_submissions"] = [refused] * 5
    with pytest.raises(UnreachableError, match=said):
        account.kaggle.ask("competitions/list_submissions", competitionName=SLUG)


def test_files_go_and_come_and_their_addresses_are_not_told(tmp_path: Path, double: Double) -> None:
    write_keys(tmp_path / "keys")
    account = account_of(double, tmp_path / "keys")
    (tmp_path / "file").write_bytes(bytes(range(256)) * 12_000)
    events: list[dict[str, Any]] = []
    token = account.kaggle.upload(tmp_path / "file", events.append, 1e6)
    assert double.site.blobs[token] == ("file", (tmp_path / "file").read_bytes())
    assert events
    assert all("bytes" in event for event in events)
    double.site.traps.refuse["put"] = [Refused(0, "reset", "network"), Refused(403, "expired")]
    with pytest.raises(KaggleError, match="The upload of file broke off") as error:
        account.kaggle.upload(tmp_path / "file", events.append, 1e6)
    assert "signature" not in str(error.value)
    double.site.kernels["a/b"] = Kernel("x", [Session("", {}, {}, tmp_path)])
    address = f"{BASE}/output/a/b/1/file"
    account.kaggle.download({address: tmp_path / "came"}, events.append, 60)
    assert (tmp_path / "came").read_bytes() == (tmp_path / "file").read_bytes()
    with pytest.raises(KaggleError, match=r"failed here, not at Kaggle(.|\n)*Make room") as full:
        account.kaggle.download({address: Path("/dev/full")}, events.append, 60)
    assert "network" not in str(full.value)
    talk = account.events.stream.getvalue()  # type: ignore[attr-defined]
    assert "file did not arrive; try 2 of 5" in talk
    assert "signature" not in talk


def test_a_call_that_hangs_is_stopped_and_said(tmp_path: Path, double: Double) -> None:
    write_keys(tmp_path / "keys")
    client = Client(find_python(program()), environment(double, tmp_path / "keys"), str, tmp_path / "tmp")
    with double.site.lock:  # the site does not answer
        began = time.monotonic()
        reply = client({"call": "kernels/list_kernels", "body": {}}, 3.0)
    assert reply == {"error": {"kind": "network", "text": "no answer within 3 seconds"}}
    assert time.monotonic() - began >= 3.0


def fake_program(folder: Path, version: str, text: str) -> Path:
    """A Python with a kaggle package of one's own, and a program that says which Python that is."""
    packages = folder / "packages"
    (packages / "kaggle").mkdir(parents=True)
    (packages / "kaggle/__init__.py").write_text(text)
    for name in ("kaggle", "kagglesdk"):
        (packages / f"{name}-{version}.dist-info").mkdir()
        (packages / f"{name}-{version}.dist-info/METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}" exec "{find_python(program())}" "$@"\n')
    (folder / "kaggle").write_text(f"#!{python}\nprint('Kaggle API {version}')\n")
    for path in (python, folder / "kaggle"):
        path.chmod(0o755)
    return folder / "kaggle"


def test_a_package_that_is_old_broken_or_would_leave_something_out_is_called_that(
    tmp_path: Path, double: Double
) -> None:
    surroundings = environment(double, tmp_path / "home")
    for version, text, said in (
        ("1.7.4", "raise SystemExit(1)", r"kaggle 1\.7\.4 is too old, 2\.2\.5 is needed(.|\n)*kaggle==2\.2\.5"),
        ("2.2.5", "import nosuchmodule", r"No module named 'nosuchmodule'(.|\n)*kagglesdk==0\.1\.38 six"),
    ):
        path = fake_program(tmp_path / version, version, text)
        with pytest.raises(MissingDependencyError, match=said):
            open_account(tmp_path, Events(stream=io.StringIO()), None, path, surroundings, poll_s=0.01)
    with pytest.raises(MissingDependencyError, match="no such file"):
        find_python(tmp_path / "nothing")
    write_keys(tmp_path / "keys")
    with pytest.raises(MissingDependencyError, match=r"has no isSecret(.|\n)*kagglesdk==0\.1\.38"):
        account_of(double, tmp_path / "keys").kaggle.ask("kernels/save_kernel", slug="a/b", isSecret=True)


def test_a_plan_needs_neither_account_nor_network(tmp_path: Path, double: Double) -> None:
    project, nowhere = write_project(tmp_path / "project"), {"KAGGLE_CONFIG_DIR": str(tmp_path / "nowhere")}
    done = run_script(project, double, tmp_path / "home", "all", "--dry-run", HOME=str(tmp_path / "nowhere"), **nowhere)
    assert done.returncode == 0, done.stderr
    assert "Kaggle is not asked, and what is there is unknown. No credentials were found" in done.stderr
    assert '"id": "OWNER/rsna-kit-infer"' in done.stdout
    assert "rsna_kit/deep/module.py" in done.stdout
    double.server_close()
    done = run_script(project, double, tmp_path / "home", "all", "--dry-run")
    assert (done.returncode, done.stdout.count("whether it is on Kaggle already is unknown")) == (0, 1), done.stderr
    assert double.site.changes == []


def test_a_log_is_heard_line_by_line(tmp_path: Path, double: Double) -> None:
    write_keys(tmp_path / "keys")
    session = Session("", {}, {}, tmp_path)
    session.say("one")
    session.say("two \N{SNOWMAN}")
    double.site.kernels[f"{USER}/rsna-kit-train"] = Kernel("train", [session])
    events: list[dict[str, Any]] = []
    account_of(double, tmp_path / "keys").kaggle.log(f"{USER}/rsna-kit-train/1", events.append, threading.Event())
    assert events == [{"log": "one\n"}, {"log": "two \N{SNOWMAN}\n"}]
