"""What a run stands on is read from the machine, and nothing there is nothing, not an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsna_kit.runtime.hardware import gpus, kaggle_image


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `nvidia-smi` to be written; nothing else is on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "nvidia-smi"


def put(program: Path, text: str) -> None:
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_gpus_are_what_nvidia_smi_lists(program: Path) -> None:
    assert gpus() == []
    put(program, '[ "$1" = --query-gpu=name,memory.total ] && echo "Tesla T4, 15360 MiB" && echo "Tesla T4, 15360 MiB"')
    assert gpus() == ["Tesla T4, 15360 MiB"] * 2


def test_a_driver_that_does_not_answer_is_no_gpu(program: Path) -> None:
    put(program, "echo NVIDIA-SMI has failed; exit 9")
    assert gpus() == []


def test_kaggles_image_is_known_by_its_files(tmp_path: Path) -> None:
    assert kaggle_image(tmp_path) is None
    (tmp_path / "build_date").write_text("20260812-1234\n")
    assert kaggle_image(tmp_path) is None
    (tmp_path / "git_commit").write_text("abc\n")
    assert kaggle_image(tmp_path) == "built 20260812-1234, source abc"
