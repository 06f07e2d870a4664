"""What the program prints is judged by its words, the ledger keeps whole lines, and no secret gets out."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path

import pytest
from kaggle_site import KEY, TOKEN, USER

from rsna_lab.kaggle.credentials import CredentialError, Scrubber, check_permissions
from rsna_lab.kaggle.push import judge
from rsna_lab.kaggle.push.advice import KaggleError, advice_for
from rsna_lab.kaggle.push.judge import Answer
from rsna_lab.kaggle.push.ledger import Ledger, table
from rsna_lab.kaggle.push.outputs import error_page, is_plain


def answer(out: str, err: str = "", code: int = 0) -> Answer:
    return Answer(("x",), code, out, err)


GOOD = "Kernel version 3 successfully pushed.  Please check progress at https://www.kaggle.com/code/me/rsna-kit-infer\n"


def test_a_push_is_read_from_its_words() -> None:
    found = judge.pushed(answer(GOOD), "me/rsna-kit-infer")
    assert (found.reference, found.version) == ("me/rsna-kit-infer", 3)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (
            "Kernel push error: Maximum weekly GPU quota of 30.00 hours reached.",
            "This week's accelerator hours are spent",
        ),
        ("Kernel push error: Maximum batch GPU session count of 2 reached.", "two GPU sessions at a time"),
        ("Kernel push error: Notebook not found", "Kaggle knows no kernel of this id"),
        ("The following are not valid dataset sources and could not be added to the kernel: ['me/x']\n" + GOOD, "me/x"),
        ("The following are not valid kernel sources and could not be added to the kernel: ['me/y']\n" + GOOD, "me/y"),
        ("The following are not valid tags and could not be added to the kernel: ['z']\n" + GOOD, "out of `keywords`"),
        (
            "Kernel version successfully pushed.  Please check progress at https://k/code/me/rsna-kit-infer",
            "no version",
        ),
        (GOOD.replace("me/rsna-kit-infer", "me/rsna-kit-other"), "went to another address, me/rsna-kit-other"),
        ("", "no version"),
    ],
)
def test_a_push_that_only_looks_well_is_an_error(out: str, said: str) -> None:
    with pytest.raises(KaggleError) as error:
        judge.pushed(answer(out), "me/rsna-kit-infer")
    assert said in str(error.value)
    assert "What to do: " in str(error.value)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("Dataset creation error: The requested title is already in use by a dataset.", "Choose another `id`"),
        (
            "Skipping folder: kit; use '--dir-mode' to upload folders\nYour private Dataset is being created.",
            "--dir-mode",
        ),
        ("Upload unsuccessful: a.txt\nYour private Dataset is being created.", "did not arrive"),
        ("Could not submit to competition", "did not arrive"),
        ("nothing of the kind", "was not confirmed"),
    ],
)
def test_an_upload_that_only_looks_well_is_an_error(out: str, said: str) -> None:
    with pytest.raises(KaggleError, match=said):
        judge.created(answer(out), "The upload")


def test_a_status_carries_its_failure() -> None:
    out = 'a/b has status "KernelWorkerStatus.ERROR"\nFailure message: "Your notebook tried to allocate more memory"\n'
    assert judge.kernel_status(answer(out), "x") == ("ERROR", "Your notebook tried to allocate more memory")
    assert judge.kernel_status(answer('a/b has status "KernelWorkerStatus.RUNNING"'), "x") == ("RUNNING", "")


def test_lists_are_read_behind_whatever_is_printed_before_them() -> None:
    out = 'Warning: old version [2.2.4]\nNext Page Token = abc\n[\n  {"name": "a"}\n]\n'
    assert judge.rows(answer(out), "x") == ([{"name": "a"}], "abc")
    assert judge.rows(answer("No submissions found\n"), "x") == ([], "")
    with pytest.raises(KaggleError, match="not what was asked for"):
        judge.rows(answer("something else"), "x")


def test_a_complete_submission_without_a_score_is_a_failure() -> None:
    row = {"status": "SubmissionStatus.COMPLETE", "publicScore": "", "privateScore": ""}
    assert judge.submission(row).error
    details = "Submission Ref:  1\nStatus:          COMPLETE\nError:           Notebook Timeout\nPublic Score:    \n"
    assert judge.submission(row, details).error == "Notebook Timeout"
    assert not judge.submission(row | {"status": "SubmissionStatus.PENDING"}).done
    assert not judge.submission(None).done
    assert judge.submission(row | {"privateScore": "0.41"}).private == "0.41"
    assert judge.submission(row | {"status": "SubmissionStatus.ERROR"}).error


def test_sources_are_the_same_whatever_the_server_writes_around_them() -> None:
    there = ["datasets/Me/rsna-kit", "code/me/rsna-kit-train", "c/rsna-x", "me/w/Keras/v/2", "me/data/4"]
    wanted = ["me/rsna-kit", "me/rsna-kit-train", "rsna-x", "me/w/keras/v/2", "me/data"]
    assert judge.missing_sources(wanted, there) == []
    assert judge.missing_sources(["me/w/keras/v/3"], there) == ["me/w/keras/v/3"]


def test_moments_of_weakness_are_told_from_refusals() -> None:
    assert answer("", "429 Client Error: Too Many Requests", 1).transient
    assert answer("", "Max retries exceeded with url: /api", 1).transient
    assert answer("", "Permission 'datasets.get' was denied", 1).absent
    assert not answer("", "Permission 'datasets.get' was denied", 1).transient


@pytest.mark.parametrize("said", ["Notebook Timeout", "Notebook Threw Exception", "Submission CSV Not Found",
                                  "Submission Scoring Error", "Notebook Exceeded Allowed Compute", "Kaggle Error",
                                  "503 Server Error", "something new"])  # fmt: skip
def test_every_word_of_kaggle_has_an_answer(said: str) -> None:
    assert len(advice_for(said)) > 40


def test_a_log_cannot_steer_the_terminal() -> None:
    events = [{"data": "\x1b[2Jgone\n"}, {"data": " 10%\r 90%\r100%\n"}]
    assert judge.log_lines(answer(json.dumps(events)), "x") == ["[2Jgone", "100%"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../a", "a/../../b", "a/..", "a//b", "a\\b", "a\nb", "", "./a"])
def test_names_that_leave_their_folder_are_not_plain(name: str) -> None:
    assert not is_plain(name)


@pytest.mark.parametrize("name", ["submission.csv", "model/fold0/model.weights.h5", "a..b", ".hidden", "c c/ü.txt"])
def test_names_that_stay_are(name: str) -> None:
    assert is_plain(name)


def test_an_error_page_is_told_from_a_file(tmp_path: Path) -> None:
    page, table_file = tmp_path / "page", tmp_path / "table"
    page.write_text("<?xml version='1.0'?><Error><Code>ExpiredToken</Code><Message>gone</Message></Error>")
    table_file.write_text("prediction_id,cancer\n")
    assert error_page(page) == "ExpiredToken gone"
    assert error_page(table_file) == ""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with every file in which credentials may lie, readable by its owner alone."""
    folder = tmp_path / ".kaggle"
    folder.mkdir(mode=0o700)
    for name, text in (
        ("kaggle.json", json.dumps({"username": USER, "key": KEY})), ("access_token", TOKEN),
        ("credentials.json", json.dumps({"refresh_token": "refresh-0123456789", "access_token": "access-0123456789"})),
    ):  # fmt: skip
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
        f"{edge}: holds your Kaggle credentials", f"{tmp_path}/.netrc: credentials, by its name"
    ]  # fmt: skip


def test_the_ledger_only_grows_and_survives_a_killed_writer(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs.jsonl", tmp_path, lambda text: text.replace("secret", "***"))
    ledger.add("upload", dataset="me/a", version=1)
    with open(ledger.path, "a") as file:
        file.write('{"kind": "upl')
    before = ledger.path.read_bytes()
    ledger.add("upload", dataset="me/a", version=2, note="secret")
    assert ledger.path.read_bytes().startswith(before)
    assert [line["version"] for line in ledger.lines()] == [1, 2]
    assert ledger.last("upload", dataset="me/a") == ledger.lines()[1]
    assert ledger.last("upload", dataset="me/b") is None
    assert "secret" not in ledger.path.read_text()


def test_many_writers_do_not_mix_their_lines(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs.jsonl", tmp_path, str)
    threads = [threading.Thread(target=ledger.add, args=("push",), kwargs={"number": n}) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["number"] for line in ledger.lines()) == list(range(8))


def test_the_table_says_what_each_line_is_about() -> None:
    common = {"at": "2026-11-22T01:02:03Z", "commit": "0123456789", "dirty": True}
    lines = [
        {**common, "kind": "push", "kernel": "me/k", "version": 2, "inputs": {"me/a": 3}},
        {**common, "kind": "run", "kernel": "me/k", "version": 2, "status": "COMPLETE", "seconds": 725, "failure": ""},
        {**common, "kind": "score", "submission": 7, "public": "0.41", "private": "0.43", "error": ""},
        {**common, "kind": "score", "submission": 8, "public": "", "private": "", "error": "Notebook Timeout"},
    ]
    text = table(lines).splitlines()
    assert "01234567*" in text[1]
    assert text[1].endswith("me/a v3")
    assert text[2].endswith("COMPLETE in 12:05")
    assert text[3].endswith("submission 7: public 0.41, private 0.43")
    assert text[4].endswith("Notebook Timeout")
    assert table([]) == "Nothing was pushed from here yet."
