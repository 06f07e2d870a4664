"""`EncodedFrame` → stored pixels, uint16 (rows, columns): one decoder after the other, and which may be believed.

The array holds the stored BIT PATTERN: nothing is inverted, scaled or shifted. Unsigned pixels are
their own value, at most 2**bits_stored - 1. Signed pixels are two's complement, sign-extended to 16 bits and
viewed as uint16 (`frame.signed` says so; `pixels.view(np.int16)` are the values). 8-bit files are widened.

The decoders are asked in the order of `DECODERS`. One counts only when its array has the header's shape and range;
otherwise the next one is asked. If all fail, one DecodeError says what each of them said. Before any of them runs, the
codestream's own head is compared with the header. Those that damaged streams crash run in a process of their own.

A doubtful answer is believed when a second decoder gives the same: values above the stored bits (`stored.settle`), and
a constant picture, because some decoders give zeros and no error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rsna_kit.dicom.apart import decode_apart
from rsna_kit.dicom.codestream import StreamFacts
from rsna_kit.dicom.decoders import DECODERS, Decoder
from rsna_kit.dicom.elements import NATIVE_UIDS
from rsna_kit.dicom.frame import EncodedFrame, check_stream
from rsna_kit.dicom.stored import RangeError, alike, low_bits, rounding, settle, stored_pixels
from rsna_kit.runtime.errors import DecodeError, one_line


class Group(NamedTuple):
    """A kind of frame: what decides which code of a decoder runs.

    A decoder can be right for one kind and silently wrong for another (nvJPEG before 13.0.2 gives zeros for lossless
    streams of 9 to 15 bits), so belief is kept by group.
    """

    transfer_syntax: str
    precision: int  # bits, of the codestream; of the header where there is none
    bits_stored: int
    signed: bool
    photometric: str

    def __str__(self) -> str:
        sign = " signed" if self.signed else ""
        return f"{self.transfer_syntax} {self.precision} bit ({self.bits_stored} stored{sign}) {self.photometric}"


def group_of(frame: EncodedFrame, facts: StreamFacts | None) -> Group:
    """The group of a frame; `facts` of its codestream, None for syntaxes without one."""
    precision = frame.bits_allocated if facts is None else facts.precision
    return Group(frame.transfer_syntax, precision, frame.bits_stored, frame.signed, frame.photometric)


@dataclass(frozen=True)
class Trust:
    """What `proof.prove` found out about decoders; without anything found out, all are believed.

    Attributes:
        off: pairs of group and decoder that are switched off.
        extra: decoders outside `DECODERS` that were up for proof. They are believed for the groups in `proven` and
            for no others, not even for groups that were never seen.
        proven: pairs of group and extra decoder.
    """

    off: frozenset[tuple[Group, str]] = frozenset()
    extra: frozenset[str] = frozenset()
    proven: frozenset[tuple[Group, str]] = frozenset()

    def allows(self, decoder: str, frame: EncodedFrame, facts: StreamFacts | None) -> bool:
        """Whether `decoder` may be asked for this frame."""
        if not self.off and decoder not in self.extra:
            return True
        pair = (group_of(frame, facts), decoder)
        return pair in self.proven if decoder in self.extra else pair not in self.off


TRUST_ALL = Trust()


def backends(uid: str) -> list[tuple[str, bool]]:
    """The decoders for a transfer syntax in the order they are asked, and whether each is installed.

    pydicom counts as installed where one of its plug-ins for the syntax is.

    Example:
        >>> backends("1.2.840.10008.1.2.1")
        [('native', True)]
    """
    return [(name, not decoder.absence(uid)) for name, decoder in DECODERS.items() if uid in decoder.syntaxes]


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
    uid = frame.transfer_syntax
    known = {name: decoder for name, decoder in DECODERS.items() if uid in decoder.syntaxes}
    if not known:
        raise DecodeError(f"{frame.where}: no decoder knows transfer syntax {uid!r}. Convert the file first")
    facts = check_stream(frame)
    failures: list[str] = []
    doubtful: list[np.ndarray] = []  # above the stored bits, or constant
    advice = "Install one of its decoders"
    for name, decoder in known.items():
        absence = decoder.absence(uid)
        if not absence and not trust.allows(name, frame, facts):
            absence = "switched off, it gave wrong pixels for this kind of frame"
        if absence:
            failures.append(f"{name}: {absence}")
            continue
        pixels, said = None, ""
        try:
            pixels = _ask(decoder, frame, facts)
        except Exception as error:  # whatever a native library raises, the next one is asked
            pixels, said = getattr(error, "pixels", None), one_line(error)
        if pixels is not None:
            constant = is_constant(pixels)
            if _is_filled(pixels[-1], frame, facts) and not constant:
                raise DecodeError(
                    f"{frame.where}: the codestream of {uid} is cut short: its last rows hold half the range, as "
                    "decoders fill what is missing. Copy the file again"
                )
            if not said and constant and uid not in NATIVE_UIDS:
                said = f"gave {pixels[0, 0]} everywhere"
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
        failures.append(f"{name}: {said}")
        advice = "Copy the file again, or exclude the image"
    for pixels in doubtful:
        settled = None if is_constant(pixels) else settle(pixels, frame, agreed=False)
        if settled is not None:
            return settled if clip else pixels
        advice = "Look at it; exclude the image if it shows nothing"
    listed = "".join(f"\n  {failure}" for failure in failures)
    raise DecodeError(
        f"{frame.where}: no decoder could read its {len(frame.codestream)} bytes of {uid}. {advice}.{listed}"
    )


def decode_with(name: str, frame: EncodedFrame) -> np.ndarray:
    """Stored pixels by one of `DECODERS` alone; no other is asked, constant or not.

    Raises:
        Exception: whatever the decoder raises, or ValueError when its array contradicts the header.
    """
    return _ask(DECODERS[name], frame, check_stream(frame))


def is_constant(pixels: np.ndarray) -> bool:
    """Whether every pixel is the same; a look at every 16th row and column settles it for most pictures."""
    first = pixels[0, 0]
    return bool((pixels[::16, ::16] == first).all() and (pixels == first).all())


def _ask(decoder: Decoder, frame: EncodedFrame, facts: StreamFacts | None) -> np.ndarray:
    array = decode_apart(decoder.decode, frame) if decoder.apart else decoder.decode(frame)
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
