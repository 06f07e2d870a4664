"""Bundles: the round trip of every kind, and whatever is damaged, exchanged or of another network is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsna_kit.config import Config, image_fingerprint
from rsna_kit.models.bundle import load_model, open_bundle
from rsna_kit.models.network import build_network
from rsna_kit.runtime.errors import BundleError, UsageError
from rsna_kit.runtime.files import sha256_file
from rsna_kit.training.export import save_weights, set_threshold, write_bundle

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.tf


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may break."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def resealed(folder: Path, name: str) -> None:
    """Give metadata.json the checksum of a changed file."""
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["sha256"][name] = sha256_file(folder / name)
    (folder / "metadata.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize(("kind", "columns"), [("image", 1), ("breast", 2), ("cvae", 1)])
def test_every_kind_survives_the_round_trip(tmp_path: Path, tiny: Config, kind: str, columns: int) -> None:
    config = replace(tiny, model=replace(tiny.model, kind=kind), cvae=replace(tiny.cvae, filters=4, latent=4))
    keras.utils.set_random_seed(7)
    model = build_network(config, config.image)
    start = {"file": "lite0.pth", "sha256": "abc", "kind": "imagenet"} if kind == "image" else None
    write_bundle(tmp_path, model, config, 1, None, {"val_roc_auc": 0.75}, "abc", start)
    opened = open_bundle(tmp_path)
    assert (opened.config, opened.threshold, opened.metadata["start"]) == (config, None, start or {})
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 1), np.uint8)
    loaded = np.asarray(load_model(opened)(pictures))
    assert loaded.shape == (2, columns)
    np.testing.assert_array_equal(np.asarray(model(pictures)), loaded)


def test_weights_that_were_trained_in_mixed_precision_score_in_float32(tmp_path: Path, tiny: Config) -> None:
    mixed = replace(tiny, model=replace(tiny.model, kind="cvae"), cvae=replace(tiny.cvae, filters=2, latent=2))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        trained = build_network(mixed, mixed.image)
        write_bundle(tmp_path, trained, mixed, 0, None, {}, "abc")
        loaded = load_model(open_bundle(tmp_path))
        assert keras.config.dtype_policy().name == "mixed_bfloat16"  # the training that goes on is left alone
    finally:
        keras.config.set_dtype_policy("float32")
    assert trained.get_layer("decoder").compute_dtype == "bfloat16"
    assert loaded.get_layer("decoder").compute_dtype == "float32"
    for before, after in zip(trained.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


def test_it_says_what_it_is_and_holds_no_pickle(bundle: Path, tiny: Config) -> None:
    metadata = open_bundle(bundle).metadata
    assert (metadata["fold"], metadata["data_fingerprint"]) == (0, "none")
    assert metadata["image_fingerprint"] == image_fingerprint(tiny.image)
    assert metadata["packages"]["keras"] == keras.__version__
    assert sorted([*metadata["sha256"], "metadata.json"]) == sorted(path.name for path in bundle.iterdir()) == FILES
    assert (bundle / "model.weights.h5").read_bytes().startswith(b"\x89HDF\r\n")


FILES = ["config.json", "metadata.json", "model.weights.h5", "threshold.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_damaged_file_is_refused_by_name(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[0 if name == "metadata.json" else len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: (damaged or exchanged.*Copy the whole bundle|not JSON)"):
        open_bundle(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: no such file"):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("config.json model.kind", "transformer", "model.kind: got 'transformer', expected one of image, breast"),
        ("config.json model.kind", "breast", "does not fit toy"),  # one logit where logit and attention are expected
        ("config.json model.depth", 3, "config key model.depth is unknown\\. Use the rsna-kit"),
        ("config.json model.backbone", "resnet", "model.backbone: got 'resnet'.*Use the rsna-kit that made it"),
        ("config.json image.height", 128, "trained on images of fingerprint .* Train again"),
        ("metadata.json format_version", 2, "got format version 2, expected 3: its network is another one"),
        ("metadata.json format_version", None, "no format_version, so .* is no bundle of rsna-kit"),  # Keras' presets
        ("metadata.json sha256", [], r"sha256 is \[\], expected one for each file"),
        *[("threshold.json threshold", bad, "expected a number from 0 to 1") for bad in (math.nan, 1.5, "0.5", True)],
    ],
)
def test_what_does_not_fit_is_refused_by_file(copy: Path, place: str, value: Any, message: str) -> None:
    name, _, keys = place.partition(" ")
    content = json.loads((copy / name).read_text())
    *sections, key = keys.split(".")
    inner = content[sections[0]] if sections else content
    inner[key] = value
    (copy / name).write_text(json.dumps(content))
    if name != "metadata.json":
        resealed(copy, name)
    with pytest.raises(BundleError, match=rf"(?s)(json|h5): .*{message}"):
        load_model(open_bundle(copy))


def top_convolution(file: Any) -> Any:
    """The group that holds the last convolution's kernel."""
    (place,) = [p for p in file["layers"] if file[f"layers/{p}/vars"].attrs["name"] == "conv4"]
    return file[f"layers/{place}/vars"]


def test_weights_that_are_not_finite_are_refused(copy: Path) -> None:
    with h5py.File(copy / "model.weights.h5", "r+") as file:
        top_convolution(file)["0"][0, 0, 0, 0] = np.nan
    resealed(copy, "model.weights.h5")
    with pytest.raises(BundleError, match=r"model.weights.h5: conv4/kernel holds NaN or infinite.*Train again"):
        load_model(open_bundle(copy))


def test_the_threshold_can_be_set_again(copy: Path) -> None:
    assert open_bundle(copy).calibration is None
    fitted = {"method": "platt", "parameters": {"slope": 1.0, "intercept": 0.0}}
    set_threshold(copy, 0.25, {"rule": "plateau"}, fitted)
    assert open_bundle(copy).calibration == fitted
    assert open_bundle(copy).threshold == 0.25
    assert json.loads((copy / "threshold.json").read_text())["how"] == {"rule": "plateau"}


def test_a_crash_while_setting_the_threshold_leaves_a_whole_bundle(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the three writes is the last, either the old or the new threshold is there."""
    import rsna_kit.training.export as module

    original, seen = module.write_json, []
    for survived in range(3):
        calls = iter(range(10))

        def dying(path: Path, value: object, calls=calls, survived: int = survived) -> None:
            if next(calls) == survived:
                raise KeyboardInterrupt
            original(path, value)

        monkeypatch.setattr(module, "write_json", dying)
        with pytest.raises(KeyboardInterrupt):
            set_threshold(copy, 0.75, "crash")
        seen.append(open_bundle(copy).threshold)
    assert seen == [0.5, 0.5, 0.75]


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.1])
def test_a_threshold_outside_the_scores_is_refused(copy: Path, value: float) -> None:
    with pytest.raises(UsageError, match="expected a number from 0 to 1"):
        set_threshold(copy, value, "")


def test_another_image_recipe_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network would see other pictures than it learned from."""
    monkeypatch.setattr("rsna_kit.config.IMAGE_RECIPE_VERSION", -1)
    with pytest.raises(BundleError, match=r"metadata.json: trained on images of fingerprint .* Train again"):
        open_bundle(copy)


def test_weights_of_a_larger_network_are_refused(copy: Path, tiny: Config) -> None:
    """All that is asked for is there, and more: a network for breasts where one for pictures is expected."""
    breast = replace(tiny, model=replace(tiny.model, kind="breast"))
    build_network(breast, breast.image).save_weights(str(copy / "model.weights.h5"))
    resealed(copy, "model.weights.h5")
    with pytest.raises(BundleError, match=r"model.weights.h5: does not fit toy: it holds 31 arrays, exp"):
        load_model(open_bundle(copy))


def test_a_bundle_holds_no_optimiser(tmp_path: Path) -> None:
    """Adam's moments would be twice the size of the weights."""
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(500)(inputs))
    save_weights(model, tmp_path / "plain.weights.h5")
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    save_weights(model, tmp_path / "compiled.weights.h5")
    sizes = {path.stat().st_size for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 2
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("not hdf5", ".*file signature not found"),
        ("another network", "A total of"),
        ("bomb", ".* bytes that claim to hold"),
        ("external", ".*"),
    ],
)
def test_weights_that_do_not_fit_are_refused(copy: Path, kind: str, message: str) -> None:
    """External: an array that lies in another file of the machine is not fetched."""
    path = copy / "model.weights.h5"
    if kind == "not hdf5":
        path.write_bytes(b"nothing of the kind")
    elif kind == "another network":
        inputs = keras.Input((2,))
        keras.Model(inputs, keras.layers.Dense(3)(inputs)).save_weights(str(path))
    else:
        with h5py.File(path, "r+") as file:
            held = top_convolution(file)
            del held["0"]
            if kind == "bomb":
                held.create_dataset("0", (1 << 20, 1 << 20), np.float32, chunks=(1 << 10, 1 << 10))
            else:
                held["0"] = h5py.ExternalLink("/etc/hostname.h5", "/secret")
    resealed(copy, "model.weights.h5")
    with pytest.raises(BundleError, match=f"model.weights.h5: does not fit toy: {message}") as caught:
        load_model(open_bundle(copy))
    assert len(str(caught.value)) < 600  # Keras prints every array
