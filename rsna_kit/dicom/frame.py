"""A DICOM file → `EncodedFrame`: what the header says and the bytes of its one frame, nothing decoded.

Door 2. The transfer syntax is the literal UID, because libraries have renamed their constants (pydicom 3
moved `JPEGLossless` from …4.70 to …4.57). Not covered: several frames, colour, float pixels, deflated files.
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsna_kit.dicom.encapsulation import read_fragments
from rsna_kit.dicom.header import (
    EXPLICIT_BIG_ENDIAN,
    NATIVE_UIDS,
    Elements,
    LookupTable,
    parse_header,
    read_elements,
)
from rsna_kit.runtime.errors import HeaderError

_HEADER_BYTES = 2**20  # read_header looks at this much of a file first; real headers are far shorter
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class EncodedFrame:
    """One monochrome frame as it lies in its file (door 2)."""

    image_id: str
    path: Path | None
    transfer_syntax: str  # literal UID
    codestream: bytes  # joined fragments, or the plain pixel bytes of a native syntax; b"" from read_header
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

    @property
    def where(self) -> str:
        """How errors name this image: `image 1942326353 (…/1942326353.dcm)`."""
        return where(self.image_id, self.path)


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
    return _read(Path(path), image_id, pixels=True)


def read_header(path: Path, image_id: str | None = None) -> EncodedFrame:
    """The same facts with `codestream=b""`: only the beginning of the file is read.

    Raises:
        HeaderError: as `read_frame`, except for what only shows inside Pixel Data.
    """
    return _read(Path(path), image_id, pixels=False)


def _read(path: Path, image_id: str | None, pixels: bool) -> EncodedFrame:
    image_id = path.stem if image_id is None else image_id
    name = where(image_id, path)
    try:
        with open(path, "rb") as file:
            content = file.read() if pixels else file.read(_HEADER_BYTES)
            elements = read_elements(io.BytesIO(content), name)
            if elements.pixels is None and not pixels and (rest := file.read()):
                content += rest
                elements = read_elements(io.BytesIO(content), name)
    except OSError as error:
        raise HeaderError(f"{name}: cannot be read ({error}). Check the path and its permissions") from error
    try:
        facts = parse_header(elements, name)
    except HeaderError:
        raise
    except Exception as error:  # pydicom converts some raw elements on access, and raises anything at all
        raise HeaderError(f"{name}: the DICOM header is damaged ({error}). Copy the file again") from error
    frame = EncodedFrame(image_id=image_id, path=path, codestream=b"", **facts)
    return _with_codestream(frame, content, elements) if pixels else frame


def _with_codestream(frame: EncodedFrame, content: bytes, elements: Elements) -> EncodedFrame:
    """`frame` with the bytes of its frame."""
    value, length = memoryview(content)[elements.pixels_at :], elements.pixels_length
    if frame.transfer_syntax not in NATIVE_UIDS:
        if length != _UNDEFINED:
            raise HeaderError(
                f"{frame.where}: Pixel Data of compressed syntax {frame.transfer_syntax} has a defined length of "
                f"{length} bytes, expected encapsulated items. The file was written wrongly; convert it again"
            )
        return dataclasses.replace(frame, codestream=read_fragments(value, frame.where))
    expected = frame.rows * frame.columns * frame.bits_allocated // 8
    if length == _UNDEFINED or not expected <= min(length, len(value)) or length > expected + 1:
        came = "an undefined length" if length == _UNDEFINED else f"{min(length, len(value))} of {length} bytes"
        raise HeaderError(
            f"{frame.where}: native Pixel Data has {came}, expected {expected} bytes for {frame.rows} x "
            f"{frame.columns} pixels of {frame.bits_allocated} bits. The file is cut short or its header is wrong; "
            "copy it again"
        )
    plain = bytes(value[:expected])
    if frame.transfer_syntax == EXPLICIT_BIG_ENDIAN and frame.bits_allocated == 8 and elements.pixels_vr == "OW":
        # PS3.5 8.1.2: 8-bit pixels in OW words are swapped in pairs in the big endian syntax.
        words = bytes(value[: expected + expected % 2]).ljust(expected + expected % 2, b"\0")
        plain = np.frombuffer(words, np.uint16).byteswap().tobytes()[:expected]
    return dataclasses.replace(frame, codestream=plain)
