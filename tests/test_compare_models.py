"""scripts/compare-models: what the file of experiments may say, and which models are needed."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from rsna_kit.runtime.errors import UsageError

ROOT = Path(__file__).parent.parent


def script() -> Any:
    loader = SourceFileLoader("compare_models", str(ROOT / "scripts" / "compare-models"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # dataclasses look their module up
        patch.setitem(sys.modules, loader.name, module)
        loader.exec_module(module)
    return module


COMPARE = script()
THREE = """
[[model]]
name = "linear"
[[model]]
name = "conv"
[[model]]
name = "conv, wide"
against = "conv"
[[model]]
name = "other"
"""


def models(folder: Path, text: str) -> Any:
    (folder / "file.toml").write_text(text)
    return COMPARE.read_models(folder / "file.toml", folder / "prepared", folder / "out")[1]


def test_a_model_comes_with_all_that_it_stands_against(tmp_path: Path) -> None:
    read = models(tmp_path, THREE)
    assert [model.against for model in read] == ["", "linear", "conv", "linear"]
    assert [model.name for model in COMPARE.chosen(read, ["conv, wide"])] == ["linear", "conv", "conv, wide"]
    assert [model.name for model in COMPARE.chosen(read, [])] == ["linear", "conv", "conv, wide", "other"]
    with pytest.raises(UsageError, match=r"--only: no model 'convv'.*'conv'"):
        COMPARE.chosen(read, ["convv"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[model]]\nname = "a b"\n[[model]]\nname = "a-b"', "'a-b' and an earlier model would both be written to"),
        ('[[model]]\nname = "a"\nagainst = "b"', "expected a new name and an earlier model"),
        ('[[model]]\nname = "a"\nfold = [0]', "unknown key 'fold'.*folds"),
        ('[[model]]\nname = "a"\nweights = "start/fold{fold}"', "weights of a {fold} need the list of folds"),
        ("[[model]", "no TOML file of models"),
        ('data = "x"', "no .*model"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models(tmp_path, text)


def test_each_fold_starts_from_weights_of_its_own(tmp_path: Path) -> None:
    text = '[[model]]\nname = "a"\nfolds = [0, 2]\nweights = "{out}/start/fold{fold}"\n'
    text += '[[model]]\nname = "b"\nfolds = [0, 2]\nweights = "{out}/start"'
    own, common = models(tmp_path, text)
    start = tmp_path / "out" / "start"
    assert [command[-4:] for command in own.commands] == [
        ["--fold", "0", "--weights", f"{start / 'fold0'}"],
        ["--fold", "2", "--weights", f"{start / 'fold2'}"],
    ]
    assert [command[-6:] for command in common.commands] == [["--fold", "0", "--fold", "2", "--weights", f"{start}"]]
