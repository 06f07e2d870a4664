"""A backbone's name and a uint8 picture → its feature map at stride 32 or 16, scaling included.

Every backbone takes one grey channel. Layers are named as in keras.applications (keras-cv for EfficientNet-Lite), so
weights find their place by name; only the stem's kernel has another shape. A stock network gives each colour a scale
and an offset of its own. On a grey picture the scales fold into one kernel. The offsets fold into the stem's bias where
it has one and does not pad (ConvNeXt). Where the stem pads with zeros and has no bias they need a second input, a plane
of ones, which the padding cuts off just as it cuts off the offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from rsna_kit.models.convnext import build_convnext
from rsna_kit.models.efficientnet import build_efficientnet
from rsna_kit.models.lite import build_lite
from rsna_kit.runtime.errors import UsageError, did_you_mean
from rsna_kit.runtime.lazy import require

SCALE = 1 / 128  # with a whole number as centre every grey value stays exact, in float16 and bfloat16 too
SMALLEST = 32  # pixels on the shorter side: one cell at stride 32


@dataclass(frozen=True)
class Backbone:
    """One network without its classifier, as the registry knows it."""

    family: str  # "convnext", "efficientnet", "efficientnetv2" or "efficientnet_lite"
    stock: str  # function in keras.applications that builds the three-channel network; "" for Lite, which has none
    centre: int  # grey value that becomes 0: a stem that pads with zeros must see what it saw on ImageNet
    plane: bool  # whether the stem's second input channel is a plane of ones
    build: Callable[[Any, int, float], Any]  # (scaled picture, tap, drop_path) → feature map


def _registry() -> dict[str, Backbone]:
    found = {}
    for name, stock in (("convnext_tiny", "ConvNeXtTiny"), ("convnext_small", "ConvNeXtSmall")):
        found[name] = Backbone("convnext", stock, 128, False, partial(build_convnext, name))
    for size in range(5):
        stock = f"EfficientNetB{size}"
        found[f"efficientnet_b{size}"] = Backbone("efficientnet", stock, 128, True, partial(build_efficientnet, stock))
    for variant in ("b0", "b1", "b2", "b3", "s"):
        stock = f"EfficientNetV2{variant.upper()}"
        build = partial(build_efficientnet, stock)
        found[f"efficientnetv2_{variant}"] = Backbone("efficientnetv2", stock, 128, variant != "s", build)
    for size in range(3):
        name = f"efficientnet_lite{size}"
        found[name] = Backbone("efficientnet_lite", "", 127, False, partial(build_lite, name))
    return found


BACKBONES: Mapping[str, Backbone] = MappingProxyType(_registry())


def backbone(name: str) -> Backbone:
    """The registry's entry.

    Raises:
        UsageError: unknown name, with the nearest known one.
    """
    if name not in BACKBONES:
        raise UsageError(
            f"model.backbone: got {name!r}, expected one of {', '.join(BACKBONES)}.{did_you_mean(name, BACKBONES)}"
        )
    return BACKBONES[name]


def build_backbone(name: str, picture: Any, tap: int = 32, drop_path: float = 0.2) -> Any:
    """Feature map of a picture, through layers with random weights.

    Args:
        name: one of `BACKBONES`.
        picture: Keras tensor uint8 (batch, height, width, 1), values 0..255; both sides known, 32 or more.
        tap: stride of the map: 32, after the last activation (ConvNeXt: normalisation), or 16, the sum that ends the
            last block at that stride.
        drop_path: rate of stochastic depth (Huang et al. 2016). It grows from 0 at the first block: to `drop_path` at
            the last one of ConvNeXt, to (n - 1) / n of it at the last of n blocks of an EfficientNet.

    Returns:
        Keras tensor float (batch, height / tap, width / tap, channels): rounded down for ConvNeXt, up for the others.

    Raises:
        UsageError: unknown name, another stride, or a picture that is too small.
    """
    found = backbone(name)
    if tap not in (32, 16):
        raise UsageError(f"model.tap: got {tap}, expected 32 or 16")
    height, width = picture.shape[1:3]
    if min(height, width) < SMALLEST:
        raise UsageError(
            f"image.height, image.width: got {height} and {width}, {name} needs at least {SMALLEST} pixels each way"
        )
    layers = require("keras", "train").layers
    scaled = layers.Rescaling(SCALE, offset=-found.centre * SCALE, name="scale")(picture)
    if found.plane:
        ones = layers.Rescaling(0.0, offset=1.0, name="ones")(picture)
        scaled = layers.Concatenate(name="picture_and_ones")([scaled, ones])
    return found.build(scaled, tap, drop_path)
