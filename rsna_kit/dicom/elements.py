"""The bytes of a DICOM file → its elements up to Pixel Data, and the bytes of its frame.

pydicom walks the structure (VR, sequences, private tags) and keeps the values raw: what they mean is for `header`.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from rsna_kit.runtime.errors import HeaderError, one_line

IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE_UIDS = (IMPLICIT_LITTLE_ENDIAN, EXPLICIT_LITTLE_ENDIAN, DEFLATED, EXPLICIT_BIG_ENDIAN)

MAX_INFLATED = 2**27 + 2**24  # bytes: the largest picture, and a header
UNDEFINED = 0xFFFFFFFF
_TRANSFER_SYNTAX = 0x00020010
_ITEM, _DELIMITER, _TRAILER = 0xFFFEE000, 0xFFFEE0DD, 0xFFFCFFFC


@dataclass
class Elements:
    """What the walk over a file found: raw elements, and where Pixel Data lies."""

    file: BinaryIO  # what they were read from; a deflated file is inflated
    size: int  # its bytes
    transfer_syntax: str = IMPLICIT_LITTLE_ENDIAN
    dataset: Dataset = field(default_factory=Dataset)
    pixels: int | None = None  # tag of the pixel element, None when there is none
    pixels_at: int = 0  # offset of its value
    pixels_length: int = 0
    pixels_vr: str | None = None


def read_elements(file: BinaryIO, name: str, tags: Iterable[int]) -> Elements:
    """Walk the elements up to Pixel Data and keep those of `tags`; items and delimiters that stand astray before it are
    passed over.

    A file without preamble or without meta group is read as implicit little endian (PS3.10 7.1 demands the
    group; archives of the 1990s lack it), or as explicit when its first element carries a VR.

    Raises:
        HeaderError: empty, not DICOM, or damaged before Pixel Data.
    """
    size = file.seek(0, io.SEEK_END)
    if size == 0:
        raise HeaderError(f"{name}: the file is empty, expected a DICOM file. Copy it again")
    found = Elements(file, size)

    def at_pixels(tag: Any, vr: str | None, length: int) -> bool:
        if tag < 0x7FE00008:
            return False
        found.pixels, found.pixels_vr, found.pixels_length, found.pixels_at = int(tag), vr, length, file.tell()
        return True

    try:
        start = _skip_preamble(file, name)
        if struct.unpack("<H", file.read(2))[0] == 0x0002:
            file.seek(start)
            meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 0x0002)
            found.transfer_syntax = text_of(meta, _TRANSFER_SYNTAX) or IMPLICIT_LITTLE_ENDIAN
        else:
            file.seek(start + 4)
            if file.read(2).isalpha():
                found.transfer_syntax = EXPLICIT_LITTLE_ENDIAN
            file.seek(start)
        if not found.transfer_syntax.startswith(IMPLICIT_LITTLE_ENDIAN):  # all of the standard's do
            raise HeaderError(f"{name}: private transfer syntax {found.transfer_syntax!r}. Convert the file first")
        if found.transfer_syntax == DEFLATED:
            file = io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), MAX_INFLATED))
            found.file, found.size = file, len(file.getbuffer())
        while True:
            found.pixels = None
            part = read_dataset(
                file,
                is_implicit_VR=found.transfer_syntax == IMPLICIT_LITTLE_ENDIAN,
                is_little_endian=found.transfer_syntax != EXPLICIT_BIG_ENDIAN,
                stop_when=at_pixels,
                specific_tags=list(tags),
            )
            found.dataset.update(part)
            if found.pixels is not None and found.pixels >> 16 == 0xFFFE:
                file.seek(found.pixels_at)
            elif found.pixels is not None or file.tell() >= found.size:
                break
            while (tag := file.read(4)) and tag[:2] in (b"\xfe\xff", b"\xff\xfe"):  # pydicom must not begin at one
                file.seek(4, io.SEEK_CUR)
            file.seek(-len(tag), io.SEEK_CUR)
    except HeaderError:
        raise
    except Exception as error:  # pydicom raises anything at all on damaged structure
        raise HeaderError(
            f"{name}: the DICOM header is damaged or cut short ({type(error).__name__}: {one_line(error)}). "
            "Copy the file again"
        ) from error
    return found


def _skip_preamble(file: BinaryIO, name: str) -> int:
    """Position `file` on its first element; the offset is returned, the position restored to it."""
    file.seek(0)
    start = 132 if file.read(132)[128:] == b"DICM" else 0
    file.seek(start)
    head = file.read(8)
    group = struct.unpack_from("<H", head)[0] if len(head) == 8 else -1
    # Identifying (0008) comes first in every data set, meta (0002) before it.
    if group not in (0x0002, 0x0008):
        raise HeaderError(f"{name}: not a DICOM file (it begins with {head.hex(' ') or 'nothing'}), expected DICOM")
    file.seek(start)
    return start


def read_fragments(found: Elements, where: str, count: int = sys.maxsize) -> bytes:
    """The first `count` bytes of a frame in encapsulated Pixel Data: a Basic Offset Table, then fragments (PS3.5 A.4).

    These are joined. The items are walked by their own lengths: a codestream is never searched for by its first bytes,
    because those also occur inside it and differ between encoders. Behind whole fragments the delimiter may be missing,
    be zeros, or be the data set's padding (FFFC,FFFC); a short fragment is an error.

    Args:
        where: names the image in an error.

    Raises:
        HeaderError: the items that were walked are damaged or cut short, or there is no fragment.
    """
    fragments: list[bytes] = []
    file, position, items = found.file, found.pixels_at, 0
    while position + 8 <= found.size and count > 0:
        file.seek(position)
        group, element, length = struct.unpack("<HHI", file.read(8))
        tag, position = group << 16 | element, position + 8
        zeros = bool(fragments) and not tag | length and not file.read().strip(b"\0")
        if tag == _DELIMITER or zeros or (fragments and tag == _TRAILER):
            break
        if tag != _ITEM or length == UNDEFINED:
            raise HeaderError(
                f"{where}: Pixel Data item {items} begins with ({group:04X},{element:04X}) length {length}, "
                "expected (FFFE,E000) with a defined length. The file is damaged; copy it again"
            )
        if position + length > found.size:
            raise HeaderError(
                f"{where}: Pixel Data item {items} says {length} bytes, only {found.size - position} are left. "
                "The file is cut short; copy it again"
            )
        if items > 0 and length:  # item 0 is the Basic Offset Table
            fragments.append(file.read(min(length, count)))
            count -= length
        position += length
        items += 1
    if not fragments:
        raise HeaderError(f"{where}: encapsulated Pixel Data holds no fragment, expected 1 frame. Copy the file again")
    return b"".join(fragments)


def raw_of(dataset: Dataset, tag: int) -> bytes:
    """The bytes of an element, empty when it is missing."""
    if tag not in dataset:
        return b""
    value = dataset.get_item(tag).value
    return value if isinstance(value, bytes) else b""


def words_of(dataset: Dataset, tag: int) -> tuple[int, ...]:
    """The unsigned 16-bit words of an element."""
    raw = raw_of(dataset, tag)
    if not raw:
        return ()
    return struct.unpack_from(f"{order_of(dataset, tag)}{len(raw) // 2}H", raw)


def order_of(dataset: Dataset, tag: int) -> str:
    """The byte order of an element as struct and NumPy write it."""
    element = dataset.get_item(tag)
    return ">" if isinstance(element, RawDataElement) and not element.is_little_endian else "<"


def text_of(dataset: Dataset, tag: int) -> str:
    """The text of an element without its padding."""
    return raw_of(dataset, tag).decode("ascii", "replace").strip(" \0")
