"""Datasets through the real `kaggle` program: whole, ready, private, once, or an error that says what to do."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from kaggle_site import USER, Refused
from push_world import World

from rsna_lab.kaggle.push import judge, uploads
from rsna_lab.kaggle.push.advice import KaggleError

NAME = f"{USER}/rsna-extra"


def test_a_dataset_is_made_with_its_folders_and_waited_for(world: World) -> None:
    world.dataset()
    world.traps.processing_polls = 3
    result = world.push("upload", "rsna-extra")
    assert result.value == {"dataset": "rsna-extra", "version": 1}
    stored = world.site.datasets[NAME]
    assert stored.private
    assert (stored.versions[0] / "sub/b.txt").read_text() == "beta"
    assert json.loads((world.project / "build/datasets/rsna-extra/dataset-metadata.json").read_text())["id"].startswith(
        "OWNER/"
    )
    line = world.account.ledger.last("upload", dataset=NAME)
    assert line is not None
    assert (line["version"], line["files"], line["bytes"]) == (1, 2, 9)


def test_the_same_files_are_not_sent_twice_and_other_files_are(world: World) -> None:
    folder = world.dataset()
    world.push("upload", "rsna-extra")
    assert world.push("upload", "rsna-extra").value["version"] == 1
    assert len(world.site.datasets[NAME].versions) == 1
    (folder / "a.txt").write_text("gamma")  # as long as before: size and name alone would not tell
    assert world.push("upload", "rsna-extra").value["version"] == 2
    assert (world.site.datasets[NAME].versions[1] / "a.txt").read_text() == "gamma"


def test_a_second_version_waits_while_the_first_is_processed(world: World) -> None:
    """Kaggle answers 403 to a version that comes too early."""
    world.dataset()
    world.has_dataset("rsna-extra")
    world.site.datasets[NAME].polls_left, world.site.datasets[NAME].status = 3, "BLOBS_RECEIVED"
    result = world.push("upload", "rsna-extra")
    assert result.value["version"] == 2
    assert "waiting for what is under way" in result.talk


def test_ready_is_believed_only_of_the_new_version(world: World) -> None:
    """Right after an upload Kaggle may still say that the version before is ready: a kernel would mount that."""
    world.dataset()
    world.has_dataset("rsna-extra")
    world.traps.late_polls = 2
    assert world.push("upload", "rsna-extra").value["version"] == 2


def test_a_version_that_kaggle_refuses_is_an_error(world: World) -> None:
    world.dataset()
    world.has_dataset("rsna-extra")
    world.traps.refuse["CreateDatasetVersion"] = [Refused(403, "Permission 'datasets.update' was denied")]
    assert "Permission 'datasets.update' was denied" in world.fails("upload", "rsna-extra")


def test_a_killed_upload_is_taken_up_and_not_sent_again(world: World) -> None:
    world.dataset()
    world.push("upload", "rsna-extra")
    lines = world.account.ledger.path.read_text().splitlines()
    world.account.ledger.path.write_text("".join(f"{line}\n" for line in lines if '"kind": "upload"' not in line))
    assert "was sent before; it is looked at now" in world.push("upload", "rsna-extra").talk
    assert len(world.site.datasets[NAME].versions) == 1


def test_a_failed_blob_costs_the_upload(each_world: World) -> None:
    """kaggle 2.2.4 goes on and makes a version without the file, exit code 0."""
    each_world.dataset()
    each_world.traps.fail_blobs = {"a.txt"}
    assert "Upload unsuccessful: a.txt" in each_world.fails("upload", "rsna-extra")


def test_a_broken_upload_does_not_leave_old_files_in_the_next(world: World) -> None:
    """The program takes up what broke off by name, size and time alone: files of the same length would be exchanged."""
    folder = world.dataset(**{"a.txt": "alpha", "b.txt": "gamma"})
    world.traps.fail_put = 2
    world.fails("upload", "rsna-extra")
    for name in ("a.txt", "b.txt"):
        times = (folder / name).stat()
        (folder / name).write_text("delta")
        os.utime(folder / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert world.push("upload", "rsna-extra").code == 0
    version = world.site.datasets[NAME].versions[0]
    assert [(version / name).read_text() for name in ("a.txt", "b.txt")] == ["delta", "delta"]


def test_errors_inside_a_good_answer_are_errors(world: World) -> None:
    world.dataset()
    world.dataset("rsna-other")
    world.has_dataset("rsna-other")
    world.traps.dataset_error = "The requested title is already in use by a dataset."
    assert "Choose another `id`" in world.fails("upload", "rsna-extra")
    assert "version creation error" in world.fails("upload", "rsna-other")


def test_a_folder_left_out_is_an_error(world: World) -> None:
    """Without --dir-mode the program drops sub-folders with exit code 0; this is what it says then."""
    parcel = uploads.pack(world.account, world.dataset())
    answer = world.account.program.call("datasets", "create", "-p", parcel.folder)
    assert answer.code == 0
    with pytest.raises(KaggleError, match="Skipping folder: sub") as error:
        judge.created(answer, "The upload")
    assert "--dir-mode zip" in error.value.advice


def test_a_version_that_fails_or_never_comes_is_an_error(world: World) -> None:
    world.dataset()
    world.traps.fail_processing = True
    assert "status failed" in world.fails("upload", "rsna-extra")
    world.traps.fail_processing, world.traps.never_ready = False, True
    world.dataset("rsna-other")
    patient, world.account = world.account, replace(world.account, limit_s=0.2)
    assert "still blobs_received at version 0" in world.fails("upload", "rsna-other")
    world.traps.never_ready, world.account = False, patient
    assert "was sent before" in world.push("upload", "rsna-other").talk


def test_a_file_that_did_not_arrive_is_missed_and_sent_again(world: World) -> None:
    world.dataset()
    world.traps.lose_files = {"a.txt"}
    assert "version 1 lacks a.txt" in world.fails("upload", "rsna-extra")
    world.traps.lose_files = set()
    assert world.push("upload", "rsna-extra").value["version"] == 2


def test_many_files_are_all_looked_for(world: World) -> None:
    """Kaggle lists 200 files a page, and the program prints the next page's token before the JSON."""
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
    assert "can be seen by everybody" in world.fails("upload", "rsna-other")
    assert world.push("upload", "rsna-other", "--public").code == 0


def test_a_busy_kaggle_is_asked_again_and_then_left(world: World) -> None:
    world.dataset()
    world.traps.refuse = {
        "GetDatasetStatus": [Refused(429, "Too Many Requests")],
        "StartBlobUpload": [Refused(429, "Too Many Requests", {"Retry-After": "0"})],
    }
    assert world.push("upload", "rsna-extra").code == 0
    world.dataset("rsna-other")
    world.traps.refuse = {"GetDatasetStatus": [Refused(429, "Too Many Requests", {"Retry-After": "3600"})] * 9}
    assert "Wait ten minutes, then run the same command again" in world.fails("upload", "rsna-other")


def test_secrets_and_hidden_files_stay_here(world: World) -> None:
    folder = world.dataset()
    (folder / "sub/notes.txt").write_text("my key is 0123456789abcdef0123456789abcdef, do not tell")
    assert "notes.txt" in world.fails("upload", "rsna-extra")
    (folder / "sub/notes.txt").unlink()
    (folder / ".env").write_text("")
    assert world.push("upload", "rsna-extra").code == 1
    assert world.double.calls("StartBlobUpload") == []


def test_a_dry_run_shows_everything_and_sends_nothing(world: World) -> None:
    world.dataset()
    shown = world.push("upload", "rsna-extra", "--dry-run").value
    assert "$ kaggle datasets create -p " in shown
    assert "sub/b.txt" in shown
    assert {path.rpartition("/")[2] for _, path, _ in world.double.arrived} == {"GetDatasetStatus"}
