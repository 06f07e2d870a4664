"""The kernels as Kaggle would run them: alone, read-only, offline; and their metadata."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rsna_kit.competition.submission import check_submission
from rsna_kit.competition.tables import read_sample
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.files import sha256_file
from rsna_lab.kaggle.metadata import BOOLEANS, SOURCE_KEYS
from rsna_lab.kaggle.options import fill_settings, read_settings

ROOT = Path(__file__).parent.parent
KERNELS = sorted(path.parent for path in (ROOT / "kernels").glob("*/kernel-metadata.json"))


def rehearse(kernel: str | Path, *arguments: str | Path, settings: str = "") -> tuple[dict, str]:
    command = [sys.executable, ROOT / "scripts/rehearse", Path("kernels") / kernel, *arguments]
    environment = {**os.environ, "RSNA_KIT_SET": settings}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_metadata_is_explicit(kernel: Path) -> None:
    """A key with a typo is ignored by the client, and internet is on unless it says false."""
    metadata = json.loads((kernel / "kernel-metadata.json").read_text())
    assert {*BOOLEANS, *SOURCE_KEYS, "docker_image_pinning_type"} <= set(metadata)
    assert metadata["docker_image_pinning_type"] == "original"
    assert metadata["enable_internet"] is False
    assert metadata["is_private"] is True
    assert metadata["id"].split("/")[1] == metadata["title"] == f"rsna-kit-{kernel.name}"
    assert (kernel / metadata["code_file"]).stat().st_size < 1_000_000
    assert sorted(path.name for path in kernel.iterdir()) == sorted([metadata["code_file"], "kernel-metadata.json"])


def test_kernels_attach_the_library_alike() -> None:
    """A kernel is one file, so each has its copy: of the same text."""
    heads = {(k / f"{k.name}.py").read_text().split("def ")[1].split("\nattach_library()")[0] for k in KERNELS}
    assert len(heads) == 1


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_every_setting_is_explained_and_can_be_filled(kernel: Path) -> None:
    """Kaggle's kernels get no variables of ours: a push writes them into the source."""
    source = (kernel / f"{kernel.name}.py").read_text()
    settings = read_settings(source)
    table = (ROOT / "kernels/README.md").read_text()
    assert "SET" in settings
    for name in settings:
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert kernel.name in row.split("|")[2] or row.split("|")[2].strip() == "all"
    filled = fill_settings(source, {"SET": 'train.targets="a"'})
    assert read_settings(filled) == settings | {"SET": 'train.targets="a"'}
    assert filled.replace(json.dumps('train.targets="a"'), '""', 1) == source
    with pytest.raises(UsageError, match=r"SETT: no setting of this kernel\. Did you mean 'SET'\?"):
        fill_settings(source, {"SETT": ""})


def test_settings_of_another_form_are_refused() -> None:
    with pytest.raises(UsageError, match="SETTINGS is no dict of strings"):
        read_settings("SETTINGS = {'EPOCHS': 3}")
    with pytest.raises(UsageError, match="SETTINGS is no dict of strings"):
        read_settings("SETTINGS = dict(EPOCHS='3')")
    assert read_settings("print('nothing to set')") == {}


def verdict_of(talk: str, out: Path) -> dict:
    """The kernel's own verdict: the last of its lines, and the file."""
    lines = [line for line in talk.splitlines() if line.startswith("RSNA_KIT_VERDICT ")]
    verdict = json.loads(lines[-1].removeprefix("RSNA_KIT_VERDICT "))
    assert verdict == json.loads((out / "verdict.json").read_text())
    return verdict


def test_a_kernel_without_the_weights_says_so(phantom: Path, tmp_path: Path) -> None:
    """As a plain process, which sees the same inputs through links."""
    words = ["--competition", phantom / "hidden", "--out", tmp_path / "out", "--no-sandbox"]
    verdict, talk = rehearse("infer", *words)
    assert verdict["verdict"].startswith("Notebook Threw Exception")
    assert "network off" in verdict["not_checked"]
    assert (tmp_path / "out" / "submission.csv").is_file()
    said = verdict_of(talk, tmp_path / "out")
    assert said["ok"] is False
    assert said["reason"].startswith("no bundle attached. Attach the output of the kernel rsna-kit-train")
    assert "competition rsna-breast-cancer-detection" in said["reason"]
    assert set(said["sha256"]) == {"events.jsonl", "submission.csv"}


def test_a_training_without_prepared_images_says_so_before_it_loads_anything(tmp_path: Path) -> None:
    verdict, talk = rehearse("train", "--out", tmp_path / "out")
    assert verdict["verdict"].startswith("Notebook Threw Exception")
    assert "Attach the kernel rsna-kit-prepare (kernel_sources)" in verdict_of(talk, tmp_path / "out")["reason"]


# TensorFlow splits a CPU when a program says so before anything else: two devices stand for two GPUs.
TWO_DEVICES = """import tensorflow
_split = [tensorflow.config.LogicalDeviceConfiguration() for _ in range(2)]
tensorflow.config.set_logical_device_configuration(tensorflow.config.list_physical_devices("CPU")[0], _split)
"""


def changed(kernel: str, to: Path, **sources: list[str]) -> Path:
    """A copy of a kernel on two devices, with other sources attached."""
    shutil.copytree(ROOT / "kernels" / kernel, to)
    metadata = json.loads((to / "kernel-metadata.json").read_text())
    (to / "kernel-metadata.json").write_text(json.dumps(metadata | sources))
    says, line, code = (to / f"{kernel}.py").read_text().partition("\n\nimport ")
    (to / f"{kernel}.py").write_text(f"{says}\n\n{TWO_DEVICES}{line}{code}")
    return to


@pytest.mark.slow
def test_prepare_then_train_then_infer(phantom: Path, tmp_path: Path) -> None:
    """The kernels hand on to each other what Kaggle would mount, and the scoring run survives a file that is broken.

    Pictures come in two parts, bundles as train's output; for infer all is mounted as for kernels of the web editor.
    Training in float16 and scoring share two devices.
    """
    smoke = ["--settings", "PRESET=smoke"]
    network = "model.weights=none model.tap=32 model.head=linear model.pool=avg"
    mounted, images = [*smoke, "FOLDS=0"], 0
    for number in (1, 2):
        out = tmp_path / f"prepare-{number}"
        words = ["--competition", phantom, "--out", out, *smoke, f"PART={number}/2"]
        prepared, talk = rehearse("prepare", *words, settings="image.height=64 image.width=32")
        assert prepared["verdict"] == "Complete", talk
        images += verdict_of(talk, out)["counts"]["images"]
        mounted = ["--dataset", f"rsna-kit-prepare-{number}={out}", *mounted]
    assert images == len(pd.read_csv(phantom / "train.csv"))
    parts = [f"OWNER/rsna-kit-prepare-{number}" for number in (1, 2)]
    training = changed("train", tmp_path / "training", kernel_sources=parts)
    quick = f"train.folds=2 train.epochs=1 train.batch_size=8 train.precision=mixed_float16 {network}"
    trained, talk = rehearse(training, *mounted, "--out", tmp_path / "train", settings=quick)
    assert trained["verdict"] == "Complete", talk
    assert "2 devices" in talk
    weights = sha256_file(tmp_path / "train/model/bundles/fold0/model.weights.h5")
    assert verdict_of(talk, tmp_path / "train")["sha256"]["model/bundles/fold0/model.weights.h5"] == weights

    sources = {"dataset_sources": ["OWNER/rsna-kit"], "kernel_sources": ["OWNER/rsna-kit-train"]}
    kernel = changed("infer", tmp_path / "kernel", **sources)
    hidden = shutil.copytree(phantom / "hidden", tmp_path / "hidden")
    next((hidden / "test_images").glob("*/*.dcm")).write_bytes(b"")
    words = ["--competition", hidden, "--rerun", "--layout", "old", "--out", tmp_path / "infer"]
    verdict, talk = rehearse(kernel, *words, "--dataset", f"rsna-kit-train={tmp_path / 'train'}")
    assert verdict["verdict"] == "Complete", talk
    assert 0 <= verdict["score"]["value"] <= 1
    assert "bundles    from the output of the kernel" in talk
    assert "scoring on CPU:0" in talk
    assert "CPU:1" in talk
    said = verdict_of(talk, tmp_path / "infer")
    assert set(said["bundles"]["sha256"].values()) == {weights}
    assert said["sha256"]["submission.csv"] == sha256_file(tmp_path / "infer/submission.csv")
    sample = read_sample(phantom / "hidden/sample_submission.csv")
    check_submission(pd.read_csv(tmp_path / "infer/submission.csv"), sample)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_the_library_is_attached_once_and_a_kernel_without_it_ends_in_a_verdict(kernel: Path, tmp_path: Path) -> None:
    """Nothing of the library is there to help it; both mount layouts of one copy are one, and two copies are not."""
    root = tmp_path / "input"
    (root / "datasets/me/other").mkdir(parents=True)
    script = shutil.copy(kernel / f"{kernel.name}.py", tmp_path / "script.py")
    environment = {"PATH": os.environ["PATH"], "RSNA_KIT_INPUT": str(root), "RSNA_KIT_WORKING": str(tmp_path)}

    def run() -> str:
        words = [sys.executable, "-I", script]
        return subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path).stdout

    said = verdict_of(run(), tmp_path)
    assert said["kernel"] == kernel.name
    assert said["reason"].startswith("Attach the dataset rsna-kit, once. Found: []")
    assert f"{root}/datasets/me/other" in said["reason"]
    library = root / "datasets/me/rsna-kit/rsna_kit"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("print('FOUND', __file__); raise SystemExit(0)")
    (root / "rsna-kit").symlink_to(library.parent)
    assert run().strip() == f"FOUND {library / '__init__.py'}"
    shutil.copytree(library, root / "datasets/you/rsna-kit/rsna_kit")
    assert "datasets/you/rsna-kit" in verdict_of(run(), tmp_path)["reason"]
