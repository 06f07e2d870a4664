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

from rsna_kit.models.bundle import Bundle, load_model
from rsna_kit.models.cvae import error_model
from rsna_kit.models.network import split_classifier
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.lazy import require

METHODS = ("grad-cam", "occlusion", "error")
# uint8 (B, h, w, 1) → float32 (B, h, w), at least 0. B pictures must fit in memory at once; another B is traced anew.
Explainer = Callable[[np.ndarray], np.ndarray]

# Sides of squares as shares of the picture's shorter side.
_PATCH = 1 / 8  # what occlusion hides; from one to the next is half a side
_WINDOW = 1 / 32  # what errors are averaged over; the error of a single pixel is noise


def choose_method(bundle: Bundle, method: str | None) -> str:
    """The method that explains a bundle: the one asked for, or `error` for a CVAE and `grad-cam` for all others.

    Raises:
        UsageError: an unknown method, or one that this kind of model does not have.
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
    return method


def build_explainer(bundle: Bundle, method: str | None, batch_size: int) -> Explainer:
    """Load a bundle's network and make it explain pictures.

    Args:
        bundle: opened; any kind of model. One for breasts is asked for each picture's own logit.
        method: see `choose_method`.
        batch_size: variants of a picture that occlusion scores at once.

    Raises:
        UsageError: see `choose_method`.
        BundleError: the weights do not fit the network.
    """
    method = choose_method(bundle, method)
    network = load_model(bundle)
    if method == "occlusion":
        return occlusion(network, batch_size)
    return grad_cam(network) if method == "grad-cam" else error_map(network)


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


def grad_cam(network: Any) -> Explainer:
    """Gradient-weighted class activation maps of a classifier's cancer logit.

    The feature map's channels, weighted with the mean gradient of the logit over the map, are added up; what is
    negative speaks against cancer and becomes 0. Cells are interpolated linearly between their centres.
    """
    keras = require("keras", "train")
    logit = keras.Model(network.input, network.get_layer("logit").output)  # without attention
    trunk, head = split_classifier(logit)
    centres = cell_centres(trunk)

    def explain(pictures: np.ndarray) -> np.ndarray:
        features = np.asarray(trunk.predict_on_batch(pictures), np.float32)
        weights = gradient_of_logit(head, features).mean(axis=(1, 2))
        cells = np.maximum(np.einsum("bijc,bc->bij", features, weights), 0)
        down, across = (_interpolation(cells.shape[axis], pictures.shape[axis], *centres[axis - 1]) for axis in (1, 2))
        return np.asarray(np.einsum("yi,bij,xj->byx", down, cells, across, optimize=True), np.float32)

    return explain


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
    rows, columns = (_centre(trunk, axis) for axis in (0, 1))
    return rows, columns


def _centre(trunk: Any, axis: int) -> tuple[float, float]:
    pixels, cells = trunk.input.shape[1 + axis], trunk.output.shape[1 + axis]
    size, centre, step = pixels, 0.5, 1
    for layer in trunk.layers:
        kernel, stride, before, total = 1, 1, 0, 0
        if type(layer).__name__ == "ZeroPadding2D":
            before, total = layer.padding[axis][0], sum(layer.padding[axis])
        elif hasattr(layer, "strides") and len(layer.strides) == 2:
            stride = layer.strides[axis]
            kernel = (layer.kernel_size if hasattr(layer, "kernel_size") else layer.pool_size)[axis]
            if layer.padding == "same":
                if stride == 1:
                    continue  # it keeps the size and moves nothing; one inside a branch must not be counted
                total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
                before = total // 2
        centre += ((kernel - 1) / 2 - before) * step
        size, step = (size + total - kernel) // stride + 1, step * stride
    if size == cells:
        return centre, float(step)
    return pixels / cells / 2, pixels / cells  # branches with strides of their own: the middles of equal cells


def _interpolation(cells: int, pixels: int, centre: float, step: float) -> np.ndarray:
    """Weights (pixels, cells) of linear interpolation between cells; beyond the outer centres, the outer cell."""
    at = np.clip((np.arange(pixels) + 0.5 - centre) / step, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells))).astype(np.float32)


# ---- occlusion ----


def occlusion(network: Any, batch_size: int) -> Explainer:
    """How far the cancer logit falls when a square of tissue is hidden, in logits.

    Hidden means: replaced by its surroundings' mean grey, over a window three squares wide, tissue only. A black square
    would be a hole such as no mammogram has, and would darken the picture besides; the local mean takes away the
    structure and keeps the brightness. Air stays air, and squares of air alone are not tried.

    Args:
        network: anything that gives a logit in column 0.
        batch_size: variants of a picture that are scored at once.
    """

    def logits(pictures: np.ndarray) -> np.ndarray:
        """float32 (N,) of uint8 (N, h, w), in batches that are filled up, so that one size is traced."""
        padded = np.zeros((-(-len(pictures) // batch_size) * batch_size, *pictures.shape[1:], 1), np.uint8)
        padded[: len(pictures), ..., 0] = pictures
        parts = [network.predict_on_batch(part) for part in np.split(padded, len(padded) // batch_size)]
        return np.concatenate(parts)[: len(pictures), 0].astype(np.float32)

    def explain(picture: np.ndarray) -> np.ndarray:
        side = max(2, round(_PATCH * min(picture.shape)))
        filled = local_mean(picture, 3 * side)
        (tops, down), (lefts, across) = (_squares(length, side) for length in picture.shape)
        cells = np.zeros((len(tops), len(lefts)), np.float32)
        (whole,) = logits(picture[None])
        for i, top in enumerate(tops):  # a row of squares at a time
            squares = {j: np.s_[top : top + side, left : left + side] for j, left in enumerate(lefts)}
            squares = {j: square for j, square in squares.items() if picture[square].any()}
            if squares:
                hidden = np.repeat(picture[None], len(squares), axis=0)
                for variant, square in zip(hidden, squares.values(), strict=True):
                    variant[square] = filled[square]
                cells[i, list(squares)] = np.maximum(whole - logits(hidden), 0)
        return np.asarray(down @ cells @ across.T, np.float32)

    return lambda pictures: np.stack([explain(picture) for picture in pictures[..., 0]])


def local_mean(picture: np.ndarray, window: int) -> np.ndarray:
    """The mean of the tissue around every pixel of tissue: uint8 (h, w) like `picture`, air (0) stays 0."""
    tissue = (picture > 0).astype(np.float32)
    size, border = (window | 1, window | 1), cv2.BORDER_REPLICATE
    total = cv2.blur(picture.astype(np.float32), size, borderType=border)
    share = cv2.blur(tissue, size, borderType=border)
    return np.where(picture > 0, np.rint(np.clip(total / np.maximum(share, 1e-6), 1, 255)), 0).astype(np.uint8)


def _squares(length: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixels of the squares along one axis, from edge to edge, and the interpolation between their centres."""
    count = 1 + math.ceil((length - side) / max(1, side // 2))
    step = (length - side) / max(count - 1, 1)
    starts = np.rint(np.arange(count) * step).astype(int)
    return starts, _interpolation(count, length, side / 2, step or 1.0)


# ---- reconstruction error ----


def error_map(network: Any) -> Explainer:
    """Differences between a picture and its reconstruction where a CVAE's score looks, averaged over a small window."""
    errors = error_model(network)

    def explain(pictures: np.ndarray) -> np.ndarray:
        differences = np.asarray(errors.predict_on_batch(pictures), np.float32)[..., 0]
        side = max(1, round(_WINDOW * min(differences.shape[1:]))) | 1
        return np.stack([cv2.blur(error, (side, side)) for error in differences])

    return explain
