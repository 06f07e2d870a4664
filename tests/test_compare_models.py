"""scripts/compare-models: what its file of experiments may say."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

from rsna_kit.runtime.errors import UsageError

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "compare-models"
spec = spec_from_loader("compare_models", SourceFileLoader("compare_models", str(SCRIPT)))
assert spec is not None
script = module_from_spec(spec)
assert spec.loader is not None
spec.loader.exec_module(script)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[model]]\nname = "a b"\n[[model]]\nname = "a-b"', "got the name 'a-b', expected one for each"),
        ('[[model]]\nname = "a"\nsets = ["x"]', "unknown key 'sets', expected name, set"),
        ('[[model]]\nname = "a"', r"got 1 \[\[model\]\], expected two or more"),
        ("[[model]", "no TOML file of models"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        script.read_experiments(tmp_path / "file.toml")


def test_the_experiments_here_are_read(tmp_path: Path) -> None:
    """With no seed nothing is trained."""
    experiments = sorted((ROOT / "scripts" / "experiments").glob("*.toml"))
    assert all(len(script.read_experiments(path)[1]) > 1 for path in experiments)
    command = [sys.executable, SCRIPT, ROOT, tmp_path, experiments[0], "--seeds", "0"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("| model |")
