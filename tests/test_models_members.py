"""Bundle lists: what they say survives the round trip, and what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rsna_kit.models.members import LIST, equal_members, open_list
from rsna_kit.recipes.blend import write_list
from rsna_kit.runtime.errors import BundleError
from rsna_kit.runtime.files import sha256_file
from rsna_kit.training.export import set_threshold

pytestmark = pytest.mark.tf


def another(bundle: Path, out: Path, threshold: float = 0.5) -> Path:
    """A copy of a bundle that counts as other weights."""
    shutil.copytree(bundle, out)
    with open(out / "model.weights.h5", "ab") as file:
        file.write(str(out).encode())  # HDF5 ignores what follows its end
    metadata = json.loads((out / "metadata.json").read_text())
    metadata["sha256"]["model.weights.h5"] = sha256_file(out / "model.weights.h5")
    (out / "metadata.json").write_text(json.dumps(metadata))
    set_threshold(out, threshold, "test")
    return out


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    """Two bundles and their list."""
    another(bundle, tmp_path / "bundles" / "a-fold0")
    another(bundle, tmp_path / "bundles" / "b-fold0")
    write_list(tmp_path, {"bundles/a-fold0": 0.25, "bundles/b-fold0": 0.75}, "flip", 0.375, {"why": "test"})
    return tmp_path


def test_the_list_says_it_all_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    assert json.loads((folder / LIST).read_text())["how"] == {"why": "test"}
    moved = Path(shutil.move(folder / "bundles", tmp_path / "elsewhere" / "bundles"))
    shutil.move(folder / LIST, moved.parent)
    opened = open_list(moved.parent)
    members = [(member.bundle.path, member.weight) for member in opened.members]
    assert members == [(moved / "a-fold0", 0.25), (moved / "b-fold0", 0.75)]
    assert (opened.threshold, opened.tta, opened.source) == (0.375, "flip", moved.parent / LIST)
    assert opened.calibration is None
    unequal = {"bundles/a-fold0": 0.2, "bundles/b-fold0": 0.6}
    write_list(moved.parent, unequal, "none", 0.5, {}, {"method": "platt"})
    again = open_list(moved.parent)
    assert [member.weight for member in again.members] == pytest.approx([0.25, 0.75])  # made to add up
    assert again.calibration == {"method": "platt"}


def test_bundles_without_a_list_count_alike(bundle: Path, tmp_path: Path) -> None:
    folders = [another(bundle, tmp_path / name, value) for name, value in (("a", 0.2), ("b", 0.6))]
    members = equal_members([*folders, folders[0]])
    assert [(member.bundle.path, member.weight) for member in members.members] == [(folders[0], 0.5), (folders[1], 0.5)]
    assert (members.threshold, members.tta, members.source) == (pytest.approx(0.4), "none", None)


def test_a_calibration_is_common_or_there_is_none(bundle: Path, tmp_path: Path) -> None:
    folders = [another(bundle, tmp_path / name) for name in ("a", "b", "c")]
    fitted = {"method": "platt", "parameters": {"slope": 1.0, "intercept": 0.0}}
    for folder in folders[:2]:
        set_threshold(folder, 0.5, "test", fitted)
    assert equal_members(folders[:2]).calibration == fitted
    assert equal_members(folders).calibration is None
    set_threshold(folders[2], 0.5, "test", fitted | {"method": "other"})
    assert equal_members(folders).calibration is None


def test_a_bundle_without_a_threshold_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "new")
    (tmp_path / "new" / "threshold.json").write_text('{"threshold": null}')
    metadata = json.loads((tmp_path / "new" / "metadata.json").read_text())
    metadata["sha256"]["threshold.json"] = sha256_file(tmp_path / "new" / "threshold.json")
    (tmp_path / "new" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(BundleError, match=r"no threshold in .*new: the training run has not ended"):
        equal_members([tmp_path / "new"])


def remove(bundle: Path) -> None:
    shutil.rmtree(bundle)


def change(bundle: Path) -> None:
    """Whole in itself, but not the one that the list was written for."""
    set_threshold(bundle, 0.9, "later")


def damage(bundle: Path) -> None:
    with open(bundle / "model.weights.h5", "ab") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove, r"ensemble.json names the bundle bundles/b-fold0, but .* is not there"),
        (change, r"ensemble.json names the bundle bundles/b-fold0, but .* has changed since"),
        (damage, r"b-fold0/model.weights.h5: damaged or exchanged"),
    ],
)
def test_a_bundle_that_is_not_the_one_listed_is_refused_by_name(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder / "bundles" / "b-fold0")
    with pytest.raises(BundleError, match=message):
        open_list(folder)


MEMBER = {"bundle": "bundles/a-fold0", "weight": 1.0, "sha256": {"metadata.json": "0"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "got format version 2, expected 1"),
        ({"members": ["bundles/a-fold0"]}, "not as blend writes it: TypeError"),
        ({"members": [{"bundle": "bundles/a-fold0"}]}, "not as blend writes it: KeyError 'weight'"),
        ({"members": []}, r"got members \[\], tta 'flip'"),
        ({"members": [MEMBER | {"weight": "1"}]}, r"got members \[\('bundles/a-fold0', '1'\)\], tta"),
        ({"members": [MEMBER | {"weight": 10**400}]}, r"got members .* expected bundles, weights"),
        ({"tta": "five-crop"}, "got .*tta 'five-crop', threshold 0.375"),
        ({"threshold": None}, "got .*threshold None; expected .* a threshold from 0 to 1"),
        ({"threshold": 1.5}, "got .*threshold 1.5"),
        ('{"members', "not JSON"),
        ("[]", "got a list, expected an object"),
        (None, "no such file. Make it with: rsna-kit blend"),
    ],
)
def test_what_is_no_list_is_refused(folder: Path, change: Any, message: str) -> None:
    content = json.loads((folder / LIST).read_text())
    (folder / LIST).write_text(json.dumps(content | change) if isinstance(change, dict) else str(change))
    if change is None:
        (folder / LIST).unlink()
    with pytest.raises(BundleError, match=f"ensemble.json: {message}"):
        open_list(folder)
