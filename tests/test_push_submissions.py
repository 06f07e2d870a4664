"""Submissions through the real `kaggle` program: only a score is success."""

from __future__ import annotations

from typing import Any

import pytest
from kaggle_site import SLUG, USER, Refused
from push_world import World

NAME = f"{USER}/rsna-kit-infer"
TEXT = """
import os, pathlib, sys
working = pathlib.Path(os.environ["RSNA_KIT_WORKING"])
if os.environ.get("KAGGLE_IS_COMPETITION_RERUN"):
    HIDDEN
(working / "submission.csv").write_text("prediction_id,cancer\\n0_L,0.5\\n")
"""


def has_run(world: World, rerun: str = "pass", **changes: Any) -> None:
    """A complete version of infer; `rerun` is what it does in the scoring run alone."""
    world.has_kernel("infer", TEXT.replace("HIDDEN", rerun), **{"competition_sources": [SLUG], **changes})


def test_a_submission_is_scored_once_and_found_again(each_world: World) -> None:
    """The older program does not say the submission's number: it is found by its description, even without a ledger."""
    has_run(each_world)
    result = each_world.push("submit")
    assert result.value == {"submission": 1000, "public": "0.1", "private": "0.1"}, result.talk
    assert [line["kind"] for line in each_world.account.ledger.lines()] == ["push", "submit", "score"]
    if each_world.account.program.precise:
        assert each_world.push("submit", "--again").value["submission"] == 1001
        return
    lines = each_world.account.ledger.path.read_text().splitlines()
    each_world.account.ledger.path.write_text(f"{lines[0]}\n")
    assert "is submission 1000 already" in each_world.push("submit").talk
    assert "0.1" in each_world.push("scores").value
    assert [call["kernelVersion"] for call in each_world.double.calls("CreateCodeSubmission")] == [1]


def test_a_rerun_that_failed_is_an_error_although_it_is_complete(each_world: World) -> None:
    """Kaggle says COMPLETE with an empty score; the older program cannot say why."""
    has_run(each_world, "sys.exit(1)")
    talk = each_world.fails("submit")
    assert "Submission 1000 has no score." in talk
    assert "scripts/rehearse" in talk
    precise = each_world.account.program.precise
    assert ("exited with code 1" in talk) == precise
    assert ("kaggle 2.2.5 can read it" in talk) != precise
    scored = each_world.account.ledger.last("score", submission=1000)
    assert scored is not None
    assert (scored["public"], bool(scored["error"])) == ("", True)


def test_a_submission_that_cannot_be_scored_is_an_error(world: World) -> None:
    def refuse(path: object) -> str:
        raise ValueError

    world.site.scorer = refuse
    has_run(world)
    assert "Rows or columns were not those of the hidden sample_submission.csv" in world.fails("submit")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enable_internet": True}, "has the internet on: Kaggle does not score it"),
        ({"competition_sources": []}, "does not have the competition attached"),
    ],
)
def test_what_kaggle_would_not_score_is_not_submitted(world: World, changes: dict[str, Any], said: str) -> None:
    has_run(world, **changes)
    assert said in world.fails("submit")
    assert world.double.calls("CreateCodeSubmission") == []


def test_a_kernel_that_was_not_pushed_from_here_needs_a_version(world: World) -> None:
    result = world.push("submit")
    assert (result.code, world.double.arrived) == (2, [])
    assert "--version N" in result.talk


def test_a_version_without_the_file_is_not_submitted(world: World) -> None:
    has_run(world)
    talk = world.fails("submit", "--file", "other.csv")
    assert "left no other.csv" in talk
    assert "its files: submission.csv" in talk


def test_the_days_limit_is_looked_at_first(world: World) -> None:
    has_run(world)
    world.site.allowed_submissions = 1
    world.site.submissions.append(
        {"ref": 1, "status": "COMPLETE", "publicScore": "0.2", "date": "2026-11-21T00:00:00Z"}
    )
    assert "No submission is left today, 1 were made." in world.fails("submit")


def test_a_competition_that_is_not_there_is_an_error(world: World) -> None:
    has_run(world)
    world.traps.refuse["CreateCodeSubmission"] = [Refused(404, "Not found")]
    assert "accept its rules in the browser" in world.fails("submit")
