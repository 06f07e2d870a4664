"""One frame at the resolution that is asked for: the full picture, or halved as often as its wavelet allows.

A lossless JPEG 2000 stream holds its picture at every halving, so a small picture of it costs a small decode
(`openjpeg`). What is given does not depend on who decodes: without a library that can reduce, or when one is switched
off, the full picture is decoded and the same subband computed from it. The reversible 5/3 transform is a bijection on
integers, so the subband computed from the pixels is the one that the encoder stored (`low_band`).
"""

from __future__ import annotations

import cv2
import numpy as np

from rsna_kit.dicom import openjpeg
from rsna_kit.dicom.codestream import StreamFacts
from rsna_kit.dicom.decode import TRUST_ALL, Trust, decode, is_constant
from rsna_kit.dicom.frame import EncodedFrame, check_stream
from rsna_kit.dicom.stored import STRAY_SHARE, one_padding, settle, stored_pixels

REDUCER = "openjpeg"  # how proof and trust name the binding
_JPEG2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
_ALIGN_BEFORE, _ALIGN_BEHIND = 1, 2  # neighbours of a sample that `aligned` looks at, on either side
_STRIP = 32  # rows of a low subband that are worked on at once
_PROVEN_HALVINGS = 4  # what the largest pictures are halved to for a thumbnail


class Pyramid:
    """The pixels of one frame, decoded when they are asked for.

    Args:
        frame: from `read_frame`.
        trust: decoders that are switched off are not asked.
        pixels: the full picture, when somebody else has decoded it: uint16 (rows, columns) as `decode` gives it.

    Attributes:
        halvings: how often the picture can be halved; 0 for everything but lossless JPEG 2000 with the reversible
            wavelet, unsigned, in one piece.

    Raises:
        DecodeError: the codestream contradicts the header.
    """

    def __init__(self, frame: EncodedFrame, trust: Trust = TRUST_ALL, pixels: np.ndarray | None = None) -> None:
        self.frame = frame
        self._trust = trust
        self._facts = check_stream(frame)
        self._full = pixels
        self._bands: list[np.ndarray] = []  # the whole picture and its halvings, as far as they were computed
        self.halvings = _halvings(frame, self._facts)
        self._reduces = (
            pixels is None
            and self.halvings > 0
            and openjpeg.is_available()
            and trust.allows(REDUCER, frame, self._facts)
        )

    def full(self) -> np.ndarray:
        """The stored pixels: uint16 (rows, columns), as `decode` gives them, and of padding one value.

        Raises:
            DecodeError: no decoder could read them.
        """
        return one_padding(self._settled(), self.frame)

    def _whole(self) -> np.ndarray:
        """The same; where there are halvings, with markers above the stored bits as the encoder saw them."""
        if self._full is None:
            self._full = decode(self.frame, self._trust, clip=not self.halvings)
        return self._full

    def halved(self, times: int, area: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The picture or a part of it, each pixel the place of 2**times x 2**times stored pixels.

        Args:
            times: 0 to `halvings`.
            area: (top, left, bottom, right) in full-resolution pixels, multiples of 2**times except where the picture
                ends; None for the whole picture.

        Returns:
            uint16, not inverted, not scaled, at most 2**bits_stored - 1, for unsigned frames. A block that the
            picture's edge cuts is left out.

        Raises:
            DecodeError: no decoder could read the frame.
            ValueError: more halvings than there are.
        """
        if times and not 0 < times <= self.halvings:
            raise ValueError(f"{self.frame.where}: asked for {times} halvings, it has {self.halvings}")
        frame, block = self.frame, 1 << times
        top, left, bottom, right = (0, 0, frame.rows, frame.columns) if area is None else area
        before, behind = (0, 0) if times == 0 else (block * _ALIGN_BEFORE, block * _ALIGN_BEHIND)
        near = (max(top - before, 0), max(left - before, 0))
        wide = (*near, min(bottom + behind, frame.rows), min(right + behind, frame.columns))
        band = aligned(self._band(times, wide), times)
        rows, columns = max(1, (bottom >> times) - (top >> times)), max(1, (right >> times) - (left >> times))
        first, start = (top - near[0]) >> times, (left - near[1]) >> times
        return self._clipped(band[first : first + rows, start : start + columns])

    def _band(self, times: int, area: tuple[int, int, int, int]) -> np.ndarray:
        """The low subband inside `area`."""
        if self._reduces:
            try:
                band = openjpeg.decode_reduced(self.frame.codestream, times, area)
                if not may_be_cut(band, self._facts) and not is_constant(band):
                    return band
            except openjpeg.OpenJpegError:
                pass
            self._reduces = False  # the other decoders have more to say: another decoder, or what is wrong
        while len(self._bands) <= times:
            self._bands.append(low_band(self._bands[-1]) if self._bands else self._whole())
        precision = 16 if self._facts is None else self._facts.precision
        top, left, bottom, right = (-(-side // (1 << times)) for side in area)
        return clipped(self._bands[times][top:bottom, left:right], precision)

    def _clipped(self, band: np.ndarray) -> np.ndarray:
        """Without the overshoot above the stored bits that filters leave at edges, and markers burnt in there."""
        top, largest = (1 << self.frame.bits_stored) - 1, int(band.max())
        if self.frame.signed or largest <= top:
            return band
        overshoot = largest <= top + top // 4 and np.mean(band > top) <= STRAY_SHARE
        return np.minimum(band, np.uint16(top if overshoot else max(top, int(self._settled().max()))))

    def _settled(self) -> np.ndarray:
        """The whole picture without markers above the stored bits."""
        whole = self._whole()
        settled = settle(whole, self.frame) if self.halvings and int(whole.max()) >> self.frame.bits_stored else whole
        return whole if settled is None else settled


def may_be_cut(band: np.ndarray, facts: StreamFacts | None) -> bool:
    """Whether a band comes near the end of the codestream's range.

    A stream that lost something reconstructs beyond its range there. A decoder cuts that off before anybody computes
    the band, so what is decoded in full and halved would differ from what is halved by decoding less.
    """
    return facts is not None and int(band.max()) >= 7 << facts.precision >> 3


def decode_for_proof(frame: EncodedFrame) -> np.ndarray | None:
    """The full picture through the binding that reduces, for `proof.prove`; None when it is not for such frames.

    Raises:
        OpenJpegError: it refused the frame, or a halving of it is not the low subband of the full picture.
    """
    facts = check_stream(frame)
    levels = _halvings(frame, facts)
    if facts is None or not levels:
        return None
    full = band = openjpeg.decode_reduced(frame.codestream, 0)
    if may_be_cut(full, facts):
        return None
    for times in range(1, min(levels, _PROVEN_HALVINGS) + 1):
        band = low_band(band)
        if not np.array_equal(openjpeg.decode_reduced(frame.codestream, times), clipped(band, facts.precision)):
            raise openjpeg.OpenJpegError(f"halving {times} is not the low subband of the full picture")
    return stored_pixels(full, frame, facts)


def _halvings(frame: EncodedFrame, facts: StreamFacts | None) -> int:
    """How often the picture can be halved so that every decoder agrees on the result."""
    if frame.transfer_syntax != _JPEG2000_LOSSLESS or facts is None or facts.wavelet is None:
        return 0
    wavelet = facts.wavelet
    exact = wavelet.reversible and wavelet.plain and wavelet.tiles == 1
    return wavelet.levels if exact and not frame.signed and not facts.signed else 0


def clipped(band: np.ndarray, precision: int) -> np.ndarray:
    """A band as a decoder hands it over: uint16 in [0, 2**precision - 1], without the overshoot at edges."""
    return band if band.dtype == np.uint16 else np.clip(band, 0, (1 << precision) - 1).astype(np.uint16)


def low_band(band: np.ndarray) -> np.ndarray:
    """The LL subband of one decomposition with the 5/3 filter, ITU-T T.800 F.4 (2D_SD, 1D_SD).

    Columns first, as F.4.2 has it: the rounding depends on the order. A few rows at a time, so that what is worked on
    stays in the processor's cache.

    Args:
        band: a picture, or a band that is not yet clipped.

    Returns:
        int32 (ceil(h / 2), ceil(w / 2)). Sample n lies on pixel 2 n.
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
        band: uint16 (h, w) from `low_band`s, clipped, or a reduced decode.

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
