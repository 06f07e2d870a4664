"""The kernels as Kaggle would run them: alone, read-only, offline; and their metadata."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rsna_kit.competition.submission import check_submission
from rsna_kit.competition.tables import read_sample

ROOT = Path(__file__).parent.parent
KERNELS = sorted(path.parent for path in (ROOT / "kernels").glob("*/kernel-metadata.json"))
KEYS = {"id", "title", "code_file", "language", "kernel_type", "is_private", "enable_gpu", "enable_tpu",
        "enable_internet", "machine_shape", "dataset_sources", "competition_sources", "kernel_sources",
        "model_sources"}  # fmt: skip


def rehearse(kernel: str, *arguments: str | Path, settings: str = "") -> tuple[dict, str]:
    command = [sys.executable, ROOT / "scripts/rehearse", Path("kernels") / kernel, *arguments]
    environment = {**os.environ, "RSNA_KIT_SET": settings}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_metadata_is_explicit(kernel: Path) -> None:
    """A key with a typo is ignored by the client, and internet is on unless it says false."""
    metadata = json.loads((kernel / "kernel-metadata.json").read_text())
    assert set(metadata) <= KEYS
    assert metadata["enable_internet"] is False
    assert metadata["is_private"] is True
    assert metadata["id"].split("/")[1] == metadata["title"] == f"rsna-kit-{kernel.name}"
    assert (kernel / metadata["code_file"]).stat().st_size < 1_000_000
    assert sorted(path.name for path in kernel.iterdir()) == sorted([metadata["code_file"], "kernel-metadata.json"])


def test_kernels_attach_the_library_alike() -> None:
    """A kernel is one file, so each has its copy: of the same text."""
    heads = {(k / f"{k.name}.py").read_text().split("INPUT = ")[1].split("\nattach_library()")[0] for k in KERNELS}
    assert len(heads) == 1


@pytest.mark.parametrize("layout", ["new", "old"])
def test_infer_runs_in_both_mount_layouts(phantom: Path, bundle: Path, tmp_path: Path, layout: str) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(bundle, weights / "fold0")
    hidden = phantom / "hidden"
    verdict, talk = rehearse(
        "infer", "--competition", hidden, "--dataset", f"rsna-weights={weights}", "--out", tmp_path / "out",
        "--layout", layout, "--rerun",
    )  # fmt: skip
    assert verdict["verdict"] == "Complete", talk
    check_submission(pd.read_csv(tmp_path / "out/submission.csv"), read_sample(hidden / "sample_submission.csv"))


def test_infer_without_a_sandbox_says_what_is_not_checked(phantom: Path, bundle: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(bundle, weights / "fold0")
    verdict, talk = rehearse(
        "infer", "--competition", phantom / "hidden", "--dataset", f"rsna-weights={weights}",
        "--out", tmp_path / "out", "--no-sandbox",
    )  # fmt: skip
    assert verdict["verdict"] == "Complete", talk
    assert "network off" in verdict["not_checked"]


def test_a_commit_run_is_strict_and_the_scoring_run_is_not(phantom: Path, bundle: Path, tmp_path: Path) -> None:
    """A file that cannot be read fails the run that one looks at, and never the run that is scored."""
    shutil.copytree(phantom / "hidden", tmp_path / "hidden")
    next((tmp_path / "hidden/test_images").glob("*/*.dcm")).write_bytes(b"")
    shutil.copytree(bundle, tmp_path / "weights/fold0")
    base = ["infer", "--competition", tmp_path / "hidden", "--dataset", f"rsna-weights={tmp_path / 'weights'}"]
    strict, _ = rehearse(*base, "--out", tmp_path / "commit")
    scored, _ = rehearse(*base, "--out", tmp_path / "rerun", "--rerun")
    assert strict["verdict"].startswith("Notebook Threw Exception")
    assert scored["verdict"] == "Complete"


def test_a_kernel_without_the_weights_says_so(phantom: Path, tmp_path: Path) -> None:
    verdict, talk = rehearse("infer", "--competition", phantom / "hidden", "--out", tmp_path / "out")
    assert verdict["verdict"].startswith("Notebook Threw Exception")
    assert "no bundle" in talk
    assert (tmp_path / "out" / "submission.csv").is_file()


def test_a_kernel_that_takes_too_long_times_out(phantom: Path, tmp_path: Path) -> None:
    verdict, _ = rehearse(
        "infer", "--competition", phantom / "hidden", "--out", tmp_path / "out", "--time-limit", "0.3"
    )
    assert verdict["verdict"] == "Notebook Timeout"


SPY = """
import os, socket, sys
from pathlib import Path

def can(action):
    try:
        action()
    except OSError:
        return False
    return True

here = Path(__file__)
print("FOUND", {
    "script": str(here), "siblings": sorted(p.name for p in here.parent.iterdir()), "cwd": os.getcwd(),
    "writes_working": can(lambda: Path("/kaggle/working/a").write_text("x")),
    "writes_input": can(lambda: Path("/kaggle/input/a").write_text("x")),
    "writes_source": can(lambda: Path("/kaggle/src/a").write_text("x")),
    "writes_root": can(lambda: Path("/a").write_text("x")),
    "network": can(lambda: socket.create_connection(("192.0.2.1", 80), timeout=1)),
    "interfaces": sorted(name for _, name in socket.if_nameindex()),
    "environment": sorted(name for name in os.environ if "SECRET" in name),
}, file=sys.stderr)
"""


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_the_sandbox_is_what_kaggle_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / "kernel"
    shutil.copytree(ROOT / "kernels" / "prepare", kernel)
    (kernel / "prepare.py").write_text(SPY)
    (kernel / "sibling.py").write_text("")
    (tmp_path / "competition").mkdir()
    monkeypatch.setenv("MY_SECRET", "1")
    command = [sys.executable, ROOT / "scripts/rehearse", kernel, "--competition", tmp_path / "competition"]
    done = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True)
    verdict = json.loads(done.stdout)
    if not verdict["sandbox"]:
        pytest.skip(f"bubblewrap cannot start here: {done.stderr[-200:]}")
    found = ast.literal_eval(done.stderr.split("FOUND ")[1])
    assert found == {
        "script": "/kaggle/src/script.py", "siblings": ["script.py"], "cwd": "/kaggle/working",
        "writes_working": True, "writes_input": False, "writes_source": False, "writes_root": False,
        "network": False, "interfaces": ["lo"], "environment": [],
    }  # fmt: skip


@pytest.mark.slow
def test_prepare_then_train_then_infer(phantom: Path, tmp_path: Path) -> None:
    """The three kernels hand on to each other what Kaggle would mount, with nothing in between."""
    small = "image.height=64 image.width=32"
    prepared, talk = rehearse("prepare", "--competition", phantom, "--out", tmp_path / "prepare", settings=small)
    assert prepared["verdict"] == "Complete", talk
    trained, talk = rehearse(
        "train", "--dataset", f"rsna-kit-prepare={tmp_path / 'prepare'}", "--out", tmp_path / "train",
        settings="train.folds=2 train.epochs=1 train.batch_size=8 model.weights=none",
    )  # fmt: skip
    assert trained["verdict"] == "Complete", talk
    weights = tmp_path / "weights"
    command = [sys.executable, ROOT / "scripts/build", "rsna-weights", "--from", tmp_path / "train/model/bundles"]
    subprocess.run([*command, "--out", weights], check=True, stdout=subprocess.DEVNULL)
    assert sorted(path.name for path in weights.glob("*/model.weights.h5")) == ["model.weights.h5"] * 2
    verdict, talk = rehearse(
        "infer", "--competition", phantom, "--dataset", f"rsna-weights={weights}", "--out", tmp_path / "infer"
    )
    assert verdict["verdict"] == "Complete", talk
    assert len(pd.read_csv(tmp_path / "infer/submission.csv")) == 2
