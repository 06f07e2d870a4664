"""Kernels: pushed, verified, followed, judged; the same one never started twice."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kaggle_site import IMAGE, SLUG, USER, Refused, Session
from push_world import World, write_kernel
from waiting import wait_until

from rsna_lab.kaggle.push import kernels, staging
from rsna_lab.kaggle.push.choices import Choices
from rsna_lab.kaggle.push.runs import plain

NAME = f"{USER}/rsna-kit-extra"
LOST = [Refused(502, "Bad Gateway"), Refused(0, "reset by peer", "network"), Refused(0, "Hold on", "garbled")]


def kernel(world: World, text: str = "print('done')\nverdict()", **changes: Any) -> Path:
    """A stand-in kernel called extra."""
    write_kernel(world.project / "kernels/extra", text, **changes)
    return world.project / "kernels/extra"


def test_a_push_is_verified_followed_and_noted(world: World) -> None:
    kernel(
        world,
        "SETTINGS = {'A': 'x'}\nprint('a is', SETTINGS['A'])",
        competition_sources=[SLUG],
        enable_gpu=True,
        machine_shape="NvidiaTeslaT4",
    )
    words = ["--settings", "A=z", "--settings", "A=y", "--timeout", "9h", "--accelerator", "NvidiaL4", "--image", IMAGE]
    result = world.does("push", "extra", *words)
    assert result.value == {"kernel": NAME, "version": 1}
    sent = world.site.sent("save_kernel")[0]
    wanted = {
        "sessionTimeoutSeconds": 32400,
        "machineShape": "NvidiaL4",
        "dockerImage": IMAGE,
        "isPrivate": True,
        "dockerImagePinningType": "original",
        "enableInternet": False,
        "slug": NAME,
    }
    assert wanted.items() <= sent.items()
    assert "SETTINGS = {'A': \"y\"}" in sent["text"]
    assert "OWNER/" in (world.project / "kernels/extra/kernel-metadata.json").read_text()
    assert [line["kind"] for line in world.ledger.lines()] == ["push", "verify", "run"]
    assert world.ledger.lines()[1]["image"] == IMAGE
    assert world.push("logs", "extra").value == "a is y"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Maximum batch GPU session count of 2 reached.", "two GPU sessions at a time"),
        ("Maximum weekly GPU quota of 30.00 hours reached.", "This week's accelerator hours are spent"),
        ("Notebook not found", "Kaggle knows no kernel of this id"),
    ],
)
def test_refusals_inside_a_good_answer_are_errors(world: World, error: str, said: str) -> None:
    kernel(world)
    world.traps.push_error = error
    talk = world.fails("push", "extra")
    assert f"Kaggle says: {error}" in talk
    assert said in talk
    assert world.ledger.lines() == []


def test_a_push_that_is_thrown_away_or_refused_is_an_error(world: World) -> None:
    kernel(world)
    world.traps.version_zero = True
    assert "made no version" in world.fails("push", "extra")
    world.traps.refuse["save_kernel"] = [Refused(409, "a word of Kaggle's")]
    assert "a word of Kaggle's" in world.fails("push", "extra")


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("dataset_sources", "other/rsna-data"),
        ("competition_sources", "rsna-knee-detection"),
        ("kernel_sources", f"{USER}/rsna-kit-none"),
        ("model_sources", f"{USER}/weights/keras/bundles/1"),
    ],
)
def test_a_source_that_was_dropped_is_an_error(world: World, key: str, source: str) -> None:
    world.has_dataset("rsna-kit")
    kernel(world, **{key: [source]})
    talk = world.fails("push", "extra")
    assert source in talk
    assert "cannot be stopped from here" in talk
    if key == "dataset_sources":  # mended, it is pushed again
        world.site.datasets[source] = world.site.datasets[f"{USER}/rsna-kit"]
        assert world.does("push", "extra").value["version"] == 2


def test_an_own_dataset_that_is_not_there_is_told_before_the_push(world: World) -> None:
    kernel(world, dataset_sources=["OWNER/rsna-extra"])
    assert "Upload it first: scripts/push upload rsna-extra" in world.fails("push", "extra")
    assert world.site.changes == []


@pytest.mark.parametrize(
    ("trap", "said"),
    [
        ({"force_internet": True}, "the internet is on"),
        ({"other_image": "gcr.io/other@sha256:1"}, "the image is gcr.io/other@sha256:1"),
        ({"other_text": "print('somebody else')"}, "the text is another one"),
    ],
)
def test_a_version_that_is_not_what_was_sent_is_an_error(world: World, trap: dict[str, Any], said: str) -> None:
    kernel(world, docker_image=IMAGE, docker_image_pinning_type="original")
    world.site.traps = replace(world.traps, **trap)
    assert said in world.fails("push", "extra")


def test_a_kernel_that_everybody_sees_is_not_pushed_again(world: World) -> None:
    kernel(world)
    world.traps.make_public = True
    for _ in range(3):
        talk = world.fails("push", "extra")
        assert "can be seen by everybody" in talk
        assert f"Make it private at https://www.kaggle.com/code/{NAME}" in talk
    assert len(world.site.sent("save_kernel")) == 1
    world.traps.make_public = False  # by hand, as was said
    world.does("push", "extra")
    assert world.does("push", "extra", "--no-wait", "--public", "--again").code == 0
    assert world.site.sent("save_kernel")[-1]["isPrivate"] is False


@pytest.mark.parametrize("got", ["", "None", "NvidiaTeslaP100"])
def test_another_accelerator_stops_it_unless_it_will_do(world: World, got: str) -> None:
    kernel(world, enable_gpu=True, machine_shape="NvidiaTeslaT4")
    world.traps.other_shape = got
    for _ in range(2):
        talk = world.fails("push", "extra")
        assert f"asked for NvidiaTeslaT4, and Kaggle says {got or 'nothing'}" in talk
        assert "--accept-accelerator goes on with it" in talk
    assert world.does("push", "extra", "--accept-accelerator").value["version"] == 1
    assert len(world.site.sent("save_kernel")) == 1


def test_a_title_that_leads_elsewhere_is_an_error(world: World) -> None:
    """validate refuses it; should such a push happen all the same, its new address is noticed."""
    kernel(world, title="rsna kit another")
    assert world.push("push", "extra").code == 1
    assert world.site.changes == []
    kernel(world)
    staged = staging.stage(world.account, Choices(), "extra")
    with pytest.raises(kernels.KaggleError, match=f"went to another address, {USER}/rsna-kit-another"):
        kernels.push(world.account, replace(staged, metadata={**staged.metadata, "title": "rsna kit another"}))


def test_a_failed_run_is_an_error_with_its_log_and_is_made_again(world: World) -> None:
    kernel(world, "print('before'); raise ValueError('no such breast')")
    talk = world.fails("push", "extra")
    assert "  | ValueError: no such breast" in talk
    assert "exited with code 1" in talk
    run = world.ledger.last("run", kernel=NAME)
    assert (run["status"], run["failure"]) == ("ERROR", "Your notebook exited with code 1.")
    assert world.push("push", "extra").code == 1
    world.ledger.path.unlink()
    assert world.push("push", "extra").code == 1
    assert len(world.site.kernels[NAME].versions) == 3


def test_the_same_script_on_the_same_inputs_is_not_run_twice(world: World) -> None:
    kernel(world)
    first = world.does("push", "extra", "--no-wait").value
    assert world.does("push", "extra").value == first
    world.ledger.path.unlink()
    result = world.does("push", "extra")
    assert result.value == first
    assert "is taken over" in result.talk
    assert len(world.site.sent("save_kernel")) == 1
    assert world.does("push", "extra", "--again", "--no-wait").value["version"] == 2
    kernel(world, "print('other')\nverdict()")
    assert world.does("push", "extra", "--no-wait").value["version"] == 3
    assert world.does("follow", "extra").value["status"] == "COMPLETE"


@pytest.mark.parametrize("lost", LOST, ids=lambda refused: refused.kind)
def test_a_push_whose_answer_was_lost_is_found(world: World, lost: Refused) -> None:
    kernel(world)
    world.traps.lose["save_kernel"] = [lost]
    result = world.does("push", "extra")
    assert "the answer was lost, and version 1 is there" in result.talk
    assert world.does("push", "extra").value == result.value == {"kernel": NAME, "version": 1}
    assert len(world.site.sent("save_kernel")) == 1


def test_a_push_that_never_arrived_ends_with_kaggles_words_and_is_made_by_the_next(world: World) -> None:
    kernel(world)
    world.traps.refuse["save_kernel"] = [Refused(502, "Bad Gateway of Kaggle")]
    talk = world.fails("push", "extra")
    assert "Kaggle says: Bad Gateway of Kaggle" in talk
    assert "The trouble is on Kaggle's side" in talk
    assert world.does("push", "extra").value["version"] == 1


def test_newer_inputs_mean_a_new_run_and_the_reason_is_told(world: World) -> None:
    kernel(world, dataset_sources=["OWNER/rsna-extra"])
    world.has_dataset("rsna-extra")
    world.does("push", "extra", "--no-wait")
    dataset = world.site.datasets[f"{USER}/rsna-extra"]
    dataset.versions, dataset.ready = dataset.versions * 2, 2
    assert f"pushed anew, {USER}/rsna-extra is version 2 now, not 1" in world.does("push", "extra", "--no-wait").talk


def test_a_version_of_a_dataset_that_kaggle_does_not_show_yet_is_waited_for(world: World) -> None:
    kernel(world, dataset_sources=["OWNER/rsna-extra"])
    world.has_dataset("rsna-extra")
    world.dataset()
    world.does("upload", "rsna-extra")
    dataset = world.site.datasets[f"{USER}/rsna-extra"]
    dataset.ready, dataset.late, dataset.polls_left = 1, 2, 1  # it shows version 1 once more
    world.does("push", "extra", "--no-wait")
    assert world.ledger.last("push")["inputs"] == {f"{USER}/rsna-extra": 2}


def test_an_account_is_the_same_however_the_site_writes_it(world: World) -> None:
    world.account = replace(world.account, owner="Test-ER")
    world.has_dataset("rsna-extra")
    for kind in (world.site.datasets, world.site.kernels):
        kind.update({f"test-er/{name.split('/')[1]}": value for name, value in list(kind.items())})  # type: ignore
    kernel(world, dataset_sources=["OWNER/rsna-extra"])
    assert world.does("push", "extra").value == world.does("push", "extra").value
    world.account = replace(world.account, owner="test-er")
    world.does("push", "extra")
    assert len(world.site.sent("save_kernel")) == 1


def test_a_run_that_is_not_there_is_not_waited_for(world: World) -> None:
    kernel(world)
    world.does("push", "extra", "--no-wait")
    assert "Kaggle does not show it to this account" in world.fails("follow", "extra", "--version", "7")


def test_a_run_that_does_not_end_is_left_with_the_way_back(world: World) -> None:
    over = threading.Event()
    world.site.executor = lambda session: int(not over.wait(60))
    kernel(world)
    world.account = replace(world.account, limit_s=0.2)
    assert "Run the same command again: it goes on where things stand" in world.fails("push", "extra")
    over.set()


def test_one_hiccup_does_not_end_a_wait_and_the_log_is_shown_meanwhile(world: World) -> None:
    def until_it_is_read(session: Session) -> int:
        session.say("epoch 1 \x1b[2J")
        world.traps.refuse["get_kernel_session_status"] = [Refused(500, "Oops"), Refused(0, "Be right back", "garbled")]
        return 0 if wait_until(lambda: any("log" in request for request in world.client.seen)) else 1

    world.site.executor = until_it_is_read
    kernel(world)
    talk = world.does("push", "extra").talk
    assert talk.index("  | epoch 1 [2J") < talk.index("is complete")
    assert "Kaggle does not answer; try 2 of 5 in 0 s (Oops)" in talk
    assert "Kaggle does not answer; try 3 of 5 in 0 s (Be right back)" in talk


def test_a_token_in_a_script_stays_here(world: World) -> None:
    kernel(world, "token = 'KGAT_00112233445566778899aabbccddeeff'")
    assert "hold a credential" in world.fails("push", "extra")
    kernel(world, "SETTINGS = {'A': ''}")
    assert "hold a credential" in world.fails("push", "extra", "--settings", f"A=KGAT_{'0' * 32}")
    assert world.client.seen == []
    assert list((world.project / "build/push/kernels").iterdir()) == []


def test_a_retired_accelerator_and_an_unknown_setting_are_refused(world: World) -> None:
    kernel(world, enable_gpu=True, machine_shape="NvidiaTeslaT4")
    assert world.push("push", "extra", "--accelerator", "NvidiaTeslaP100").code == 1
    assert world.push("push", "extra", "--settings", "NO=1").code == 2
    assert world.client.seen == []


def test_a_dry_run_shows_the_copy_that_would_go_out(world: World) -> None:
    kernel(world)
    shown = world.does("push", "extra", "--dry-run").value
    assert json.loads(shown.splitlines()[-1])["id"] == NAME
    assert world.client.seen == []


def test_sources_are_the_same_whatever_the_server_writes_around_them() -> None:
    wanted = ["Me/rsna-kit", "me/rsna-kit-train", "rsna-x", "me/m/keras/v/2", "me/gone"]
    there = ["datasets/me/rsna-kit/3", "code/me/rsna-kit-train", "competitions/rsna-x", "models/me/m/keras/v/2"]
    assert kernels.missing_sources(wanted, there) == ["me/gone"]
    assert kernels.missing_sources(["me/m/keras/v/2"], ["me/m/keras/v/1"]) == ["me/m/keras/v/2"]


def test_a_log_cannot_steer_the_terminal() -> None:
    assert plain("a\x1b[31mred\n 1%\r 99%\r\nb\tc") == "a[31mred\n 99%\nb\tc"
