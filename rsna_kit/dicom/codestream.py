"""The head of a compressed frame → what it says about itself: rows, columns, precision, sign.

Read before any decoder runs, so that a stream that contradicts its DICOM header, or that was cut short, is
refused in microseconds and no decoder is asked to allocate what a damaged byte says. Covered: JPEG and
JPEG-LS markers (ITU-T T.81 B, T.87 C), JPEG 2000 codestreams with or without JP2 boxes (T.800 A, I).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_SOC_SIZ = b"\xff\x4f\xff\x51"
_EOI = b"\xff\xd9"  # also EOC of JPEG 2000
_TAIL = 32  # bytes behind the end marker that writers pad with (00, FF and 20 are all seen in real files)


class StreamError(ValueError):
    """The codestream is not what its transfer syntax promises, or is cut short."""


@dataclass(frozen=True)
class StreamFacts:
    """What a codestream says about itself."""

    rows: int
    columns: int
    components: int
    precision: int  # bits
    signed: bool


def read_facts(codestream: bytes, jpeg2000: bool) -> StreamFacts:
    """Facts from the head of a codestream, and a check that its end is there.

    Args:
        codestream: one frame.
        jpeg2000: JPEG 2000 is expected, else JPEG or JPEG-LS.

    Raises:
        StreamError: another format, damaged, or cut short.
    """
    try:
        facts, end = _siz(codestream) if jpeg2000 else (_start_of_frame(codestream), len(codestream))
    except (struct.error, IndexError) as error:
        raise StreamError(f"the {len(codestream)} bytes end inside the stream's head") from error
    if _EOI not in codestream[max(end - _TAIL, 0) : end]:
        raise StreamError(f"the {len(codestream)} bytes do not end with an end marker (FF D9): cut short")
    return facts


def _siz(stream: bytes) -> tuple[StreamFacts, int]:
    """The SIZ marker of JPEG 2000, which T.800 A.5 puts right behind SOC, and where the codestream ends."""
    start, end = _codestream_box(stream) if stream.startswith(_JP2_SIGNATURE) else (0, len(stream))
    if stream[start : start + 4] != _SOC_SIZ:
        raise StreamError(f"begins with {stream[start : start + 4].hex(' ')}, expected JPEG 2000 (ff 4f ff 51)")
    x1, y1, x0, y0 = struct.unpack_from(">4I", stream, start + 8)
    components, depth = struct.unpack_from(">HB", stream, start + 40)
    return StreamFacts(y1 - y0, x1 - x0, components, (depth & 0x7F) + 1, bool(depth & 0x80)), end


def _codestream_box(stream: bytes) -> tuple[int, int]:
    """Where the contents of the contiguous codestream box of a JP2 file begin and end (T.800 I.4).

    Other boxes may follow it; length 0 means that it is the last.
    """
    position = 0
    while True:
        length, kind = struct.unpack_from(">I4s", stream, position)
        header = 8
        if length == 1:
            length, header = struct.unpack_from(">Q", stream, position + 8)[0], 16
        if kind == b"jp2c":
            end = position + length if length else len(stream)
            if end > len(stream):
                missing = end - len(stream)
                raise StreamError(f"is cut short: {missing} of its box's {length} bytes are missing")
            return position + header, end
        if length < header:
            raise StreamError(f"JP2 box {kind!r} says {length} bytes, expected at least {header}")
        position += length


def _start_of_frame(stream: bytes) -> StreamFacts:
    """The SOF marker of JPEG or JPEG-LS, reached by walking the marker segments."""
    if stream[:2] != b"\xff\xd8":
        raise StreamError(f"begins with {stream[:2].hex(' ')}, expected JPEG (ff d8)")
    position = 2
    while True:
        if stream[position] != 0xFF:
            raise StreamError(f"no marker at byte {position}")
        marker = stream[position + 1]
        if marker == 0xFF:  # fill bytes may precede a marker (T.81 B.1.1.2)
            position += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            _, precision, rows, columns, components = struct.unpack_from(">HBHHB", stream, position + 2)
            return StreamFacts(rows, columns, components, precision, False)
        if marker in (0xD9, 0xDA):
            raise StreamError("the image data begin before any frame header (SOF)")
        position += 2 + struct.unpack_from(">H", stream, position + 2)[0]
