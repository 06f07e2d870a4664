"""scripts/pointing-game and scripts/lesion-start: literal cases, and both on a small competition with masks."""

from __future__ import annotations

import argparse
import importlib.util
import io
import shutil
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from rsna_kit.competition.folds import assign_folds
from rsna_kit.config import Config
from rsna_kit.data.shards import open_prepared, read_picture
from rsna_kit.runtime.errors import TableError
from rsna_kit.runtime.events import Events

ROOT = Path(__file__).parent.parent


def script(name: str) -> Any:
    loader = SourceFileLoader(name.replace("-", "_"), str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


GAME, START = script("pointing-game"), script("lesion-start")


# ---- pointing game ----


def test_one_picture_is_judged_beside_its_chance() -> None:
    """A breast of 8 x 10 pixels, a lesion of 2 x 2, a tolerance of one pixel: 4 + 8 pixels of 80."""
    picture = np.zeros((10, 10), np.uint8)
    picture[:, :8] = 100
    lesion = np.zeros((10, 10), bool)
    lesion[4:6, 4:6] = True
    heat = np.zeros((10, 10), np.float32)
    heat[4, 6], heat[4, 5], heat[0, 9] = 3, 1, 50  # beside it, in it, in the air
    judged = GAME.judge(heat, picture, lesion, 1)
    assert judged == {
        "peak": 0.0, "near": 1.0, "mass": 0.25, "chance_peak": 4 / 80, "chance_near": 12 / 80, "chance_mass": 4 / 80,
        "row": 4, "column": 6,
    }  # fmt: skip
    heat[5, 5] = 4
    assert GAME.judge(heat, picture, lesion, 0)["peak"] == 1.0
    nothing = GAME.judge(np.zeros((10, 10), np.float32), picture, lesion, 1)
    assert (nothing["peak"], nothing["near"], nothing["mass"], nothing["row"]) == (0.0, 0.0, 0.0, -1)


def test_swapped_peaks_are_those_of_other_patients() -> None:
    lesions = np.zeros((4, 3, 3), bool)
    lesions[0, 0, 0] = lesions[1, 1, 1] = lesions[3, 2, 2] = True
    rows = pd.DataFrame({"patient_id": ["a", "a", "b", "c"], "row": [0, 0, 0, -1], "column": [0, 0, 0, -1]})
    assert GAME.swapped(rows, lesions).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert np.isnan(GAME.swapped(rows[:2], lesions[:2])).all()


def test_rates_have_intervals_by_patient() -> None:
    """Forty pictures of two patients: whole patients are drawn, so a rate of one half is anything from 0 to 1."""
    rows = pd.DataFrame({"patient_id": ["a"] * 20 + ["b"] * 20, "peak": [1.0] * 20 + [0.0] * 20})
    for name, value in (("near", 1.0), ("mass", 0.3), ("chance_peak", 0.1), ("chance_near", 0.2), ("chance_mass", 0.1)):
        rows[name] = value
    found = GAME.summarise(rows)
    assert (found["pictures"], found["patients"]) == (40, 2)
    assert found["peak"] == {
        "hits": 20, "rate": 0.5, "interval": [0.0, 1.0], "chance": 0.1, "above_chance": [0.4, -0.1, 0.9],
    }  # fmt: skip
    assert found["near"]["interval"] == [1.0, 1.0]
    assert "hits" not in found["mass"]
    assert GAME.told("m", {"all": found})[0] == "m all (40): peak 0.500 (0.000 to 1.000), chance 0.100"


# ---- lesion start ----


def test_patches_on_lesions_show_them_and_move() -> None:
    lesion = np.zeros((128, 128), bool)
    lesion[60:70, 30:40] = True
    lesion[20:25, 90:95] = True
    places = START.on_lesion(lesion, 48, 6, np.random.default_rng(0))
    assert len(set(places)) == 6
    for turn, (top, left) in enumerate(places):
        assert 0 <= top <= 80
        assert 0 <= left <= 80
        wanted, area = (lesion[50:80], 100) if turn % 2 == 0 else (lesion[10:30], 25)
        shown = lesion[top : top + 48, left : left + 48]
        assert wanted.sum() == area
        assert shown.sum() >= 0.9 * area


def test_a_large_lesion_leaves_its_patches_little_room() -> None:
    """44 of 48 pixels: a shift by a quarter of the patch would cut a fifth of it off."""
    lesion = np.zeros((128, 128), bool)
    lesion[40:84, 40:84] = True
    places = START.on_lesion(lesion, 48, 20, np.random.default_rng(0))
    assert len(set(places)) > 5
    assert all(lesion[top : top + 48, left : left + 48].sum() >= 0.9 * 44 * 44 for top, left in places)


def test_patches_off_lesions_are_breast_without_one() -> None:
    breast, lesion = np.zeros((128, 128), bool), np.zeros((128, 128), bool)
    breast[:, :70] = True
    lesion[50:60, 20:30] = True
    places, seen = START.off_lesion(breast, lesion, 32, 8, np.random.default_rng(0))
    assert (len(set(places)), seen) == (8, 0)
    for top, left in places:
        assert not lesion[max(0, top - 2) : top + 34, max(0, left - 2) : left + 34].any()
        assert breast[top : top + 32, left : left + 32].mean() > 0.75
    lesion[:] = True
    lesion[:, :2] = False
    places, seen = START.off_lesion(breast, lesion, 32, 4, np.random.default_rng(0))
    assert (len(places), seen) == (4, 4)  # no room: counted, never missing


def pictures_table() -> pd.DataFrame:
    """Thirty patients with one to four pictures, two sites, ten with cancer in their first picture or in all."""
    rng = np.random.default_rng(4)
    rows = []
    for patient in range(30):
        for number in range(int(rng.integers(1, 5))):
            cancer = int(patient % 3 == 0 and (number == 0 or patient % 2 == 0))
            rows.append({"site_id": patient % 2, "patient_id": f"{patient:03d}", "image_id": f"{patient}-{number}",
                         "cancer": cancer, "prediction_id": f"{patient}_L", "machine_id": patient % 7})  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("folds", "seed", "hold_out"), [(2, 0, "patient"), (4, 67, "patient"), (5, 3, "machine")])
def test_patients_keep_their_folds(folds: int, seed: int, hold_out: str) -> None:
    table = pictures_table()
    patches = START.patch_table(table, dict(zip(table["image_id"], table["cancer"], strict=True)), 3)
    assert len(patches) == 6 * len(table)
    assert patches["image_id"].is_unique
    assert patches["prediction_id"].is_unique
    assert patches["biopsy"].sum() == 3 * len(table)
    assert (patches["cancer"] <= patches["biopsy"]).all()
    START.check_folds(patches, table, folds, seed, hold_out)
    fold = dict(zip(table["patient_id"], assign_folds(table, folds, seed, hold_out), strict=True))
    assert (patches["patient_id"].map(fold) == assign_folds(patches, folds, seed, hold_out)).all()


def test_patients_who_would_change_folds_are_refused() -> None:
    table = pictures_table()
    patches = START.patch_table(table, dict.fromkeys(table["image_id"], 0) | {"0-0": 1, "3-0": 1}, 2)
    with pytest.raises(TableError, match="would be in another fold"):
        START.check_folds(patches, table, 2, 0)
    without = table.drop(columns="machine_id")
    with pytest.raises(TableError, match="machine_id is missing"):
        START.check_folds(without, without, 2, 0, "machine")


# ---- both, on pictures with masks ----


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny: Config) -> Path:
    """Eight mammograms with a bright lesion each, their masks, the competition they make, and its prepared folder."""
    pytest.importorskip("tensorflow")
    from rsna_kit.recipes.prepare import prepare
    from rsna_lab.phantom.wrap import wrap_pictures

    root = tmp_path_factory.mktemp("study")
    quiet = Events(stream=io.StringIO())
    rng, rows = np.random.default_rng(0), []
    for folder in ("img", "mask"):
        (root / folder).mkdir()
    y, x = np.mgrid[:128, :64]
    for number in range(8):
        row, column = int(rng.integers(40, 90)), int(rng.integers(10, 30))
        mask = np.hypot(y - row, x - column) < 6
        picture = np.where(np.hypot((y - 64) / 60, x / 50) < 1, 90, 0) + 120 * mask
        right = bool(number % 2)
        for folder, plane in (("img", picture), ("mask", 255 * mask)):
            plane = plane[:, ::-1] if right else plane
            cv2.imwrite(str(root / folder / f"{number}.png"), np.ascontiguousarray(plane, np.uint8))
        rows.append(f"{number},p{number},{'R' if right else 'L'},{int(number < 4)},train")
    (root / "labels.csv").write_text("\n".join(["image_id,patient_id,laterality,cancer,split", *rows]) + "\n")
    wrap_pictures(root / "img", root / "labels.csv", root / "competition", events=quiet)
    prepare(root / "competition", root / "prepared", tiny, quiet)
    return root


def options(study: Path, **more: Any) -> argparse.Namespace:
    given = {"competition": study / "competition", "masks": study / "mask", "labels": study / "labels.csv"}
    return argparse.Namespace(**given, sheet=None, **more)


@pytest.mark.tf
def test_the_patches_of_a_competition_are_cut_where_its_masks_say(study: Path, quiet: Events) -> None:
    given = options(
        study,
        prepared=study / "prepared",
        out=study / "patches",
        size=32,
        patches=2,
        folds=2,
        seed=67,
        hold_out="patient",
    )
    summary = START.make(given, quiet)
    assert (summary["patches"], summary["on_lesions"], summary["malignant"]) == (32, 16, 8)
    made = open_prepared(study / "patches")
    assert (made.image.height, made.image.width) == (32, 32)
    for row in made.table.itertuples():
        brightest = int(read_picture(made, row.image_id).max())
        if row.biopsy:
            assert brightest > 190
        elif summary["off_that_show_a_lesion"] == 0:
            assert brightest < 120
    again = START.make(argparse.Namespace(**{**vars(given), "out": study / "again"}), quiet)
    assert open_prepared(study / "again").data_fingerprint == made.data_fingerprint
    assert again["patches"] == 32


@pytest.mark.tf
def test_the_game_is_played_out_of_fold(study: Path, bundle: Path, quiet: Events, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundles" / "fold0")
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0" / "validation.csv").write_text("image_id,score\n" + "".join(f"{n},0.5\n" for n in (0, 1, 5, 6)))
    given = options(study, model=tmp_path, split="train", method=["grad-cam"], tolerance=1 / 16, every=1)
    result = GAME.play(given, quiet)
    assert (result["bundles"], result["tolerance_pixels"]) == (1, 4)
    bright = result["methods"]["brightness"]
    assert bright["malignant"]["pictures"] == bright["benign"]["pictures"] == 2
    assert bright["all"]["peak"]["hits"] == 4  # the lesions are the brightest: the masks went the pictures' way
    assert 0 < bright["all"]["peak"]["chance"] < bright["all"]["near"]["chance"] < 0.3
    assert result["methods"]["grad-cam"]["all"]["pictures"] == 4
