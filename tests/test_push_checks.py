"""What would end a run of steps after hours, or after an upload, ends it before anything is sent."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from typing import Any

import pytest
from kaggle_site import SLUG, USER, Refused
from push_world import ROOT, SCRIPT, World, write_dataset, write_kernel

from rsna_kit.runtime.errors import UsageError
from rsna_lab.kaggle.push import checks, choices

WEIGHTS_OF_TRAIN = "SETTINGS = {'PRESET': 'default', 'SET': '', 'WEIGHTS': ''}\nverdict()"
BUNDLES = "(working / 'bundles').mkdir()\n(working / 'bundles/weights').write_text('0.25')\nverdict()"


def skipping(*steps: str) -> list[str]:
    return [word for step in steps for word in ("--skip", step)]


def metadata_of(plan: str, kernel: str) -> dict[str, Any]:
    """What a dry run shows of one kernel."""
    part = plan.partition(f"== push {kernel}")[2].partition("\n==")[0]
    found: dict[str, Any] = json.loads(part.splitlines()[-1])
    return found


# ---- what steps that are left out should have left


@pytest.mark.parametrize(
    ("skip", "said"),
    [
        (("prepare", "train"), "no training was pushed from here"),
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


def test_nothing_can_be_submitted_that_was_not_pushed(world: World) -> None:
    result = world.push("all", *skipping("prepare", "train", "weights", "infer"))
    assert result.code == 2
    assert "scripts/push submit infer --version N" in result.talk
    assert world.site.changes == []


def test_bundles_of_ones_own_lead_to_a_score_without_a_training(world: World) -> None:
    world.dataset("rsna-weights", **{"bundles/weights": "0.125 home"})
    assert world.push("upload", "rsna-weights").code == 0
    result = world.push("all", *skipping("prepare", "train", "weights"))
    assert result.code == 0, result.talk
    assert result.value["public"] == "0.5"
    infer = world.site.kernels[f"{USER}/rsna-kit-infer"].versions[0]
    assert (infer.working / "submission.csv").read_text().splitlines()[1] == "0_L,0.125"


@pytest.mark.parametrize("more", [(), ("--skip", "weights")])
def test_a_dry_run_shows_the_output_of_train_as_the_source_of_infer(world: World, more: tuple[str, ...]) -> None:
    world.has_kernel("train", BUNDLES)
    words = [*skipping("build", "upload", "prepare", "train", "submit"), "--weights", "output", "--dry-run", *more]
    planned = metadata_of(world.push("all", *words).value, "infer")
    assert planned["kernel_sources"] == [f"{USER}/rsna-kit-train"]
    assert planned["dataset_sources"] == [f"{USER}/rsna-kit"]


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


def test_who_may_see_the_files_has_accepted_the_rules_whatever_else_is_said(world: World) -> None:
    world.traps.refuse["get_competition"] = [Refused(404, "Not found")]
    talk = world.does("all").talk
    assert "GPU quota: 27.5 of 30.0 hours left, new ones at 2026-11-28T00:00" in talk
    assert "submissions: 0 today, 5 left" in talk


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


def test_a_dataset_is_attached_beside_a_kernels_own(world: World) -> None:
    world.has_dataset("imagenet-starts")
    write_kernel(world.project / "kernels/train", "print('trained')\nverdict()", competition_sources=[SLUG])
    words = ["push", "train", "--attach", "imagenet-starts"]
    assert world.push(*words).code == 0
    assert set(world.site.kernels[f"{USER}/rsna-kit-train"].versions[0].sources) == {
        f"competitions/{SLUG}",
        f"datasets/{USER}/imagenet-starts",
    }


def test_a_network_whose_start_nothing_brings_is_refused_before_prepare(world: World) -> None:
    world.has_dataset("imagenet-starts")
    write_kernel(world.project / "kernels/train", WEIGHTS_OF_TRAIN)
    result = world.push("all", "--settings", "train", "PRESET=seed")
    assert (result.code, world.client.seen) == (2, [])
    assert "ImageNet weights of efficientnet_b4, and nothing that is attached brings them" in result.talk
    assert "--attach train imagenet-starts" in result.talk
    assert world.push("push", "train", "--settings", "SET=model.weights=start").code == 2
    for more in (["SET=model.weights=none"], ["SET=model.backbone=efficientnet_lite1"]):
        assert world.push("push", "train", "--no-wait", "--settings", "PRESET=seed", *more).code == 0
    words = ["push", "train", "--settings", "PRESET=seed", "--attach", "imagenet-starts"]
    assert world.push(*words).code == 0


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
        ({"TIME_LIMIT": "11"}, "11h or 11m"),
        ({"TIME_LIMIT": "13h"}, "5m to 12h"),
    ],
)
def test_a_value_that_the_run_would_refuse_is_refused_here(settings: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choices.check_settings("train", settings)


def test_values_that_a_run_takes_are_taken() -> None:
    choices.check_settings("train", {"PRESET": "smoke", "SET": "train.folds=5", "FOLDS": "0 4", "TIME_LIMIT": "12h"})
    choices.check_settings("infer", {"SET": "infer.tta=flip", "TIME_LIMIT": "8h30m", "BUNDLES": "me/x", "OWN": "?"})
    with pytest.raises(UsageError, match="5m to 9h"):
        choices.check_settings("infer", {"TIME_LIMIT": "10h"})


def test_a_session_must_not_end_before_it_stops_itself() -> None:
    choices.check_settings("train", {"TIME_LIMIT": "8h30m"}, timeout_s=9 * 3600)
    with pytest.raises(UsageError, match=r"its output would be lost"):
        choices.check_settings("train", {"TIME_LIMIT": "11h30m"}, timeout_s=9 * 3600)


@pytest.mark.parametrize("text", ["9", "99h", "2m", "soon", "12h1m"])
def test_a_time_that_no_session_has_is_refused(world: World, text: str) -> None:
    for words in (["all", "--dry-run"], ["push", "infer"]):
        assert world.push(*words, "--timeout", text).code == 2
    assert world.client.seen == []


def test_a_wrong_value_of_a_later_kernel_stops_the_road_at_its_start(world: World) -> None:
    for more in ((), ("--dry-run",)):
        result = world.push("all", "--settings", "train", "PRESET=sead", *more)
        assert (result.code, world.client.seen) == (2, [])
        assert "Did you mean 'seed'?" in result.talk


# ---- names


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["upload", "rsna-kti"], "there are rsna-kit, rsna-weights. Did you mean 'rsna-kit'?"),
        (["upload", "rsna-kti", "--dry-run"], "no such dataset"),
        (["push", "trian", "--dry-run"], "there are infer, prepare, train. Did you mean 'train'?"),
        (["push", "../x"], "no such kernel"),
        (["logs", "nosuch"], "no such kernel"),
        (["fetch", "nosuch"], "no such kernel"),
        (["submit", "infre"], "Did you mean 'infer'?"),
    ],
)
def test_a_name_that_there_is_not_is_called_that(world: World, words: list[str], said: str) -> None:
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
