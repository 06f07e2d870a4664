"""All steps together: datasets, prepare, train, weights, infer, submission, score; and the command line.

Kernels are small stand-ins that are really run, as plain processes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kaggle_site import KEY, TOKEN, USER, Refused, Session
from push_world import ROOT, SCRIPT, World, write_dataset, write_kernel
from waiting import wait_until

from rsna_kit.config import image_fingerprint, preset
from rsna_kit.runtime.errors import UsageError
from rsna_lab.kaggle.push import checks, choices
from rsna_lab.kaggle.push.account import alone

KINDS = "upload upload push run fetch push run fetch fetch upload upload push run fetch submit score"


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


def test_pictures_that_one_output_cannot_hold_are_prepared_in_parts_side_by_side(world: World) -> None:
    """54,706 of 1536x768 are 25 GB, and train gets the outputs of both kernels; nothing is done twice."""
    settings = "SETTINGS = {'PRESET': 'default', 'SET': '', 'PART': ''}\n"
    part = "(working / 'part').write_text(SETTINGS['PART'])\nverdict()"
    reads = "found = sorted(path.read_text() for path in inputs.glob('notebooks/*/rsna-kit-prepare*/part'))\n"
    made = (
        "(working / 'bundles').mkdir()\n(working / 'bundles/weights').write_text('0.5 ' + ' '.join(found))\nverdict()"
    )
    for name, text in (("prepare", settings + part), ("train", reads + made)):
        data = json.loads((world.project / f"kernels/{name}/kernel-metadata.json").read_text())
        write_kernel(world.project / "kernels" / name, text, **data)
    shown = world.does("all", "--dry-run").value
    assert "== push prepare, part 1/2" in shown
    assert "== push prepare, part 2/2" in shown
    first = world.does("all").value
    assert first["prepare"] == [1, 1]
    kinds = [line["kind"] for line in world.ledger.lines() if "rsna-kit-prepare" in line.get("kernel", "")]
    assert kinds == ["push", "push", "run", "fetch", "run", "fetch"]
    weights = world.site.datasets[f"{USER}/rsna-weights"].versions[0] / "bundles/weights"
    assert weights.read_text() == "0.5 1/2 2/2"
    assert f"notebooks/{USER}/rsna-kit-prepare-2" in world.site.kernels[f"{USER}/rsna-kit-train"].versions[0].sources
    assert set(world.push("status").value["kernels"]) == {"infer", "prepare 1/2", "prepare 2/2", "train"}
    world.site.calls.clear()
    assert world.does("all").value == first
    assert world.site.changes == []
    small = ["--settings", "prepare", "SET=image.height=1024 image.width=512"]
    talk = world.fails("all", *skipping("build", "upload", "prepare"), *small)
    assert "train reads the output of tester/rsna-kit-prepare, and this account has none" in talk


def test_a_plan_says_parts_hours_and_what_of_it_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A guess until there is a verdict of the same pictures and network; then that is believed."""
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    words = ["plan", "--project", str(tmp_path), "--settings", "train", "PRESET=smoke", "FOLDS=0", "TIME_LIMIT=1h"]
    words += ["--settings", "prepare", "PRESET=smoke"]
    assert SCRIPT.exit_code_of(words) == 0
    guessed = capsys.readouterr().out
    assert "54,706 pictures of 512x256 in 1 kernel at a time\n" in guessed
    assert "8.0 files a second (a guess): 1.9 h of CPU each, no quota" in guessed
    verdicts = {
        "rsna-kit-prepare": ("prepare", {"fingerprint": image_fingerprint(preset("smoke").image), "images": 36_000}),
        "rsna-kit-train": (
            "train",
            {"speed": {"backbone": "efficientnet_lite0", "image": [512, 256], "training": 50.0, "scoring": 200.0}},
        ),
    }
    for name, (kernel, counts) in verdicts.items():
        path = tmp_path / "runs/kaggle" / name / "v1/verdict.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"ok": True, "kernel": kernel, "counts": counts, "minutes": 60}))
    assert SCRIPT.exit_code_of(words) == 0
    measured = capsys.readouterr().out
    assert "10.0 files a second (measured): 1.5 h of CPU each" in measured
    # 26,774 healthy, three to one cancer of four: 35,712 pictures at 50 a second, 27,353 to validate at 200.
    assert "1 folds of 24 epochs\n         50.0 pictures a second (measured): 0.24 h an epoch and fold, 6 h" in measured
    assert "6 sessions of 1 h" in measured
    assert "each 200 a second (measured): 0.9 h" in measured


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


def test_a_dry_run_shows_every_step_and_sends_nothing(world: World) -> None:
    shown = world.does("all", "--dry-run").value
    steps = [line.partition("  (")[0] for line in shown.splitlines() if line.startswith("==")]
    names = ["upload rsna-kit", "push prepare", "push train", "upload rsna-weights", "push infer", "submit"]
    assert steps == [f"== {name}" for name in names]
    assert "== upload rsna-kit  (3 files, 24 bytes)" in shown
    assert "rsna_kit/deep/module.py" in shown
    assert world.site.changes == []
    assert not world.ledger.path.exists()


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


def test_a_reader_who_leaves_gets_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, ROOT / "scripts/push", "validate", ROOT / "kernels/infer"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


# ---- what would end a run of steps after hours ends it before anything is sent

MODEL = "keras/efficientnetv2/keras/efficientnetv2_s_imagenet/2"
WEIGHTS_OF_TRAIN = "SETTINGS = {'PRESET': 'default', 'SET': '', 'WEIGHTS': ''}\nverdict()"


# ---- what steps that are left out should have left


@pytest.mark.parametrize(
    ("skip", "said"),
    [
        (("prepare", "train"), "this account has no training on Kaggle"),
        (("prepare",), "train reads the output of tester/rsna-kit-prepare, and this account has none"),
        (("prepare", "train", "weights"), "infer reads the dataset tester/rsna-weights, which Kaggle does not have"),
    ],
)
def test_a_step_that_is_left_out_and_was_never_taken_is_told_before_any_upload(
    world: World, skip: tuple[str, ...], said: str
) -> None:
    talk = world.fails("all", *skipping(*skip))
    assert said in talk
    assert world.site.changes == []
    if "train" in skip:
        assert "scripts/build rsna-weights --from runs/model/bundles, scripts/push upload rsna-weights" in talk


def test_bundles_of_ones_own_lead_to_a_score_without_a_training(world: World) -> None:
    world.dataset("rsna-weights", **{"bundles/weights": "0.125 home"})
    assert world.push("upload", "rsna-weights").code == 0
    result = world.push("all", *skipping("prepare", "train", "weights"))
    assert result.code == 0, result.talk
    assert result.value["public"] == "0.5"
    infer = world.site.kernels[f"{USER}/rsna-kit-infer"].versions[0]
    assert (infer.working / "submission.csv").read_text().splitlines()[1] == "0_L,0.125"


# ---- one minute of questions


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        ({"not_joined": True}, ["all"], "https://www.kaggle.com/competitions/rsna-breast-cancer-detection/rules"),
        ({"gpu_hours_used": 30.0}, ["all"], "Run the same command again after 2026-11-28T00:00 (UTC)"),
        ({"refuse": {"list_kernels": [Refused(403, "Permission denied")]}}, ["push", "infer"], "kernels cannot be"),
        ({"refuse": {"list_datasets": [Refused(401, "Unauthorized")]}}, ["all"], "Make new ones at"),
        ({"allowed_submissions": 0}, ["all", "--skip", "train", "--skip", "weights"], "eave out the last step"),
    ],
)
def test_what_would_end_it_later_is_asked_before_anything_is_sent(
    world: World, change: dict[str, Any], words: list[str], said: str
) -> None:
    world.has_dataset("rsna-weights")
    world.site.submissions.append({"ref": 1, "status": "COMPLETE", "publicScore": "0.2"})
    for name, value in change.items():
        setattr(world.site if hasattr(world.site, name) else world.traps, name, value)
    assert said in world.fails(*words)
    assert world.site.changes == []


# ---- what is attached from the command line


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("imagenet-starts", "scripts/build imagenet-starts --from ~/.keras/models, then scripts/push upload"),
        ("other/rsna-data", "Check the name, and that this account may use it"),
    ],
)
def test_what_is_not_there_cannot_be_attached(world: World, source: str, said: str) -> None:
    for words in (["all", "--attach", "train", source], ["push", "train", "--attach", source]):
        talk = world.fails(*words)
        assert f"--attach {source if '/' in source else f'{USER}/{source}'}: Kaggle has no such source" in talk
        assert said in talk
    assert world.site.changes == []


def test_the_internet_and_a_network_whose_start_nothing_brings_are_refused_before_prepare(world: World) -> None:
    write_kernel(world.project / "kernels/infer", "", enable_internet=True)
    assert "Kaggle scores no kernel that has the internet" in world.push("all").talk
    write_kernel(world.project / "kernels/infer", "")
    world.has_dataset("imagenet-starts")
    write_kernel(world.project / "kernels/train", WEIGHTS_OF_TRAIN)
    result = world.push("all", "--settings", "train", "PRESET=seed")
    assert (result.code, world.client.seen) == (2, [])
    assert "ImageNet weights of efficientnet_b4, and nothing that is attached brings them" in result.talk
    assert "--attach train imagenet-starts" in result.talk
    assert world.push("push", "train", "--settings", "SET=model.weights=start").code == 2
    for more in (["SET=model.weights=none"], ["SET=model.backbone=efficientnet_lite1"]):
        assert world.push("push", "train", "--no-wait", "--settings", "PRESET=seed", *more).code == 0
    assert world.push("push", "train", "--settings", "PRESET=seed", "--attach", "imagenet-starts").code == 0
    assert f"datasets/{USER}/imagenet-starts" in world.site.kernels[f"{USER}/rsna-kit-train"].versions[-1].sources


# ---- values of settings, time limits


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"PRESET": "sead"}, "train: preset: got 'sead'.*Did you mean 'seed'"),
        ({"SET": "train.epoch=3"}, "unknown key.*Did you mean 'train.epochs'"),
        ({"SET": "train.epochs=many"}, "expected int"),
        ({"SET": "model.backbone=efficientnet_l0"}, "model.backbone"),
        ({"FOLDS": "0,1"}, 'FOLDS="0 1"'),
        ({"FOLDS": "0 4"}, "numbers from 0 to 3"),
        ({"SET": "train.folds=2", "FOLDS": "2"}, "numbers from 0 to 1"),
        ({"REQUIRE_GPU": "maybe"}, "expected yes, no or auto"),
        ({"PART": "4/3"}, "got '4/3', expected one such as 2/3"),
        ({"PRESET": "kaggle", "WEIGHTS": ""}, f"of efficientnetv2_s the Kaggle Model {MODEL}"),
        ({"TIME_LIMIT": "11"}, "11h or 11m"),
        ({"TIME_LIMIT": "13h"}, "5m to 12h"),
        ({"TIME_LIMIT": "9h", "HOURS": "9.5"}, "HOURS: a budget of 9.5 h does not end before TIME_LIMIT=9h"),
        ({"HOURS": "9h"}, "train.hours=9h: got '9h', expected float"),
    ],
)
def test_a_value_that_the_run_would_refuse_is_refused_here(settings: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choices.check_settings("train", settings)


def test_values_that_a_run_takes_are_taken() -> None:
    choices.check_settings("train", {"PRESET": "smoke", "SET": "train.folds=5", "FOLDS": "0 4", "TIME_LIMIT": "12h"})
    choices.check_settings("infer", {"SET": "infer.tta=flip", "TIME_LIMIT": "8h30m", "BUNDLES": "me/x", "OWN": "?"})
    choices.check_settings("train", {"TIME_LIMIT": "8h30m"}, timeout_s=9 * 3600)
    choices.check_settings("train", {"PRESET": "kaggle", "WEIGHTS": ""}, [MODEL])
    with pytest.raises(UsageError, match="ImageNet weights of convnext_small, and nothing that is attached"):
        choices.check_settings("train", {"PRESET": "winner", "WEIGHTS": ""}, [MODEL])
    with pytest.raises(UsageError, match="5m to 9h"):
        choices.check_settings("infer", {"TIME_LIMIT": "10h"})
    with pytest.raises(UsageError, match=r"its output would be lost"):
        choices.check_settings("train", {"TIME_LIMIT": "11h30m"}, timeout_s=9 * 3600)


# ---- names


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["upload", "rsna-kti"], "there are rsna-kit, rsna-weights. Did you mean 'rsna-kit'?"),
        (["push", "trian", "--dry-run"], "there are infer, prepare, train. Did you mean 'train'?"),
        (["push", "../x"], "no such kernel"),
        (["fetch", "nosuch"], "no such kernel"),
        (["submit", "infre"], "Did you mean 'infer'?"),
        (["all", "--settings", "trian", "PRESET=smoke"], "Did you mean 'train'?"),
        (["all", "--settings", "train", "PRESET"], "expected NAME=VALUE"),
        (["all", "--settings", "train"], "expected NAME=VALUE"),
        (["all", "--settings", "train", "PRESET=sead", "--dry-run"], "Did you mean 'seed'?"),
        *((["push", "infer", "--timeout", text], "xpected") for text in ("9", "99h", "2m", "soon")),
    ],
)
def test_a_name_or_value_that_there_is_not_is_refused_before_anything_is_asked(
    world: World, words: list[str], said: str
) -> None:
    result = world.push(*words)
    assert (result.code, world.client.seen) == (2, [])
    assert said in result.talk


def test_a_dataset_that_has_to_be_filled_by_hand_says_with_what(world: World) -> None:
    write_dataset(world.project / "datasets/imagenet-starts", {"README.md": "x"})
    assert "scripts/build imagenet-starts --from ~/.keras/models" in world.fails("upload", "imagenet-starts")
    shown = world.push("upload", "imagenet-starts", "--dry-run").value
    assert "to be built first: scripts/build imagenet-starts --from ~/.keras/models" in shown


# ---- the documents


def test_every_command_of_the_documents_is_understood(world: World) -> None:
    """Each `scripts/push …` of docs/kaggle.md: its options exist, and the project's own kernels take its settings."""
    text = (ROOT / "docs/kaggle.md").read_text()
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL))
    commands = re.findall(r"^scripts/push\b(.*)", blocks, re.MULTILINE)
    spoken = re.findall(r"`scripts/push (-[^`]*)`", text) + re.findall(r"\| `(--(?!skip)[^`]*)`", text)
    assert len(commands) > 5
    shutil.rmtree(world.project / "kernels")
    shutil.copytree(ROOT / "kernels", world.project / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for command in [*commands, *spoken]:
        words = shlex.split(command.replace("\n", " "), comments=True)
        words = words if words and not words[0].startswith("-") else ["all", *words]
        options = SCRIPT.build_parser().parse_args(words)
        if words[0] == "all":
            checks.check_here(world.account, choices.read_choices(options))
