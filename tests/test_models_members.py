"""Bundle lists: what they say survives the round trip, and what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
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


def test_the_list_says_it_all(folder: Path) -> None:
    opened = open_list(folder)
    assert [(member.bundle.path, member.weight) for member in opened.members] == [
        (folder / "bundles" / "a-fold0", 0.25),
        (folder / "bundles" / "b-fold0", 0.75),
    ]
    assert (opened.threshold, opened.tta, opened.source) == (0.375, "flip", folder / LIST)
    assert json.loads((folder / LIST).read_text())["how"] == {"why": "test"}


def test_the_folder_may_be_moved(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(folder / "bundles", tmp_path / "elsewhere" / "bundles"))
    shutil.move(folder / LIST, moved.parent)
    assert [member.bundle.path.parent for member in open_list(moved.parent).members] == [moved, moved]


def test_weights_are_made_to_add_up(folder: Path) -> None:
    write_list(folder, {"bundles/a-fold0": 0.2, "bundles/b-fold0": 0.6}, "none", 0.5, {})
    assert [member.weight for member in open_list(folder).members] == pytest.approx([0.25, 0.75])


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


def test_a_list_carries_a_calibration_of_its_own(folder: Path) -> None:
    assert open_list(folder).calibration is None
    weights = {"bundles/a-fold0": 0.25, "bundles/b-fold0": 0.75}
    write_list(folder, weights, "none", 0.5, {}, {"method": "platt"})
    assert open_list(folder).calibration == {"method": "platt"}


def test_a_bundle_without_a_threshold_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "new")
    (tmp_path / "new" / "threshold.json").write_text('{"threshold": null}')
    metadata = json.loads((tmp_path / "new" / "metadata.json").read_text())
    metadata["sha256"]["threshold.json"] = sha256_file(tmp_path / "new" / "threshold.json")
    (tmp_path / "new" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(BundleError, match=r"no threshold in .*new: the training run has not ended"):
        equal_members([tmp_path / "new"])


def test_a_missing_bundle_is_refused_by_name(folder: Path) -> None:
    shutil.rmtree(folder / "bundles" / "b-fold0")
    with pytest.raises(BundleError, match=r"ensemble.json names the bundle bundles/b-fold0, but .* is not there"):
        open_list(folder)


def test_a_changed_bundle_is_refused_by_name(folder: Path) -> None:
    """Whole in itself, but not the one that the list was written for."""
    set_threshold(folder / "bundles" / "b-fold0", 0.9, "later")
    with pytest.raises(BundleError, match=r"ensemble.json names the bundle bundles/b-fold0, but .* has changed since"):
        open_list(folder)


def test_a_damaged_bundle_is_refused_by_name(folder: Path) -> None:
    with open(folder / "bundles" / "a-fold0" / "model.weights.h5", "ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"a-fold0/model.weights.h5: damaged or exchanged"):
        open_list(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "got format version 2, expected 1"),
        ({"members": []}, "'members' lists no bundle"),
        ({"members": ["bundles/a-fold0"]}, "'members' lists no bundle"),
        ({"tta": "five-crop"}, "tta is 'five-crop', expected none or flip"),
        ({"threshold": None}, "threshold is None, expected a number from 0 to 1"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": True}, "threshold is True"),
        ({"threshold": 10**400}, "threshold is 1000"),
    ],
)
def test_a_list_that_says_nothing_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    content = json.loads((folder / LIST).read_text())
    (folder / LIST).write_text(json.dumps(content | change))
    with pytest.raises(BundleError, match=f"ensemble.json: {message}"):
        open_list(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle": "../other"}, "bundle is '../other', expected a folder beside the list"),
        ({"bundle": "/root/bundle"}, "bundle is '/root/bundle'"),
        ({"bundle": None}, "bundle is None"),
        ({"weight": 0}, "the weight of bundles/a-fold0 is 0, expected a number of more than 0"),
        ({"weight": 10**400}, "the weight of bundles/a-fold0 is 1000"),
        ({"weight": "1"}, "the weight of bundles/a-fold0 is '1'"),
        ({"bundle": "bundles/b-fold0"}, "names the bundle bundles/b-fold0, but .* has changed since"),
    ],
)
def test_a_row_that_says_nothing_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    content = json.loads((folder / LIST).read_text())
    content["members"][0] |= change
    (folder / LIST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=f"ensemble.json:? {message}"):
        open_list(folder)


def test_a_bundle_named_twice_is_refused(folder: Path) -> None:
    content = json.loads((folder / LIST).read_text())
    content["members"].append(content["members"][0])
    (folder / LIST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="names the same weights twice"):
        open_list(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"members', "not JSON"), ("[]", "got a list, expected an object"), ("{}", "got format version None")],
)
def test_what_is_no_list_is_refused(folder: Path, content: str, message: str) -> None:
    (folder / LIST).write_text(content)
    with pytest.raises(BundleError, match=f"ensemble.json: {message}"):
        open_list(folder)
    (folder / LIST).unlink()
    with pytest.raises(BundleError, match=r"ensemble.json: no such file. Make it with: rsna-kit blend"):
        open_list(folder)
