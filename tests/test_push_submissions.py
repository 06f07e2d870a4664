"""Submissions: one is spent only after a look at what is there, and only a score is success."""

from __future__ import annotations

from typing import Any

import pytest
from kaggle_site import SLUG, USER, Refused
from push_world import World

NAME = f"{USER}/rsna-kit-infer"
TEXT = """
import sys
if os.environ.get("KAGGLE_IS_COMPETITION_RERUN"):
    HIDDEN
(working / "submission.csv").write_text("prediction_id,cancer\\n0_L,0.5\\n")
verdict(VERDICT)
"""


def has_run(world: World, rerun: str = "pass", verdict: str = "", **changes: Any) -> None:
    """A complete version of infer; `rerun` is what it does in the scoring run alone."""
    text = TEXT.replace("HIDDEN", rerun).replace("VERDICT", verdict)
    world.has_kernel("infer", text, **{"competition_sources": [SLUG], **changes})


def made(world: World) -> int:
    """How many submissions were spent."""
    return len(world.site.submissions)


def test_a_submission_is_scored_once_and_found_again(world: World) -> None:
    has_run(world)
    result = world.does("submit")
    assert result.value == {"submission": 1000, "public": "0.1", "private": "0.1"}
    kinds = [line["kind"] for line in world.ledger.lines()]
    assert (kinds[0], kinds[-2:]) == ("push", ["submit", "score"])
    assert world.does("submit").value == result.value
    world.ledger.path.unlink()
    assert "is submission 1000 already" in world.does("submit", "--version", "1").talk
    assert made(world) == 1
    assert world.does("submit", "--version", "1", "--again").value["submission"] == 1001


@pytest.mark.parametrize(
    "lost", [Refused(500, "Oops"), Refused(0, "", "network"), Refused(0, "x", "garbled")], ids=lambda error: error.kind
)
def test_a_submission_whose_answer_was_lost_is_not_spent_twice(world: World, lost: Refused) -> None:
    has_run(world)
    world.traps.lose["create_code_submission"] = [lost]
    assert world.does("submit").value["submission"] == 1000
    assert world.does("submit").value["submission"] == 1000
    assert made(world) == 1
    world.traps.lose["create_code_submission"] = [lost]
    assert world.does("submit", "--again").value["submission"] == 1001
    assert made(world) == 2


def test_a_submission_that_never_arrived_ends_with_kaggles_words(world: World) -> None:
    has_run(world)
    world.traps.refuse["create_code_submission"] = [Refused(503, "The database is asleep")]
    assert "Kaggle says: The database is asleep" in world.fails("submit")
    assert world.does("submit").value["submission"] == 1000


def test_one_hiccup_does_not_end_the_wait_for_a_score(world: World) -> None:
    has_run(world)
    world.traps.refuse["list_submissions"] = [Refused(503, "Busy"), Refused(0, "<p>", "garbled")]
    assert "Kaggle does not answer; try 3 of 5" in world.does("submit").talk


def test_a_rerun_that_failed_is_an_error_although_it_is_complete(world: World) -> None:
    has_run(world, "sys.exit(1)")
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
    has_run(world)
    world.does("submit")
    world.site.submissions[0] |= {"publicScore": "", "privateScore": "", "errorDescription": error}
    assert said in world.fails("submit")


def test_rules_that_are_not_accepted_are_called_that_and_no_other_refusal_is(world: World) -> None:
    has_run(world)
    world.traps.not_joined = True
    assert "Accept the competition's rules" in world.fails("submit")
    world.traps.not_joined = False
    for status, said in ((403, "lack rights"), (401, "Make new ones"), (404, "Check the name")):
        world.traps.refuse["create_code_submission"] = [Refused(status, "No")]
        talk = world.fails("submit")
        assert said in talk
        assert "rules" not in talk
    assert made(world) == 0


def test_a_version_that_says_itself_that_it_failed_is_not_submitted(world: World) -> None:
    has_run(world, verdict="False, 'no GPU'")
    talk = world.fails("submit")
    assert "says itself that it failed" in talk
    assert "no GPU" in talk
    assert made(world) == 0


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
    assert made(world) == 0


def test_what_cannot_be_submitted_is_not(world: World) -> None:
    result = world.push("submit")
    assert (result.code, world.site.changes) == (2, [])
    assert "--version N" in result.talk
    has_run(world)
    assert "left no other.csv; its files: submission.csv" in world.fails("submit", "--file", "other.csv")
    world.site.kernels[NAME].versions[0].status = "RUNNING"
    assert "is RUNNING, and only a complete version can be submitted" in world.fails("submit")
    world.site.kernels[NAME].versions[0].status = "COMPLETE"
    world.site.allowed_submissions = 1
    world.site.submissions.append({"ref": 1, "status": "COMPLETE", "publicScore": "0.2"})
    assert "No submission is left today, 1 were made." in world.fails("submit")
    assert made(world) == 1
