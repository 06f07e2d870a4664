"""What kernels leave: whole, compared with their verdict, never outside its folder; and what is submitted of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from kaggle_site import SLUG, USER, Kernel, Refused, Session
from push_world import World

NAME = f"{USER}/rsna-kit-extra"
METADATA = {"slug": f"{USER}/elsewhere", "language": "python", "kernelType": "script"}


def has_run(world: World, verdict: str | dict[str, object] | None = None, **files: str) -> Path:
    """A complete run of a kernel with these outputs and a verdict; returns where its output comes to lie here."""
    files = files or {"submission.csv": "prediction_id,cancer\n0_L,0.5\n", "model/fold0/config.json": "{}"}
    if verdict is None:
        verdict = {"ok": True, "sha256": {name: sha256(text) for name, text in files.items()}}
    if verdict:
        files["verdict.json"] = verdict if isinstance(verdict, str) else json.dumps(verdict)
    text = (
        f"for name, text in {files!r}.items():\n"
        "    (working / name).parent.mkdir(parents=True, exist_ok=True)\n"
        "    (working / name).write_text(text)\n"
    )
    world.has_kernel("extra", text)
    return world.project / "runs/kaggle/rsna-kit-extra/v1"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_outputs_are_fetched_whole_and_noted(world: World) -> None:
    out = has_run(world, {"ok": True, "sha256": {"a.txt": sha256("alpha")}}, **{"a.txt": "alpha", "b/c.txt": "beta"})
    result = world.push("fetch", "extra")
    assert (out / "b/c.txt").read_text() == "beta"
    assert result.value["sha256"]["a.txt"] == sha256("alpha")
    line = world.ledger.last("fetch", kernel=NAME)
    assert line["sha256"] == result.value["sha256"]
    assert "already" in world.push("fetch", "extra").talk
    (out / "a.txt").write_text("changed here")
    world.push("fetch", "extra")
    assert (out / "a.txt").read_text() == "alpha"


def test_only_some_files_can_be_fetched_and_others_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    out = has_run(world)
    monkeypatch.chdir(world.project)
    assert world.push("fetch", "extra", "--only", r"\.csv$", "--out", "some").code == 0
    assert files_in(world.project / "some") == ["submission.csv"]
    assert world.push("fetch", "extra", "--out", "some").code == 2  # nothing of the person's is replaced
    assert world.push("fetch", "extra", "--only", "(").code == 2
    world.does("fetch", "extra")
    (out / "notes.md").write_text("mine")
    (out / "submission.csv").unlink()
    world.does("fetch", "extra", "--only", "fold0/")
    world.does("fetch", "extra", "--only", "csv$")
    assert files_in(out) == ["model/fold0/config.json", "notes.md", "submission.csv", "verdict.json"]
    result = world.push("fetch", "extra", "--only", "zzz")
    assert result.code == 2
    assert "matches none of what tester/rsna-kit-extra left: model/fold0/config.json, submission.csv" in result.talk
    assert (out / "notes.md").read_text() == "mine"


def test_a_kernel_that_was_pushed_from_elsewhere_is_fetched_by_the_number_that_kaggle_says(world: World) -> None:
    has_run(world, "")
    working = world.site.kernels.pop(NAME).versions[0].working
    old = Session("", {}, {}, working.parent)
    world.site.kernels[f"{USER}/elsewhere"] = Kernel("x", [old, Session("", METADATA, {}, working)])
    assert "has no verdict.json" in world.does("fetch", f"{USER}/elsewhere").talk
    assert files_in(world.project / "runs/kaggle/elsewhere/v2") == ["model/fold0/config.json", "submission.csv"]


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_link_that_has_expired_is_an_error_and_a_line_that_breaks_is_taken_up(world: World) -> None:
    out = has_run(world)
    world.traps.refuse["get"] = [Refused(403, "The provided token has expired.")]
    talk = world.fails("fetch", "extra")
    assert "token has expired" in talk
    assert "Run the same command again" in talk
    assert not out.exists()
    world.traps.refuse["get"] = [Refused(0, "reset", "network")]
    assert "A file did not come; try 2 of 5 in 0 s (reset)" in world.does("fetch", "extra").talk
    assert len(files_in(out)) == 3


def test_a_file_that_wants_out_is_refused(world: World) -> None:
    victim = world.project / "victim.txt"
    has_run(world)
    for name in ("../victim.txt", str(victim), "a/../../victim.txt", "a\\b"):
        world.traps.output_names = {"submission.csv": name}
        assert "would be written outside its folder" in world.fails("fetch", "extra")
    assert not victim.exists()


@pytest.mark.parametrize("verdict", ["{'ok': true}", "", "[]", '{"ok": true}', '{"ok": "yes", "sha256": {}}', "\0" * 9])
def test_without_a_whole_verdict_nothing_is_taken(world: World, verdict: str) -> None:
    out = has_run(world, verdict)
    for words in (("fetch", "extra"), ("fetch", "extra", "--only", "csv$"), ("submit", "extra")):
        talk = world.fails(*words)
        if words[0] == "fetch":
            assert "left no verdict.json that can be read, so nothing of it is taken" in talk
            assert "--again" in talk
    assert not out.exists()
    assert world.site.submissions == []


def test_a_file_that_was_cut_short_or_exchanged_is_an_error(world: World) -> None:
    out = has_run(world)
    world.traps.truncate_output = {"submission.csv"}
    for words in (["fetch", "extra"], ["fetch", "extra", "--only", "csv$"]):
        assert "submission.csv is not what the kernel wrote" in world.fails(*words)
    assert not out.exists()
    assert list(out.parent.iterdir()) == []


def test_a_file_that_the_kernel_noted_and_nobody_lists_is_missed(world: World) -> None:
    has_run(world, {"ok": True, "sha256": {"bundles/weights": sha256("x")}}, **{"a.txt": "alpha"})
    assert "bundles/weights did not come" in world.fails("fetch", "extra")
    assert world.push("fetch", "extra", "--only", "a.txt").code == 0


def test_a_run_that_says_itself_that_it_failed_is_believed(world: World) -> None:
    has_run(world, {"ok": False, "reason": "fold 1 has no cancer", "sha256": {}})
    talk = world.fails("fetch", "extra")
    assert "fold 1 has no cancer" in talk
    assert "--again" in talk


def test_more_files_than_a_page_holds_are_all_fetched(world: World) -> None:
    out = has_run(world, **{f"f{n:03}.txt": str(n) for n in range(205)})
    assert world.push("fetch", "extra").code == 0
    assert len(list(out.iterdir())) == 206


# ---- submissions: one is spent only after a look at what is there, and only a score is success

INFER = f"{USER}/rsna-kit-infer"
TEXT = """
import sys
if os.environ.get("KAGGLE_IS_COMPETITION_RERUN"):
    HIDDEN
(working / "submission.csv").write_text("prediction_id,cancer\\n0_L,0.5\\n")
verdict(VERDICT)
"""


def has_infer(world: World, rerun: str = "pass", verdict: str = "", **changes: Any) -> None:
    """A complete version of infer; `rerun` is what it does in the scoring run alone."""
    text = TEXT.replace("HIDDEN", rerun).replace("VERDICT", verdict)
    world.has_kernel("infer", text, **{"competition_sources": [SLUG], **changes})


def made(world: World) -> int:
    """How many submissions were spent."""
    return len(world.site.submissions)


def test_a_submission_is_scored_once_and_found_again(world: World) -> None:
    has_infer(world)
    result = world.does("submit")
    assert result.value == {"submission": 1000, "public": "0.1", "private": "0.1"}
    assert [line["kind"] for line in world.ledger.lines()][-2:] == ["submit", "score"]
    assert world.does("submit").value == result.value
    world.ledger.path.unlink()
    assert "is submission 1000 already" in world.does("submit", "--version", "1").talk
    assert made(world) == 1
    assert world.does("submit", "--version", "1", "--again").value["submission"] == 1001


@pytest.mark.parametrize(
    "lost", [Refused(500, "Oops"), Refused(0, "", "network"), Refused(0, "x", "garbled")], ids=lambda error: error.kind
)
def test_a_submission_whose_answer_was_lost_is_not_spent_twice(world: World, lost: Refused) -> None:
    has_infer(world)
    world.traps.refuse["create_code_submission"] = [Refused(503, "The database is asleep")]
    assert "Kaggle says: The database is asleep" in world.fails("submit")
    for more, number in (([], 1000), ([], 1000), (["--again"], 1001)):
        world.traps.lose["create_code_submission"] = [lost]
        world.traps.refuse["list_submissions"] = [Refused(503, "Busy"), Refused(0, "<p>", "garbled")]
        result = world.does("submit", *more)
        assert result.value["submission"] == number
        assert "Kaggle does not answer; try 3 of 5" in result.talk
    assert made(world) == 2


def test_a_rerun_that_failed_is_an_error_although_it_is_complete(world: World) -> None:
    has_infer(world, "sys.exit(1)")
    for _ in range(2):
        talk = world.fails("submit")
        assert "Submission 1000 has no score." in talk
        assert "exited with code 1" in talk
        assert "scripts/rehearse" in talk
        assert "scripts/push submit --again" in talk
        assert "same command again" not in talk
    assert (world.ledger.last("score")["public"], made(world)) == ("", 1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Notebook Timeout", "TIME_LIMIT"),
        ("Notebook Exceeded Allowed Compute", "smaller batches"),
        ("Submission CSV Not Found", "left no file of that name"),
        ("Submission Scoring Error", "hidden sample_submission.csv"),
        ("Notebook Threw Exception", "A scoring run shows no log"),
        ("", "without a reason"),
    ],
)
def test_every_verdict_of_a_scoring_run_has_its_advice(world: World, error: str, said: str) -> None:
    has_infer(world)
    world.does("submit")
    world.site.submissions[0] |= {"publicScore": "", "privateScore": "", "errorDescription": error}
    assert said in world.fails("submit")


def test_rules_that_are_not_accepted_are_called_that_and_no_other_refusal_is(world: World) -> None:
    has_infer(world)
    world.traps.not_joined = True
    assert "Accept the competition's rules" in world.fails("submit")
    world.traps.not_joined = False
    for status, said in ((403, "lack rights"), (401, "Make new ones"), (404, "Check the name")):
        world.traps.refuse["create_code_submission"] = [Refused(status, "No")]
        talk = world.fails("submit")
        assert said in talk
        assert "rules" not in talk
    assert made(world) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enable_internet": True}, "has the internet on: Kaggle does not score it"),
        ({"competition_sources": []}, "does not have the competition attached"),
        ({"verdict": "False, 'no GPU'"}, "says itself that it failed.\n  Kaggle says: no GPU"),
    ],
)
def test_what_kaggle_would_not_score_is_not_submitted(world: World, changes: dict[str, Any], said: str) -> None:
    has_infer(world, **changes)
    assert said in world.fails("submit")
    assert made(world) == 0


def test_what_cannot_be_submitted_is_not(world: World) -> None:
    result = world.push("submit")
    assert (result.code, world.site.changes) == (2, [])
    assert "--version N" in result.talk
    has_infer(world)
    assert "left no other.csv; its files: submission.csv" in world.fails("submit", "--file", "other.csv")
    world.site.kernels[INFER].versions[0].status = "RUNNING"
    assert "is RUNNING, and only a complete version can be submitted" in world.fails("submit")
    world.site.kernels[INFER].versions[0].status = "COMPLETE"
    world.site.allowed_submissions = 1
    world.site.submissions.append({"ref": 1, "status": "COMPLETE", "publicScore": "0.2"})
    assert "No submission is left today, 1 were made." in world.fails("submit")
    assert made(world) == 1
