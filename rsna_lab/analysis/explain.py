"""A network and pictures → maps of what speaks for cancer in them: Grad-CAM, for a CVAE reconstruction errors.

Both give non-negative maps of the picture's size, in units of their own: `combine` makes them comparable. A map
says where a score comes from. It does not say that there is a lesion, nor that the score is right.

* **grad-cam**, one pass and one gradient: Selvaraju et al., ICCV 2017. The map is as coarse as the features are, so it
  matters where their cells look (`cell_centres`).
* **error**, for the CVAE: cells of the map that are unlike what a network that knows no cancer makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from rsna_kit.config import ImageConfig
from rsna_kit.imaging.breast import Box
from rsna_kit.models.bundle import load_model
from rsna_kit.models.members import Member
from rsna_kit.models.network import cell_centres, split_classifier
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.lazy import require

# uint8 (B, h, w, 1) → float32 (B, h, w), at least 0. B pictures must fit in memory at once; another B is traced anew.
Explainer = Callable[[np.ndarray], np.ndarray]

_WEAK = 1 / 3  # below this share of its maximum a map is not drawn
_OPACITY = 0.7  # how far the strongest colour covers the picture


def build_explainer(members: Sequence[Member]) -> tuple[Explainer, str]:
    """Load the members' networks and make them explain pictures together, as `combine` adds up their maps.

    A CVAE is explained by reconstruction errors, every other network by Grad-CAM; one for breasts is asked for each
    picture's own logit.

    Returns:
        The explainer, whose maps are in [0, 1], and what its maps are, such as "Grad-CAM".

    Raises:
        BundleError: weights that do not fit their network.
    """
    kinds = {"cvae": ("reconstruction errors", error_map)}
    asked = [kinds.get(member.bundle.config.model.kind, ("Grad-CAM", grad_cam)) for member in members]
    explainers = [build(load_model(member.bundle)) for member, (_, build) in zip(members, asked, strict=True)]
    weights = [member.weight for member in members]
    methods = " and ".join(dict.fromkeys(name for name, _ in asked))
    return lambda pictures: combine([explain(pictures) for explain in explainers], weights), methods


def combine(maps: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """The weighted mean of several models' maps, each picture's map divided by its maximum first.

    Args:
        maps: float32 (B, h, w) of each model, at least 0. A map of zeros stays one and counts.
        weights: one for each model; None: all alike.

    Returns:
        float32 (B, h, w) in [0, 1].
    """
    scaled = [part / np.maximum(part.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny) for part in maps]
    return np.average(scaled, axis=0, weights=weights).astype(np.float32)


def peak(heat: np.ndarray, picture: np.ndarray) -> tuple[int, int] | None:
    """Row and column of a map's highest point on the breast; None where the map is 0 on all of it.

    Args:
        heat: float (h, w), at least 0.
        picture: uint8 (h, w), air 0.
    """
    inside = np.where(picture > 0, heat, 0)
    if not inside.max() > 0:
        return None
    row, column = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return int(row), int(column)


def point_in_picture(row: int, column: int, box: Box, image: ImageConfig) -> tuple[int, int]:
    """Row and column of the full picture in the middle of what one pixel of the image shows.

    `render` cuts a box out of the full picture, scales it, mirrors it where the chest wall is right, and places it in
    the image; a point goes the way back.
    A pixel of the padding gives the nearest point of the box.
    """
    rows, columns = box.fitted(image.height, image.width)
    down = (row - (image.height - rows) // 2 + 0.5) / rows
    across = (column + 0.5) / columns
    across = 1 - across if box.flip else across
    return (
        box.top + int(np.clip(down * box.height, 0, box.height - 1)),
        box.left + int(np.clip(across * box.width, 0, box.width - 1)),
    )


def draw_map(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A map in colour over its mammogram, its peak in a ring, white in black so that it shows on any ground.

    The colours are matplotlib's plasma, dark blue to yellow: perceptually uniform, readable with any colour vision,
    and never grey as the mammogram is. The weakest third of the range is not drawn, so that the tissue stays to be
    seen; air stays black.

    Args:
        picture: uint8 (h, w), air 0.
        heat: float (h, w) in [0, 1].

    Returns:
        uint8 (h, w, 3), red, green, blue.
    """
    if picture.shape != heat.shape or picture.dtype != np.uint8:
        raise ValueError(f"got a {picture.dtype} picture {picture.shape} and a map {heat.shape}, expected uint8, equal")
    strength = np.clip(heat, 0, 1).astype(np.float32)
    colours = cv2.applyColorMap(np.rint(strength * 255).astype(np.uint8), cv2.COLORMAP_PLASMA)[..., ::-1]
    cover = _OPACITY * np.clip((strength - _WEAK) / (1 - _WEAK), 0, 1) * (picture > 0)
    mixed = picture[..., None] * (1 - cover[..., None]) + colours * cover[..., None]
    drawn = np.ascontiguousarray(np.rint(mixed).astype(np.uint8))
    if (point := peak(heat, picture)) is not None:
        radius = max(5, round(max(picture.shape) / 50))
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.circle(drawn, point[::-1], radius, colour, thickness, cv2.LINE_AA)
    return drawn


# ---- Grad-CAM ----


def grad_cam(network: Any) -> Explainer:
    """Gradient-weighted class activation maps of a classifier's cancer logit.

    The channels of the map that is pooled, weighted with the mean gradient of the logit over the map, are added up;
    what is negative speaks against cancer and becomes 0. Where nothing but a mean or a maximum lies between the map and
    the logit, that is each cell's class activation (Zhou et al., CVPR 2016). Cells are interpolated between their
    centres.
    """
    keras = require("keras", "train")
    logit = keras.Model(network.input, network.get_layer("logit").output)  # without attention
    trunk, head = split_classifier(logit, "map")
    enlarged = _enlarger(trunk)

    def explain(pictures: np.ndarray) -> np.ndarray:
        features = np.asarray(trunk.predict_on_batch(pictures), np.float32)
        weights = gradient_of_logit(head, features).mean(axis=(1, 2))
        return enlarged(np.maximum(np.einsum("bijc,bc->bij", features, weights), 0))

    return explain


def gradient_of_logit(head: Any, features: np.ndarray) -> np.ndarray:
    """The gradient of each picture's cancer logit by its feature map, in inference mode.

    Args:
        head: keras.Model, feature map → logits; column 0 is the cancer's.
        features: float32 (B, h', w', c).

    Returns:
        float32 (B, h', w', c).

    Raises:
        UsageError: a Keras backend other than TensorFlow.
    """
    keras = require("keras", "train")
    if (backend := keras.backend.backend()) != "tensorflow":
        raise UsageError(f"Grad-CAM: got KERAS_BACKEND={backend}, expected tensorflow; it reads the same weights")
    tensorflow = require("tensorflow", "train")
    inputs = keras.ops.convert_to_tensor(features)
    with tensorflow.GradientTape() as tape:
        tape.watch(inputs)
        logits = head(inputs, training=False)[:, 0]
    return np.asarray(tape.gradient(logits, inputs), np.float32)


def _enlarger(trunk: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Cells of the trunk's map, float (B, h', w') → float32 (B, h, w) over the picture."""
    pairs = zip(trunk.output.shape[1:3], trunk.input.shape[1:3], cell_centres(trunk), strict=True)
    down, across = (_interpolation(cells, pixels, *centre) for cells, pixels, centre in pairs)
    return lambda cells: np.asarray(np.einsum("yi,bij,xj->byx", down, cells, across, optimize=True), np.float32)


def _interpolation(cells: int, pixels: int, centre: float, step: float) -> np.ndarray:
    """Weights (pixels, cells) of linear interpolation between cells; beyond the outer centres, the outer cell."""
    at = np.clip((np.arange(pixels) + 0.5 - centre) / step, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells))).astype(np.float32)


# ---- reconstruction error ----


def error_map(network: Any) -> Explainer:
    """The errors of a CVAE's cells, of whose largest the score is made, interpolated between their centres."""
    keras = require("keras", "train")
    errors = keras.Model(network.input, network.get_layer("cells").output)
    enlarged = _enlarger(split_classifier(network)[0])
    return lambda pictures: enlarged(np.asarray(errors.predict_on_batch(pictures), np.float32))
