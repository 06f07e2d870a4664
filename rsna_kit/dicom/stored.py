"""A decoder's array → stored pixels: what header and codestream say of them is compared with what they are.

Where they differ, the pixels win or the frame is refused. Of values above Bits Stored

- the codestream's own precision is believed where it is more than Bits Stored and less than what is allocated;
- a few in a stream coded with loss are overshoot and clipped;
- padding may lie there;
- where they continue the picture, so that leaving the upper bits out would cut it, the header is wrong;
- other bits of native pixels and of RLE are an overlay (PS3.5 8.1.1) and cleared; a few other pixels of a codestream
  are markers burnt in and clipped; more of them are refused.
"""

from __future__ import annotations

import numpy as np

from rsna_kit.dicom.codestream import StreamFacts
from rsna_kit.dicom.elements import NATIVE_UIDS
from rsna_kit.dicom.frame import RLE, EncodedFrame

STRAY_SHARE = 0.05  # of the pixels that may be markers or overshoot
# The inverse transforms of lossy JPEG and of the 9/7 wavelet are defined up to rounding (T.81 A.3.3, T.800 F.3.8), so
# two right decoders may be this many levels apart. libjpeg-turbo and dicomsdl differ by 2 on a real 12-bit file.
_ROUNDING = 2


class RangeError(ValueError):
    """`pixels`, uint16, hold values above the stored bits that one answer alone does not explain."""

    def __init__(self, message: str, pixels: np.ndarray) -> None:
        super().__init__(message)
        self.pixels = pixels


def is_lossless(facts: StreamFacts | None) -> bool:
    """Whether every decoder must give the same pixels: the codestream says so, whatever its UID promises."""
    return (
        facts is None
        or facts.jpeg_ls
        or facts.predictor is not None
        or (facts.wavelet is not None and facts.wavelet.reversible)
    )


def rounding(facts: StreamFacts | None) -> int:
    """How many levels two right decoders may be apart."""
    return 0 if is_lossless(facts) else _ROUNDING


def alike(one: np.ndarray, other: np.ndarray, tolerance: int, signed: bool) -> bool:
    """Whether no pixel of two arrays of one shape is more than `tolerance` levels apart."""
    if np.array_equal(one, other):
        return True
    return tolerance > 0 and int(distance(one, other, signed).max()) <= tolerance


def distance(one: np.ndarray, other: np.ndarray, signed: bool) -> np.ndarray:
    """Levels between two arrays of stored pixels, int32."""
    kind = np.int16 if signed else np.uint16
    return np.abs(np.subtract(one.view(kind), other.view(kind), dtype=np.int32))


def stored_pixels(array: np.ndarray, frame: EncodedFrame, facts: StreamFacts | None = None) -> np.ndarray:
    """A decoder's array as stored pixels. No copy is made of unsigned 16-bit pixels in C order.

    Args:
        facts: of the codestream, None for syntaxes without one.

    Returns:
        uint16 (rows, columns) bit patterns, signed ones sign-extended.

    Raises:
        ValueError: its shape, type or range contradicts the header.
        RangeError: values above the stored bits, for `settle` when a second decoder has given the same.
    """
    if array.shape != (frame.rows, frame.columns):
        raise ValueError(f"gave shape {array.shape}, expected {(frame.rows, frame.columns)}")
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 2:
        raise ValueError(f"gave {array.dtype}, expected integers of 8 or 16 bits")
    negative = array.dtype.kind == "i"
    pixels = np.ascontiguousarray(array.astype(np.int16 if negative else np.uint16, copy=False)).view(np.uint16)
    bits = frame.bits_stored
    if frame.signed or negative:
        values = pixels.view(np.int16)
        if frame.signed and values.min() >= -(1 << (bits - 1)) and values.max() < 1 << (bits - 1):
            return pixels  # sign-extended already
        # Codestreams keep a signed pixel as its low bits or sign-extended; both become sign-extended here.
        # A signed stream under an unsigned header (a TOSHIBA quirk) keeps its low bits, as gdcm does.
        low, extended = low_bits(pixels, bits), _extended(pixels, bits)
        if np.all((pixels == low) | (pixels == extended)):
            return extended if frame.signed else low
        raise RangeError(f"gave values outside {bits} signed bits", pixels)
    largest, top = int(pixels.max()), (1 << bits) - 1
    if largest <= top:
        return pixels
    share = float(np.mean(pixels > top))
    if not is_lossless(facts) and share <= STRAY_SHARE:
        return np.minimum(pixels, np.uint16(top))
    if facts is not None and bits < facts.precision < frame.bits_allocated:
        return pixels
    raise RangeError(
        f"gave a largest value of {largest}, expected at most {top} ({bits} bits stored); {share:.2%} are above", pixels
    )


def settle(pixels: np.ndarray, frame: EncodedFrame, agreed: bool = True) -> np.ndarray | None:
    """Values above the stored bits by the module's rules.

    Args:
        pixels: uint16 (rows, columns).
        agreed: two decoders gave them, or they are native: it was no decoder that scaled them.

    Returns:
        uint16 (rows, columns), None when they cannot be explained.
    """
    bits = frame.bits_stored
    kept = _extended(pixels, bits) if frame.signed else low_bits(pixels, bits)
    if frame.padding is not None:
        kept = np.where(pixels == frame.padding & 0xFFFF, pixels, kept)
    if np.array_equal(kept, pixels) or (agreed and _continues(pixels, kept, frame.signed)):
        return pixels
    if frame.transfer_syntax in (*NATIVE_UIDS, RLE):
        return kept
    stray = kept != pixels
    if frame.signed or np.mean(stray) > STRAY_SHARE:
        return None
    return np.where(stray, np.uint16((1 << bits) - 1), pixels)


def _continues(whole: np.ndarray, kept: np.ndarray, signed: bool) -> bool:
    """Whether most neighbours that differ in their upper bits are closer with these bits than without."""
    kind, closer, pairs = np.int16 if signed else np.uint16, 0, 0
    one, other = (array.view(kind).astype(np.int32) for array in (whole, kept))
    for axis in (0, 1):
        apart = np.diff(one - other, axis=axis) != 0
        pairs += np.count_nonzero(apart)
        closer += np.count_nonzero(np.abs(np.diff(one, axis=axis)[apart]) < np.abs(np.diff(other, axis=axis)[apart]))
    return closer > pairs / 2


def one_padding(pixels: np.ndarray, frame: EncodedFrame) -> np.ndarray:
    """Pixels with every value of the padding range (PS3.3 C.7.5.1.1.2) made Pixel Padding Value.

    A range of more than half of the values that occur would take the picture away: it is not believed.
    """
    if frame.padding is None or frame.padding_limit is None:
        return pixels
    values = pixels.view(np.int16) if frame.signed else pixels
    low, high = sorted((frame.padding, frame.padding_limit))
    if 2 * (high - low) > int(values.max()) - int(values.min()):
        return pixels
    return np.where((values >= low) & (values <= high), np.uint16(frame.padding & 0xFFFF), pixels)


def low_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Pixels without what stands above the stored bits."""
    return pixels & np.uint16((1 << bits) - 1)


def _extended(pixels: np.ndarray, bits: int) -> np.ndarray:
    """The low bits as two's complement of 16."""
    sign = np.uint16(1 << (bits - 1))
    return ((low_bits(pixels, bits) ^ sign) - sign).astype(np.uint16)
