"""The mammography start, in small: what it has seen, what is written, what uses it, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from toy_networks import add_backbone

from rsna_kit.competition.folds import assign_folds, known_patients
from rsna_kit.competition.tables import read_train
from rsna_kit.config import preset, with_overrides
from rsna_kit.models import members
from rsna_kit.models.bundle import load_model
from rsna_kit.models.members import find_mammography, open_members
from rsna_kit.models.network import build_network
from rsna_kit.models.starts import load_start
from rsna_kit.recipes.prepare import prepare
from rsna_kit.runtime.errors import BundleError, TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.scoring.metrics import measure
from rsna_lab.analysis import patches
from rsna_lab.cli import main
from rsna_lab.phantom.wrap import wrap_pictures
from rsna_lab.recipes import start
from rsna_lab.recipes.tune import tune

pytestmark = [pytest.mark.tf, pytest.mark.slow]
SMALL = [
    *("image.height=128", "image.width=64", "model.backbone=toy"),
    *("train.folds=2", "train.batch_size=4", "train.epochs=1"),
]
add_backbone()


def film(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A breast of 256 x 128 with a bright square in it, brighter where it is malignant; and the square's outline."""
    rng = np.random.default_rng(number)
    picture, outline = np.zeros((256, 128), np.uint8), np.zeros((256, 128), np.uint8)
    cv2.ellipse(picture, (0, 128), (100, 120), 0, -90, 90, 90, -1)
    row, column = rng.integers(60, 180), rng.integers(10, 50)
    picture[row : row + 24, column : column + 24] = 250 if number % 2 else 140
    outline[row : row + 24, column : column + 24] = 255
    return picture, outline


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films, outlines, a competition of them, and a start that was made of its training part."""
    root = tmp_path_factory.mktemp("films")
    rows = []
    for number in range(16):
        for folder, picture in zip(("img", "outlines"), film(number), strict=True):
            (root / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(root / folder / f"f{number}.png"), picture)
        split = "test" if number >= 12 else "train"
        rows.append((f"f{number}", f"p{number}", "L", "CC", number % 2, split))
    columns = ["image_id", "patient_id", "laterality", "view", "cancer", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "labels.csv", index=False)
    quiet = Events(stream=io.StringIO())
    wrap_pictures(root / "img", root / "labels.csv", root / "competition", split_column="split", events=quiet)
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        made = start.make_start(root / "competition", root / "outlines", root / "start", [3], quiet)
    (root / "made.json").write_text(json.dumps(made))
    return root


def small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(patches, "CONFIG", with_overrides(patches.CONFIG, [*SMALL, "model.weights=none"]))
    for name, value in (
        ("CUT", "relu2"),
        ("PATCH", 8),
        ("VARIANTS", 3),
        ("PATCH_EPOCHS", 1),
        ("KINDS", dict.fromkeys(patches.KINDS, 1)),
    ):
        patch.setattr(patches, name, value)


def test_what_ships_is_whole_and_as_good_as_it_says() -> None:
    """Its own out-of-fold scores give the figures that it carries."""
    home = Path(__file__).parent.parent / "datasets/mammography-start"
    opened = open_members([home], print)
    assert {member.bundle.config.image for member in opened.members} == {preset("mammography").image}
    assert {member.bundle.metadata["start"]["kind"] for member in opened.members} == {"imagenet"}
    assert sum(path.stat().st_size for path in home.rglob("*")) < 25e6
    oof, how = pd.read_csv(home / "oof.csv"), json.loads((home / "ensemble.json").read_text())["how"]
    assert measure("roc_auc", oof["cancer"], oof["score"]) == pytest.approx(how["out_of_fold"]["roc_auc"]["value"])
    assert not known_patients(how["patients"], ["1", "2"])  # of mini-MIAS
    assert known_patients(how["patients"], oof["patient_id"]) == sorted(set(oof["patient_id"]))


def test_networks_are_judged_on_patients_that_they_did_not_see(world: Path) -> None:
    made, opened = json.loads((world / "made.json").read_text()), open_members([world / "start"], print)
    table = read_train(world / "competition/train.csv")
    fold_of = assign_folds(table, 2, 3)
    assert (len(opened.members), opened.tta, opened.threshold) == (4, "flip", made["threshold"])
    for member in opened.members:
        held = fold_of == member.bundle.metadata["fold"]
        seen = member.bundle.metadata["trained_on"]
        assert not known_patients(seen, table["patient_id"][held])
        assert len(known_patients(seen, table["patient_id"][~held])) == (~held).sum()
    oof = pd.read_csv(world / "start/oof.csv")
    assert sorted(oof["patient_id"]) == sorted(table["patient_id"])
    assert 0 <= made["out_of_fold"]["roc_auc"]["value"] <= 1


@pytest.mark.parametrize("number", range(5))
def test_an_outline_moves_with_its_picture(number: int) -> None:
    picture, outline = patches.variant(*film(1), number, np.random.default_rng(number))
    bright, inside = picture > 0.8 * picture.max(), outline > 127
    assert inside.sum() > 200
    assert (bright & inside).sum() / (bright | inside).sum() > 0.85


def test_a_test_set_is_scored_and_the_maps_are_asked_where_the_mass_is(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: Events
) -> None:
    small(monkeypatch)
    monkeypatch.setattr(
        "rsna_lab.analysis.explain.build_explainer", lambda given: (lambda pictures: pictures[..., 0], "grey")
    )
    found = start.judge_start(world / "competition/hidden", world / "outlines", world / "start", tmp_path, quiet)
    pointing = found["pointing"]
    assert (pointing["films"], pointing["map"], pointing["map_near"]) == (2, 1.0, 1.0)  # the square is the brightest
    assert 0.01 < pointing["chance"] < pointing["chance_near"] < 0.2
    assert next(iter(found["scores"]["files"].values()))["counts"]["breasts"] == 4


def test_a_picture_without_its_outline_is_refused(world: Path, tmp_path: Path, quiet: Events) -> None:
    there = tmp_path / "out/bundles/seed9-patches0"
    there.mkdir(parents=True)
    with pytest.raises(TableError, match=r"f0\.png: no picture, expected the outline of f0"):
        start.make_start(world / "competition", tmp_path, tmp_path / "out", [1], quiet)
    assert there.is_dir()


def test_networks_that_are_there_are_kept_while_films_and_patients_are_the_same(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: Events
) -> None:
    small(monkeypatch)
    taught: list[str] = []
    monkeypatch.setattr(patches.Lessons, "_teach", lambda self, what, *_: taught.append(what))
    out = shutil.copytree(world / "start", tmp_path / "start")
    again = start.make_start(world / "competition", world / "outlines", out, [3], quiet)
    assert taught == []
    assert again["out_of_fold"] == json.loads((world / "made.json").read_text())["out_of_fold"]
    monkeypatch.setattr(patches, "CONFIG", with_overrides(patches.CONFIG, ["train.folds=3"]))
    start.make_start(world / "competition", world / "outlines", out, [3], quiet)
    assert taught == 3 * ["patches", "pictures"] + 3 * ["pictures"]


@pytest.fixture
def shipped(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The start in the place where a checkout has it."""
    home = shutil.copytree(world / "start", tmp_path / "mammography-start")
    monkeypatch.setattr(members, "_SHIPPED", home)
    return home


def test_a_folder_is_scored_without_naming_a_bundle(
    world: Path, shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["infer", str(world / "img"), str(tmp_path / "out")]) == 0
    assert "They diagnose nobody" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "out/scores.csv")) == 16


def test_training_starts_from_trunk_and_head_at_any_size(shipped: Path) -> None:
    config = with_overrides(preset("mammography"), ["image.height=96", "image.width=96", "model.backbone=toy"])
    network = build_network(config, config.image)
    said = load_start(network, config.model)
    wanted = load_model(open_members([shipped], print).members[0].bundle)
    assert (said["kind"], said["head"]) == ("bundle", True)
    for layer in wanted.layers:
        for ours, theirs in zip(network.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_what_is_not_the_start_is_refused(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_overrides(preset("mammography"), ["model.backbone=efficientnet_lite1"])
    with pytest.raises(BundleError, match=r"mammography: 0 bundles of efficientnet_lite1 in .*\(toy\)"):
        load_start(None, config.model)
    with open(next(shipped.glob("bundles/*/model.weights.h5")), "ab") as file:
        file.write(b"more")
    with pytest.raises(BundleError, match="damaged or exchanged"):
        load_start(None, with_overrides(preset("mammography"), SMALL).model)
    monkeypatch.setattr(members, "_SHIPPED", tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="the dataset mammography-start is not in"):
        find_mammography([tmp_path / "out"])
    assert find_mammography([tmp_path]) == shipped


def test_a_little_data_is_blended_with_the_start(world: Path, shipped: Path, tmp_path: Path, quiet: Events) -> None:
    config = with_overrides(preset("mammography"), SMALL)
    prepare(world / "competition", tmp_path / "seen", config, quiet)
    with pytest.raises(UsageError, match=r"the start has seen 12 \(p0, p1, p10, …\): scores would be too good"):
        tune(tmp_path / "seen", tmp_path / "tuned", [5], config, quiet)
    others = pd.read_csv(world / "labels.csv").assign(
        patient_id=lambda table: table["patient_id"].str.replace("p", "q")
    )
    others.to_csv(tmp_path / "labels.csv", index=False)
    wrap_pictures(world / "img", tmp_path / "labels.csv", tmp_path / "others", events=quiet)
    prepare(tmp_path / "others", tmp_path / "prepared", config, quiet)
    low = with_overrides(config, ["image.height=64"])
    prepare(tmp_path / "others", tmp_path / "low", low, quiet)
    with pytest.raises(UsageError, match="expected those of the start"):
        tune(tmp_path / "low", tmp_path / "tuned", [5], low, quiet)
    result = tune(tmp_path / "prepared", tmp_path / "tuned", [5], config, quiet)
    oof = pd.read_csv(tmp_path / "tuned/seed5/blend/oof.csv")
    for name in ("start", "tuned"):
        assert result["mean"][name] == pytest.approx(measure("roc_auc", oof["cancer"], oof[name]))
    blended = open_members([tmp_path / "tuned/seed5/blend"], print)
    assert blended.tta == "flip"
    assert sum(member.weight for member in blended.members) == pytest.approx(1)
