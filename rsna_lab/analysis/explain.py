"""A network and pictures → maps of what speaks for cancer in them: Grad-CAM, occlusion, reconstruction error.

Every method gives non-negative maps of the picture's size, in units of its own: `combine` makes them comparable. A map
says where a score comes from. It does not say that there is a lesion, nor that the score is right.

* **grad-cam**, one pass and one gradient: Selvaraju et al., ICCV 2017. The map is as coarse as the features are, so it
  matters where their cells look (`cell_centres`).
* **occlusion**, some hundred passes: Zeiler and Fergus, ECCV 2014. It asks nothing but scores, so it works for every
  network.
* **error**, for the CVAE: where the picture is unlike what a network that knows no cancer makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from rsna_kit.config import ModelConfig
from rsna_kit.models.bundle import Bundle, load_model
from rsna_kit.models.classifier import split_classifier
from rsna_kit.models.cvae import picture_models
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.lazy import require

METHODS = ("grad-cam", "occlusion", "error")
# uint8 (B, h, w, 1) → float32 (B, h, w), at least 0. B pictures must fit in memory at once; another B is traced anew.
Explainer = Callable[[np.ndarray], np.ndarray]

_PATCH = 1 / 8  # side of the square that occlusion hides, as a share of the picture's shorter side
_STRIDE = 1 / 2  # from one square to the next, as a share of its side
_WINDOW = 1 / 32  # side of the window over which errors are averaged, as a share of the picture's shorter side


def build_explainer(bundle: Bundle, method: str | None, batch_size: int) -> Explainer:
    """Load a bundle's network and make it explain pictures.

    Args:
        bundle: opened; any kind of model. One for breasts is asked for each picture's own logit.
        method: one of `METHODS`; None is `error` for a CVAE and `grad-cam` for all others.
        batch_size: variants of a picture that occlusion scores at once.

    Raises:
        UsageError: an unknown method, or one that this kind of model does not have.
        BundleError: the weights do not fit the network.
    """
    kind = bundle.config.model.kind
    method = method or ("error" if kind == "cvae" else "grad-cam")
    if method not in METHODS:
        raise UsageError(f"--method: got {method!r}, expected one of {', '.join(METHODS)}")
    if (method == "error") != (kind == "cvae") and method != "occlusion":
        raise UsageError(
            f"--method {method}: {bundle.path} is of kind {kind}. Reconstruction errors belong to a CVAE, Grad-CAM to "
            "a classifier; occlusion works for every network."
        )
    network = load_model(bundle)
    if method == "grad-cam":
        return GradCam(network, bundle.config.model)
    if method == "occlusion":
        return Occlusion(network, batch_size)
    return ErrorMap(network)


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


# ---- Grad-CAM ----


class GradCam:
    """Gradient-weighted class activation maps of the cancer logit.

    The feature map's channels, weighted with the mean gradient of the logit over the map, are added up; what is
    negative speaks against cancer and becomes 0. Cells are interpolated linearly between their centres.

    Args:
        network: a classifier, of kind "image" or "breast".
        model: its section.
    """

    def __init__(self, network: Any, model: ModelConfig) -> None:
        keras = require("keras", "train")
        logit = keras.Model(network.input, network.get_layer("logit").output)  # without attention or further targets
        self._trunk, self._head = split_classifier(logit, model)
        self._centres = cell_centres(self._trunk)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 (B, h, w, 1) → float32 (B, h, w)."""
        features = np.asarray(self._trunk.predict_on_batch(pictures), np.float32)
        weights = gradient_of_logit(self._head, features).mean(axis=(1, 2))
        cells = np.maximum(np.einsum("bijc,bc->bij", features, weights), 0)
        down, across = (
            _interpolation(cells.shape[axis], pictures.shape[axis], *self._centres[axis - 1]) for axis in (1, 2)
        )
        return np.asarray(np.einsum("yi,bij,xj->byx", down, cells, across, optimize=True), np.float32)


def gradient_of_logit(head: Any, features: np.ndarray) -> np.ndarray:
    """The gradient of each picture's cancer logit by its feature map, in inference mode.

    Args:
        head: keras.Model, feature map → logits; column 0 is the cancer's.
        features: float32 (B, h', w', c).

    Returns:
        float32 (B, h', w', c).

    Raises:
        UsageError: a Keras backend other than TensorFlow and JAX.
    """
    keras = require("keras", "train")
    backend = keras.backend.backend()
    inputs = keras.ops.convert_to_tensor(features)
    if backend == "tensorflow":
        tensorflow = require("tensorflow", "train")
        with tensorflow.GradientTape() as tape:
            tape.watch(inputs)
            logits = head(inputs, training=False)[:, 0]
        return np.asarray(tape.gradient(logits, inputs), np.float32)
    if backend == "jax":
        jax = require("jax", "train")
        return np.asarray(jax.grad(lambda maps: keras.ops.sum(head(maps, training=False)[:, 0]))(inputs), np.float32)
    raise UsageError(f"--method grad-cam: got KERAS_BACKEND={backend}, expected tensorflow or jax")


def cell_centres(trunk: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the cells of a feature map look: the centres of their receptive fields.

    "Same" padding of an even picture at stride 2 pads the far side alone, so each such layer looks half a step further
    down and right. After five, the centre of the first cell lies at pixel 31.5, not 16: half a cell, as much as a
    lesion. The arithmetic is Araujo, Norris and Sim's ("Computing Receptive Fields of Convolutional Neural Networks",
    Distill 2019).

    Args:
        trunk: keras.Model, picture (B, h, w, 1) → features (B, h', w', c), whose strided layers form one path.

    Returns:
        For rows and for columns: centre of the first cell, in pixels from the picture's edge, and the step from one
        cell to the next.
    """
    centres = []
    for axis in (0, 1):
        size, centre, step = trunk.input.shape[1 + axis], 0.5, 1
        for kernel, stride, padding in _steps(trunk, axis):
            before = padding[0] if isinstance(padding, tuple) else 0
            total = sum(padding) if isinstance(padding, tuple) else 0
            if padding == "same":
                total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
                before = total // 2
            centre += ((kernel - 1) / 2 - before) * step
            size, step = (size + total - kernel) // stride + 1, step * stride
        cells = trunk.output.shape[1 + axis]
        if size != cells:  # branches with strides of their own: the middles of equal cells are the best guess
            step = trunk.input.shape[1 + axis] / cells
            centre = step / 2
        centres.append((centre, float(step)))
    return centres[0], centres[1]


def _steps(model: Any, axis: int) -> list[tuple[int, int, Any]]:
    """Kernel, stride and padding along one axis, of every layer that moves or strides, in order."""
    found: list[tuple[int, int, Any]] = []
    for layer in model.layers:
        if hasattr(layer, "layers"):
            found += _steps(layer, axis)
        elif type(layer).__name__ == "ZeroPadding2D":
            found.append((1, 1, tuple(layer.padding[axis])))
        elif hasattr(layer, "strides") and len(layer.strides) == 2:
            kernel = layer.kernel_size if hasattr(layer, "kernel_size") else layer.pool_size
            # A layer of stride 1 that keeps the size moves nothing; one inside a branch must not be counted.
            if layer.strides[axis] > 1 or (layer.padding == "valid" and kernel[axis] > 1):
                found.append((kernel[axis], layer.strides[axis], layer.padding))
    return found


def _interpolation(cells: int, pixels: int, centre: float, step: float) -> np.ndarray:
    """Weights (pixels, cells) of linear interpolation between cells; beyond the outer centres, the outer cell."""
    at = np.clip((np.arange(pixels) + 0.5 - centre) / step, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells))).astype(np.float32)


# ---- occlusion ----


class Occlusion:
    """How far the cancer logit falls when a square of tissue is hidden.

    Hidden means: replaced by its surroundings' mean grey, over a window three squares wide, tissue only. A black square
    would be a hole such as no mammogram has, and would darken the picture besides; the local mean takes away the
    structure and keeps the brightness. Air stays air, and squares of air alone are not tried.

    Args:
        network: anything that gives a logit in column 0.
        batch_size: variants of a picture that are scored at once.
        patch: side of the square, as a share of the picture's shorter side.
        stride: from one square to the next, as a share of its side.
    """

    def __init__(self, network: Any, batch_size: int, patch: float = _PATCH, stride: float = _STRIDE) -> None:
        self._network, self._batch_size, self._patch, self._stride = network, batch_size, patch, stride

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 (B, h, w, 1) → float32 (B, h, w), in logits."""
        return np.stack([self._one(picture) for picture in pictures[..., 0]])

    def _logits(self, pictures: np.ndarray) -> np.ndarray:
        """float32 (B,) of uint8 (B, h, w), B at most the batch size; filled up to it, so that it is traced once."""
        padded = np.zeros((self._batch_size, *pictures.shape[1:], 1), np.uint8)
        padded[: len(pictures), ..., 0] = pictures
        return np.asarray(self._network.predict_on_batch(padded), np.float32)[: len(pictures), 0]

    def _one(self, picture: np.ndarray) -> np.ndarray:
        side = max(2, round(self._patch * min(picture.shape)))
        filled = local_mean(picture, 3 * side)
        (tops, down), (lefts, across) = (_squares(length, side, self._stride) for length in picture.shape)
        cells = np.zeros((len(tops), len(lefts)), np.float32)
        squares = {
            (i, j): (slice(top, top + side), slice(left, left + side))
            for i, top in enumerate(tops)
            for j, left in enumerate(lefts)
            if picture[top : top + side, left : left + side].any()
        }
        places, logit = list(squares), float(self._logits(picture[None])[0])
        for start in range(0, len(places), self._batch_size):
            part = places[start : start + self._batch_size]
            batch = np.repeat(picture[None], len(part), axis=0)
            for row, place in enumerate(part):
                batch[row][squares[place]] = filled[squares[place]]
            for place, hidden in zip(part, self._logits(batch), strict=True):
                cells[place] = max(logit - float(hidden), 0.0)
        return np.asarray(down @ cells @ across.T, np.float32)


def local_mean(picture: np.ndarray, window: int) -> np.ndarray:
    """The mean of the tissue around every pixel of tissue: uint8 (h, w) like `picture`, air (0) stays 0."""
    tissue = (picture > 0).astype(np.float32)
    size, border = (window | 1, window | 1), cv2.BORDER_REPLICATE
    total = cv2.blur(picture.astype(np.float32), size, borderType=border)
    share = cv2.blur(tissue, size, borderType=border)
    return np.where(picture > 0, np.rint(np.clip(total / np.maximum(share, 1e-6), 1, 255)), 0).astype(np.uint8)


def _squares(length: int, side: int, stride: float) -> tuple[np.ndarray, np.ndarray]:
    """First pixels of the squares along one axis, from edge to edge, and the interpolation between their centres."""
    count = 1 + math.ceil((length - side) / max(1, round(stride * side)))
    step = (length - side) / max(count - 1, 1)
    starts = np.rint(np.arange(count) * step).astype(int)
    return starts, _interpolation(count, length, side / 2, step or 1.0)


# ---- reconstruction error ----


class ErrorMap:
    """Differences between a picture and its reconstruction where the score looks, averaged over a small window.

    Args:
        network: of a CVAE.
        window: side of the window, as a share of the picture's shorter side; the error of a single pixel is noise.
    """

    def __init__(self, network: Any, window: float = _WINDOW) -> None:
        self._errors, self._window = picture_models(network)[1], window

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 (B, h, w, 1) → float32 (B, h, w)."""
        errors = np.asarray(self._errors.predict_on_batch(pictures), np.float32)[..., 0]
        side = max(1, round(self._window * min(errors.shape[1:]))) | 1
        return np.stack([cv2.blur(error, (side, side)) for error in errors])
