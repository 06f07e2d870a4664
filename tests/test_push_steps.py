"""All steps together: datasets, prepare, train, weights, infer, submission, score; and the command line.

Kernels are small stand-ins that are really run, as plain processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kaggle_site import KEY, TOKEN, USER, Session
from push_world import ROOT, SCRIPT, World, write_kernel
from waiting import wait_until

from rsna_lab.kaggle.push.account import alone

KINDS = "send upload push verify run fetch push verify run fetch fetch send upload push verify run fetch submit score"


LEFT_OUT = ("build", "upload", "prepare", "train", "submit")
BUNDLES = "(working / 'bundles').mkdir()\n(working / 'bundles/weights').write_text('0.25')\nverdict()"


def skipping(*steps: str) -> list[str]:
    return [word for step in steps for word in ("--skip", step)]


def test_all_steps_lead_to_a_score_and_none_is_taken_twice(world: World) -> None:
    first = world.does("all")
    assert first.value == {
        "owner": USER,
        "datasets": {"rsna-kit": 1},
        "prepare": 1,
        "train": 1,
        "infer": 1,
        "submission": 1000,
        "public": "0.5",
        "private": "0.5",
    }
    site = world.site
    assert [line["kind"] for line in world.ledger.lines()] == KINDS.split()
    assert (site.datasets[f"{USER}/rsna-weights"].versions[0] / "bundles/weights").read_text() == "0.5000 default"
    assert all(dataset.private for dataset in site.datasets.values())
    infer = site.kernels[f"{USER}/rsna-kit-infer"].versions[0]
    assert f"datasets/{USER}/rsna-weights" in infer.sources
    # The scoring run saw the hidden test of five breasts, the run before it the public one of two.
    assert (infer.working / "submission.csv").read_text().splitlines()[1:] == ["0_L,0.5000", "1_L,0.5000"]
    score = world.ledger.last("score")
    assert (score["submission"], score["public"], score["kernel"]) == (1000, "0.5", f"{USER}/rsna-kit-infer")
    site.calls.clear()
    assert world.does("all").value == first.value
    world.ledger.path.unlink()
    assert world.does("all").value == first.value
    assert site.changes == []


def test_what_was_done_before_something_else_is_not_mistaken_for_the_newest(world: World) -> None:
    """Train reads the newest output of prepare, and a score belongs to the version that was asked for."""
    world.does("all")
    kept = {name: (world.project / f"kernels/{name}/{name}.py").read_text() for name in ("prepare", "train")}
    for name, text in kept.items():
        (world.project / f"kernels/{name}/{name}.py").write_text(text.replace('"default"', '"smoke"') + "# other\n")
    assert world.does("all").value["prepare"] == 2
    for name, text in kept.items():
        (world.project / f"kernels/{name}/{name}.py").write_text(text)
    value = world.does("all").value
    assert value["prepare"] == 3
    weights = world.site.datasets[f"{USER}/rsna-weights"].versions[-1] / "bundles/weights"
    assert weights.read_text() == "0.5000 default"
    assert world.ledger.last("submit")["version"] == value["infer"]


def test_two_at_once_are_one(world: World) -> None:
    with alone(world.project):
        command = [sys.executable, ROOT / "scripts/push", "submit", "--project", world.project, "--kaggle", "/bin/true"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"another scripts/push is at work in this checkout (process {os.getpid()})" in done.stderr
    with alone(world.project):
        pass


def test_nothing_that_goes_out_or_is_kept_holds_a_secret(world: World) -> None:
    """Planted in what a kernel prints, and in a script and a folder that are to be sent."""

    def talkative(session: Session) -> int:
        session.say(f"key {KEY} token {TOKEN}")
        return int(not wait_until(lambda: any("log" in request for request in world.client.seen)))

    world.site.executor = talkative
    write_kernel(world.project / "kernels/extra", "print('well')")
    talk = [world.does("push", "extra").talk, str(world.does("logs", "extra").value), str(world.does("status").value)]
    write_kernel(world.project / "kernels/leaky", f"print('{KEY}')")
    talk.append(world.fails("push", "leaky"))
    talk.append(world.fails("upload", world.dataset(**{"sub/notes.txt": f"remember {KEY}"}).name))
    assert "  | key *** token ***" in talk[0]
    assert talk[1] == "key *** token ***"
    places = (world.project / "build/push", world.project / "runs", world.ledger.path)
    kept = [path.read_text() for place in places for path in [place, *place.rglob("*")] if path.is_file()]
    for secret in (KEY, TOKEN):
        assert not any(secret in text for text in [*talk, *kept, json.dumps(world.client.seen)])


def test_a_failure_ends_it_where_it_is(world: World) -> None:
    world.has_dataset("rsna-kit")
    world.has_kernel("prepare", "verdict()", dataset_sources=["OWNER/rsna-kit"])
    write_kernel(
        world.project / "kernels/train",
        "raise SystemExit('no cancer in fold 1')",
        kernel_sources=["OWNER/rsna-kit-prepare"],
    )
    words = skipping("build", "upload", "prepare")
    world.site.calls.clear()
    assert "  | no cancer in fold 1" in world.fails("all", *words)
    assert world.site.changes == ["save_kernel"]
    assert "Your notebook exited with code 1." in str(world.push("status").value)


def test_bundles_can_be_read_from_the_output_of_train(world: World) -> None:
    world.has_dataset("rsna-kit")
    world.has_kernel("train", BUNDLES)
    world.does("all", *skipping(*LEFT_OUT), "--weights", "output")
    infer = world.site.kernels[f"{USER}/rsna-kit-infer"].versions[0]
    assert f"notebooks/{USER}/rsna-kit-train" in infer.sources
    assert f"datasets/{USER}/rsna-weights" not in infer.sources
    assert (infer.working / "submission.csv").read_text().splitlines()[1] == "0_L,0.25"


def test_a_dry_run_shows_every_step_and_sends_nothing(world: World) -> None:
    shown = world.does("all", "--dry-run").value
    assert [line for line in shown.splitlines() if line.startswith("==")] == [
        "== upload rsna-kit  (3 files, 24 bytes)",
        *shown_pushes(world),
        "== submit",
    ]
    assert "rsna_kit/deep/module.py" in shown
    assert world.site.changes == []
    assert not world.ledger.path.exists()


def shown_pushes(world: World) -> list[str]:
    """The headings of the three pushes, with the weights in between."""
    folders = [world.project / "build/push/kernels" / name for name in ("prepare", "train", "infer")]
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in folders]
    heads = [f"== push {folder.name}  (2 files, {size:,} bytes)" for folder, size in zip(folders, sizes, strict=True)]
    return [*heads[:2], "== upload rsna-weights", heads[2]]


def test_an_inference_kernel_with_the_internet_on_is_refused_at_the_start(world: World) -> None:
    write_kernel(world.project / "kernels/infer", "", enable_internet=True)
    result = world.push("all")
    assert (result.code, world.client.seen) == (1, [])
    assert "Kaggle scores no kernel that has the internet" in result.talk


def test_a_project_is_validated_without_kaggle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_kernel(tmp_path / "kernels/infer", "print()")
    assert SCRIPT.exit_code_of(["validate", "--project", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {str(tmp_path / "kernels/infer"): "ready"}
    write_kernel(tmp_path / "kernels/infer", "print()", enable_interent=False)
    assert SCRIPT.exit_code_of(["validate", "--project", str(tmp_path)]) == 1
    assert "Did you mean 'enable_internet'?" in capsys.readouterr().err
    write_kernel(tmp_path / "kernels/infer", "key = 'KGAT_00112233445566778899aabbccddeeff'")
    assert SCRIPT.exit_code_of(["validate", str(tmp_path / "kernels/infer")]) == 1
    assert "KGAT" not in (said := capsys.readouterr().err)
    assert "holds a credential" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pussh"], "Did you mean 'push'?"),
        (["--skipp", "train"], "Did you mean '--skip'?"),
        (["--skip", "inferr"], "Did you mean 'infer'?"),
        (["fetch"], "the following arguments are required: kernel"),
        (["all", "--poll", "0"], "expected seconds above 0"),
        (["all", "--wait", "soon"], "expected a duration"),
        (["validate", "--project", "/nonexistent"], "has neither kernels/ nor datasets/"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_suggestion(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert SCRIPT.exit_code_of(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "PRESET=smoke"], "Did you mean 'train'?"),
        (["train", "PRESET"], "expected NAME=VALUE"),
        (["train"], "expected NAME=VALUE"),
    ],
)
def test_settings_of_no_kernel_are_refused(world: World, words: list[str], said: str) -> None:
    result = world.push("all", "--settings", *words)
    assert (result.code, world.client.seen) == (2, [])
    assert said in result.talk


def test_a_reader_who_leaves_gets_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, ROOT / "scripts/push", "validate", ROOT / "kernels/infer"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
