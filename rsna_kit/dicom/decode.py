"""`EncodedFrame` → stored pixels, uint16 (rows, columns): the ladder of decoders.

Door 3. The array holds the stored BIT PATTERN: nothing is inverted, scaled or shifted. Unsigned pixels are
their own value, at most 2**bits_stored - 1. Signed pixels are two's complement, sign-extended to 16 bits and
viewed as uint16 (`frame.signed` says so; `pixels.view(np.int16)` are the values). 8-bit files are widened.

Order of the rungs: imagecodecs (fastest, frees the GIL), dicomsdl, pydicom's plug-ins. A rung counts only
when its array has the header's shape and range; otherwise the next one is asked. If all fail, one DecodeError
says what each of them said. Before any rung runs, the codestream's own head is compared with the header.
The second and third rung run in a process of their own (`apart`), because damaged streams crash them.

A doubtful answer is believed when a second rung gives the same: values above the stored bits (`stored.settle`), and a
constant frame from a codestream that holds more than that (`holds_a_picture`), because some decoders give zeros and no
error.
"""

from __future__ import annotations

import zlib
from types import ModuleType

import numpy as np

from rsna_kit.dicom import backend_dicomsdl, backend_imagecodecs, backend_native, backend_pydicom
from rsna_kit.dicom.apart import decode_apart
from rsna_kit.dicom.codestream import StreamFacts
from rsna_kit.dicom.elements import NATIVE_UIDS
from rsna_kit.dicom.frame import EncodedFrame, stream_facts
from rsna_kit.dicom.stored import RangeError, alike, low_bits, rounding, settle, stored_pixels
from rsna_kit.dicom.trust import TRUST_ALL, Trust
from rsna_kit.runtime.errors import DecodeError, one_line

LADDER: tuple[ModuleType, ...] = (backend_native, backend_imagecodecs, backend_dicomsdl, backend_pydicom)
_CRASHING = (backend_dicomsdl, backend_pydicom)

# A constant picture is one pattern over and over in every family, even in lossless JPEG, which spends at least a bit on
# each pixel, so its codestream deflates to next to nothing. Measured for constant pictures of 1 x 1 to 5355 x 4915
# pixels (libjpeg-turbo, CharLS, OpenJPEG 5/3 and 9/7): at most 570 bytes of streams below 100 kB, 0.95 % of longer
# ones. Streams of the phantom's mammograms keep 74 % and more of their bytes, 14 Mpixel of air with one bit of noise in
# a corner of 500 x 500 keeps 2.9 %. A constant picture that is doubted costs a second decode.
_CONSTANT_BYTES = 2048
_CONSTANT_SHARE = 1 / 100


def backends(uid: str) -> list[tuple[str, bool]]:
    """The decoders for a transfer syntax in the order they are asked, and whether each is installed.

    pydicom counts as installed where one of its plug-ins for the syntax is.

    Example:
        >>> backends("1.2.840.10008.1.2.1")
        [('native', True)]
    """
    return [(_name(module), not _absence(module, uid)) for module in LADDER if uid in module.UIDS]


def decode(frame: EncodedFrame, trust: Trust = TRUST_ALL, clip: bool = True) -> np.ndarray:
    """Stored pixels of one frame.

    Args:
        frame: from `read_frame`.
        trust: decoders that are switched off for this kind of frame are not asked.
        clip: markers above the stored bits are clipped; a wavelet must see them as the encoder did.

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
    facts = check_stream(frame)
    failures: list[str] = []
    doubtful: list[np.ndarray] = []  # above the stored bits, or constant where the stream holds more
    advice = "Install one of its decoders"
    for module in rungs:
        absence = _absence(module, frame.transfer_syntax)
        if not absence and not trust.allows(_name(module), frame, facts):
            absence = "switched off, it gave wrong pixels for this kind of frame"
        if absence:
            failures.append(f"{_name(module)}: {absence}")
            continue
        pixels, said = None, ""
        try:
            pixels = _ask(module, frame, facts)
        except Exception as error:  # whatever a native library raises, the next rung is asked
            pixels, said = getattr(error, "pixels", None), one_line(error)
        if pixels is not None:
            if _is_filled(pixels[-1], frame, facts) and not is_constant(pixels):
                raise _cut(frame)
            if not said and is_constant(pixels) and holds_a_picture(frame):
                said = f"gave {pixels[0, 0]} everywhere, which takes far fewer bytes"
            tolerance, kept = rounding(facts), frame.bits_stored
            same = [
                other
                for other in doubtful  # pydicom's plug-ins mask what stands above the stored bits
                if np.array_equal(low_bits(other, kept), pixels) or alike(pixels, other, tolerance, frame.signed)
            ]
            settled = settle(same[0], frame) if same else None
            if settled is not None:
                return settled if clip else same[0]
            if same:
                break
            if not said:
                return pixels
            doubtful.append(pixels)
        failures.append(f"{_name(module)}: {said}")
        advice = "Copy the file again, or exclude the image"
    for pixels in doubtful:
        settled = None if is_constant(pixels) else settle(pixels, frame, agreed=False)
        if settled is not None:
            return settled if clip else pixels
        advice = "Look at it; exclude the image if it shows nothing"
    listed = "".join(f"\n  {failure}" for failure in failures)
    raise DecodeError(
        f"{frame.where}: no decoder could read its {len(frame.codestream)} bytes of {frame.transfer_syntax}. "
        f"{advice}.{listed}"
    )


def decode_with(decoder: str, frame: EncodedFrame) -> np.ndarray:
    """Stored pixels by one rung alone, named as `backends` names it; no other is asked, constant or not.

    Raises:
        Exception: whatever the decoder raises, or ValueError when its array contradicts the header.
    """
    return _ask(next(module for module in LADDER if _name(module) == decoder), frame, check_stream(frame))


def _cut(frame: EncodedFrame) -> DecodeError:
    return DecodeError(
        f"{frame.where}: the codestream of {frame.transfer_syntax} is cut short: its last rows hold half the range, as "
        "decoders fill what is missing. Copy the file again"
    )


def is_constant(pixels: np.ndarray) -> bool:
    """Whether every pixel is the same; a look at every 16th row and column settles it for most pictures."""
    first = pixels[0, 0]
    return bool((pixels[::16, ::16] == first).all() and (pixels == first).all())


def holds_a_picture(frame: EncodedFrame) -> bool:
    """Whether the codestream has more information than any constant picture needs.

    Native pixels are what they are: no decoder can get them wrong.
    """
    if frame.transfer_syntax in NATIVE_UIDS:
        return False
    size = len(frame.codestream)
    most = _CONSTANT_BYTES + size * _CONSTANT_SHARE
    return size > most and len(zlib.compress(frame.codestream)) > most


def _ask(module: ModuleType, frame: EncodedFrame, facts: StreamFacts | None) -> np.ndarray:
    array = decode_apart(module, frame) if module in _CRASHING else module.decode(frame)
    try:
        return stored_pixels(array, frame, facts)
    except RangeError as error:
        settled = settle(error.pixels, frame) if facts is None else None  # nobody scales plain words
        if settled is None:
            raise
        return settled


def _is_filled(last: np.ndarray, frame: EncodedFrame, facts: StreamFacts | None) -> bool:
    """Whether the last row is what every decoder of lossless JPEG puts, without an error, where rows are missing.

    That is half the range, the prediction of a first sample (T.81 H.1.2.1).
    """
    if facts is None or facts.predictor is None:
        return False
    kept = (1 << min(facts.precision, frame.bits_allocated)) - 1
    return bool(((last & np.uint16(kept)) == 1 << (facts.precision - 1)).all())


def _absence(module: ModuleType, uid: str) -> str:
    """Why a rung cannot be asked, "" when it is installed."""
    if module is backend_pydicom:
        return backend_pydicom.absence(uid)
    return "" if module.is_available() else "not installed"


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition("backend_")[2]


def check_stream(frame: EncodedFrame) -> StreamFacts | None:
    """Refuse a codestream that says something else than the header, before memory is spent on it.

    Returns:
        What the codestream says about itself, None for syntaxes without a JPEG or JPEG 2000 codestream.

    Raises:
        DecodeError: another format, a contradiction, or cut short.
    """
    return stream_facts(frame, frame.codestream)
