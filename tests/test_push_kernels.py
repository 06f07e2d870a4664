"""Kernels through the real `kaggle` program: pushed, verified, followed, judged; never trusted for an exit code."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kaggle_site import IMAGE, SLUG, USER, Refused, Session
from push_world import World, Worlds, write_kernel
from waiting import wait_until

from rsna_lab.kaggle.push import judge, staging
from rsna_lab.kaggle.push.advice import KaggleError

NAME = f"{USER}/rsna-kit-extra"


def kernel(world: World, text: str = "print('done')", **changes: Any) -> Path:
    """A stand-in kernel called extra."""
    write_kernel(world.project / "kernels/extra", text, **changes)
    return world.project / "kernels/extra"


def test_a_push_is_verified_followed_and_noted(world: World) -> None:
    kernel(world, "SETTINGS = {'A': 'x'}\nprint('a is', SETTINGS['A'])", competition_sources=[SLUG], enable_gpu=True,
           machine_shape="NvidiaTeslaT4")  # fmt: skip
    words = ["--settings", "A=z", "--settings", "A=y", "--timeout", "9h", "--accelerator", "NvidiaL4", "--image", IMAGE]
    result = world.push("push", "extra", *words)
    assert result.value == {"kernel": NAME, "version": 1}, result.talk
    assert "GPU quota: 27.50h of 30.00h left" in result.talk
    sent = world.double.calls("SaveKernel")[0]
    assert sent["sessionTimeoutSeconds"] == 32400
    assert (sent["machineShape"], sent["dockerImage"], sent["dockerImagePinningType"]) == (
        "NvidiaL4",
        IMAGE,
        "original",
    )
    assert sent["isPrivate"] is True
    assert "enableInternet" not in sent or sent["enableInternet"] is False
    assert "SETTINGS = {'A': \"y\"}" in sent["text"]
    assert "OWNER/" in (world.project / "kernels/extra/kernel-metadata.json").read_text()
    kinds = [line["kind"] for line in world.account.ledger.lines()]
    assert kinds == ["push", "verify", "run"]
    assert world.account.ledger.lines()[1]["image"] == IMAGE
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
    assert error in talk
    assert said in talk
    lines = world.account.ledger.lines()
    assert [(line["kind"], line["version"]) for line in lines] == [("push", 0)]
    assert "failed, although the program ended well" in lines[0]["problem"]


def test_the_script_ends_with_1_and_says_why_on_standard_error(world: World) -> None:
    kernel(world)
    world.traps.push_error = "Maximum weekly GPU quota of 30.00 hours reached."
    done = world.script("push", "extra", version=".".join(map(str, world.account.program.version)))
    assert (done.returncode, done.stdout) == (1, "")
    assert "Error: The push of tester/rsna-kit-extra failed, although the program ended well." in done.stderr
    assert "Kaggle says: Kernel push error: Maximum weekly GPU quota of 30.00 hours reached." in done.stderr


@pytest.mark.parametrize("status", [409, 500])
def test_refusals_by_status_are_errors(world: World, status: int) -> None:
    kernel(world)
    world.traps.refuse["SaveKernel"] = [Refused(status, f"{status} Server Error: a word of Kaggle's")]
    assert "a word of Kaggle's" in world.fails("push", "extra")


def test_a_push_that_is_thrown_away_is_an_error(world: World) -> None:
    kernel(world)
    world.traps.version_zero = True
    assert "made no version" in world.fails("push", "extra")


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("dataset_sources", "other/rsna-data"),
        ("competition_sources", "rsna-knee-detection"),
        ("kernel_sources", f"{USER}/rsna-kit-none"),
        ("model_sources", f"{USER}/weights/keras/bundles/1"),  # of which the program prints nothing at all
    ],
)
def test_a_source_that_was_dropped_is_an_error(world: World, key: str, source: str) -> None:
    kernel(world, **{key: [source]})
    talk = world.fails("push", "extra")
    assert source in talk
    assert "cannot be stopped from here" in talk


def test_an_own_dataset_that_is_not_there_is_told_before_the_push(world: World) -> None:
    kernel(world, dataset_sources=["OWNER/rsna-extra"])
    assert "Upload it first: scripts/push upload rsna-extra" in world.fails("push", "extra")
    assert world.double.calls("SaveKernel") == []


def test_what_was_refused_is_pushed_again_once_it_is_mended(world: World) -> None:
    kernel(world, model_sources=[f"{USER}/weights/keras/bundles/1"])
    world.fails("push", "extra")
    world.site.models[f"{USER}/weights/keras/bundles"] = [world.project]
    assert world.push("push", "extra").value["version"] == 2


@pytest.mark.parametrize(
    ("trap", "said"),
    [
        ({"make_public": True}, "everybody can see it"),
        ({"force_internet": True}, "the internet is on"),
        ({"other_image": "gcr.io/other@sha256:1"}, "the image is gcr.io/other@sha256:1"),
        ({"other_text": "print('somebody else')"}, "the text is another one"),
    ],
)
def test_a_version_that_is_not_what_was_sent_is_an_error(world: World, trap: dict[str, Any], said: str) -> None:
    kernel(world, docker_image=IMAGE, docker_image_pinning_type="original")
    world.site.traps = replace(world.traps, **trap)
    assert said in world.fails("push", "extra")


def test_public_is_possible_when_it_is_asked_for(world: World) -> None:
    kernel(world)
    assert world.push("push", "extra", "--no-wait", "--public").code == 0
    assert world.double.calls("SaveKernel")[0].get("isPrivate") in (None, False)


def test_a_title_that_leads_elsewhere_is_an_error(world: World) -> None:
    """validate refuses it; should such a push happen all the same, its new address is noticed."""
    folder = kernel(world, id=NAME, title="rsna kit another")
    assert world.push("push", "extra").code == 1
    assert world.double.calls("SaveKernel") == []
    answer = world.account.program.call("kernels", "push", "-p", folder)
    assert answer.code == 0
    with pytest.raises(KaggleError, match=f"went to another address, {USER}/rsna-kit-another"):
        judge.pushed(answer, NAME)


def test_a_failed_run_is_an_error_with_its_log(world: World) -> None:
    kernel(world, "print('before'); raise ValueError('no such breast')")
    talk = world.fails("push", "extra")
    assert "  | ValueError: no such breast" in talk
    assert "exited with code 1" in talk
    run = world.account.ledger.last("run", kernel=NAME)
    assert run is not None
    assert (run["status"], run["failure"]) == ("ERROR", "Your notebook exited with code 1.")
    assert world.push("push", "extra").code == 1  # a failed run is made again
    assert len(world.site.kernels[NAME].versions) == 2


def test_the_same_script_on_the_same_inputs_is_not_run_twice(world: World) -> None:
    kernel(world)
    assert world.push("push", "extra").value == world.push("push", "extra").value
    assert len(world.double.calls("SaveKernel")) == 1
    assert world.push("push", "extra", "--again", "--no-wait").value["version"] == 2
    kernel(world, "print('other')")
    assert world.push("push", "extra", "--no-wait").value["version"] == 3


def test_newer_inputs_mean_a_new_run_and_the_reason_is_told(world: World) -> None:
    kernel(world, dataset_sources=["OWNER/rsna-extra"])
    world.has_dataset("rsna-extra")
    world.push("push", "extra", "--no-wait")
    dataset = world.site.datasets[f"{USER}/rsna-extra"]
    dataset.versions, dataset.ready = dataset.versions * 2, 2
    assert f"pushed anew, {USER}/rsna-extra is version 2 now, not 1" in world.push("push", "extra", "--no-wait").talk


def test_the_status_of_the_version_before_is_not_believed(each_world: World) -> None:
    """Right after a push Kaggle shows the run before; the older program cannot ask for a version."""
    kernel(each_world, "print('first')")
    each_world.push("push", "extra")
    each_world.traps.stale_polls, each_world.traps.stale_pulls = 3, 2
    kernel(each_world, "raise SystemExit(3)")
    assert "exited with code 3" in each_world.fails("push", "extra")


def test_the_older_program_does_not_push_while_an_earlier_run_goes_on(worlds: Worlds, tmp_path: Path) -> None:
    world = worlds.make(tmp_path, "2.2.4")
    world.has_kernel("extra", "print('first')")
    world.site.kernels[NAME].versions[0].status = "RUNNING"
    kernel(world, "print('second')")
    assert "could not tell the two apart" in world.fails("push", "extra")
    assert world.double.calls("SaveKernel") == []


def test_a_version_is_asked_for_only_where_the_program_can(each_world: World) -> None:
    """The older one leaves the number out and answers for the newest."""
    for text in ("print('first')", "print('second')"):
        each_world.has_kernel("extra", text)
    result = each_world.push("logs", "extra", "--version", "1")
    if each_world.account.program.precise:
        assert result.value == "first"
    else:
        assert result.code == 2
        assert "Use kaggle 2.2.5" in result.talk


def test_a_run_is_taken_up_where_the_person_left(world: World) -> None:
    kernel(world)
    world.push("push", "extra", "--no-wait")
    talk = world.push("push", "extra").talk
    assert "not pushed again" in talk
    assert "is complete" in talk
    assert world.push("follow", "extra").value["status"] == "COMPLETE"


def test_a_run_that_does_not_end_is_left_with_the_way_back(world: World) -> None:
    over = threading.Event()
    world.site.executor = lambda session: int(not over.wait(60))
    kernel(world)
    world.account = replace(world.account, limit_s=0.3)
    assert "Run the same command again: it goes on where things stand" in world.fails("push", "extra")
    over.set()


def test_the_log_is_shown_while_it_is_written_and_a_broken_stream_costs_nothing(world: World) -> None:
    def until_it_is_read(session: Session) -> int:
        session.say("epoch 1")
        return 0 if wait_until(lambda: any("/logs/stream/" in path for _, path, _ in world.double.arrived)) else 1

    world.site.executor = until_it_is_read
    kernel(world)
    talk = world.push("push", "extra").talk
    assert "  | epoch 1" in talk
    assert talk.index("epoch 1") < talk.index("is complete")
    world.traps.no_log_stream = True
    assert world.push("push", "extra", "--again").code == 0


def test_a_token_in_a_script_stays_here(world: World) -> None:
    kernel(world, "token = 'KGAT_00112233445566778899aabbccddeeff'")
    assert "hold a credential" in world.fails("push", "extra")
    kernel(world, "SETTINGS = {'A': ''}")
    assert "hold a credential" in world.fails("push", "extra", "--settings", f"A=KGAT_{'0' * 32}")
    assert world.double.calls("SaveKernel") == []
    assert list((world.project / "build/push/kernels").iterdir()) == []


def test_a_retired_accelerator_and_an_unknown_setting_are_refused(world: World) -> None:
    kernel(world, enable_gpu=True, machine_shape="NvidiaTeslaT4")
    assert world.push("push", "extra", "--accelerator", "NvidiaTeslaP100").code == 2
    assert world.push("push", "extra", "--settings", "NO=1").code == 2
    assert world.double.calls("SaveKernel") == []


def test_a_dry_run_shows_the_copy_that_would_go_out(world: World) -> None:
    kernel(world)
    shown = world.push("push", "extra", "--dry-run").value
    assert "$ kaggle kernels push -p " in shown
    assert json.loads(shown.splitlines()[-1])["id"] == NAME
    assert world.double.arrived == []


def test_a_digest_is_of_everything_that_decides_a_run(world: World) -> None:
    staged = staging.stage(world.account, kernel(world), staging.Changes())
    digests = {
        staged.digest({}), staged.digest({"a": 1}), replace(staged, text="x").digest({}),
        replace(staged, timeout_s=5).digest({}), replace(staged, metadata={**staged.metadata, "title": "t"}).digest({}),
    }  # fmt: skip
    assert len(digests) == 5
