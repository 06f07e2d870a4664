"""`EncodedFrame` → stored pixels, uint16 (rows, columns): the ladder of decoders.

Door 3. The array holds the stored BIT PATTERN: nothing is inverted, scaled or shifted. Unsigned pixels are
their own value, at most 2**bits_stored - 1. Signed pixels are two's complement, sign-extended to 16 bits and
viewed as uint16 (`frame.signed` says so; `pixels.view(np.int16)` are the values). 8-bit files are widened.

Order of the rungs: imagecodecs (fastest, frees the GIL), dicomsdl, pydicom's plug-ins. A rung counts only
when its array has the header's shape and range; otherwise the next one is asked. If all fail, one DecodeError
says what each of them said. Before any rung runs, the codestream's own head is compared with the header.
The second and third rung run in a process of their own (`apart`), because damaged streams crash them.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from rsna_kit.dicom import backend_dicomsdl, backend_imagecodecs, backend_native, backend_pydicom
from rsna_kit.dicom.apart import decode_apart
from rsna_kit.dicom.codestream import StreamError, read_facts
from rsna_kit.dicom.frame import EncodedFrame
from rsna_kit.dicom.header import NATIVE_UIDS
from rsna_kit.runtime.errors import DecodeError

LADDER: tuple[ModuleType, ...] = (backend_native, backend_imagecodecs, backend_dicomsdl, backend_pydicom)
_CRASHING = (backend_dicomsdl, backend_pydicom)

_JPEG2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_LOSSLESS = (*_JPEG_LOSSLESS, "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90")
# Markers and padding burnt in above the stored bits: a lossless stream keeps them. When no decoder gives an answer in
# range, that is what they are, and they are clipped. A stream that is scaled exceeds the range in far more pixels.
_STRAY_SHARE = 0.05
_RLE = "1.2.840.10008.1.2.5"


def backends(uid: str) -> list[tuple[str, bool]]:
    """The decoders for a transfer syntax in the order they are asked, and whether each is installed.

    Example:
        >>> backends("1.2.840.10008.1.2.1")
        [('native', True)]
    """
    return [(_name(module), module.is_available()) for module in LADDER if uid in module.UIDS]


def decode(frame: EncodedFrame) -> np.ndarray:
    """Stored pixels of one frame.

    Args:
        frame: from `read_frame`.

    Returns:
        uint16 (rows, columns), C-contiguous, as the module says. May be constant: that is for render to judge.

    Raises:
        DecodeError: unknown syntax, a codestream that contradicts the header, or every decoder failed.
    """
    rungs = [module for module in LADDER if frame.transfer_syntax in module.UIDS]
    if not rungs:
        raise DecodeError(
            f"{frame.where}: no decoder knows transfer syntax {frame.transfer_syntax!r}. Convert the file first"
        )
    if frame.transfer_syntax not in (*NATIVE_UIDS, _RLE):
        _check_stream(frame)
    failures: list[str] = []
    above: list[np.ndarray] = []  # answers out of range; two that agree are what the stream says
    for module in rungs:
        if not module.is_available():
            failures.append(f"{_name(module)}: not installed")
            continue
        try:
            array = decode_apart(module, frame) if module in _CRASHING else module.decode(frame)
            return _stored(array, frame)
        except Exception as error:  # whatever a native library raises, the next rung is asked
            failures.append(f"{_name(module)}: {_short(error)}")
            if isinstance(error, _RangeError) and frame.transfer_syntax in _LOSSLESS:
                if any(np.array_equal(error.pixels, other) for other in above):
                    break  # pydicom's plug-ins would only mask the bits above, and give other pixels
                above.append(error.pixels)
    top = np.uint16((1 << frame.bits_stored) - 1)
    if above and np.mean(above[0] > top) <= _STRAY_SHARE:
        return np.minimum(above[0], top)
    listed = "".join(f"\n  {failure}" for failure in failures)
    raise DecodeError(
        f"{frame.where}: no decoder could read its {len(frame.codestream)} bytes of {frame.transfer_syntax}. "
        f"Copy the file again, or exclude the image.{listed}"
    )


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition("backend_")[2]


def _short(error: Exception) -> str:
    """One line of an error, its type when it says nothing."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def _check_stream(frame: EncodedFrame) -> None:
    """Refuse a codestream that says something else than the header, before memory is spent on it."""
    try:
        facts = read_facts(frame.codestream, jpeg2000=frame.transfer_syntax in _JPEG2000)
        if (facts.rows, facts.columns) != (frame.rows, frame.columns):
            raise StreamError(
                f"holds {facts.rows} x {facts.columns} pixels, expected the header's {frame.rows} x {frame.columns}"
            )
        if facts.components != 1 or facts.precision > frame.bits_allocated:
            raise StreamError(
                f"holds {facts.components} components of {facts.precision} bits, expected 1 of at most the "
                f"{frame.bits_allocated} bits allocated"
            )
        # A Huffman code has at least one bit, so fewer bits than pixels means that most of the frame is missing.
        if frame.transfer_syntax in _JPEG_LOSSLESS and 8 * len(frame.codestream) < frame.rows * frame.columns:
            raise StreamError(f"has {len(frame.codestream)} bytes for {frame.rows * frame.columns} pixels: cut short")
    except StreamError as error:
        raise DecodeError(
            f"{frame.where}: the codestream of {frame.transfer_syntax} {error}. Copy the file again"
        ) from error


def _stored(array: np.ndarray, frame: EncodedFrame) -> np.ndarray:
    """A decoder's array as door 3 wants it.

    Raises:
        ValueError: its shape, type or range contradicts the header.
    """
    if array.shape != (frame.rows, frame.columns):
        raise ValueError(f"gave shape {array.shape}, expected {(frame.rows, frame.columns)}")
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 2:
        raise ValueError(f"gave {array.dtype}, expected integers of 8 or 16 bits")
    negative = array.dtype.kind == "i"
    pixels = np.ascontiguousarray(array.astype(np.int16 if negative else np.uint16, copy=False)).view(np.uint16)
    bits = frame.bits_stored
    if frame.signed or negative:
        # Codestreams keep a signed pixel as its low bits or sign-extended; both become sign-extended here.
        # A signed stream under an unsigned header (a TOSHIBA quirk) keeps its low bits, as gdcm does.
        low = pixels & np.uint16((1 << bits) - 1)
        extended = ((low ^ np.uint16(1 << (bits - 1))) - np.uint16(1 << (bits - 1))).astype(np.uint16)
        if not np.all((pixels == low) | (pixels == extended)):
            raise ValueError(f"gave values outside {bits} signed bits")
        return extended if frame.signed else low
    largest, top = int(pixels.max()), (1 << bits) - 1
    if largest <= top:
        return pixels
    raise _RangeError(
        f"gave a largest value of {largest}, expected at most {top} ({bits} bits stored); "
        f"{np.mean(pixels > top):.2%} are above",
        pixels,
    )


class _RangeError(ValueError):
    """`pixels`, uint16, hold values above the stored bits."""

    def __init__(self, message: str, pixels: np.ndarray) -> None:
        super().__init__(message)
        self.pixels = pixels
