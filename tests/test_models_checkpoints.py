"""Checkpoints of PyTorch: three formats are read, networks of timm's give the same logits, nothing is executed."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsna_kit.config import ImageConfig, ModelConfig
from rsna_kit.models.torch_file import read_tensors
from rsna_kit.runtime.errors import BundleError
from rsna_lab.kaggle.adopted import Adopted, adopt

ROOT = Path(__file__).resolve().parent.parent
TIMM = ROOT / ".venv-timm" / "bin" / "python"
F = Path("f")


def tensor(
    dtype: str = "Float", count: int = 4, offset: int = 0, shape: str = "I2\nI2\n", strides: str = "I2\nI1\n"
) -> bytes:
    """A tensor over storage "0", as torch pickles one: opcodes written by hand."""
    storage = f"(U\x07storagectorch\n{dtype}Storage\nU\x010U\x03cpuK{chr(count)}tQ".encode()
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + f"I{offset}\n({shape}t({strides}t".encode() + b"\x89NtR"


def state(value: bytes) -> bytes:
    """{"w": value}."""
    return b"\x80\x02}U\x01w" + value + b"s."


def zipped(content: bytes, values: bytes, kind: int = zipfile.ZIP_STORED, byteorder: bytes = b"little") -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", kind) as archive:
        for name, held in (("data.pkl", content), ("byteorder", byteorder), ("data/0", values)):
            archive.writestr(f"model/{name}", held)
    return memory.getvalue()


def safe(entry: dict[str, Any], values: bytes) -> bytes:
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": entry}).encode()
    return struct.pack("<Q", len(header)) + header + values


FOUR = struct.pack("<4f", 1, 2, 3, 4)
HALF = np.array([[1, 2], [3, 4]], np.float16).tobytes()
UPPER = np.array([[1, 2], [3, 4]], np.float32).view(np.uint16)[:, 1::2].tobytes()  # bfloat16: the upper halves


@pytest.mark.parametrize(
    "content",
    [
        zipped(state(tensor()), FOUR),
        zipped(state(tensor("Half")), HALF),
        zipped(state(tensor("BFloat16")), UPPER),
        zipped(b"\x80\x02}U\x0astate_dict" + state(tensor())[2:-1] + b"s.", FOUR),
        zipped(state(tensor()).replace(b"U\x01w", b"U\x08module.w"), FOUR),
        safe({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, FOUR),
        safe({"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}, UPPER),
    ],
)
def test_every_format_and_type_gives_the_values(content: bytes) -> None:
    found = read_tensors(content, F)
    assert list(found) == ["w"]
    np.testing.assert_array_equal(found["w"], [[1, 2], [3, 4]])


def evil(module: str, name: str) -> bytes:
    return state(f"c{module}\n{name}\n(U\x05touchtR".encode())


HUGE = state(tensor(shape="I100000\nI100000\n", strides="I0\nI0\n"))
FORTY_GB = struct.pack("<Q", 40_000_000_000) + b'{"w": {}}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(evil("os", "system"), FOUR), "os.system is not allowed"),
        (zipped(evil("builtins", "eval"), FOUR), "builtins.eval is not allowed"),
        (zipped(evil("torch", "load"), FOUR), "torch.load is not allowed"),
        (zipped(HUGE, FOUR), "a tensor of shape .* in 16 bytes"),
        (zipped(state(tensor(offset=1)), FOUR), "not a PyTorch state dict"),
        (zipped(state(tensor()), FOUR[:8]), "in 8 bytes"),
        (zipped(state(tensor()), FOUR, zipfile.ZIP_DEFLATED), "compressed"),
        (zipped(state(tensor()), FOUR, byteorder=b"big"), "big-endian"),
        (zipped(state(tensor()), FOUR)[:-30], "not a PyTorch state dict"),
        (zipped(pickle.dumps([1, 2], 2), FOUR), "got list, expected a dict of tensors"),
        (zipped(pickle.dumps({"epoch": 3}, 2), FOUR), "no tensor in it"),
        (safe({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, FOUR[:8]), "leads out of the file"),
        (safe({"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 16]}, FOUR), "a tensor of shape .* in 16 bytes"),
        (FORTY_GB, "not a PyTorch state dict"),
    ],
)
def test_what_is_not_whole_or_would_execute_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=rf"f: not a PyTorch state dict.*{message}|f: {message}"):
        read_tensors(content, F)


@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.skipif(not TIMM.is_file(), reason="no timm: scripts/test --all installs it")
@pytest.mark.parametrize(
    ("theirs", "channels", "pool", "ours"),
    [
        ("convnext_tiny", 3, "max", "convnext_tiny"),
        ("convnext_tiny", 1, "gem", "convnext_tiny"),
        ("convnext_small", 3, "avg", "convnext_small"),
        ("convnext_base", 1, "max", "convnext_base"),
        ("tf_efficientnet_b0", 3, "max", "efficientnet_b0"),
        ("tf_efficientnet_b3", 1, "avg", "efficientnet_b3"),
        ("tf_efficientnetv2_b0", 1, "avg", "efficientnetv2_b0"),
        ("tf_efficientnetv2_s", 3, "gem", "efficientnetv2_s"),
        ("tf_efficientnet_lite0", 3, "avg", "efficientnet_lite0"),
    ],
)
def test_a_network_of_timm_gives_the_same_logits(
    theirs: str, channels: int, pool: str, ours: str, tmp_path: Path
) -> None:
    """Oracle: timm itself, random weights with statistics of a batch, its checkpoint in three formats."""
    from rsna_kit.models.bundle import load_model, open_bundle

    if subprocess.run([str(TIMM), "-c", "import torch"], capture_output=True).returncode:
        pytest.skip("the torch of .venv-timm needs CUDA's libraries: install a CPU build there")
    oracle = [str(TIMM), str(ROOT / "tests" / "timm_oracle.py"), theirs, str(channels), pool, str(tmp_path)]
    run = subprocess.run(oracle, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = np.load(tmp_path / "expected.npz")
    files = [tmp_path / name for name in ("zip.pth.tar", "old.pth", "safe.safetensors")]
    model, image = ModelConfig(backbone=ours, pool=pool), ImageConfig(height=64, width=64)
    adopt(Adopted(files, model, image, 0.31, expected["mean"], expected["std"]), tmp_path, lambda line: None)
    for name in ("zip", "old", "safe"):
        bundle = open_bundle(tmp_path / name)
        assert (bundle.threshold, bundle.metadata["trained_on"]) == (0.31, "*")
        found = np.asarray(load_model(bundle).predict_on_batch(expected["grey"][..., None]))
        assert np.ptp(expected["logits"]) > 0.1
        assert np.abs(found - expected["logits"]).max() < 1e-4 + 4 * expected["rounding"]
