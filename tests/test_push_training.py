"""A training that the clock stopped: the steps end there, and the same command goes on from what the training left."""

from __future__ import annotations

import json
from typing import Any

from kaggle_site import USER, Session
from push_world import World, write_kernel

NAME = f"{USER}/rsna-kit-train"
OWN = f"notebooks/{NAME}"
# One fold a session: the second is done where the output of the first session is attached.
SLOW = """
SETTINGS = {"PRESET": "default", "FOLDS": ""}
earlier = inputs / "notebooks/tester/rsna-kit-train/bundles/weights"
(working / "bundles").mkdir()
(working / "bundles/weights").write_text("0.75" if earlier.is_file() else "0.25")
left = [] if earlier.is_file() else [1]
reason = f"stopped by the clock: folds {left} are not done" if left else ""
verdict(reason=reason, counts={"stopped_by_clock": [], "skipped": left})
"""
PREPARED = [word for step in ("build", "upload", "prepare", "submit") for word in ("--skip", step)]


def slow_training(world: World) -> None:
    """What is before train is done, and train needs two sessions."""
    world.has_dataset("rsna-kit")
    world.has_kernel("prepare", "print('prepared')\nverdict()", dataset_sources=["OWNER/rsna-kit"])
    write_kernel(
        world.project / "kernels/train",
        SLOW,
        dataset_sources=["OWNER/rsna-kit"],
        kernel_sources=["OWNER/rsna-kit-prepare"],
    )


def versions(world: World, name: str = "train") -> list[Session]:
    return world.site.versions_of(f"{USER}/rsna-kit-{name}")


def test_the_same_command_goes_on_where_the_clock_stopped_the_training(world: World) -> None:
    world = world
    slow_training(world)
    talk = world.fails("all", *PREPARED)
    assert "version 1 was stopped by the clock: folds 1 are not done" in talk
    assert "Run the same command again" in talk
    assert (len(versions(world)), versions(world, "infer")) == (1, [])
    assert f"{USER}/rsna-weights" not in world.site.datasets
    result = world.push("all", *PREPARED)
    assert result.code == 0, result.talk
    assert "going on from version 1, folds 1 are left" in result.talk
    assert [OWN in version.sources for version in versions(world)] == [False, True]
    assert (world.site.datasets[f"{USER}/rsna-weights"].versions[0] / "bundles/weights").read_text() == "0.75"
    assert result.value["train"] == 2
    world.site.calls.clear()
    assert world.push("all", *PREPARED).value == result.value
    assert world.site.sent("save_kernel") == []


def test_the_folds_that_are_there_can_be_enough(world: World) -> None:
    slow_training(world)
    world.fails("all", *PREPARED)
    assert "folds 1 are not done" in world.fails("all", *PREPARED, "--skip", "train")
    result = world.push("all", *PREPARED, "--partial")
    assert result.code == 0, result.talk
    assert (len(versions(world)), result.value["train"]) == (1, 1)
    assert (versions(world, "infer")[0].working / "submission.csv").read_text().splitlines()[1] == "0_L,0.25"


def test_a_training_alone_goes_on_and_begins_anew_when_told(world: World) -> None:
    slow_training(world)
    assert "folds 1 are not done" in world.fails("push", "train")
    plan = world.push("push", "train", "--dry-run").value
    assert json.loads(plan.splitlines()[-1])["kernel_sources"] == [f"{USER}/rsna-kit-prepare", NAME]
    assert world.push("push", "train").value["version"] == 2
    assert world.push("push", "train").value["version"] == 2
    world.fails("push", "train", "--again")
    assert [OWN in version.sources for version in versions(world)] == [False, True, False]


def test_what_has_other_settings_is_another_training(world: World) -> None:
    slow_training(world)
    world.fails("push", "train")
    world.fails("push", "train", "--settings", "PRESET=smoke")
    assert [OWN in version.sources for version in versions(world)] == [False, False]
    # The output of the first is not the newest any more, and cannot be attached: it begins anew instead of not at all.
    world.fails("push", "train")
    assert [OWN in version.sources for version in versions(world)] == [False, False, False]
    assert world.push("push", "train").value["version"] == 4
    assert OWN in versions(world)[-1].sources


def test_a_session_that_went_on_and_failed_is_made_again(world: World) -> None:
    slow_training(world)
    world.fails("push", "train")
    run = world.site.executor

    def broken(session: Session) -> int:
        session.failure = "Kaggle had a bad day"
        return 1

    world.site.executor = broken
    assert "Kaggle had a bad day" in world.fails("push", "train")
    world.site.executor = run
    done: dict[str, Any] = world.push("push", "train").value
    assert done["version"] == 3
    assert OWN in versions(world)[-1].sources


def test_a_lost_ledger_does_not_begin_the_training_anew(world: World) -> None:
    slow_training(world)
    world.fails("push", "train")
    world.ledger.path.unlink()
    assert "folds 1 are not done" in world.fails("push", "train")
    assert len(versions(world)) == 1
    assert world.does("push", "train").value["version"] == 2
    world.ledger.path.unlink()
    assert world.does("push", "train").value["version"] == 2
    assert len(versions(world)) == 2
