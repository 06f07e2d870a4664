"""The value of Pixel Data → the bytes of its one frame.

Encapsulated Pixel Data (PS3.5 A.4) is a list of items: a Basic Offset Table, then fragments, then a
delimiter. One frame may be cut into several fragments; they are joined. The items are walked by their own
lengths: a codestream is never searched for by its first bytes, because those bytes also occur inside it and
differ between encoders. A missing delimiter after whole fragments is tolerated; a short fragment is not.
"""

from __future__ import annotations

import struct

from rsna_kit.runtime.errors import HeaderError

_ITEM = 0xFFFEE000
_DELIMITER = 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF


def read_fragments(value: memoryview, where: str) -> bytes:
    """The fragments of an encapsulated Pixel Data value, joined, without the Basic Offset Table.

    Args:
        value: everything behind the Pixel Data element's own header (it may run past the delimiter).
        where: names the image in an error.

    Raises:
        HeaderError: the items are damaged, cut short, or there is no fragment.
    """
    fragments: list[memoryview] = []
    position, items = 0, 0
    while position + 8 <= len(value):
        group, element, length = struct.unpack_from("<HHI", value, position)
        tag = group << 16 | element
        if tag == _DELIMITER:
            break
        if tag != _ITEM or length == _UNDEFINED:
            raise HeaderError(
                f"{where}: Pixel Data item {items} begins with ({group:04X},{element:04X}) length {length}, "
                "expected (FFFE,E000) with a defined length. The file is damaged; copy it again"
            )
        position += 8
        if position + length > len(value):
            raise HeaderError(
                f"{where}: Pixel Data item {items} says {length} bytes, only {len(value) - position} are left. "
                "The file is cut short; copy it again"
            )
        if items > 0:  # item 0 is the Basic Offset Table
            fragments.append(value[position : position + length])
        position += length
        items += 1
    if not any(len(fragment) for fragment in fragments):
        raise HeaderError(f"{where}: encapsulated Pixel Data holds no fragment, expected 1 frame. Copy the file again")
    return b"".join(fragments)
