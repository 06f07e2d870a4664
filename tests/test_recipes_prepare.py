"""prepare on a whole competition: what is on disk, what a broken file costs, what a kill leaves."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_kit.competition.folds import assign_folds
from rsna_kit.competition.paths import find_competition
from rsna_kit.competition.tables import read_train
from rsna_kit.config import Config, DecodeConfig, preset, with_overrides
from rsna_kit.data import shards
from rsna_kit.data.shards import open_prepared, read_picture
from rsna_kit.imaging.render import read_image
from rsna_kit.recipes.check import check
from rsna_kit.recipes.prepare import prepare
from rsna_kit.runtime.errors import ShardError, TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import sha256_file

pytestmark = pytest.mark.tf


def digests(folder: Path) -> dict[str, str]:
    return {p.name: sha256_file(p) for p in sorted(folder.iterdir()) if p.suffix in {".tfrecord", ".json", ".csv"}}


@pytest.fixture(scope="module")
def whole(phantom: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Config) -> Path:
    """The folder that an undisturbed run leaves."""
    out = tmp_path_factory.mktemp("prepared")
    result = prepare(phantom, out, tiny, Events(stream=io.StringIO()))
    assert result["ok"]
    assert result["failed"] == 0
    return out


def test_every_picture_is_the_one_infer_would_make(phantom: Path, whole: Path, tiny: Config) -> None:
    prepared, table = open_prepared(whole, tiny.image), read_train(phantom / "train.csv")
    assert list(prepared.table["image_id"]) == list(table["image_id"])
    for image_id, path in find_competition(phantom).files("train", table.iloc[::7]):
        assert np.array_equal(read_picture(prepared, image_id), read_image(path, image_id, tiny.image).image)


def test_check_says_what_the_pictures_will_take(phantom: Path, whole: Path, tiny: Config, quiet: Events) -> None:
    pictures = sum(entry.length for entry in open_prepared(whole).index.values())
    assert check(phantom, quiet, tiny.image)["train"]["prepared_bytes"] == pytest.approx(pictures, rel=0.1)


def test_pictures_are_saved_by_patient_when_they_are_asked_for(
    phantom: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    prepare(phantom, tmp_path, tiny, quiet, limit=1)
    assert not (tmp_path / "images").exists()
    for kind, suffix in (("png", "png"), ("jpeg", "jpg")):
        prepare(phantom, tmp_path, replace(tiny, data=replace(tiny.data, save=kind)), quiet, limit=1)
        table = open_prepared(tmp_path).table
        wanted = {tmp_path / "images" / row.patient_id / f"{row.image_id}.{suffix}" for row in table.itertuples()}
        assert table["patient_id"].nunique() == 1
        assert set(tmp_path.glob(f"images/*/*.{suffix}")) == wanted


def test_a_broken_file_costs_one_image(phantom: Path, tmp_path: Path, tiny: Config, quiet: Events) -> None:
    competition = tmp_path / "competition"
    shutil.copytree(phantom, competition)
    table = read_train(competition / "train.csv")
    (_, empty), (_, text), (_, gone) = find_competition(competition).files("train", table.iloc[[0, 3, 17]])
    content = empty.read_bytes()
    empty.write_bytes(b"")
    text.write_text("not a DICOM file")
    gone.unlink()
    result = prepare(competition, tmp_path / "prepared", tiny, quiet)
    failures = pd.read_csv(tmp_path / "prepared" / "failures.csv", dtype=str)
    assert not result["ok"]  # three of some forty are more than one in a hundred
    assert result["failed"] == 3
    assert list(failures["image_id"]) == list(table["image_id"].iloc[[0, 3, 17]])
    assert set(failures["stage"]) == {"header"}
    assert len(open_prepared(tmp_path / "prepared").table) == len(table) - 3
    empty.write_bytes(content)
    assert prepare(competition, tmp_path / "prepared", tiny, quiet)["failed"] == 2  # a mended file is tried again


def test_pictures_that_do_not_fit_are_refused_with_the_size_that_does(
    phantom: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    """The winner's 2048x1024 for 54,706 pictures take 47 GB, a session's output holds 20."""
    count = len(read_train(phantom / "train.csv"))
    winner = replace(tiny, image=preset("winner").image, data=replace(tiny.data, save="none"))
    with pytest.raises(UsageError, match=r"of 2048x1024 take about .*in 3 parts .*1344x640 would fit here"):
        prepare(phantom, tmp_path, winner, quiet, room=20e9 * count / 54_706)
    assert not list(tmp_path.glob("*.tfrecord"))


def test_a_missing_column_is_refused_before_any_work(
    phantom: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    table = pd.read_csv(phantom / "train.csv").rename(columns={"laterality": "lateralty"})
    table.to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(TableError, match="laterality"):
        prepare(tmp_path, tmp_path / "prepared", tiny, quiet)
    assert not (tmp_path / "prepared").exists()


def test_a_killed_run_resumes_to_the_same_pictures(
    phantom: Path, whole: Path, tmp_path: Path, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL after the first shard: what is there is whole, and the same run ends as if nothing had been."""
    small = "import sys, rsna_kit.data.shards as shards, rsna_kit.cli as cli; shards.SHARD_IMAGES = 4; cli.main()"
    settings = ["image.height=64", "image.width=32", "data.save=none"]
    command = [sys.executable, "-c", small, "prepare", phantom, tmp_path, "--preset", "smoke"]
    command += [word for setting in settings for word in ("--set", setting)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("shard-?????.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-?????.json")}
    assert first
    assert not (tmp_path / "manifest.json").exists()
    monkeypatch.setattr(shards, "SHARD_IMAGES", 4)
    prepare(phantom, tmp_path, with_overrides(preset("smoke"), settings), quiet)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    resumed, other = open_prepared(tmp_path), open_prepared(whole)
    assert list(resumed.table["image_id"]) == list(other.table["image_id"])
    for image_id in other.table["image_id"]:
        assert np.array_equal(read_picture(resumed, image_id), read_picture(other, image_id))


@pytest.fixture(scope="module")
def parts(phantom: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Config) -> Path:
    """A folder that holds those of all three parts, named out of order."""
    out = tmp_path_factory.mktemp("parts")
    for name, part in (("c", "1/3"), ("a", "2/3"), ("b", "3/3")):
        prepare(phantom, out / name, tiny, Events(stream=io.StringIO()), part=part)
    return out


def test_the_parts_are_the_whole(whole: Path, parts: Path) -> None:
    """Same table, pictures and folds; and no part is more than a patient larger than it must be."""
    one, several = open_prepared(whole), open_prepared(parts)
    pd.testing.assert_frame_equal(several.table, one.table)
    for image_id in one.table["image_id"]:
        assert np.array_equal(read_picture(several, image_id), read_picture(one, image_id))
    assert np.array_equal(assign_folds(several.table, 2, 67), assign_folds(one.table, 2, 67))
    sizes = [len(pd.read_csv(parts / name / "table.csv")) for name in "cab"]
    assert max(sizes) - min(sizes) <= one.table.groupby("patient_id").size().max()
    assert open_prepared([parts / name for name in "bca"]).data_fingerprint == several.data_fingerprint


def test_parts_that_are_not_one_whole_are_refused_by_name(
    phantom: Path, whole: Path, parts: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    refused = {
        "part 2 of 3 missing.*--part 2/3": [parts / "c", parts / "b"],
        "a: part 2 of 3, as .*a is": [parts / "a", parts / "b", parts / "a", parts / "c"],
        "no part, but a folder of its own": [parts / "c", whole],
        "of another image section": [parts / "a", tmp_path / "size"],
        "of another table of images": [parts / "a", tmp_path / "patients"],
    }
    larger = replace(tiny, image=replace(tiny.image, height=128))
    prepare(phantom, tmp_path / "size", larger, quiet, part="3/3")
    prepare(phantom, tmp_path / "patients", tiny, quiet, limit=6, part="3/3")
    for said, folders in refused.items():
        with pytest.raises(ShardError, match=said):
            open_prepared(folders)
    for part in ("0/3", "4/3", "2", "2/90"):
        with pytest.raises(UsageError, match=f"part: got '?{part}"):
            prepare(phantom, tmp_path / "none", tiny, quiet, part=part)


def test_png_pictures_are_on_the_disk_once(
    phantom: Path, whole: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    """They take the place of TFRecords; one that is gone or changed is found, and made again."""
    config = replace(tiny, data=replace(tiny.data, save="png"))
    prepare(phantom, tmp_path, config, quiet)
    one, loose = open_prepared(whole), open_prepared(tmp_path)
    assert not list(tmp_path.glob("*.tfrecord"))
    for image_id in one.table["image_id"]:
        assert np.array_equal(read_picture(loose, image_id), read_picture(one, image_id))
    path = next(tmp_path.glob("images/*/*.png"))
    for damage in (lambda: path.write_bytes(b"no picture"), path.unlink):
        damage()
        with pytest.raises(ShardError, match="a picture that it names is missing or damaged"):
            open_prepared(tmp_path)
        prepare(phantom, tmp_path, config, quiet)
        assert open_prepared(tmp_path).data_fingerprint == loose.data_fingerprint


@pytest.mark.parametrize("settings", [DecodeConfig(workers=1), DecodeConfig(workers=2, backend="dask")], ids=str)
def test_the_same_run_gives_the_same_bytes(
    phantom: Path, whole: Path, tmp_path: Path, tiny: Config, quiet: Events, settings: DecodeConfig
) -> None:
    """One thread or as many as there are cores, or a Dask cluster of two workers."""
    if settings.backend == "dask":
        pytest.importorskip("distributed", reason="needs Dask: pip install 'rsna-kit[cluster]'")
    prepare(phantom, tmp_path, replace(tiny, decode=settings), quiet)
    assert digests(tmp_path) == digests(whole)
