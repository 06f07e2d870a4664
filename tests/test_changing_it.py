"""docs/changing-it.md is carried out on a copy of the project, and what it adds is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rsna_kit.config import Config
from rsna_kit.recipes.prepare import prepare
from rsna_kit.runtime.events import Events

ROOT = Path(__file__).parent.parent
SECTIONS = re.split(r"(?m)^## ", (ROOT / "docs/changing-it.md").read_text())[1:]
TITLES = [section.splitlines()[0] for section in SECTIONS]
FILES = [1, 1, 1, 1, 1, 2, 1, 1, 1]

CHECKS = """
import dataclasses, sys
import numpy as np, pandas as pd, keras
from rsna_kit.config import Config, from_dict, to_dict, with_overrides

def a_backbone():
    from rsna_kit.models.network import build_network
    config = with_overrides(Config(), ["model.backbone=efficientnet_b5", "model.weights=none"])
    small = with_overrides(config, ["image.height=32", "image.width=32"]).image
    network = build_network(config, small)
    assert network.get_layer("features").output.shape == (None, 1, 1, 2048)

def a_loss():
    from rsna_kit.training.losses import build_loss
    train = with_overrides(Config(), ["train.loss=poly", "train.label_smoothing=0"]).train
    p = 1 / (1 + np.exp(-0.5))
    loss = build_loss(train)(np.float32([[1], [0]]), np.float32([[0.5], [0.5]]))
    assert np.allclose(loss, [-np.log(p) + 1 - p, -np.log(1 - p) + p], atol=1e-6)

def an_augmentation_recipe():
    from rsna_kit.data.augment import build_augmentation
    picture = np.zeros((64, 32), np.uint8)
    picture[16:48, :20] = np.random.default_rng(0).integers(1, 255, (32, 20))
    turn = build_augmentation("turn")
    pictures = [turn(picture, seed) for seed in range(8)]
    assert sum((other != picture).any() for other in pictures) > 3
    assert (turn(picture, 5) == pictures[5]).all()

def a_pooling():
    from rsna_kit.models.heads import POOLINGS
    from rsna_kit.training.learner import pool_views
    logits = np.float32([[-1], [2], [0.5]])
    columns = np.concatenate([logits, POOLINGS["highest"](logits, None)], axis=1)[None]
    assert np.allclose(pool_views(columns, np.array([[True, True, True]])), 2, atol=1e-4)
    assert np.allclose(pool_views(columns, np.array([[True, False, True]])), 0.5, atol=1e-4)

def a_metric():
    from rsna_kit.scoring.intervals import bootstrap
    breasts = pd.DataFrame({"patient_id": list("abcd"), "cancer": [1, 0, 0, 0], "score": [0.1, 0.2, 0.3, 0.9],
                            "called": [0, 0, 0, 1]})
    assert bootstrap(breasts, ["npv"], 50)["npv"].value == 2 / 3

def a_configuration_key():
    from rsna_kit.training.steps import build_optimizer
    config = with_overrides(Config(), ["train.momentum=0.8", "train.optimizer=sgd"])
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert build_optimizer(network, config.train).momentum == 0.8
    before = to_dict(Config())
    del before["train"]["momentum"]
    assert from_dict(before) == Config()

def a_decoder():
    from pathlib import Path
    from rsna_kit.dicom.decode import decode
    from rsna_kit.dicom.decoders import DECODERS
    from rsna_kit.dicom.frame import JPEG2000_UIDS, read_frame
    assert next(iter(DECODERS)) == "pillow"
    heads = (read_frame(path) for path in sorted(Path(sys.argv[1]).glob("**/*.dcm")))
    frame = next(frame for frame in heads if frame.transfer_syntax in JPEG2000_UIDS)
    asked, decode_pillow = [], DECODERS["pillow"].decode
    def watched(frame):
        asked.append(frame)
        return decode_pillow(frame)
    DECODERS["pillow"] = dataclasses.replace(DECODERS["pillow"], decode=watched)
    pixels = decode(frame)
    assert len(asked) == 1
    del DECODERS["pillow"]
    assert (decode(frame) == pixels).all()

def a_preset():
    from rsna_kit.config import preset
    assert preset("mine").model.backbone == "efficientnetv2_b0"

for check in (a_backbone, a_loss, an_augmentation_recipe, a_pooling, a_metric, a_configuration_key,
              a_decoder, a_preset):
    check()
print("all")
"""


def changes(section: str) -> list[tuple[str, str, str]]:
    """File, text before and text after of each block of a section."""
    found = []
    for file, body in re.findall(r"```diff\n--- (\S+)\n(.*?)```", section, re.S):
        lines = body.splitlines(keepends=True)
        before, after = ("".join(line[1:] or line for line in lines if line[0] not in other) for other in ("+", "-"))
        found.append((file, before, after))
    return found


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with all nine changes."""
    copy = tmp_path_factory.mktemp("changed")
    for name in ("rsna_kit", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for section in SECTIONS:
        for file, before, after in changes(section):
            text = (copy / file).read_text()
            assert text.count(before) == 1, (
                f"{section.splitlines()[0]}: this stands {text.count(before)} times:\n{before}"
            )
            (copy / file).write_text(text.replace(before, after))
    return copy


def run(*command: str | Path, cwd: Path, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(cwd), **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("section", "files"), list(zip(SECTIONS, FILES, strict=True)), ids=TITLES)
def test_a_change_is_small(section: str, files: int) -> None:
    assert len({file for file, _, _ in changes(section)}) == files
    assert sum(line.startswith("+") for line in section.splitlines()) <= 10


def test_what_the_changes_add_works(changed: Path, phantom: Path) -> None:
    done = run(sys.executable, "-c", CHECKS, phantom, cwd=changed)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_training_step_of_ones_own(changed: Path, phantom: Path, tiny: Config, quiet: Events, tmp_path: Path) -> None:
    prepare(phantom, tmp_path / "input/prepared", tiny, quiet)
    shutil.copytree(changed / "rsna_kit", tmp_path / "input/rsna-kit/rsna_kit")
    (tmp_path / "working").mkdir()
    places = {"RSNA_KIT_INPUT": tmp_path / "input", "RSNA_KIT_WORKING": tmp_path / "working"}
    settings = {
        "RSNA_KIT_PRESET": "smoke",
        "RSNA_KIT_SET": "model.weights=none train.epochs=1",
        "RSNA_KIT_FOLDS": "0",
    }
    done = run(sys.executable, changed / "kernels/train/train.py", cwd=changed, **places, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "working/verdict.json").read_text())["ok"]
