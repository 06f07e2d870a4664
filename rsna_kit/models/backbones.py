"""A backbone's name and a uint8 picture → its feature map at stride 32 or 16, scaling included.

Every network sees one grey channel as it saw colours: three times the same, each scaled as it was on ImageNet. So
stock networks keep their own stem, and published weights fit as they are. The scaling is kept among the weights: a
network that others trained brings its own. To add a backbone, add its line to
`BACKBONES`; nothing else has to know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from rsna_kit.models.convnext import build_convnext
from rsna_kit.models.lite import build_lite
from rsna_kit.runtime.errors import UsageError, named
from rsna_kit.runtime.lazy import require

SMALLEST = 32  # pixels on the shorter side: one cell at stride 32

# What a grey value 0..255 becomes in each channel: value * scale + offset.
Scaling = tuple[list[float], list[float]]
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet's colours in [0, 1]
IMAGENET: Scaling = ((1 / (255 * _STD)).tolist(), (-_MEAN / _STD).tolist())
HALVES: Scaling = ([1 / 128] * 3, [-1.0] * 3)
LITE: Scaling = ([1 / 128] * 3, [-127 / 128] * 3)


@dataclass(frozen=True)
class Backbone:
    """One network without its classifier.

    Attributes:
        build: (scaled picture, float (B, h, w, 3); stride 32 or 16) → feature map of that stride.
        scaling: of the colours on ImageNet.
        stock: function in keras.applications that builds the network whose published weights fit; "" where none does.
        file: name of the published ImageNet weights, "" where there are none.
        digest: their MD5 or SHA-256.
        pooled_norm: whether what is pooled from the map of stride 32 is normalised over its channels.
    """

    build: Callable[[Any, int], Any]
    scaling: Scaling = IMAGENET
    stock: str = ""
    file: str = ""
    digest: str = ""
    pooled_norm: bool = False


def _stock(function: str, file: str, digest: str, scaling: Scaling = IMAGENET) -> Backbone:
    return Backbone(lambda scaled, tap: _build_stock(function, scaled, tap), scaling, function, file, digest)


def _convnext(name: str, function: str, digest: str) -> Backbone:
    build = lambda scaled, tap: build_convnext(name, scaled, tap)  # noqa: E731
    return Backbone(build, IMAGENET, function, f"{name}_notop.h5", digest, pooled_norm=True)


def _lite(name: str, digest: str) -> Backbone:
    file = f"{name.replace('_', '-')}-{digest[:8]}.pth"
    return Backbone(lambda scaled, tap: build_lite(name, scaled, tap), LITE, "", file, digest)


BACKBONES: Mapping[str, Backbone] = {
    "convnext_tiny": _convnext(
        "convnext_tiny", "ConvNeXtTiny", "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"
    ),
    "convnext_small": _convnext(
        "convnext_small", "ConvNeXtSmall", "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab"
    ),
    "convnext_base": _convnext(
        "convnext_base", "ConvNeXtBase", "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45"
    ),
    "efficientnet_b0": _stock("EfficientNetB0", "efficientnetb0_notop.h5", "50bc09e76180e00e4465e1a485ddc09d"),
    "efficientnet_b1": _stock("EfficientNetB1", "efficientnetb1_notop.h5", "74c4e6b3e1f6a1eea24c589628592432"),
    "efficientnet_b2": _stock("EfficientNetB2", "efficientnetb2_notop.h5", "111f8e2ac8aa800a7a99e3239f7bfb39"),
    "efficientnet_b3": _stock("EfficientNetB3", "efficientnetb3_notop.h5", "af6d107764bb5b1abb91932881670226"),
    "efficientnet_b4": _stock("EfficientNetB4", "efficientnetb4_notop.h5", "ebc24e6d6c33eaebbd558eafbeedf1ba"),
    "efficientnetv2_b0": _stock("EfficientNetV2B0", "efficientnetv2-b0_notop.h5", "893217f2bb855e2983157299931e43ff"),
    "efficientnetv2_b1": _stock("EfficientNetV2B1", "efficientnetv2-b1_notop.h5", "0e80663031ca32d657f9caa404b6ec37"),
    "efficientnetv2_b2": _stock("EfficientNetV2B2", "efficientnetv2-b2_notop.h5", "1dfe2e7a5d45b6632553a8961ea609eb"),
    "efficientnetv2_b3": _stock("EfficientNetV2B3", "efficientnetv2-b3_notop.h5", "f6abf7b5849ac99a89b50dd3fd532856"),
    "efficientnetv2_s": _stock(
        "EfficientNetV2S", "efficientnetv2-s_notop.h5", "af0682fb74e8c54910f2d4393339c070", HALVES
    ),
    "efficientnet_lite0": _lite(
        "efficientnet_lite0", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "efficientnet_lite1": _lite(
        "efficientnet_lite1", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "efficientnet_lite2": _lite(
        "efficientnet_lite2", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}


def build_backbone(name: str, picture: Any, tap: int = 32) -> Any:
    """Feature map of a picture, through layers with random weights.

    Scaling is float32 under a mixed policy too: bfloat16 would merge neighbouring grey values.

    Args:
        name: one of `BACKBONES`.
        picture: Keras tensor uint8 (batch, height, width, 1), values 0..255; both sides known, 32 or more.
        tap: stride of the map: 32, after the last activation (ConvNeXt: the last sum), or 16, the sum that ends the
            last block at that stride.

    Returns:
        Keras tensor float (batch, height / tap, width / tap, channels): rounded down for ConvNeXt, up for the others.
        The layer `scale` holds what grey values become.

    Raises:
        UsageError: unknown name, or a picture that is too small.
    """
    found = named("model.backbone", name, BACKBONES)
    height, width = picture.shape[1:3]
    if min(height, width) < SMALLEST:
        raise UsageError(
            f"image.height, image.width: got {height} and {width}, {name} needs at least {SMALLEST} pixels each way"
        )
    return found.build(_scale_layer()(*found.scaling, dtype="float32", name="scale")(picture), tap)


@cache
def _scale_layer() -> Any:
    """The layer's class; Keras is not there when this module is imported."""
    keras = require("keras", "train")

    class Scale(keras.layers.Layer):  # type: ignore[name-defined]
        """Grey (B, h, w, 1) to float32 (B, h, w, 3): times `scale`, plus `offset`, both (3,), neither trained."""

        def __init__(self, scale: Sequence[float], offset: Sequence[float], **options: Any) -> None:
            super().__init__(**options)
            self.values = {"scale": scale, "offset": offset}

        def build(self, shape: Any) -> None:
            for name, values in self.values.items():
                constant = keras.initializers.Constant(np.array(values, np.float32))
                setattr(self, name, self.add_weight(shape=(3,), initializer=constant, trainable=False, name=name))

        def call(self, grey: Any) -> Any:
            return keras.ops.cast(grey, "float32") * self.scale + self.offset

        def compute_output_shape(self, shape: Any) -> Any:
            return *shape[:-1], 3

    return Scale


def _build_stock(function: str, scaled: Any, tap: int) -> Any:
    """Feature map by a network of keras.applications: EfficientNet (Tan and Le 2019), EfficientNetV2 (Tan and Le 2021).

    The stock graph is copied onto the scaled picture without its own scaling, whose statistics EfficientNet would keep
    as three more weights. It ends after the last activation, or at the last sum of the fifth stage.
    """
    keras = require("keras", "train")
    inputs = keras.Input(scaled.shape[1:])  # of this size: the paddings depend on it
    options = {"include_preprocessing": False} if "V2" in function else {}
    whole = getattr(keras.applications, function)(include_top=False, weights=None, input_tensor=inputs, **options)
    sums = [layer.name for layer in whole.layers if layer.name.startswith("block5") and layer.name.endswith("_add")]
    last = "top_activation" if tap == 32 else sums[-1]

    def called(layer: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
            return tensor
        return layer(tensor, *args, **kwargs)

    wanted = keras.Model(inputs, whole.get_layer(last).output)
    copy = keras.models.clone_model(wanted, input_tensors=scaled, call_function=called)
    # `copy.output` belongs to another clone of the graph; the layer's first call belongs to ours.
    return copy.get_layer(last).output
