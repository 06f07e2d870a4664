"""Datasets: whole, ready, private, once, or an error that says what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from kaggle_site import USER, Refused
from push_world import World

NAME = f"{USER}/rsna-extra"
BUSY = Refused(429, "Too Many Requests", retry_after="0")
LOST = [Refused(504, "Gateway Timeout"), Refused(0, "no answer within 60 seconds", "network")]


def test_a_dataset_is_made_with_its_folders_and_waited_for(world: World) -> None:
    folder = world.dataset()
    world.traps.processing_polls = 3
    assert world.does("upload", "rsna-extra").value == {"dataset": "rsna-extra", "version": 1}
    stored = world.site.datasets[NAME]
    assert stored.private
    assert (stored.versions[0] / "sub/b.txt").read_text() == "beta"
    assert json.loads((folder / "dataset-metadata.json").read_text())["id"].startswith("OWNER/")
    line = world.ledger.last("upload", dataset=NAME)
    assert (line["version"], line["state"]) == (1, "ready")


def test_the_same_files_are_not_sent_twice_and_other_files_are(world: World) -> None:
    folder = world.dataset()
    world.does("upload", "rsna-extra")
    assert world.does("upload", "rsna-extra").value["version"] == 1
    world.ledger.path.unlink()
    result = world.does("upload", "rsna-extra")
    assert result.value["version"] == 1
    assert "is there already, with the same files" in result.talk
    assert len(world.site.datasets[NAME].versions) == 1
    (folder / "a.txt").write_text("gamma")  # as long as before: size and name alone would not tell
    assert world.does("upload", "rsna-extra").value["version"] == 2
    assert (world.site.datasets[NAME].versions[1] / "a.txt").read_text() == "gamma"
    (folder / "a.txt").write_text("alpha")
    assert world.does("upload", "rsna-extra").value["version"] == 3


@pytest.mark.parametrize("method", ["create_dataset", "create_dataset_version"])
@pytest.mark.parametrize("lost", LOST, ids=lambda refused: refused.kind)
def test_an_upload_whose_answer_was_lost_is_found(world: World, method: str, lost: Refused) -> None:
    world.dataset()
    if method != "create_dataset":
        world.has_dataset("rsna-extra")
    world.traps.lose[method] = [lost]
    world.traps.processing_polls = 3
    talk = world.does("upload", "rsna-extra").talk
    assert "the answer was lost" in talk
    assert len(world.site.sent(method)) == 1


def test_a_second_version_waits_while_the_first_is_processed(world: World) -> None:
    """Kaggle answers 403 to a version that comes too early."""
    world.dataset()
    world.has_dataset("rsna-extra")
    world.site.datasets[NAME].polls_left, world.site.datasets[NAME].status = 3, "BLOBS_RECEIVED"
    result = world.does("upload", "rsna-extra")
    assert result.value["version"] == 2
    assert "waiting for what is under way" in result.talk


def test_ready_is_believed_only_of_the_new_version(world: World) -> None:
    """Right after an upload Kaggle may still say that the version before is ready: a kernel would mount that."""
    world.dataset()
    world.has_dataset("rsna-extra")
    world.traps.late_polls = 2
    assert world.does("upload", "rsna-extra").value["version"] == 2
    dataset = world.site.datasets[NAME]
    dataset.ready, dataset.late, dataset.polls_left = 1, 2, 1  # it shows version 1 once more
    assert world.does("upload", "rsna-extra").value["version"] == 2
    assert len(dataset.versions) == 2


@pytest.mark.parametrize(
    ("trap", "said"),
    [
        ({"refuse": {"create_dataset_version": [Refused(403, "Permission denied")]}}, "Permission denied"),
        ({"refuse": {"put": [Refused(403, "Permission denied")]}}, "Permission denied"),
        ({"refuse": {"create_dataset_version": [Refused(503, "Come back later")]}}, "Kaggle says: Come back later"),
        ({"dataset_error": "The requested title is already in use by a dataset."}, "Choose another `id`"),
    ],
)
def test_what_kaggle_refuses_is_an_error_and_is_done_by_the_next(world: World, trap: dict[str, Any], said: str) -> None:
    world.dataset()
    world.has_dataset("rsna-extra")
    good, world.site.traps = world.traps, replace(world.traps, **trap)
    assert said in world.fails("upload", "rsna-extra")
    assert len(world.site.datasets[NAME].versions) == 1
    world.site.traps = good
    assert world.does("upload", "rsna-extra").value["version"] == 2


def test_a_file_that_breaks_off_is_sent_again_and_that_is_said(world: World) -> None:
    world.dataset()
    world.traps.refuse["put"] = [Refused(0, "connection reset", "network"), Refused(503, "busy")]
    talk = world.does("upload", "rsna-extra").talk
    assert "a.txt did not arrive; try 2 of 5 in 0 s (connection reset)" in talk
    assert "a.txt did not arrive; try 3 of 5" in talk
    assert (world.site.datasets[NAME].versions[0] / "a.txt").read_text() == "alpha"


def test_a_version_that_kaggle_could_not_make_is_never_ready(world: World) -> None:
    world.dataset()
    world.has_dataset("rsna-extra")
    world.traps.fail_processing = True
    for _ in range(2):
        assert "status FAILED" in world.fails("upload", "rsna-extra")
    assert len(world.site.datasets[NAME].versions) == 3  # sent anew each time, never called ready
    assert world.ledger.last("upload")["state"] == "failed"
    world.traps.fail_processing = False
    assert world.push("upload", "rsna-extra").code == 0


def test_a_version_that_never_comes_is_left_with_the_way_back(world: World) -> None:
    world.dataset()
    world.traps.never_ready = True
    patient, world.account = world.account, replace(world.account, limit_s=0.1)
    assert "still BLOBS_RECEIVED at version 0" in world.fails("upload", "rsna-extra")
    world.traps.never_ready, world.account = False, patient
    assert world.does("upload", "rsna-extra").value["version"] == 1
    assert len(world.site.datasets[NAME].versions) == 1


@pytest.mark.parametrize(
    ("trap", "said"),
    [("lose_files", "version 1 lacks a.txt"), ("other_sizes", "has 6 bytes of a.txt, which has 5 here")],
)
def test_a_file_that_did_not_arrive_as_it_is_is_missed_and_sent_again(world: World, trap: str, said: str) -> None:
    world.dataset()
    setattr(world.traps, trap, {"a.txt"})
    assert said in world.fails("upload", "rsna-extra")
    setattr(world.traps, trap, set())
    assert world.does("upload", "rsna-extra").value["version"] == 2


def test_many_files_are_all_looked_for(world: World) -> None:
    """Kaggle lists 200 files a page."""
    world.dataset(**{f"sub/{n:03}.txt": "x" for n in range(201)})
    world.traps.lose_files = {"sub/200.txt"}
    assert "version 1 lacks sub/200.txt" in world.fails("upload", "rsna-extra")


def test_a_public_dataset_is_found_before_anything_is_added_to_it(world: World) -> None:
    world.dataset()
    world.has_dataset("rsna-extra", private=False)
    assert "can be seen by everybody" in world.fails("upload", "rsna-extra")
    assert len(world.site.datasets[NAME].versions) == 1
    world.traps.make_public = True
    world.dataset("rsna-other")
    for _ in range(2):
        assert "can be seen by everybody" in world.fails("upload", "rsna-other")
    assert len(world.site.datasets[f"{USER}/rsna-other"].versions) == 1
    world.does("upload", "rsna-other", "--public")
    world.has_dataset("rsna-kit", private=False)
    assert world.does("status").value["datasets"]["rsna-kit"] == {"status": "READY", "version": 1}


def test_a_busy_kaggle_is_asked_again_and_then_left(world: World) -> None:
    world.dataset()
    world.traps.refuse = {"get_dataset_status": [BUSY], "start_blob_upload": [BUSY], "create_dataset": [BUSY]}
    world.does("upload", "rsna-extra")
    world.dataset("rsna-other")
    world.traps.refuse = {"get_dataset_status": [BUSY] * 9}
    assert "Wait ten minutes, then run the same command again" in world.fails("upload", "rsna-other")


def test_secrets_and_hidden_files_stay_here(world: World) -> None:
    folder = world.dataset()
    (folder / "sub/notes.txt").write_text("my key is 0123456789abcdef0123456789abcdef, do not tell")
    assert "notes.txt" in world.fails("upload", "rsna-extra")
    (folder / "sub/notes.txt").unlink()
    (folder / ".env").write_text("")
    assert world.push("upload", "rsna-extra").code == 1
    assert world.client.seen == []


def test_a_dry_run_shows_everything_and_sends_nothing(world: World) -> None:
    world.dataset()
    shown = world.does("upload", "rsna-extra", "--dry-run").value
    assert f"{NAME}, private, as a new dataset" in shown
    assert "sub/b.txt" in shown
    assert world.site.changes == []
    world.does("upload", "rsna-extra")
    assert "version 1 is there already" in world.does("upload", "rsna-extra", "--dry-run").value
