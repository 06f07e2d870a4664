from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rsna_kit.config import Config, image_fingerprint
from rsna_kit.models.bundle import load_model, open_bundle, set_threshold, write_bundle
from rsna_kit.models.classifier import build_classifier
from rsna_kit.runtime.errors import BundleError, UsageError
from rsna_kit.runtime.files import sha256_file

keras = pytest.importorskip("keras")
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


def test_predictions_survive_the_round_trip(tmp_path: Path, tiny: Config) -> None:
    keras.utils.set_random_seed(2)
    model = build_classifier(tiny.model, tiny.image)
    write_bundle(tmp_path, model, tiny, 1, None, {"val_roc_auc": 0.75}, "abc")
    opened = open_bundle(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 1), np.uint8)
    loaded = load_model(opened)
    np.testing.assert_array_equal(np.asarray(model(pictures)), np.asarray(loaded(pictures)))
    assert (opened.config, opened.threshold) == (tiny, None)


def test_metadata_says_what_it_is(bundle: Path, tiny: Config) -> None:
    metadata = open_bundle(bundle).metadata
    assert (metadata["fold"], metadata["data_fingerprint"]) == (0, "none")
    assert metadata["image_fingerprint"] == image_fingerprint(tiny.image)
    assert sorted(metadata["sha256"]) == ["config.json", "model.weights.h5", "threshold.json"]
    assert metadata["packages"]["keras"] == keras.__version__


def test_a_bundle_holds_no_pickle(bundle: Path) -> None:
    names = ["config.json", "metadata.json", "model.weights.h5", "threshold.json"]
    assert sorted(path.name for path in bundle.iterdir()) == names
    assert (bundle / "model.weights.h5").read_bytes().startswith(b"\x89HDF\r\n")


def test_the_threshold_can_be_set_again(copy: Path) -> None:
    set_threshold(copy, 0.25, {"rule": "plateau"})
    assert open_bundle(copy).threshold == 0.25
    assert json.loads((copy / "threshold.json").read_text())["how"] == {"rule": "plateau"}


def test_a_crash_while_setting_the_threshold_leaves_a_whole_bundle(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the three writes is the last, either the old or the new threshold is there."""
    import rsna_kit.models.bundle as module

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


def test_another_format_is_refused(copy: Path) -> None:
    metadata = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps(metadata | {"format_version": 9}))
    with pytest.raises(BundleError, match="got format version 9, expected 1"):
        open_bundle(copy)


@pytest.mark.parametrize("kind", ["not hdf5", "another network"])
def test_weights_that_do_not_fit_are_refused(copy: Path, kind: str) -> None:
    path = copy / "model.weights.h5"
    if kind == "not hdf5":
        path.write_bytes(b"nothing of the kind")
    else:
        inputs = keras.Input((2,))
        keras.Model(inputs, keras.layers.Dense(3)(inputs)).save_weights(str(path))
    resealed(copy, "model.weights.h5")
    with pytest.raises(BundleError, match=r"model.weights.h5: does not fit efficientnet_lite0"):
        load_model(open_bundle(copy))
