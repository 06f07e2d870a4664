"""Stock networks with random weights and three equal channels, against ours from their files with one grey channel.

One of each kind; all twelve in both formats with RSNA_KIT_EVERY_BACKBONE=1 (some minutes).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsna_kit.config import ImageConfig, ModelConfig
from rsna_kit.models import starts
from rsna_kit.models.backbones import BACKBONES
from rsna_kit.models.classifier import build_classifier
from rsna_kit.models.stock import Colours, fold, read_application, read_preset
from rsna_kit.models.weights import load_start
from rsna_kit.runtime.errors import BundleError

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.tf

EVERY = [name for name in BACKBONES if BACKBONES[name].stock] if os.environ.get("RSNA_KIT_EVERY_BACKBONE") else []
HEIGHT, WIDTH = 64, 48  # 48 is no multiple of 32: paddings differ on both axes
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def shaken(network: Any) -> Any:
    """Random weights everywhere, normalisations too, small enough that no difference is amplified."""
    rng = np.random.default_rng(3)
    for variable in network.weights:
        path, shape = variable.path, tuple(variable.shape)
        if path.startswith("normalization"):
            continue
        if path.endswith("moving_variance"):
            variable.assign(rng.uniform(1.5, 2.5, shape))
        elif len(shape) == 1:
            variable.assign(rng.normal(1 if path.endswith("gamma") else 0.1, 0.1, shape))
    return network


def stock_network(name: str) -> Any:
    keras.utils.set_random_seed(5)
    return getattr(keras.applications, BACKBONES[name].stock)(
        include_top=False, weights=None, input_shape=(HEIGHT, WIDTH, 3)
    )


def adapt(network: Any, variance: np.ndarray) -> None:
    (layer,) = [layer for layer in network.layers if layer.name.startswith("normalization")]
    layer.set_weights([MEAN, variance, np.array(0)])
    layer.finalize_state()


def write_old_format(network: Any, path: Path, top: bool = False) -> None:
    """As Keras 2 wrote the published files; `top` appends the layer of classes."""
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
        if top:
            names = [*legacy_h5_format.load_attributes_from_hdf5_group(file, "layer_names"), "predictions"]
            for attribute in [name for name in file.attrs if name.startswith("layer_names")]:
                del file.attrs[attribute]
            legacy_h5_format.save_attributes_to_hdf5_group(file, "layer_names", [name.encode() for name in names])
            group = file.create_group("predictions")
            group.attrs["weight_names"] = [b"predictions/kernel:0", b"predictions/bias:0"]
            group["predictions/kernel:0"], group["predictions/bias:0"] = np.zeros((1280, 10)), np.zeros(10)


def assert_same_map(stock: Any, name: str, folder: Path) -> dict[str, Any]:
    """Every value after the stem and at the end, so borders too, on noise with a black and a white patch.

    Random networks forget their picture on the way, so the end alone would forgive a stem that is slightly off.
    """
    picture = np.random.default_rng(4).integers(0, 256, (1, HEIGHT, WIDTH, 1)).astype(np.uint8)
    picture[:, :20, :20], picture[:, -20:, -20:] = 0, 255
    model = ModelConfig(backbone=name)
    network = build_classifier(model, ImageConfig(height=HEIGHT, width=WIDTH))
    said = load_start(network, model, [folder])
    theirs, ours = ("stem_activation",) * 2
    if name.startswith("convnext"):
        theirs, ours = f"{name}_stem", f"{name}_stem_layernorm"
    colours = np.repeat(picture, 3, axis=3).astype(np.float32)
    expected = keras.Model(stock.input, [stock.get_layer(theirs).output, stock.output])(colours, training=False)
    maps = [network.get_layer(ours).output, network.get_layer("pool").input]
    found = keras.Model(network.input, maps)(picture, training=False)
    for tensor, wanted, tolerance in zip(found, expected, (1e-5, 1e-4), strict=True):
        array, reference = np.asarray(tensor), np.asarray(wanted)
        assert array.shape == reference.shape
        assert reference.std() > 0.01
        assert np.abs(array - reference).max() < tolerance * np.abs(reference).max()
    return said


@pytest.mark.parametrize("name", EVERY or ["convnext_tiny", "efficientnetv2_b0", "efficientnetv2_s"])
def test_a_file_in_the_new_format_gives_the_same_map(name: str, tmp_path: Path) -> None:
    stock = shaken(stock_network(name))
    folder = tmp_path / "models" / "owner" / "mine"
    folder.mkdir(parents=True)
    stock.save_weights(str(folder / f"{name}.weights.h5"))
    assert assert_same_map(stock, name, tmp_path)["kind"] == "keras.applications"


@pytest.mark.parametrize("name", EVERY)
def test_a_file_in_the_old_format_gives_the_same_map(name: str, tmp_path: Path) -> None:
    stock = shaken(stock_network(name))
    write_old_format(stock, tmp_path / f"{name}_mine.h5")
    assert_same_map(stock, name, tmp_path)


def test_the_published_efficientnet_gives_the_same_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock network is built as `weights="imagenet"` builds it, from a file that holds deviations as variances."""
    from keras.src.applications import efficientnet

    path = tmp_path / "efficientnetb0_notop.h5"
    source = shaken(stock_network("efficientnet_b0"))
    adapt(source, STD)
    write_old_format(source, path)
    monkeypatch.setattr(efficientnet.file_utils, "get_file", lambda *args, **kwargs: str(path))
    stock = keras.applications.EfficientNetB0(include_top=False, input_shape=(HEIGHT, WIDTH, 3))
    digest = starts._md5(path)
    monkeypatch.setattr(starts, "RELEASES", {"efficientnet_b0": ("efficientnetb0", "", digest)})
    assert assert_same_map(stock, "efficientnet_b0", tmp_path)["file"] == "efficientnetb0_notop.h5"


def test_an_adapted_efficientnet_in_the_old_format_with_its_top(tmp_path: Path) -> None:
    """Real variances are divided by once; the layer of classes is passed by."""
    stock = shaken(stock_network("efficientnet_b0"))
    adapt(stock, STD**2)
    write_old_format(stock, tmp_path / "efficientnet-b0_mine.h5", top=True)
    assert_same_map(stock, "efficientnet_b0", tmp_path)


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """keras-cv's EfficientNetV2 B0 and its preset, laid out as Kaggle Models mounts it."""
    models = pytest.importorskip("keras_cv.models")
    from keras_cv.src.utils.preset_utils import save_to_preset

    keras.utils.set_random_seed(5)
    stock = shaken(
        models.EfficientNetV2Backbone(
            stackwise_kernel_sizes=[3, 3, 3, 3, 3, 3],
            stackwise_num_repeats=[1, 2, 2, 3, 5, 8],
            stackwise_input_filters=[32, 16, 32, 48, 96, 112],
            stackwise_output_filters=[16, 32, 48, 96, 112, 192],
            stackwise_expansion_ratios=[1, 4, 4, 4, 6, 6],
            stackwise_squeeze_and_excite_ratios=[0, 0, 0, 0.25, 0.25, 0.25],
            stackwise_strides=[1, 2, 2, 2, 1, 2],
            stackwise_conv_types=["fused", "fused", "fused", "unfused", "unfused", "unfused"],
            width_coefficient=1.0,
            depth_coefficient=1.0,
            include_rescaling=True,
        )
    )
    root = tmp_path_factory.mktemp("input")
    folder = root / "models" / "keras" / "efficientnetv2" / "keras" / "efficientnetv2_b0_imagenet" / "2"
    save_to_preset(stock, str(folder))
    return stock, root


def test_a_preset_of_keras_cv_gives_the_same_map(preset: tuple[Any, Path]) -> None:
    """It scales by 1/255 alone and pads with black: another fold than keras.applications' of the same layers."""
    said = assert_same_map(preset[0], "efficientnetv2_b0", preset[1])
    assert (said["file"], said["kind"]) == ("model.weights.h5", "keras-cv preset")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("efficientnetv2_b1", {}, r"config.json: not efficientnetv2_b1: depth_coefficient is 1.0, expected 1.1"),
        ("efficientnetv2_s", {}, r"pads with black; efficientnetv2_s cannot start from it exactly"),
        ("efficientnetv2_b0", {"config": {"include_rescaling": False}}, r"include_rescaling is False, expected True"),
        ("efficientnetv2_b0", {"config": 3}, r"stackwise_kernel_sizes is 3"),
        ("efficientnetv2_b0", {"module": "os", "class_name": "system"}, r"got system, expected EfficientNetV2Backbone"),
        ("efficientnetv2_b0", {"module": "keras_hub.src.models.efficientnet", "class_name": "EfficientNetBackbone",
                               "registered_name": "keras_hub>EfficientNetBackbone"},
         r"got a preset of keras-hub \(EfficientNetBackbone\). Its EfficientNets come from timm"),
    ],
)  # fmt: skip
def test_another_preset_is_refused_by_name(
    preset: tuple[Any, Path], tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    (source,) = preset[1].rglob("config.json")
    content = json.loads(source.read_text())
    if isinstance(change.get("config"), dict):
        change = {"config": content["config"] | change["config"]}
    shutil.copy(source.with_name("model.weights.h5"), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(BundleError, match=message):
        read_preset(tmp_path, name)


def test_another_architecture_is_named_by_its_first_layer_that_does_not_fit(tmp_path: Path) -> None:
    """B0 and B1 share their first block; B1 then repeats it."""
    stock = stock_network("efficientnet_b0")
    write_old_format(stock, tmp_path / "old.h5")
    message = r"not efficientnet_b1: layer 9 of the file is block2a_expand_conv with shapes .* expected block1b_dwconv"
    with pytest.raises(BundleError, match=message):
        read_application(tmp_path / "old.h5", "efficientnet_b1")
    stock.save_weights(str(tmp_path / "new.weights.h5"))
    with pytest.raises(BundleError, match=r"not efficientnet_b1: .* objects could not be loaded.*shape"):
        read_application(tmp_path / "new.weights.h5", "efficientnet_b1")
    (tmp_path / "new.weights.h5").rename(tmp_path / "new.h5")
    with pytest.raises(BundleError, match=r"new.h5: written in Keras' new format. Rename it to end in .weights.h5"):
        read_application(tmp_path / "new.h5", "efficientnet_b0")


KERNEL = np.arange(2 * 2 * 3 * 2, dtype=np.float32).reshape(2, 2, 3, 2) / 10


def test_the_fold_by_hand() -> None:
    """Red alone is seen, as 3 x + 5: the picture's kernel gets 3 * 128, ones get 5 and what the centre takes away."""
    colours = Colours(np.array([3.0, 0, 0]), np.array([5.0, 0, 0]))
    (kernel,) = fold({"stem_conv": [KERNEL]}, "efficientnet_b0", colours, Path("f"))["stem_conv"]
    assert kernel.shape == (2, 2, 2, 2)
    np.testing.assert_allclose(kernel[:, :, 0], KERNEL[:, :, 0] * 384, rtol=1e-6)
    np.testing.assert_allclose(kernel[:, :, 1], KERNEL[:, :, 0] * (5 + 3 * 128), rtol=1e-6)


def test_a_constant_with_no_place_is_refused() -> None:
    with pytest.raises(BundleError, match="f: its network pads with another grey value than efficientnetv2_s"):
        fold({"stem_conv": [KERNEL]}, "efficientnetv2_s", Colours(np.full(3, 1 / 255), np.zeros(3)), Path("f"))
