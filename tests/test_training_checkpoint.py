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


def test_round_trip(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, fields = load_checkpoint(path, "abc", {"variables": GROUPS["variables"]})
    assert {name: fields[name] for name in FIELDS} == FIELDS
    assert other_versions(fields) == ""
    assert set(groups) == set(GROUPS)
    for name, arrays in GROUPS.items():
        for one, other in zip(groups[name], arrays, strict=True):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            np.testing.assert_array_equal(one, other)
    monkeypatch.setattr("rsna_kit.training.checkpoint.versions", lambda names: {"numpy": "9.9"})
    assert f"made with numpy {np.__version__} (now 9.9)" in other_versions(fields)


@pytest.mark.parametrize(
    "other", [[np.zeros((3, 2), np.float32)], GROUPS["variables"][:2], [a.astype(float) for a in GROUPS["variables"]]]
)
def test_another_training_and_other_arrays_are_refused(path: Path, other: list[np.ndarray]) -> None:
    with pytest.raises(BundleError, match="variables are those of another network or optimiser"):
        load_checkpoint(path, "abc", {"variables": other})
    with pytest.raises(BundleError, match="of another configuration, other data or other starting"):
        load_checkpoint(path, "abd", {"variables": other})


def test_every_damaged_byte_of_an_array_and_every_cut_is_seen(path: Path) -> None:
    content = path.read_bytes()
    place = content.index(GROUPS["variables"][0].tobytes())
    for at in range(place, place + 24):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(BundleError, match="damaged"):
            load_checkpoint(path, "abc", {})
    for share in (0.0, 0.3, 0.9):
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


def test_the_fingerprint_follows_what_the_result_depends_on() -> None:
    alike = ["train.devices=one", "train.accumulate=2", "train.hours=9"]
    alike += ["infer.batch_size=3", "decode.workers=2", "data.save=none"]
    moved = ROWS.assign(fold=[0, 2, 1])  # between the other folds
    assert {fingerprint(*alike), fingerprint(rows=moved)} == {fingerprint()}
    settings = ["train.ema=0.9", "train.seed=1", "data.negatives=0.5", "model.head=conv", "cvae.beta=2"]
    relabelled = ROWS.assign(cancer=[1, 1, 0])
    others = [{"data": "e"}, {"rows": relabelled}, {"rows": ROWS[:2]}, {"fold": 1}, {"sha256": "t"}]
    found = {fingerprint(), *map(fingerprint, settings), *(fingerprint(**other) for other in others)}
    assert len(found) == 1 + len(settings) + len(others)
