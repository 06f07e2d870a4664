from __future__ import annotations

import json
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
def copy(lite_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may break."""
    return Path(shutil.copytree(lite_bundle, tmp_path / "copy"))


def resealed(folder: Path, name: str) -> None:
    """Give metadata.json the checksum of a changed file."""
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["sha256"][name] = sha256_file(folder / name)
    (folder / "metadata.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize(("kind", "columns"), [("image", 1), ("breast", 2), ("cvae", 1)])
def test_every_kind_survives_the_round_trip(tmp_path: Path, tiny_lite: Config, kind: str, columns: int) -> None:
    config = replace(
        tiny_lite, model=replace(tiny_lite.model, kind=kind), cvae=replace(tiny_lite.cvae, filters=4, latent=4)
    )
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


def test_weights_that_were_trained_in_mixed_precision_score_in_float32(tmp_path: Path, tiny_lite: Config) -> None:
    mixed = replace(
        tiny_lite, model=replace(tiny_lite.model, kind="cvae"), cvae=replace(tiny_lite.cvae, filters=2, latent=2)
    )
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        trained = build_network(mixed, mixed.image)
        write_bundle(tmp_path, trained, mixed, 0, None, {}, "abc")
        loaded = load_model(open_bundle(tmp_path))
        assert keras.config.dtype_policy().name == "mixed_bfloat16"  # the training that goes on is left alone
    finally:
        keras.config.set_dtype_policy("float32")
    assert trained.get_layer("decoder1").compute_dtype == "bfloat16"
    assert loaded.get_layer("decoder1").compute_dtype == "float32"
    for before, after in zip(trained.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


def test_an_unknown_kind_is_refused_by_name(copy: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    content["model"]["kind"] = "transformer"
    (copy / "config.json").write_text(json.dumps(content))
    resealed(copy, "config.json")
    with pytest.raises(BundleError, match=r"config.json: model.kind: got 'transformer', expected one of image, breast"):
        open_bundle(copy)


def test_weights_of_another_kind_are_refused(copy: Path) -> None:
    """One logit where logit and attention are expected."""
    content = json.loads((copy / "config.json").read_text())
    content["model"]["kind"] = "breast"
    (copy / "config.json").write_text(json.dumps(content))
    resealed(copy, "config.json")
    with pytest.raises(BundleError, match=r"model.weights.h5: does not fit efficientnet_lite0"):
        load_model(open_bundle(copy))


def top_convolution(file: Any) -> Any:
    """The group that holds the last convolution's kernel."""
    (place,) = [p for p in file["layers"] if file[f"layers/{p}/vars"].attrs["name"] == "top_conv"]
    return file[f"layers/{place}/vars"]


def test_weights_that_are_not_finite_are_refused(copy: Path) -> None:
    with h5py.File(copy / "model.weights.h5", "r+") as file:
        top_convolution(file)["0"][0, 0, 0, 0] = np.nan
    resealed(copy, "model.weights.h5")
    with pytest.raises(BundleError, match=r"model.weights.h5: top_conv/kernel holds NaN or infinite.*Train again"):
        load_model(open_bundle(copy))


def test_metadata_says_what_it_is(lite_bundle: Path, tiny_lite: Config) -> None:
    metadata = open_bundle(lite_bundle).metadata
    assert (metadata["fold"], metadata["data_fingerprint"]) == (0, "none")
    assert metadata["image_fingerprint"] == image_fingerprint(tiny_lite.image)
    assert sorted(metadata["sha256"]) == ["config.json", "model.weights.h5", "threshold.json"]
    assert metadata["packages"]["keras"] == keras.__version__


def test_a_bundle_holds_no_pickle(lite_bundle: Path) -> None:
    names = ["config.json", "metadata.json", "model.weights.h5", "threshold.json"]
    assert sorted(path.name for path in lite_bundle.iterdir()) == names
    assert (lite_bundle / "model.weights.h5").read_bytes().startswith(b"\x89HDF\r\n")


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


@pytest.mark.parametrize("name", ["model.weights.h5", "config.json", "threshold.json"])
def test_a_damaged_file_is_refused_by_name(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: damaged or exchanged.*Copy the whole bundle"):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["model.weights.h5", "config.json", "threshold.json", "metadata.json"])
def test_a_missing_file_is_refused_by_name(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: no such file"):
        open_bundle(copy)


def test_metadata_that_is_not_json_is_refused(copy: Path) -> None:
    (copy / "metadata.json").write_text('{"format')
    with pytest.raises(BundleError, match=r"metadata.json: not JSON"):
        open_bundle(copy)


def test_another_image_recipe_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network would see other pictures than it learned from."""
    monkeypatch.setattr("rsna_kit.config.IMAGE_RECIPE_VERSION", -1)
    with pytest.raises(BundleError, match=r"metadata.json: trained on images of fingerprint .* Train again"):
        open_bundle(copy)


def test_an_exchanged_image_section_is_refused(copy: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    content["image"]["height"] = 128
    (copy / "config.json").write_text(json.dumps(content))
    resealed(copy, "config.json")
    with pytest.raises(BundleError, match="trained on images of fingerprint"):
        open_bundle(copy)


def test_a_configuration_of_another_version_is_refused(copy: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    content["model"]["depth"] = 3
    (copy / "config.json").write_text(json.dumps(content))
    resealed(copy, "config.json")
    with pytest.raises(BundleError, match=r"config.json: config key model.depth is unknown.*Use the rsna-kit"):
        open_bundle(copy)


@pytest.mark.parametrize("version", [1, 9])
def test_another_format_is_refused(copy: Path, version: int) -> None:
    """1: networks that saw one channel; they are to be trained again."""
    metadata = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps(metadata | {"format_version": version}))
    with pytest.raises(
        BundleError, match=f"metadata.json: got format version {version}, expected 2: its network is another one"
    ):
        open_bundle(copy)


def test_what_is_no_bundle_is_refused(copy: Path) -> None:
    """Presets of Keras are folders of the same three names."""
    (copy / "metadata.json").write_text('{"keras_version": "3.7.0", "parameter_count": 1}')
    with pytest.raises(BundleError, match=r"metadata.json: no format_version, so .* is no bundle of rsna-kit"):
        open_bundle(copy)


def test_checksums_that_are_none_are_refused(copy: Path) -> None:
    metadata = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps(metadata | {"sha256": []}))
    with pytest.raises(BundleError, match=r"metadata.json: sha256 is \[\], expected one for each file"):
        open_bundle(copy)


@pytest.mark.parametrize("threshold", ["NaN", "1.5", '"0.5"', "[0.5]", "true"])
def test_a_stored_threshold_that_is_none_is_refused(copy: Path, threshold: str) -> None:
    (copy / "threshold.json").write_text(f'{{"threshold": {threshold}, "calibration": null}}')
    resealed(copy, "threshold.json")
    with pytest.raises(BundleError, match=r"threshold.json: threshold is .*, expected a number from 0 to 1"):
        open_bundle(copy)


def test_an_unknown_backbone_names_the_bundle(copy: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    content["model"]["backbone"] = "resnet"
    (copy / "config.json").write_text(json.dumps(content))
    resealed(copy, "config.json")
    with pytest.raises(BundleError, match=r"config.json: model.backbone: got 'resnet'.*Use the rsna-kit that made it"):
        load_model(open_bundle(copy))


def test_weights_of_a_larger_network_are_refused(copy: Path, tiny_lite: Config) -> None:
    """All that is asked for is there, and more: a network for breasts where one for pictures is expected."""
    breast = replace(tiny_lite, model=replace(tiny_lite.model, kind="breast"))
    build_network(breast, breast.image).save_weights(str(copy / "model.weights.h5"))
    resealed(copy, "model.weights.h5")
    with pytest.raises(
        BundleError, match=r"model.weights.h5: does not fit efficientnet_lite0: it holds 249 arrays, exp"
    ):
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
    with pytest.raises(BundleError, match=f"model.weights.h5: does not fit efficientnet_lite0: {message}") as caught:
        load_model(open_bundle(copy))
    assert len(str(caught.value)) < 600  # Keras prints every array
