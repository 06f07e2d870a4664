"""The head of a compressed frame → what it says about itself: rows, columns, precision, sign, and how it is coded.

Read before any decoder runs, so that a stream that contradicts its DICOM header, or that was cut short, is
refused in microseconds and no decoder is asked to allocate what a damaged byte says. Covered: JPEG and
JPEG-LS markers (ITU-T T.81 B, T.87 C), JPEG 2000 codestreams with or without JP2 boxes (T.800 A, I).
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass, field

_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_SOC_SIZ = b"\xff\x4f\xff\x51"
_EOI = b"\xff\xd9"  # also EOC of JPEG 2000
_PADDING = b"\0\xff "  # what writers pad with behind the end marker, kilobytes of it
_TAIL = 32  # bytes of anything else that may lie there


class StreamError(ValueError):
    """The codestream is not what its header promises, or is cut short; `advice` says what to do about it."""

    def __init__(self, message: str, advice: str = "Copy the file again") -> None:
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True)
class Wavelet:
    """How a JPEG 2000 codestream is coded (T.800 A.6.1); all of it from the main header.

    `plain`: the picture starts at the origin of its grid, without subsampling and without coding that differs by
    component or tile, so that the lowest subbands are those of the whole picture.
    """

    levels: int  # wavelet decompositions: how often the picture can be halved
    reversible: bool  # 5/3 integer transform, else 9/7
    layers: int
    progression: str  # LRCP, RLCP, RPCL, PCRL or CPRL
    tiles: int
    plain: bool


@dataclass(frozen=True)
class StreamFacts:
    """What a codestream says about itself."""

    rows: int
    columns: int
    components: int
    precision: int  # bits
    signed: bool
    wavelet: Wavelet | None = None  # JPEG 2000 with a coding style in its main header
    predictor: int | None = None  # lossless JPEG: 1 to 7 (T.81 H.1.2.1)
    restart_interval: int = 0  # JPEG: MCUs between restart markers, 0 for none
    jpeg_ls: bool = False
    lacks: int = field(default=0, compare=False)  # bytes that JPEG 2000 should have at least for its tiles and packets


def read_facts(codestream: bytes, jpeg2000: bool, whole: bool = True) -> StreamFacts:
    """Facts from the head of a codestream, and a check that its end is there.

    Args:
        codestream: one frame, or the beginning of one.
        jpeg2000: JPEG 2000 is expected, else JPEG or JPEG-LS.
        whole: all of the frame is given, so its end marker must be there.

    Raises:
        StreamError: another format, damaged, or cut short.
    """
    try:
        facts, end = _jpeg2000(codestream, whole) if jpeg2000 else (_jpeg(codestream), len(codestream))
    except (struct.error, IndexError, OverflowError) as error:
        raise StreamError(f"the {len(codestream)} bytes end inside the stream's head") from error
    if whole and _EOI not in codestream[max(end - _TAIL, 0) : end]:
        end = len(codestream[:end].rstrip(_PADDING))
    if whole and _EOI not in codestream[max(end - _TAIL, 0) : end]:
        raise StreamError(f"the {len(codestream)} bytes do not end with an end marker (FF D9): cut short")
    return facts


def kind_of(stream: bytes | memoryview) -> str:
    """What the first bytes show: "JPEG 2000", "JPEG", or "" for neither."""
    start = bytes(stream[:8])
    if start == _JP2_SIGNATURE or start[:4] == _SOC_SIZ:
        return "JPEG 2000"
    return "JPEG" if start[:3] == b"\xff\xd8\xff" else ""


def _mislabelled(stream: bytes, length: int, expected: str) -> StreamError:
    """The error for a stream that begins as another format."""
    said, kind = f"begins with {stream[:length].hex(' ')}, expected {expected}", kind_of(stream)
    if not kind:
        return StreamError(said)
    return StreamError(f"{said}: it is {kind} under the wrong transfer syntax", f"Write {kind}'s UID into (0002,0010)")


def bare_codestream(stream: bytes) -> bytes:
    """JPEG 2000 without JP2 boxes.

    Raises:
        StreamError: the boxes are damaged or cut short.
    """
    if not stream.startswith(_JP2_SIGNATURE):
        return stream
    try:
        start, end = _codestream_box(stream, whole=True)
    except (struct.error, IndexError, OverflowError) as error:
        raise StreamError(f"the {len(stream)} bytes end inside the JP2 boxes") from error
    return stream[start:end]


def _jpeg2000(stream: bytes, whole: bool) -> tuple[StreamFacts, int]:
    """The main header of JPEG 2000, which begins with SIZ right behind SOC (T.800 A.5), and where the codestream ends.

    A packet takes a byte at least (B.9, B.10.3); how many there are follows from layers and precincts (B.6, B.7). Of
    several tiles only the 14 bytes that each one's first tile-part takes are counted.
    """
    start, end = _codestream_box(stream, whole) if stream.startswith(_JP2_SIGNATURE) else (0, len(stream))
    if stream[start : start + 4] != _SOC_SIZ:
        raise _mislabelled(stream[start:], 4, "JPEG 2000 (ff 4f ff 51)")
    length, _, x1, y1, x0, y0, width, height, tile_x0, tile_y0 = struct.unpack_from(">HH8I", stream, start + 4)
    components, depth, step_x, step_y = struct.unpack_from(">HBBB", stream, start + 40)
    if not (x1 > x0 and y1 > y0 and width and height and tile_x0 <= x0 and tile_y0 <= y0):
        raise StreamError(f"has a grid of {x0},{y0} to {x1},{y1} in tiles of {width} x {height}: damaged")
    tiles = -(-(x1 - tile_x0) // width) * -(-(y1 - tile_y0) // height)
    wavelet, plain, least = None, (x0, y0, step_x, step_y) == (0, 0, 1, 1), 14 * tiles
    position = start + 4 + length
    while stream[position] == 0xFF and stream[position + 1] != 0x90:  # SOT ends the main header
        marker, length = struct.unpack_from(">HH", stream, position)
        if marker == 0xFF52:  # COD; without one the complaint is left to the decoder
            style, order, layers, _, levels, *_, transform = struct.unpack_from(">BBHBBBBBB", stream, position + 4)
            if order < len(_PROGRESSIONS) and levels <= 32:
                wavelet = Wavelet(levels, transform == 1, layers, _PROGRESSIONS[order], tiles, plain)
            sizes = stream[position + 14 : position + 2 + length] if style & 1 else b"\xff" * (levels + 1)
            for left, side in zip(range(levels, -1, -1), sizes if tiles == 1 else b"", strict=False):
                across, down = (
                    _up(_up(far, left), power) - (_up(near, left) >> power)
                    for near, far, power in ((x0, x1, side & 15), (y0, y1, side >> 4))
                )
                least += layers * max(across, 0) * max(down, 0)
        elif marker == 0xFF53:  # COC: another coding style for a component
            plain = False
        position += 2 + max(length, 2)
    if wavelet is not None:
        wavelet = dataclasses.replace(wavelet, plain=plain)
    signed, precision, lacks = bool(depth & 0x80), (depth & 0x7F) + 1, max(0, start + least - end)
    return StreamFacts(y1 - y0, x1 - x0, components, precision, signed, wavelet, lacks=lacks), end


_PROGRESSIONS = ("LRCP", "RLCP", "RPCL", "PCRL", "CPRL")


def _up(length: int, halvings: int) -> int:
    """A length divided by 2**halvings, rounded up."""
    return -(-length >> halvings)


def _codestream_box(stream: bytes, whole: bool) -> tuple[int, int]:
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
            if whole and end > len(stream):
                missing = end - len(stream)
                raise StreamError(f"is cut short: {missing} of its box's {length} bytes are missing")
            return position + header, end
        if length < header:
            raise StreamError(f"JP2 box {kind!r} says {length} bytes, expected at least {header}")
        position += length


def _jpeg(stream: bytes) -> StreamFacts:
    """The SOF marker of JPEG or JPEG-LS, and what precedes the first scan, reached by walking the marker segments."""
    if stream[:2] != b"\xff\xd8":
        raise _mislabelled(stream, 2, "JPEG (ff d8)")
    position, facts, restarts, lossless = 2, None, 0, False
    while True:
        if stream[position] != 0xFF:
            if facts is not None:  # what follows the frame header is for the decoder to judge
                return facts
            raise StreamError(f"no marker at byte {position}")
        marker = stream[position + 1]
        if marker == 0xFF:  # fill bytes may precede a marker (T.81 B.1.1.2)
            position += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            _, precision, rows, columns, components = struct.unpack_from(">HBHHB", stream, position + 2)
            facts = StreamFacts(rows, columns, components, precision, False, jpeg_ls=marker == 0xF7)
            lossless = marker == 0xC3
        elif marker == 0xDD:
            restarts = struct.unpack_from(">H", stream, position + 4)[0]
        elif marker in (0xD9, 0xDA):
            if facts is None:
                raise StreamError("the image data begin before any frame header (SOF)")
            # Behind the list of components, T.81 B.2.3 keeps the predictor where other processes keep Ss.
            predictor = stream[position + 5 + 2 * stream[position + 4]] if lossless and marker == 0xDA else None
            return dataclasses.replace(facts, predictor=predictor, restart_interval=restarts)
        position += 2 + struct.unpack_from(">H", stream, position + 2)[0]
