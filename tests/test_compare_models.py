"""scripts/compare-models: what its file of experiments may say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted((ROOT / "scripts" / "experiments").glob("*.toml"))


def refused(path: Path) -> str:
    command = [sys.executable, ROOT / "scripts" / "compare-models", path.parent, path.parent / "out", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    return done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[model]]\nname = "a b"\n[[model]]\nname = "a-b"', "got the name 'a-b', expected one for each"),
        ('[[model]]\nname = "a"\nsets = ["x"]', "unknown key 'sets', expected name, set"),
        ('[[model]]\nname = "a"', "got 1 [[model]], expected two or more"),
        ("[[model]", "no TOML file of models"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file.toml").write_text(text)
    assert message in refused(tmp_path / "file.toml")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_experiments_here_are_read(path: Path, tmp_path: Path) -> None:
    """With no seed nothing is trained."""
    command = [sys.executable, ROOT / "scripts" / "compare-models", ROOT, tmp_path, path, "--seeds", "0"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("| model |")
