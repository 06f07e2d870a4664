"""A checkpoint comes back exactly or not at all, and never as the state of another training."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_kit.config import Config, with_overrides
from rsna_kit.runtime.errors import BundleError
from rsna_kit.training.checkpoint import load_checkpoint, other_versions, save_checkpoint, training_fingerprint

GROUPS = {
    "variables": [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7, np.int64), np.array([1, 2], np.uint32)],
    "averages": [],
    "outputs": [np.array([[1e-300], [np.pi]])],
}
FIELDS = {"epoch": 3, "best": [float("-inf"), -0.25], "history": [{"epoch": 1, "loss": None}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint.npz", "abc", GROUPS, FIELDS)
    return tmp_path / "checkpoint.npz"


def test_round_trip(path: Path) -> None:
    groups, fields = load_checkpoint(path, "abc", {"variables": GROUPS["variables"]})
    assert {name: fields[name] for name in FIELDS} == FIELDS
    assert other_versions(fields) == ""
    assert set(groups) == set(GROUPS)
    for name, arrays in GROUPS.items():
        for one, other in zip(groups[name], arrays, strict=True):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            np.testing.assert_array_equal(one, other)


def test_other_versions_of_packages_are_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, fields = load_checkpoint(path, "abc", {})
    monkeypatch.setattr("rsna_kit.training.checkpoint.versions", lambda names: {"numpy": "9.9"})
    assert f"made with numpy {np.__version__} (now 9.9)" in other_versions(fields)


def test_a_write_that_fails_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(*arguments: object, **arrays: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, "abc", GROUPS, {})
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["checkpoint.npz"]


def test_another_training_is_refused(path: Path) -> None:
    with pytest.raises(BundleError, match="of another configuration, other data or other starting"):
        load_checkpoint(path, "abd", {})


@pytest.mark.parametrize(
    "other", [[np.zeros((3, 2), np.float32)], GROUPS["variables"][:2], [a.astype(float) for a in GROUPS["variables"]]]
)
def test_other_arrays_are_refused(path: Path, other: list[np.ndarray]) -> None:
    with pytest.raises(BundleError, match="variables are those of another network or optimiser"):
        load_checkpoint(path, "abc", {"variables": other})


def test_every_damaged_byte_of_an_array_is_seen(path: Path) -> None:
    content = path.read_bytes()
    place = content.index(GROUPS["variables"][0].tobytes())
    for at in range(place, place + 24):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(BundleError, match="damaged"):
            load_checkpoint(path, "abc", {})


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_off_file_is_seen(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BundleError, match="damaged or no checkpoint"):
        load_checkpoint(path, "abc", {})


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("exploded"),)  # type: ignore[return-value]


def test_nothing_in_it_is_executed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BundleError):
        load_checkpoint(path, "abc", {})
    with np.errstate(all="ignore"):
        np.savez(path, state=np.array([Bomb()], dtype=object))
    with pytest.raises(BundleError):
        load_checkpoint(path, "abc", {})
    assert not Path("exploded").exists()


ROWS = pd.DataFrame({"image_id": ["1", "2", "3"], "cancer": [0, 1, 0], "fold": [0, 1, 2]})


def fingerprint(*settings: str, data: str = "d", rows: pd.DataFrame = ROWS, fold: int = 0, sha256: str = "s") -> str:
    return training_fingerprint(with_overrides(Config(), settings), data, rows, fold, {"sha256": sha256, "file": "f"})


@pytest.mark.parametrize("setting", ["train.devices=all", "infer.batch_size=3", "decode.workers=2", "data.save=none"])
def test_what_does_not_concern_the_result(setting: str) -> None:
    assert fingerprint(setting) == fingerprint()


@pytest.mark.parametrize(
    "setting",
    ["train.ema=0.9", "train.seed=1", "data.negatives=0.5", "model.head=conv", "cvae.beta=2", "image.height=64"],
)
def test_what_does(setting: str) -> None:
    assert fingerprint(setting) != fingerprint()


def test_data_rows_fold_and_start_concern_it() -> None:
    relabelled = ROWS.assign(cancer=[1, 1, 0])
    others = [{"data": "e"}, {"rows": relabelled}, {"rows": ROWS[:2]}, {"fold": 1}, {"sha256": "t"}]
    assert len({fingerprint(), *(fingerprint(**other) for other in others)}) == 6
    moved = ROWS.assign(fold=[0, 2, 1])  # between the other folds
    assert fingerprint(rows=moved) == fingerprint()
