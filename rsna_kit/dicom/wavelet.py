"""A picture → its low subband under JPEG 2000's reversible 5/3 wavelet: what a reduced decode of it shows.

The transform is a bijection on integers, so the subband computed from the pixels is the subband that the encoder
stored: `low_band(full decode, r)` and a decode at reduction r give the same numbers. That makes the reduced picture a
property of the image and not of the decoder: one that cannot reduce (a GPU, a fallback) gives the same bytes as one
that can.
"""

from __future__ import annotations

import cv2
import numpy as np

_STRIP = 32  # rows of the result that are worked on at once


def low_band(pixels: np.ndarray, levels: int, precision: int) -> np.ndarray:
    """The LL subband after `levels` decompositions, ITU-T T.800 F.4 (2D_SD, 1D_SD with the 5/3 filter).

    Args:
        pixels: uint16 (rows, columns), values below 2**precision.
        levels: 0 gives `pixels`.
        precision: bits of the codestream's samples; the band overshoots at edges and is clipped to them.

    Returns:
        uint16 (ceil(rows / 2**levels), ceil(columns / 2**levels)). Sample n lies on pixel n * 2**levels.
    """
    band = pixels
    for _ in range(levels):
        band = halved(band)
    return clipped(band, precision)


def clipped(band: np.ndarray, precision: int) -> np.ndarray:
    """A band as a decoder hands it over: uint16 in [0, 2**precision - 1], without the overshoot at edges."""
    return band if band.dtype == np.uint16 else np.clip(band, 0, (1 << precision) - 1).astype(np.uint16)


def halved(band: np.ndarray) -> np.ndarray:
    """One decomposition of a picture, or of a band that is not yet clipped: int32 (ceil(h / 2), ceil(w / 2)).

    Columns first, as F.4.2 has it: the rounding depends on the order. A few rows at a time, so that what is worked on
    stays in the processor's cache.
    """
    rows, columns = (-(-side // 2) for side in band.shape)
    wide = cv2.copyMakeBorder(band, 2, 2, 2, 2, cv2.BORDER_REFLECT_101)  # the extension of F.4.7
    low = np.empty((rows, columns), dtype=np.int32)
    for top in range(0, rows, _STRIP):
        bottom = min(top + _STRIP, rows)
        strip = _low(wide[2 * top : 2 * bottom + 3].astype(np.int32))
        low[top:bottom] = _low(strip.T)[:columns].T
    return low


def _low(signal: np.ndarray) -> np.ndarray:
    """The low half of the reversible 5/3 transform along the first axis (F.4.8.1), int32.

    The first of `signal` lies two samples before the first even sample of the result.
    """
    even = signal[0::2]
    high = signal[1::2][: len(even) - 1] - ((even[:-1] + even[1:]) >> 1)
    return even[1:-1] + ((high[:-1] + high[1:] + 2) >> 2)


def aligned(band: np.ndarray, levels: int) -> np.ndarray:
    """A low subband moved to where the picture averaged over blocks of 2**levels pixels would lie.

    Sample n of the band lies on the first pixel of its block, the block's average on the middle of it,
    (2**levels - 1) / 2 pixels further. The taps are half way between linear interpolation, which takes a tenth of the
    contrast of single pixels (microcalcifications), and cubic interpolation (Lagrange's), which overshoots. On real
    films that is as near to the averages as taps fitted to them, and keeps 95 to 100 % of the contrast.

    Args:
        band: uint16 (h, w) from `low_band` or a reduced decode.

    Returns:
        uint16 (h, w); beyond the ends the outermost samples are repeated.
    """
    if levels == 0:
        return band
    t = (1 - 0.5**levels) / 2
    cubic = (
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    )
    taps = (np.array(cubic) + np.array((0, 1 - t, t, 0))) / 2
    return cv2.sepFilter2D(band, -1, taps, taps, anchor=(1, 1), borderType=cv2.BORDER_REPLICATE)


ALIGN_BEFORE, ALIGN_BEHIND = 1, 2  # neighbours of a sample that `aligned` looks at, on either side
