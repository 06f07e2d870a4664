"""All steps together: datasets, prepare, train, weights, infer, submission, score; and the command line.

Kernels are really run: small stand-ins as plain processes, and the project's own in the rehearsal sandbox, offline.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from kaggle_site import KEY, TOKEN, USER, Refused, Session, Site, waited
from push_world import DOOR, ROOT, World, write_kernel
from waiting import wait_until

from rsna_lab.kaggle.push.account import Ledger, alone

KINDS = [
    "send",
    "upload",
    "push",
    "verify",
    "run",
    "fetch",
    "push",
    "verify",
    "run",
    "fetch",
    "fetch",
    "send",
    "upload",
    "push",
    "verify",
    "run",
    "fetch",
    "submit",
    "score",
]
OPTIONS = ("--skip", "--weights", "--partial", "--settings", "--attach", "--timeout", "--file", "--again", "--owner")
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
    assert [line["kind"] for line in world.ledger.lines()] == KINDS
    assert (site.datasets[f"{USER}/rsna-weights"].versions[0] / "bundles/weights").read_text() == "0.5000 default"
    assert all(dataset.private for dataset in site.datasets.values())
    infer = site.kernels[f"{USER}/rsna-kit-infer"].versions[0]
    assert f"datasets/{USER}/rsna-weights" in infer.sources
    # The scoring run saw the hidden test of five breasts, the run before it the public one of two.
    assert (infer.working / "submission.csv").read_text().splitlines()[1:] == ["0_L,0.5000", "1_L,0.5000"]
    score = world.ledger.last("score")
    assert (score["submission"], score["public"], score["kernel"]) == (1000, "0.5", f"{USER}/rsna-kit-infer")
    assert re.search(r"score +tester/rsna-kit-infer +1 .*submission 1000: public 0\.5, private 0\.5", history(world))
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


def history(world: World) -> str:
    command = [sys.executable, ROOT / "scripts/push", "history", "--project", world.project]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


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
    talk = [world.does("push", "extra").talk, str(world.does("logs", "extra").value), world.does("status").value]
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


@pytest.mark.parametrize("weights", ["model", "output"])
def test_bundles_can_travel_as_a_model_or_as_the_output_of_train(world: World, weights: str) -> None:
    world.has_dataset("rsna-kit")
    world.has_kernel("train", BUNDLES)
    words = skipping(*LEFT_OUT)
    result = world.push("all", *words, "--weights", weights)
    assert result.code == 0, result.talk
    source = {"model": f"models/{USER}/rsna-kit-weights/keras/bundles/1", "output": f"notebooks/{USER}/rsna-kit-train"}
    infer = world.site.kernels[f"{USER}/rsna-kit-infer"].versions[0]
    assert source[weights] in infer.sources
    assert f"datasets/{USER}/rsna-weights" not in infer.sources
    assert (infer.working / "submission.csv").read_text().splitlines()[1] == "0_L,0.25"
    if weights == "model":
        assert world.site.model_private == {f"{USER}/rsna-kit-weights": True}
        world.site.calls.clear()
        world.does("all", *words, "--weights", weights)
        assert world.site.changes == []
        world.traps.lose["create_model_instance_version"] = [Refused(502, "Bad Gateway")]
        world.does("all", *words, "--weights", weights, "--again")
        assert len(world.site.models[f"{USER}/rsna-kit-weights/keras/bundles"]) == 2


def test_a_public_model_is_an_error(world: World) -> None:
    world.site.model_private[f"{USER}/rsna-kit-weights"] = False
    world.has_kernel("train", BUNDLES)
    world.site.calls.clear()
    words = skipping(*LEFT_OUT)
    assert "can be seen by everybody" in world.fails("all", *words, "--weights", "model")
    assert world.site.changes == []


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
    assert DOOR.door(["validate", "--project", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {str(tmp_path / "kernels/infer"): "ready"}
    write_kernel(tmp_path / "kernels/infer", "print()", enable_interent=False)
    assert DOOR.door(["validate", "--project", str(tmp_path)]) == 1
    assert "Did you mean 'enable_internet'?" in capsys.readouterr().err
    write_kernel(tmp_path / "kernels/infer", "key = 'KGAT_00112233445566778899aabbccddeeff'")
    assert DOOR.door(["validate", str(tmp_path / "kernels/infer")]) == 1
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
    assert DOOR.door(words) == 2
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


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        DOOR.door(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for words in ("scripts/push --dry-run", "scripts/push follow", "scripts/push all", *OPTIONS):
        assert words in shown


def test_a_wrong_value_is_not_answered_with_the_name_of_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert DOOR.door(["--skip", "foo"]) == 2
    said = capsys.readouterr().err
    assert "choose from 'build', 'upload'" in said
    assert "Did you mean" not in said


@pytest.mark.parametrize(("words", "code"), [(["history"], 141), (["--help"], 0)])  # argparse lets a broken pipe pass
def test_a_reader_who_leaves_gets_no_traceback(words: list[str], code: int, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, ROOT / "scripts/push", *words, *(["--project", tmp_path] if code else [])]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, b"")


def in_a_jail(session: Session) -> int:
    """Run a kernel as the rehearsal does: read-only inputs, no network, nothing of this machine but its programs."""
    from rsna_lab.kaggle.rehearse.sandbox import Cell, open_jail

    place = session.working.parent
    script, scratch = place / "script.py", place / "scratch"
    script.write_text(session.text)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    surroundings = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "PATH": os.environ["PATH"], "TF_CPP_MIN_LOG_LEVEL": "2"}
    if session.rerun:
        surroundings["KAGGLE_IS_COMPETITION_RERUN"] = "1"
    jail = open_jail(Cell(session.sources, script, session.working, scratch, surroundings), "bubblewrap")
    done = subprocess.run(jail.command, env=jail.environment, cwd=session.working, capture_output=True, text=True)
    for line in (done.stdout + done.stderr).splitlines():
        session.say(line)
    return done.returncode


@pytest.mark.slow
@pytest.mark.tf
def test_the_projects_own_kernels_lead_to_a_score_offline(world: World, phantom: Path, tmp_path: Path) -> None:
    """prepare, train and infer in the sandbox, on the phantom; the score is the hidden test's pF1."""
    pytest.importorskip("keras")
    if not shutil.which("bwrap") or subprocess.run(["bwrap", "--ro-bind", "/", "/", "true"]).returncode:
        pytest.skip("bubblewrap does not work here")
    from rsna_lab.kaggle.rehearse.hidden import score

    public, hidden = tmp_path / "public", tmp_path / "hidden"
    shutil.copytree(phantom, public, ignore=shutil.ignore_patterns("hidden", "truth.csv", "phantom*"))
    shutil.copytree(public, hidden, ignore=shutil.ignore_patterns("test*", "sample_submission.csv"))
    for name in ("test.csv", "sample_submission.csv"):
        shutil.copy(phantom / "hidden" / name, hidden)
    shutil.copytree(phantom / "hidden/test_images", hidden / "test_images")

    def pf1(submission: Path) -> str:
        return f"{score(submission, phantom / 'hidden/truth.csv')['value']:.3f}"

    world.site = world.client.site = Site(tmp_path / "own-site", public, hidden, in_a_jail, pf1)
    world.project = own_project(tmp_path / "own")
    ledger = Ledger(world.project, str)
    world.account = replace(world.account, project=world.project, ledger=ledger, limit_s=1200.0, poll_s=0.2)
    small = "image.height=64 image.width=32 data.save=none"
    quick = "train.folds=2 train.epochs=1 train.batch_size=8 model.weights=none"
    words = ["--settings", "prepare", "PRESET=smoke", f"SET={small}"]
    with waited(world.site):
        result = world.does("all", *words, "--settings", "train", "PRESET=smoke", f"SET={quick}").value
    assert 0 <= float(result["public"]) <= 1
    weights = world.site.datasets[f"{USER}/rsna-weights"].versions[0]
    assert len(list(weights.glob("**/model.weights.h5"))) == 2
    verdict = json.loads((world.project / "runs/kaggle/rsna-kit-infer/v1/verdict.json").read_text())
    assert verdict["ok"] is True


def own_project(folder: Path) -> Path:
    """This project's kernels and datasets, without the wheels, which come from the network."""
    shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for path in folder.glob("kernels/*/kernel-metadata.json"):
        data = json.loads(path.read_text())
        data["dataset_sources"] = [name for name in data["dataset_sources"] if name != "OWNER/rsna-wheels"]
        path.write_text(json.dumps(data))
    (folder / "datasets").mkdir()
    for name in ("rsna-kit", "rsna-weights"):
        shutil.copytree(ROOT / "datasets" / name, folder / "datasets" / name)
    (folder / "scripts").mkdir()
    (folder / "scripts/build").symlink_to(ROOT / "scripts/build")
    return folder
