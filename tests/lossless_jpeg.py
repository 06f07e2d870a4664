"""Lossless JPEG written from the standard's text alone (ITU-T T.81 annex H): a source independent of every library.

Slow and plain: one sample at a time. One component, one scan, Huffman coding, any predictor, point transform, precision
and restart interval. The Huffman table is fixed: the 17 size categories of annex H.1.2.2 as codes of 5 bits.
"""

from __future__ import annotations

import struct

import numpy as np

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
_CODE_BITS = 5  # 17 codes of 5 bits; the code of ones alone stays free, as C.2 demands


def encode_lossless(
    pixels: np.ndarray,
    precision: int,
    predictor: int = 1,
    *,
    point_transform: int = 0,
    restart_rows: int = 0,
    fill_bytes: int = 0,
    lines_in_dnl: bool = False,
) -> bytes:
    """A codestream of process 14 (SOF3), without any APPn.

    Args:
        pixels: unsigned, (rows, columns), below 2**precision.
        precision: P of the frame header, 2 to 16.
        predictor: Ss of the scan header, 1 to 7.
        point_transform: Al of the scan header; that many low bits are lost.
        restart_rows: rows between restart markers, 0 for none.
        fill_bytes: FF bytes in front of every marker but the first (B.1.1.2).
        lines_in_dnl: the frame header says 0 lines, a DNL segment behind the scan says how many (B.2.5).
    """
    rows, columns = pixels.shape
    fill = b"\xff" * fill_bytes
    frame = struct.pack(">BHHBBBB", precision, 0 if lines_in_dnl else rows, columns, 1, 1, 0x11, 0)
    table = b"\x00" + bytes(17 if length == _CODE_BITS else 0 for length in range(1, 17)) + bytes(range(17))
    parts = [SOI, fill, _segment(0xC3, frame), fill, _segment(0xC4, table)]
    if restart_rows:
        parts += [fill, _segment(0xDD, struct.pack(">H", restart_rows * columns))]
    parts += [fill, _segment(0xDA, struct.pack(">BBBBBB", 1, 1, 0, predictor, 0, point_transform))]
    samples = pixels.astype(int) >> point_transform
    step = restart_rows or rows
    for number, top in enumerate(range(0, rows, step)):
        if number:
            parts += [fill, bytes([0xFF, 0xD0 + (number - 1) % 8])]
        parts.append(_scan(samples[top : top + step], 1 << (precision - point_transform - 1), predictor))
    if lines_in_dnl:
        parts += [fill, _segment(0xDC, struct.pack(">H", rows))]
    return b"".join([*parts, fill, EOI])


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _scan(samples: np.ndarray, first: int, predictor: int) -> bytes:
    """One restart interval: its first sample is predicted by `first`, its first line by the left (H.1.2.1)."""
    bits: list[str] = []
    for y, x in np.ndindex(samples.shape):
        difference = (int(samples[y, x]) - _prediction(samples, y, x, first, predictor)) & 0xFFFF
        if difference > 32768:
            difference -= 65536
        size = abs(difference).bit_length()
        bits.append(f"{size:0{_CODE_BITS}b}")
        if 0 < size < 16:  # category 16 is the one difference of 32768 and has no further bits
            bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)  # F.1.2.3
    content = int(text, 2).to_bytes(len(text) // 8, "big")
    return content.replace(b"\xff", b"\xff\x00")


def _prediction(samples: np.ndarray, y: int, x: int, first: int, predictor: int) -> int:
    """Table H.1."""
    if y == 0:
        return int(samples[0, x - 1]) if x else first
    above = int(samples[y - 1, x])
    if x == 0:
        return above
    left, corner = int(samples[y, x - 1]), int(samples[y - 1, x - 1])
    return (
        left, above, corner, left + above - corner,
        left + ((above - corner) >> 1), above + ((left - corner) >> 1), (left + above) // 2,
    )[predictor - 1]  # fmt: skip
