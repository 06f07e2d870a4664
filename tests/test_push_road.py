"""The whole road with the real `kaggle` program: datasets, prepare, train, weights, infer, submission, score.

Kernels are really run: small stand-ins as plain processes, and the project's own in the rehearsal sandbox, offline.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kaggle_site import SLUG, USER, Session, Site
from push_world import DOOR, ROOT, World, write_kernel

WRITES = {"CreateDataset", "CreateDatasetVersion", "SaveKernel", "CreateCodeSubmission", "CreateModel",
          "CreateModelInstance", "CreateModelInstanceVersion", "StartBlobUpload"}  # fmt: skip
KINDS = ["send", "upload", "push", "verify", "run", "fetch", "push", "verify", "run", "fetch", "fetch", "send",
         "upload", "push", "verify", "run", "fetch", "submit", "score"]  # fmt: skip
OPTIONS = ("--skip", "--weights", "--partial", "--settings", "--attach", "--timeout", "--file", "--again", "--owner")


def writes(world: World) -> list[str]:
    """The calls that changed something on the site."""
    return [path.rpartition("/")[2] for _, path, _ in world.double.arrived if path.rpartition("/")[2] in WRITES]


def test_the_whole_road_to_a_score_and_once_more_without_a_step(each_world: World) -> None:
    version = ".".join(map(str, each_world.account.program.version))
    done = each_world.script("all", version=version)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "owner": USER, "datasets": {"rsna-kit": 1}, "prepare": 1, "train": 1, "infer": 1,
        "submission": 1000, "public": "0.5", "private": "0.5",
    }  # fmt: skip
    site = each_world.site
    assert [line["kind"] for line in each_world.account.ledger.lines()] == KINDS
    assert (site.datasets[f"{USER}/rsna-weights"].versions[0] / "bundles/weights").read_text() == "0.5000 default"
    assert all(dataset.private for dataset in site.datasets.values())
    infer = site.kernels[f"{USER}/rsna-kit-infer"].versions[0]
    assert f"datasets/{USER}/rsna-weights" in infer.sources
    # The scoring run saw the hidden test of five breasts, the run before it the public one of two.
    assert (infer.working / "submission.csv").read_text().splitlines()[1:] == ["0_L,0.5000", "1_L,0.5000"]
    score = each_world.account.ledger.last("score")
    assert score is not None
    assert (score["submission"], score["public"], score["kernel"]) == (1000, "0.5", f"{USER}/rsna-kit-infer")
    history = each_world.script("history", version=version).stdout
    assert re.search(r"score +tester/rsna-kit-infer +1 .*submission 1000: public 0\.5, private 0\.5", history)
    assert each_world.double.unknown == []
    if not each_world.account.program.precise:
        return  # once is enough for what is the same
    each_world.double.arrived = []
    again = each_world.script("all", version=version)
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    assert writes(each_world) == []


def test_a_failure_ends_the_road_where_it_is(world: World) -> None:
    world.has_dataset("rsna-kit")
    world.has_kernel("prepare", "print('prepared')", dataset_sources=["OWNER/rsna-kit"])
    write_kernel(world.project / "kernels/train", "raise SystemExit('no cancer in fold 1')",
                 kernel_sources=["OWNER/rsna-kit-prepare"])  # fmt: skip
    words = [word for step in ("build", "upload", "prepare") for word in ("--skip", step)]
    assert "  | no cancer in fold 1" in world.fails("all", *words)
    assert writes(world) == ["SaveKernel"]
    assert "Your notebook exited with code 1." in str(world.push("status").value)


@pytest.mark.parametrize("weights", ["model", "output"])
def test_bundles_can_travel_as_a_model_or_as_the_output_of_train(world: World, weights: str) -> None:
    text = (
        "import os, pathlib\nfolder = pathlib.Path(os.environ['RSNA_KIT_WORKING']) / 'bundles'\n"
        "folder.mkdir()\n(folder / 'weights').write_text('0.25')\n"
    )
    world.has_dataset("rsna-kit")
    world.has_kernel("train", text)
    words = [word for step in ("build", "upload", "prepare", "train", "submit") for word in ("--skip", step)]
    result = world.push("all", *words, "--weights", weights)
    assert result.code == 0, result.talk
    source = {"model": f"models/{USER}/rsna-kit-weights/keras/bundles/1", "output": f"notebooks/{USER}/rsna-kit-train"}
    infer = world.site.kernels[f"{USER}/rsna-kit-infer"].versions[0]
    assert source[weights] in infer.sources
    assert f"datasets/{USER}/rsna-weights" not in infer.sources
    assert (infer.working / "submission.csv").read_text().splitlines()[1] == "0_L,0.25"
    if weights == "model":
        assert world.site.model_private == {f"{USER}/rsna-kit-weights": True}
        world.double.arrived = []
        world.push("all", *words, "--weights", weights)
        assert writes(world) == []


def test_a_public_model_is_an_error(world: World) -> None:
    world.site.model_private[f"{USER}/rsna-kit-weights"] = False
    world.has_kernel("train", "import os\nos.mkdir('bundles')\nopen('bundles/weights', 'w').write('0.25')")
    words = [word for step in ("build", "upload", "prepare", "train", "submit") for word in ("--skip", step)]
    assert "can be seen by everybody" in world.fails("all", *words, "--weights", "model")
    assert writes(world) == []


def test_a_dry_run_shows_the_road_and_sends_nothing(world: World) -> None:
    subprocess.run(["python3", world.project / "scripts/build", "rsna-kit", "--out",
                    world.project / "build/datasets/rsna-kit"], check=True)  # fmt: skip
    shown = world.push("all", "--dry-run").value
    assert [line for line in shown.splitlines() if line.startswith("==")] == [
        "== upload rsna-kit  (3 files, 24 bytes)", *shown_pushes(world), "== submit",
    ]  # fmt: skip
    assert "rsna_kit/deep/module.py" in shown
    assert f"kaggle competitions submit {SLUG}" in shown
    assert writes(world) == []
    assert not world.account.ledger.path.exists()


def test_a_dry_run_needs_neither_credentials_nor_network(world: World, tmp_path: Path) -> None:
    """It builds the library itself, as the road would, and says what it cannot know."""
    version = ".".join(map(str, world.account.program.version))
    nobody = {"HOME": str(tmp_path), "KAGGLE_CONFIG_DIR": str(tmp_path / ".kaggle")}
    lonely = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    for surroundings, reason in ((nobody, "No credentials were found"), (lonely, "")):
        shutil.rmtree(world.project / "build", ignore_errors=True)
        done = world.script("all", "--dry-run", version=version, **surroundings)
        assert done.returncode == 0, done.stderr
        assert reason in done.stderr
        owner = "OWNER" if reason else USER
        heads = [line.partition("  (")[0] for line in done.stdout.splitlines() if line.startswith("==")]
        assert heads == ["== upload rsna-kit", "== push prepare", "== push train", "== upload rsna-weights",
                         "== push infer", "== submit"]  # fmt: skip
        assert "whether it is on Kaggle already is unknown" in done.stdout
        assert "rsna_kit/deep/module.py" in done.stdout
        assert f'"id": "{owner}/rsna-kit-infer"' in done.stdout
    assert world.double.arrived == []
    assert not world.account.ledger.path.exists()


def shown_pushes(world: World) -> list[str]:
    """The headings of the three pushes, with the weights in between."""
    folders = [world.project / "build/push/kernels" / name for name in ("prepare", "train", "infer")]
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in folders]
    heads = [f"== push {folder.name}  (2 files, {size:,} bytes)" for folder, size in zip(folders, sizes, strict=True)]
    return [*heads[:2], "== upload rsna-weights", heads[2]]


def test_an_inference_kernel_with_the_internet_on_is_refused_at_the_start(world: World) -> None:
    write_kernel(world.project / "kernels/infer", "", enable_internet=True)
    result = world.push("all")
    assert (result.code, writes(world)) == (1, [])
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
    assert (result.code, world.double.arrived) == (2, [])
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
def test_the_projects_own_kernels_go_the_whole_road_offline(world: World, phantom: Path, tmp_path: Path) -> None:
    """prepare, train and infer in the sandbox, on the phantom; the score is the hidden test's pF1."""
    pytest.importorskip("keras")
    if (
        subprocess.run(["bwrap", "--ro-bind", "/", "/", "true"], capture_output=True).returncode
        if shutil.which("bwrap")
        else 1
    ):
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

    world.double.site = Site(tmp_path / "own-site", public, hidden, in_a_jail, pf1)
    world.project = own_project(tmp_path / "own")
    small = "image.height=64 image.width=32 data.save=none"
    quick = "train.folds=2 train.epochs=1 train.batch_size=8 model.weights=none"
    words = [
        "--settings",
        "prepare",
        "PRESET=smoke",
        f"SET={small}",
        "--settings",
        "train",
        "PRESET=smoke",
        f"SET={quick}",
    ]
    version = ".".join(map(str, world.account.program.version))
    done = world.script("all", *words, version=version)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
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
