"""An `EncodedFrame` → the smallest DICOM file (PS3.10) that holds it, for decoders that only take files."""

from __future__ import annotations

import struct

from rsna_kit.dicom.frame import RLE, EncodedFrame

_UNDEFINED = 0xFFFFFFFF


def write_part10(frame: EncodedFrame) -> bytes:
    """A file in the frame's own transfer syntax with the Image Pixel elements and nothing else.

    Only for compressed syntaxes, whose data sets are all explicit little endian.
    """
    stream = frame.codestream + b"\0" * (len(frame.codestream) % 2)
    pixels = struct.pack("<HHIHHI", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE000, len(stream)) + stream
    pixels += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    word = struct.Struct("<H").pack
    stored = frame.bits_allocated if frame.transfer_syntax == RLE else frame.bits_stored  # pydicom clears bits above it
    meta = _element(0x0002, 0x0010, "UI", frame.transfer_syntax.encode())
    return b"".join(
        [
            bytes(128), b"DICM",
            _element(0x0002, 0x0000, "UL", struct.pack("<I", len(meta))), meta,
            _element(0x0028, 0x0002, "US", word(1)),
            _element(0x0028, 0x0004, "CS", frame.photometric.encode()),
            _element(0x0028, 0x0010, "US", word(frame.rows)),
            _element(0x0028, 0x0011, "US", word(frame.columns)),
            _element(0x0028, 0x0100, "US", word(frame.bits_allocated)),
            _element(0x0028, 0x0101, "US", word(stored)),
            _element(0x0028, 0x0102, "US", word(stored - 1)),
            _element(0x0028, 0x0103, "US", word(int(frame.signed))),
            struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, _UNDEFINED), pixels,
        ]
    )  # fmt: skip


def _element(group: int, number: int, vr: str, value: bytes) -> bytes:
    """One short explicit little endian element, padded to an even length."""
    value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr.encode(), len(value)) + value
