"""Where the competition is found, and that nobody walks through its images."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from rsna_kit.competition.paths import SLUG, attached_sources, find_competition, find_inputs
from rsna_kit.runtime.errors import UsageError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("layout", [f"competitions/{SLUG}", SLUG])
def test_both_kaggle_layouts_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    touch(tmp_path / layout / "test.csv")
    touch(tmp_path / layout / "sample_submission.csv")
    monkeypatch.setenv("RSNA_KIT_INPUT", str(tmp_path))
    found = find_competition()
    assert found.root == tmp_path / layout
    assert found.train_csv is None
    assert found.sample_submission == tmp_path / layout / "sample_submission.csv"


def test_files_are_named_in_table_order_and_tables_by_name(tmp_path: Path) -> None:
    touch(tmp_path / "train.csv")
    found = find_competition(tmp_path)
    assert found.images("train") == tmp_path / "train_images"
    with pytest.raises(UsageError, match="'valid', expected train or test"):
        found.images("valid")
    table = pd.DataFrame({"patient_id": ["2", "1"], "image_id": ["7", "8"]})
    assert [image_id for image_id, _ in found.files("test", table)] == ["7", "8"]
    assert found.files("test", table)[1][1] == tmp_path / "test_images" / "1" / "8.dcm"
    assert found.table("train.csv") == tmp_path / "train.csv"
    with pytest.raises(UsageError, match=r"holds train\.csv, expected test\.csv"):
        found.table("test.csv")


def test_a_folder_without_tables_is_refused_with_its_contents(tmp_path: Path) -> None:
    touch(tmp_path / "notes.txt")
    (tmp_path / "train_images").mkdir()
    with pytest.raises(UsageError, match=r"holds notes\.txt, train_images/\. Give the folder"):
        find_competition(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        find_competition(tmp_path / "nowhere")


def test_a_kernel_without_the_competition_says_what_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        (tmp_path / f"dataset-{number:02d}").mkdir()
    monkeypatch.setenv("RSNA_KIT_INPUT", str(tmp_path))
    with pytest.raises(UsageError, match=f"dataset-.*/, ….*Attach the competition '{SLUG}'"):
        find_competition()


def test_bundles_are_found_in_both_layouts_and_not_below_the_depth(tmp_path: Path) -> None:
    new = touch(tmp_path / "datasets" / "owner" / "weights" / "fold0" / "metadata.json").parent
    old = touch(tmp_path / "weights" / "fold1" / "metadata.json").parent
    touch(tmp_path / "a" / "b" / "c" / "d" / "too-deep" / "metadata.json")
    assert find_inputs("metadata.json", tmp_path) == [new, old]
    assert find_inputs("metadata.json", old, depth=0) == [old]
    assert find_inputs("metadata.json", tmp_path / "nowhere") == []


def test_image_trees_are_never_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """819,640 files in a later competition of this family: listing them takes minutes."""
    for folder in ("train_images", "test_images"):
        touch(tmp_path / folder / "10006" / "metadata.json")
    crowd = tmp_path / "pictures"
    for number in range(1001):
        (crowd / str(number)).mkdir(parents=True)
    marked = touch(crowd / "metadata.json").parent
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scandir(path))
    assert find_inputs("metadata.json", tmp_path) == [marked]
    assert sorted(listed) == sorted([tmp_path.name, "pictures"])


NEW = {
    "competitions/rsna-breast-cancer-detection": ("competition", "rsna-breast-cancer-detection"),
    "datasets/me/rsna-kit": ("dataset", "me/rsna-kit"),
    "datasets/you/rsna-kit": ("dataset", "you/rsna-kit"),
    "notebooks/me/rsna-kit-train": ("kernel", "me/rsna-kit-train"),
    "models/me/weights/keras/bundles/2": ("model", "me/weights/keras/bundles/2"),
}
OLD = {
    "rsna-breast-cancer-detection": ("competition", "rsna-breast-cancer-detection"),
    "rsna-kit": ("dataset", "rsna-kit"),
    "rsna-kit-train": ("kernel", "rsna-kit-train"),
    "weights/keras/bundles/2": ("model", "weights/keras/bundles/2"),
    "weights/keras/bundles/10": ("model", "weights/keras/bundles/10"),
    "m/me/other/pytorch/default/1": ("model", "me/other/pytorch/default/1"),
}


@pytest.mark.parametrize("layout", [NEW, OLD, NEW | OLD], ids=["new", "old", "both"])
def test_everything_attached_is_listed_with_its_kind(tmp_path: Path, layout: dict[str, tuple[str, str]]) -> None:
    for place in layout:
        touch(tmp_path / place / "some/folder/file")
    if "rsna-kit-train" in layout:
        touch(tmp_path / "rsna-kit-train/verdict.json")
    found = {
        str(source.path.relative_to(tmp_path)): (source.kind, source.reference) for source in attached_sources(tmp_path)
    }
    assert found == layout


def test_what_is_mounted_in_both_layouts_is_one_source(tmp_path: Path) -> None:
    touch(tmp_path / "datasets/me/rsna-kit/file")
    (tmp_path / "rsna-kit").symlink_to(tmp_path / "datasets/me/rsna-kit")
    assert [source.reference for source in attached_sources(tmp_path)] == ["me/rsna-kit"]
    assert attached_sources(tmp_path / "nowhere") == []


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: Path) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=f"{tmp_path} cannot be listed: Permission denied"):
        find_inputs("metadata.json", tmp_path)


def test_a_dataset_whose_folder_is_called_as_a_framework_is_a_dataset(tmp_path: Path) -> None:
    touch(tmp_path / "starts/keras/models/convnext.h5")
    assert [source.kind for source in attached_sources(tmp_path)] == ["dataset"]


def test_listing_what_is_attached_enters_no_image_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / SLUG / "train_images/10006/462822612.dcm")
    touch(tmp_path / "competitions" / SLUG / "train_images/10006/462822612.dcm")
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scandir(path))
    assert [source.kind for source in attached_sources(tmp_path)] == ["competition", "competition"]
    assert "train_images" not in listed


def test_a_phantom_stands_in_only_where_there_is_no_competition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RSNA_KIT_INPUT", str(tmp_path))
    monkeypatch.delenv("KAGGLE_IS_COMPETITION_RERUN", raising=False)
    phantom = touch(tmp_path / "datasets/me/phantom/phantom.json").parent
    touch(phantom / "train.csv")
    assert find_competition().root == phantom
    real = touch(tmp_path / "competitions" / SLUG / "test.csv").parent
    assert find_competition().root == real
    (real / "test.csv").unlink()
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    with pytest.raises(UsageError, match="Attach the competition"):
        find_competition()
