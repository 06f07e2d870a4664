"""Strangers' machines: full disks, settings and packages that others left there."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rsna_kit.data.writer import write_shard
from rsna_kit.runtime.errors import one_line
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_bytes, write_csv, write_json
from rsna_kit.session import kernel as sessions
from rsna_kit.session.verdict import PREFIX
from rsna_kit.training.checkpoint import save_checkpoint
from rsna_kit.training.export import save_weights
from rsna_lab.cli import main
from rsna_lab.phantom.dicom_file import JPEG_LOSSLESS, DicomFacts, write_dicom


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """No file can grow beyond `most` bytes: writing answers as on a full disk, but with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FACTS = DicomFacts("1", "2", "L", JPEG_LOSSLESS, 16)


def _weights(path: Path) -> None:
    keras = pytest.importorskip("keras")
    save_weights(keras.Sequential([keras.Input((50,)), keras.layers.Dense(50)]), path)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "bytes.png": lambda path: write_bytes(path, bytes(1000)),
    "table.csv": lambda path: write_csv(path, pd.DataFrame({"score": np.arange(500)})),
    "value.json": lambda path: write_json(path, list(range(500))),
    "events.jsonl": lambda path: Events(path, io.StringIO()).say("x" * 1000),
    "image.dcm": lambda path: write_dicom(path, np.zeros((64, 64), np.uint16), FACTS),
    "checkpoint.npz": lambda path: save_checkpoint(path, "f", {"weights": [np.arange(500)]}, {}),
    "model.weights.h5": _weights,
    "shard.tfrecord": lambda path: write_shard(path, [("1", 0.0, bytes(1000))]),
}


@pytest.mark.tf
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_the_old_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with full_disk(600), pytest.raises(OSError, match=re.escape(str(path))):
        WRITERS[name](path)
    assert path.read_bytes()[:3] == b"old"
    assert list(tmp_path.iterdir()) == [path]
    WRITERS[name](path)
    assert path.stat().st_size > 600


@pytest.mark.tf
@pytest.mark.parametrize(("verb", "most"), [("prepare", 8000), ("infer", 400), ("phantom", 8000), ("score", 100)])
def test_every_verb_says_in_a_line_that_the_disk_is_full(
    tmp_path: Path, phantom: Path, bundle: Path, capsys: pytest.CaptureFixture[str], verb: str, most: int
) -> None:
    scores, out = tmp_path / "oof.csv", tmp_path / "out"
    scores.write_text("prediction_id,score,cancer\n1_L,0.1,0\n2_L,0.2,0\n3_L,0.8,1\n4_L,0.9,1\n")
    arguments = {
        "prepare": [phantom, out, "--set", "image.height=128", "--set", "image.width=64", "--set", "data.save=none"],
        "infer": [phantom / "hidden", out, "--bundle", bundle],
        "phantom": [out, "--patients", 1],
        "score": [scores, "--out", out],
    }[verb]
    with full_disk(most):
        code = main([verb, *map(str, arguments)])
    said = capsys.readouterr().err
    assert code == 1
    assert re.fullmatch(
        rf"Error: \[Errno 27\] File too large: '{out}/.+'\. What is on disk is whole\.", said.splitlines()[-1]
    )
    assert "Traceback" not in said
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in files if ".tmp-" in path.name]
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
    if verb == "infer":
        assert len((out / "submission.csv").read_text().splitlines()) > 1


@pytest.mark.parametrize(("most", "on_disk"), [(2000, True), (10, False)])
def test_a_kernel_on_a_full_disk_leaves_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], most: int, on_disk: bool
) -> None:
    monkeypatch.setenv("RSNA_KIT_INPUT", str(tmp_path))
    monkeypatch.setenv("RSNA_KIT_WORKING", str(tmp_path / "working"))
    monkeypatch.setattr(sessions, "gpus", lambda: [])

    def work(session: sessions.Session) -> dict[str, Any]:
        with full_disk(most):
            write_bytes(session.working / "shard", bytes(5000))
        return {}

    def close(session: sessions.Session, *arguments: Any) -> None:
        with full_disk(most):
            leave(session, *arguments)

    leave = sessions.Session.close
    monkeypatch.setattr(sessions.Session, "close", close)
    assert sessions.run("prepare", {"SET": ""}, [], work) == 1
    said = capsys.readouterr()
    verdict = json.loads(said.out.splitlines()[-1].removeprefix(PREFIX))
    assert verdict["ok"] is False
    assert f"File too large: '{tmp_path}/working/shard'" in verdict["reason"]
    assert ("verdict.json could not be written" in verdict["reason"]) is not on_disk
    assert (tmp_path / "working" / "verdict.json").is_file() is on_disk
    assert "Traceback" not in said.err


# ---- names that are not UTF-8


@pytest.fixture(scope="module")
def latin(tmp_path_factory: pytest.TempPathFactory, phantom: Path, bundle: Path) -> Path:
    """A competition with a file that is cut short, a bundle and scores, in a folder named as in Latin-1."""
    folder = tmp_path_factory.mktemp("names") / os.fsdecode(b"caf\xe9")
    shutil.copytree(phantom, folder / "competition")
    cut = sorted((folder / "competition" / "train_images").rglob("*.dcm"))[0]
    cut.write_bytes(cut.read_bytes()[:3000])
    shutil.copytree(bundle, folder / "bundle")
    for name in ("a.csv", "b.csv"):
        rows = "".join(f"{n}_L,{n / 40},{int(n > 30)}\n" for n in range(40))
        (folder / name).write_text("prediction_id,score,cancer\n" + rows)
    return folder


@pytest.mark.tf
@pytest.mark.parametrize(
    "command",
    [
        "prepare D/competition D/prepared --set image.height=64 --set image.width=32 --set infer.max_failure_share=0.2",
        "infer D/competition/hidden D/scored --bundle D/bundle",
        "explain D/competition/hidden D/maps --bundle D/bundle --top 2",
        "report D/a.csv --out D/report",
        "compare D/a.csv D/b.csv --csv D/results.csv",
        "leaderboard D/competition D/board",
    ],
)
def test_a_folder_may_have_any_name(latin: Path, command: str) -> None:
    assert main([word.replace("D/", f"{latin}/") for word in command.split()]) == 0


def test_the_locale_does_not_matter(latin: Path, tmp_path: Path) -> None:
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "rsna_kit", "score", latin / "a.csv", "--out", tmp_path]
    done = subprocess.run(
        command, capture_output=True, env={**os.environ, **variables}, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0, done.stderr
    assert b"\\udce9/a.csv" in done.stderr


# ---- what the environment brings


@pytest.mark.parametrize(
    ("variables", "keras_json", "message"),
    [
        ({"KERAS_BACKEND": "theano"}, "{}", "KERAS_BACKEND: backend is 'theano', expected tensorflow or jax"),
        ({"TF_USE_LEGACY_KERAS": "1"}, "{}", "TF_USE_LEGACY_KERAS is set"),
        ({}, '{"backend": "torch"}', "keras.json: backend is 'torch', expected tensorflow or jax"),
        (
            {},
            '{"image_data_format": "channels_first"}',
            "image_data_format is 'channels_first', expected channels_last",
        ),
        ({}, '{"floatx": "float16"}', "floatx is 'float16', expected float32"),
    ],
)
def test_a_setting_that_no_network_can_be_used_with_is_named_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    keras_json: str,
    message: str,
) -> None:
    (tmp_path / "keras.json").write_text(keras_json)
    for name, value in {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "", **variables}.items():
        monkeypatch.setenv(name, value)
    assert main(["infer", "nowhere", str(tmp_path / "out"), "--bundle", "nothing"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "code", "module", "message"),
    [
        (
            "pydicom",
            "__version__ = '2.4.4'",
            "check",
            r"pydicom: version 2\.4\.4 in .*/pydicom, expected 3\.0 or newer",
        ),
        (
            "cv2",
            "raise OSError('libGL.so.1: ' + 'x' * 5000)",
            "check",
            r"the import of .* fails: libGL\.so\.1: x{380,400}…",
        ),
        ("dicomsdl", "import no_such_module", "check", ""),
    ],
)
def test_a_package_that_is_too_old_or_broken_is_named_or_absent(
    tmp_path: Path, package: str, code: str, module: str, message: str
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(code)
    scores = tmp_path / "oof.csv"
    scores.write_text("prediction_id,score,cancer\n1_L,0.1,0\n2_L,0.2,0\n3_L,0.8,1\n4_L,0.9,1\n")
    command = [sys.executable, "-m", "rsna_kit", module, *([str(scores)] if module == "score" else [])]
    path = f"{tmp_path}:{Path(__file__).parent.parent}"
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == (1 if message else 0), done.stderr
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    if message:
        assert len(done.stderr.splitlines()) == 1
    elif module == "check":
        assert "pydicom" in done.stderr
        assert f"{package}," not in done.stderr


def test_what_a_library_says_is_cut_to_a_line() -> None:
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(ValueError("many\nnumbers " * 1000)) == ("many numbers " * 1000)[:399] + "…"
    assert one_line(ValueError()) == "ValueError"
