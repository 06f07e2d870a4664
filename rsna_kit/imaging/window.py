"""Stored pixels → tones: Modality LUT, VOI, photometric interpretation, in that order.

The order is the standard's (PS3.3 C.11.1 before C.11.2, photometric interpretation last): a window is given in
modality values, and MONOCHROME1 says how the windowed values are shown. Units: `pixels` are the uint16 bit
patterns of `decode`, `values` float64 modality values, VOI output float64 in [0, 2**bits_stored - 1], tones float32 in
[0, 1] where air is dark whatever the photometric interpretation.

All of it depends on the stored value alone, so it is computed once for the 65,536 possible bit patterns
(`tones`) and looked up: the same numbers as the direct formulas, without an exp() per pixel. Not covered:
Presentation LUT Shape, overlays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.frame import EncodedFrame, LookupTable

_PATTERNS = np.arange(65536, dtype=np.uint16)
_PATTERNS.setflags(write=False)

_CHOSEN = 0  # of several windows or LUTs: the 2023 solutions all took the first

# A window that leaves less than this share of the pixels between black and white shows nothing. Breasts cover
# at least 4 % of a mammogram; the real file this guards against (CenterWidth 2725/5310 over pixels from 32744
# on) leaves 0 %.
_USEFUL_SHARE = 0.005


def modality_values(pixels: np.ndarray, frame: EncodedFrame) -> np.ndarray:
    """Modality values (PS3.3 C.11.1): the Modality LUT if the file has one, else slope and intercept.

    Args:
        pixels: uint16 bit patterns of any shape, as `decode` gives them.

    Returns:
        float64 of the same shape.
    """
    stored = pixels.view(np.int16) if frame.signed else pixels
    if frame.modality_lut is not None:
        return _look_up(stored, frame.modality_lut)
    return stored.astype(np.float64) * frame.slope + frame.intercept


def apply_voi(values: np.ndarray, frame: EncodedFrame, voi: str = "window") -> np.ndarray:
    """The VOI transform of PS3.3 C.11.2.

    Args:
        values: modality values.
        voi: "window" prefers the window, "lut" the VOI LUT Sequence; each falls back to the other, then to
            "minmax", the range of `values`.

    Returns:
        float64 of the same shape in [0, 2**bits_stored - 1]; the output of a LUT is scaled to that range.
    """
    top = float((1 << frame.bits_stored) - 1)
    kind = _kind(frame, voi)
    if kind == "minmax":
        return _stretch(values, float(values.min()), float(values.max()), top)
    if kind == "lut":
        table = frame.voi_luts[_CHOSEN]
        return _look_up(values, table) * (top / ((1 << table.bits) - 1))
    centre, width = frame.windows[_CHOSEN]
    if frame.voi_function == "SIGMOID":
        return sigmoid(values, centre, width, top)
    if frame.voi_function == "LINEAR_EXACT":
        return linear_exact(values, centre, width, top)
    return linear(values, centre, width, top)


def linear(values: np.ndarray, centre: float, width: float, top: float) -> np.ndarray:
    """LINEAR (C.11.2.1.2.1), the default: offsets of a half and one, since widths count integer levels.

    A width below 1 is not allowed by the standard; it acts as 1, a step at `centre - 0.5`.

    Example:
        >>> linear(np.array([-1.0, 0.0, 1.0, 2.0, 3.0, 4.0]), centre=2, width=4, top=30).tolist()
        [0.0, 0.0, 10.0, 20.0, 30.0, 30.0]
    """
    span = width - 1.0
    if span <= 0:
        return np.where(values > centre - 0.5, top, 0.0)
    return np.clip((values - (centre - 0.5 - span / 2)) * (top / span), 0.0, top)


def linear_exact(values: np.ndarray, centre: float, width: float, top: float) -> np.ndarray:
    """LINEAR_EXACT (C.11.2.1.3.2): no offsets.

    Example:
        >>> linear_exact(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), centre=2, width=4, top=40).tolist()
        [0.0, 10.0, 20.0, 30.0, 40.0, 40.0]
    """
    return np.clip((values - (centre - width / 2)) * (top / width), 0.0, top)


def sigmoid(values: np.ndarray, centre: float, width: float, top: float) -> np.ndarray:
    """SIGMOID (C.11.2.1.3.1): top / (1 + exp(-4 (x - c) / w)); never quite 0 or `top`.

    Example:
        >>> sigmoid(np.array([2.0]), centre=2, width=4, top=40).tolist()
        [20.0]
    """
    # exp overflows beyond 709; at 700 the result is 1e-304 of `top` already.
    return top / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))


class Tones(NamedTuple):
    """The tone of every possible stored value of one picture.

    `table`: float32 (65536,) in [0, 1], MONOCHROME1 inverted so that air is dark. `from_range`: it follows from the
    range of the pixels, so padding must not be among them.
    """

    table: np.ndarray
    from_range: bool


def tones(pixels: np.ndarray, frame: EncodedFrame, image: ImageConfig) -> Tones:
    """How stored values are shown.

    The picture matters in two cases: "minmax" (also without window and LUT) takes its range from the pixels that
    are not padding, and a window that shows nothing of it (see `_USEFUL_SHARE`) is replaced by "minmax".

    Args:
        pixels: uint16 (rows, columns).
    """
    values = modality_values(_PATTERNS, frame)
    table = None
    if _kind(frame, image.voi) != "minmax":
        table = apply_voi(values, frame, image.voi) / ((1 << frame.bits_stored) - 1)
    from_range = table is None or not _is_useful(table, pixels, frame)
    if table is None or from_range:
        low, high = value_range(pixels, frame, values)
        table = _stretch(values, low, high, 1.0)
    return Tones((1.0 - table if frame.photometric == "MONOCHROME1" else table).astype(np.float32), from_range)


def value_range(pixels: np.ndarray, frame: EncodedFrame, values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest modality value of the pixels that are not padding (of all, if all are padding).

    Args:
        values: modality values of the 65,536 bit patterns.
    """
    present = np.zeros(65536, dtype=bool)
    present[pixels] = True
    if frame.padding is not None and present.sum() > 1:
        present[frame.padding & 0xFFFF] = False
    return float(values[present].min()), float(values[present].max())


def _kind(frame: EncodedFrame, voi: str) -> str:
    """What there is of what is wanted."""
    order = {"window": ("window", "lut"), "lut": ("lut", "window"), "minmax": ()}[voi]
    there = {"window": bool(frame.windows), "lut": bool(frame.voi_luts)}
    return next((kind for kind in order if there[kind]), "minmax")


def _is_useful(table: np.ndarray, pixels: np.ndarray, frame: EncodedFrame) -> bool:
    """Whether enough of the picture lies between black and white (to half a level of 255)."""
    step = max(1, min(pixels.shape) // 256)
    sample = pixels[::step, ::step]
    if frame.padding is not None:
        sample = sample[sample != (frame.padding & 0xFFFF)]
    tones = table[sample]
    between = np.count_nonzero((tones > 0.5 / 255) & (tones < 254.5 / 255))
    return between >= _USEFUL_SHARE * tones.size


def _look_up(values: np.ndarray, table: LookupTable) -> np.ndarray:
    """Entries of a LUT; inputs outside it take its first or last entry (C.11.1.1, C.11.2.1.1)."""
    index = np.clip(np.rint(values).astype(np.int64) - table.first, 0, len(table.entries) - 1)
    return table.entries[index].astype(np.float64)


def _stretch(values: np.ndarray, low: float, high: float, top: float) -> np.ndarray:
    """`low` … `high` to 0 … `top`; all 0 when they are equal."""
    if high <= low:
        return np.zeros_like(values, dtype=np.float64)
    return np.clip((values - low) / (high - low), 0.0, 1.0) * top
