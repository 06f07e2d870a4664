"""A DICOM file → `EncodedFrame`: what the header says and the bytes of its one frame, nothing decoded.

`read_frame` reads all of a file, `read_head` only what tells how it is coded. The transfer syntax is
the literal UID, because libraries have renamed their constants (pydicom 3 moved `JPEGLossless` from …4.70 to …4.57).
Not covered: several frames, colour, float pixels.
"""

from __future__ import annotations

import dataclasses
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsna_kit.dicom.codestream import StreamError, StreamFacts, kind_of, read_facts
from rsna_kit.dicom.elements import (
    EXPLICIT_BIG_ENDIAN,
    NATIVE_UIDS,
    UNDEFINED,
    Elements,
    read_elements,
    read_fragments,
)
from rsna_kit.dicom.header import GROUPS, TAGS, LookupTable, parse_header
from rsna_kit.runtime.errors import DecodeError, HeaderError, one_line

JPEG2000_UIDS = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
HTJ2K_UIDS = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
JPEG_LOSSLESS_UIDS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS_UIDS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_UIDS = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", *JPEG_LOSSLESS_UIDS, *JPEG_LS_UIDS)
RLE = "1.2.840.10008.1.2.5"
_LOOK = 2**16  # bytes read at a time by read_head; the headers described so far are shorter, LUTs included
# How much of a codestream is looked at until its facts are found: 200 bytes suffice, unless boxes or APPn come first.
_STREAM_LOOKS = (2**12, 2**16, 2**20, 2**24)


@dataclass(frozen=True)
class EncodedFrame:
    """One monochrome frame as it lies in its file."""

    image_id: str
    path: Path | None
    transfer_syntax: str  # literal UID
    codestream: bytes  # joined fragments, or the plain pixel bytes of a native syntax; b"" from read_head
    rows: int
    columns: int
    bits_allocated: int  # 8 or 16
    bits_stored: int
    signed: bool
    photometric: str  # "MONOCHROME1" (large is dark) or "MONOCHROME2"
    windows: tuple[tuple[float, float], ...]  # (centre, width) pairs, in the header's order
    voi_function: str  # "LINEAR", "LINEAR_EXACT" or "SIGMOID"
    voi_luts: tuple[LookupTable, ...]
    modality_lut: LookupTable | None
    slope: float
    intercept: float
    padding: int | None  # stored value of pixels outside the picture
    padding_limit: int | None = None  # the other end of the range of such values, where there is one

    @property
    def where(self) -> str:
        """How errors name this image: `image 1942326353 (…/1942326353.dcm)`."""
        return where(self.image_id, self.path)


@dataclass(frozen=True)
class Head:
    """How a file is coded, known from its beginning.

    Attributes:
        frame: with `codestream=b""`.
        facts: what the codestream says about itself; None for syntaxes without one, and beside a `problem`.
        jp2: the codestream lies inside JP2 boxes.
        size: bytes of the file.
        problem: what `decode` will say of this file when the head of its codestream is enough to refuse it.
    """

    frame: EncodedFrame
    facts: StreamFacts | None
    jp2: bool
    size: int
    problem: str | None


def where(image_id: str, path: Path | None) -> str:
    """How errors name an image."""
    return f"image {image_id} ({path})" if path is not None else f"image {image_id}"


def read_frame(path: Path, image_id: str | None = None) -> EncodedFrame:
    """Read a DICOM file without decoding its pixels.

    Args:
        path: the file.
        image_id: how errors and tables name the image; the file's stem unless given.

    Raises:
        HeaderError: missing, empty, not DICOM, cut short, or not one monochrome frame of 8 or 16 bits.
    """
    path = Path(path)
    name = where(path.stem if image_id is None else image_id, path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(name, error) from error
    frame, elements = _parse(io.BytesIO(content), path, image_id)
    if frame.transfer_syntax not in NATIVE_UIDS:
        _check_encapsulated(frame, elements)
        return dataclasses.replace(frame, codestream=read_fragments(elements, frame.where))
    expected = _check_native(frame, elements)
    elements.file.seek(elements.pixels_at)
    plain = elements.file.read(expected)
    if frame.transfer_syntax == EXPLICIT_BIG_ENDIAN and frame.bits_allocated == 8 and elements.pixels_vr == "OW":
        # PS3.5 8.1.2: 8-bit pixels in OW words are swapped in pairs in the big endian syntax.
        words = (plain + elements.file.read(expected % 2)).ljust(expected + expected % 2, b"\0")
        plain = np.frombuffer(words, np.uint16).byteswap().tobytes()[:expected]
    return dataclasses.replace(frame, codestream=plain)


def read_head(path: Path, image_id: str | None = None) -> Head:
    """The same facts and how the codestream is coded, from one read of 64 KiB in ordinary files.

    Elements that nobody needs are skipped and not read, however long they are.

    Raises:
        HeaderError: as `read_frame`, except for damage behind the codestream's head that leaves its length whole.
    """
    path = Path(path)
    name = where(path.stem if image_id is None else image_id, path)
    try:
        with _Looks(path) as file:
            frame, elements = _parse(file, path, image_id)
            return _look(file, frame, elements)
    except OSError as error:
        raise _unreadable(name, error) from error


class _Looks(io.BufferedReader):
    """A file read `_LOOK` bytes at a time, which never allocates more than it holds, whatever a length says."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path), _LOOK)
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LOOK:
            size = min(size, max(self.size - self.tell(), 0))
        return super().read(size)


def _unreadable(name: str, error: OSError) -> HeaderError:
    return HeaderError(f"{name}: cannot be read ({error}). Check the path and its permissions")


def _parse(file: io.BytesIO | _Looks, path: Path, image_id: str | None) -> tuple[EncodedFrame, Elements]:
    """The frame without its codestream, and where that lies."""
    image_id = path.stem if image_id is None else image_id
    name = where(image_id, path)
    elements = read_elements(file, name, (*TAGS.values(), *GROUPS))
    try:
        facts = parse_header(elements, name)
    except HeaderError:
        raise
    except Exception as error:  # pydicom converts some raw elements on access, and raises anything at all
        raise HeaderError(f"{name}: the DICOM header is damaged ({one_line(error)}). Copy the file again") from error
    return EncodedFrame(image_id=image_id, path=path, codestream=b"", **facts), elements


def _look(file: _Looks, frame: EncodedFrame, elements: Elements) -> Head:
    """The head of a file whose header is read: the beginning of its codestream is looked at."""
    if frame.transfer_syntax in NATIVE_UIDS:
        _check_native(frame, elements)
        return Head(frame, None, False, file.size, None)
    _check_encapsulated(frame, elements)
    problem = None
    for count in _STREAM_LOOKS:
        beginning = read_fragments(elements, frame.where, count)
        try:
            facts = check_stream(frame, beginning)
            return Head(frame, facts, beginning[4:8] == b"jP  ", file.size, None)
        except DecodeError as error:
            problem = str(error)
        if len(beginning) < count:
            break  # else what it misses may lie further on
    return Head(frame, None, False, file.size, problem)


def check_stream(frame: EncodedFrame, beginning: bytes | None = None) -> StreamFacts | None:
    """Refuse a codestream that says something else than the header, before memory is spent on it.

    Args:
        frame: what the header says.
        beginning: of the codestream, where the frame has none yet; its end cannot be checked then.

    Returns:
        What the codestream says about itself, None for syntaxes without a JPEG or JPEG 2000 codestream.

    Raises:
        DecodeError: another format, a contradiction, or cut short.
    """
    uid, whole = frame.transfer_syntax, beginning is None
    codestream = frame.codestream if beginning is None else beginning
    jpeg2000 = uid in (*JPEG2000_UIDS, *HTJ2K_UIDS)
    try:
        if not jpeg2000 and uid not in JPEG_UIDS:
            if uid == RLE and kind_of(codestream):
                raise StreamError(f"is {kind_of(codestream)}", f"Write {kind_of(codestream)}'s UID into (0002,0010)")
            return None
        facts = read_facts(codestream, jpeg2000, whole)
        if uid in JPEG_UIDS and facts.jpeg_ls != (uid in JPEG_LS_UIDS):
            kind = "JPEG-LS" if facts.jpeg_ls else "JPEG"
            raise StreamError(f"is {kind} under the wrong transfer syntax", f"Write {kind}'s UID into (0002,0010)")
        if (facts.rows, facts.columns) != (frame.rows, frame.columns):
            expected = f"expected the header's {frame.rows} x {frame.columns}"
            raise StreamError(f"holds {facts.rows} x {facts.columns} pixels, {expected}", "Exclude the image")
        if facts.components != 1 or facts.precision > frame.bits_allocated:
            raise StreamError(
                f"holds {facts.components} components of {facts.precision} bits, expected 1 of at most the "
                f"{frame.bits_allocated} bits allocated",
                "Exclude the image",
            )
        # A Huffman code has at least one bit, so fewer bits than pixels means that most of the frame is missing.
        if whole and facts.predictor is not None and 8 * len(codestream) < frame.rows * frame.columns:
            raise StreamError(f"has {len(codestream)} bytes for {frame.rows * frame.columns} pixels: cut short")
        if whole and facts.lacks:  # a decoder allocates all packets before it reads one
            raise StreamError(f"lacks {facts.lacks} bytes or more of its tiles and packets: cut short or damaged")
    except StreamError as error:
        raise DecodeError(f"{frame.where}: the codestream of {uid} {error}. {error.advice}") from error
    return facts


def _check_encapsulated(frame: EncodedFrame, elements: Elements) -> None:
    """Refuse compressed Pixel Data that is not a list of items."""
    length, uid = elements.pixels_length, frame.transfer_syntax
    if length == UNDEFINED:
        return
    if uid not in (*JPEG_UIDS, *JPEG2000_UIDS, *HTJ2K_UIDS, RLE):
        raise HeaderError(f"{frame.where}: no decoder knows transfer syntax {uid!r}. Convert the file first")
    plain = frame.rows * frame.columns * frame.bits_allocated // 8
    raise HeaderError(
        f"{frame.where}: Pixel Data of compressed syntax {uid} has a defined length of {length} bytes, expected "
        f"encapsulated items{'; it is that of uncompressed pixels' * (0 <= length - plain < 2)}. The file was written "
        "wrongly; convert it again"
    )


def _check_native(frame: EncodedFrame, elements: Elements) -> int:
    """The bytes of native Pixel Data that are the picture. Bytes behind them are passed over (PS3.5 8.1.1) unless they
    may be pixels."""
    file, length, sample = elements.file, elements.pixels_length, frame.bits_allocated // 8
    there = min(length, elements.size - elements.pixels_at)
    expected = frame.rows * frame.columns * sample
    wanted = f"expected {expected} bytes for {frame.rows} x {frame.columns} pixels of {frame.bits_allocated} bits"
    file.seek(elements.pixels_at)
    if length == UNDEFINED or there < expected:
        encapsulated = length == UNDEFINED
        kind = kind_of(read_fragments(elements, frame.where, 8) if encapsulated else file.read(8))
        came, advice = f"{there} of {length} bytes", "The file is cut short; copy it again"
        if encapsulated or kind:
            came = f"{kind or 'encapsulated items'} under the uncompressed syntax {frame.transfer_syntax}"
            advice = "Write the UID of what it holds into (0002,0010)"
        elif there == length:
            came, advice = f"{length} bytes", "Its header is wrong; exclude the image"
        raise HeaderError(f"{frame.where}: native Pixel Data has {came}, {wanted}. {advice}")
    excess = there - expected
    if excess > 1:
        file.seek(elements.pixels_at + expected)
        rest = file.read(excess)
        frames = f", as many as {there // expected} frames or deeper pixels" * (excess % expected < 2)
        if frames or (rest.count(rest[:1]) < excess and excess >= sample * min(frame.rows, frame.columns)):
            said = f"{frame.where}: native Pixel Data has {there} bytes{frames}, {wanted}"
            raise HeaderError(f"{said}. {'Split the file first' if frames else 'Its header is wrong'}, or exclude it")
    return expected
