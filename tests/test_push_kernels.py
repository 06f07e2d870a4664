"""Kernels: pushed, verified, followed, judged; none started twice; a training goes on where the clock stopped it."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from kaggle_site import IMAGE, KEY, SLUG, USER, Refused, Session
from push_world import World, write_kernel
from waiting import wait_until

from rsna_lab.kaggle.push import kernels
from rsna_lab.kaggle.push.choices import Choices
from rsna_lab.kaggle.push.runs import plain

NAME = f"{USER}/rsna-kit-extra"
LOST = [Refused(502, "Bad Gateway"), Refused(0, "reset by peer", "network"), Refused(0, "Hold on", "garbled")]
GPU = {"enable_gpu": True, "machine_shape": "NvidiaTeslaT4"}


def kernel(world: World, text: str = "print('done')\nverdict()", **changes: Any) -> None:
    """A stand-in kernel called extra."""
    write_kernel(world.project / "kernels/extra", text, **changes)


def test_a_push_is_verified_followed_and_noted(world: World) -> None:
    kernel(world, "SETTINGS = {'A': 'x'}\nprint('a is', SETTINGS['A'])", competition_sources=[SLUG], **GPU)
    words = ["--settings", "A=z", "--settings", "A=y", "--timeout", "9h", "--accelerator", "NvidiaL4", "--image", IMAGE]
    assert world.does("push", "extra", *words).value == {"kernel": NAME, "version": 1}
    sent = world.site.sent("save_kernel")[0]
    wanted = {"sessionTimeoutSeconds": 32400, "machineShape": "NvidiaL4", "isPrivate": True, "enableInternet": False}
    assert (wanted | {"dockerImage": IMAGE, "dockerImagePinningType": "original", "slug": NAME}).items() <= sent.items()
    assert "SETTINGS = {'A': \"y\"}" in sent["text"]
    assert "OWNER/" in (world.project / "kernels/extra/kernel-metadata.json").read_text()
    assert [line["kind"] for line in world.ledger.lines()] == ["push", "run"]
    assert world.ledger.lines()[0]["image"] == IMAGE
    assert world.push("logs", "extra").value == "a is y"


# What Kaggle makes of a push, and what is said of it.
SPOILED: list[tuple[dict[str, Any], str]] = [
    ({"push_error": "Maximum batch GPU session count of 2 reached."}, "two GPU sessions at a time"),
    ({"push_error": "Maximum weekly GPU quota of 30.00 hours reached."}, "This week's accelerator hours are spent"),
    ({"push_error": "Notebook not found"}, "Kaggle says: Notebook not found\n  What to do: Kaggle knows no kernel"),
    ({"version_zero": True}, "made no version"),
    ({"refuse": {"save_kernel": [Refused(409, "a word of Kaggle's")]}}, "a word of Kaggle's"),
    (
        {"refuse": {"save_kernel": [Refused(502, "Bad Gateway of Kaggle")]}},
        "says: Bad Gateway of Kaggle\n  What to do: The",
    ),
    ({"force_internet": True}, "the internet is on"),
    ({"other_image": "gcr.io/other@sha256:1"}, "the image is gcr.io/other@sha256:1"),
    ({"other_text": "print('somebody else')"}, "the text is another one"),
]


@pytest.mark.parametrize(("trap", "said"), SPOILED)
def test_a_push_that_did_not_work_is_an_error_and_is_made_by_the_next(
    world: World, trap: dict[str, Any], said: str
) -> None:
    kernel(world, docker_image=IMAGE, docker_image_pinning_type="original")
    good, world.site.traps = world.traps, replace(world.traps, **trap)
    assert said in world.fails("push", "extra")
    world.site.traps = good
    world.does("push", "extra")


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
    kernel(world, **GPU)
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
    staged = kernels.stage(world.account, Choices(), "extra")
    with pytest.raises(kernels.KaggleError, match=f"went to another address, {USER}/rsna-kit-another"):
        kernels.push(world.account, replace(staged, metadata={**staged.metadata, "title": "rsna kit another"}))


def test_a_failed_run_is_an_error_with_its_log_and_is_made_again(world: World) -> None:
    kernel(world, "print('before'); raise ValueError('no such breast')")
    talk = world.fails("push", "extra")
    assert "  | ValueError: no such breast" in talk
    assert "exited with code 1" in talk
    assert world.ledger.last("run", kernel=NAME)["failure"] == "Your notebook exited with code 1."
    world.ledger.path.unlink()
    assert world.push("push", "extra").code == 1
    assert len(world.site.kernels[NAME].versions) == 2


def test_the_same_script_on_the_same_inputs_is_not_run_twice(world: World) -> None:
    kernel(world)
    first = world.does("push", "extra", "--no-wait").value
    assert world.does("push", "extra").value == first
    world.ledger.path.unlink()
    result = world.does("push", "extra")
    assert result.value == first
    assert "is the same script on the same inputs; not pushed again" in result.talk
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


def test_newer_inputs_mean_a_new_run_and_are_waited_for(world: World) -> None:
    kernel(world, dataset_sources=["OWNER/rsna-extra"])
    world.has_dataset("rsna-extra")
    assert world.does("push", "extra", "--no-wait").value["version"] == 1
    world.dataset()
    world.does("upload", "rsna-extra")
    dataset = world.site.datasets[f"{USER}/rsna-extra"]
    dataset.ready, dataset.late, dataset.polls_left = 1, 2, 1  # it shows version 1 once more
    assert world.does("push", "extra", "--no-wait").value["version"] == 2
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


def test_a_run_that_is_not_there_or_does_not_end_is_left_with_the_way_back(world: World) -> None:
    over = threading.Event()
    world.site.executor = lambda session: int(not over.wait(60))
    kernel(world)
    world.account = replace(world.account, limit_s=0.2)
    assert "Run the same command again: it goes on where things stand" in world.fails("push", "extra")
    over.set()
    world.account = replace(world.account, limit_s=60)
    assert "Kaggle does not show it to this account" in world.fails("follow", "extra", "--version", "7")


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


@pytest.mark.parametrize(
    ("text", "words", "code", "said"),
    [
        (f"token = '{KEY}'", [], 1, "hold a credential"),
        ("SETTINGS = {'A': ''}", ["--settings", f"A=KGAT_{'0' * 32}"], 1, "hold a credential"),
        ("print()", ["--accelerator", "NvidiaTeslaP100"], 1, "is retired"),
        ("print()", ["--settings", "NO=1"], 2, "no setting of this kernel"),
    ],
)
def test_what_must_not_go_out_is_refused_here(world: World, text: str, words: list[str], code: int, said: str) -> None:
    kernel(world, text, **GPU)
    result = world.push("push", "extra", *words)
    assert (result.code, world.client.seen) == (code, [])
    assert said in result.talk
    assert not list((world.project / "build/push").glob("kernels/extra/*.py")) or "retired" in said


def test_a_dry_run_shows_the_copy_that_would_go_out(world: World) -> None:
    kernel(world)
    shown = world.does("push", "extra", "--dry-run").value
    assert json.loads(shown.splitlines()[-1])["id"] == NAME
    assert world.client.seen == []


def test_what_a_server_writes_around_names_and_a_kernel_into_its_log() -> None:
    wanted = ["Me/rsna-kit", "me/rsna-kit-train", "rsna-x", "me/m/keras/v/2", "me/gone"]
    there = ["datasets/me/rsna-kit/3", "code/me/rsna-kit-train", "competitions/rsna-x", "models/me/m/keras/v/2"]
    assert kernels.missing_sources(wanted, there) == ["me/gone"]
    assert kernels.missing_sources(["me/m/keras/v/2"], ["me/m/keras/v/1"]) == ["me/m/keras/v/2"]
    assert plain("a\x1b[31mred\n 1%\r 99%\r\nb\tc") == "a[31mred\n 99%\nb\tc"


# ---- a training that the clock stopped

OWN = f"notebooks/{USER}/rsna-kit-train"
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


@pytest.fixture
def slow(world: World) -> World:
    """What is before train is done, and train needs two sessions, of which one has ended."""
    world.has_dataset("rsna-kit")
    world.has_kernel("prepare", "print('prepared')\nverdict()", dataset_sources=["OWNER/rsna-kit"])
    sources = {"dataset_sources": ["OWNER/rsna-kit"], "kernel_sources": ["OWNER/rsna-kit-prepare"]}
    write_kernel(world.project / "kernels/train", SLOW, **sources)
    talk = world.fails("push", "train")
    assert "version 1 was stopped by the clock: folds 1 are not done" in talk
    assert "Run the same command again" in talk
    return world


def gone_on(world: World) -> list[bool]:
    """Of each version of train, whether it had its own earlier output attached."""
    return [OWN in version.sources for version in world.site.versions_of(f"{USER}/rsna-kit-train")]


@pytest.mark.parametrize("lost", [False, True])
def test_the_same_command_goes_on_where_the_clock_stopped_the_training(slow: World, lost: bool) -> None:
    if lost:
        slow.ledger.path.unlink()
    plan = slow.push("push", "train", "--dry-run").value
    assert lost or json.loads(plan.splitlines()[-1])["kernel_sources"][1:] == [f"{USER}/rsna-kit-train"]
    result = slow.does("all", *PREPARED)
    assert "going on from version 1, folds 1 are left" in result.talk
    assert gone_on(slow) == [False, True]
    assert (slow.site.datasets[f"{USER}/rsna-weights"].versions[0] / "bundles/weights").read_text() == "0.75"
    if lost:
        slow.ledger.path.unlink()
    slow.site.calls.clear()
    assert slow.push("all", *PREPARED).value == result.value
    assert slow.site.sent("save_kernel") == []
    slow.fails("push", "train", "--again")
    assert gone_on(slow) == [False, True, False]


def test_the_folds_that_are_there_can_be_enough(slow: World) -> None:
    assert "folds 1 are not done" in slow.fails("all", *PREPARED, "--skip", "train")
    assert slow.does("all", *PREPARED, "--partial").value["train"] == 1
    infer = slow.site.versions_of(f"{USER}/rsna-kit-infer")[0]
    assert (infer.working / "submission.csv").read_text().splitlines()[1] == "0_L,0.25"


def test_what_has_other_settings_is_another_training(slow: World) -> None:
    """The output of the first is then not the newest, and cannot be attached: it begins anew instead of not at all."""
    slow.fails("push", "train", "--settings", "PRESET=smoke")
    slow.fails("push", "train")
    assert gone_on(slow) == [False, False, False]
    assert slow.does("push", "train").value["version"] == 4
    assert gone_on(slow)[-1]


def test_a_session_that_went_on_and_failed_is_made_again(slow: World) -> None:
    run = slow.site.executor

    def broken(session: Session) -> int:
        session.failure = "Kaggle had a bad day"
        return 1

    slow.site.executor = broken
    assert "Kaggle had a bad day" in slow.fails("push", "train")
    slow.site.executor = run
    assert slow.does("push", "train").value["version"] == 3
    assert gone_on(slow)[-1]
