"""Uncompressed pixels → array, with NumPy alone."""

from __future__ import annotations

import numpy as np

from rsna_kit.dicom.frame import EncodedFrame
from rsna_kit.dicom.header import EXPLICIT_BIG_ENDIAN, NATIVE_UIDS

UIDS = NATIVE_UIDS


def is_available() -> bool:
    """Always: NumPy is all it takes."""
    return True


def decode(frame: EncodedFrame) -> np.ndarray:
    """The pixels as uint16 (rows, columns).

    Bits above High Bit are not pixel data (PS3.5 8.1.1: old files keep overlays there) and are cleared.
    """
    order = ">" if frame.transfer_syntax == EXPLICIT_BIG_ENDIAN else "<"
    words = np.frombuffer(frame.codestream, np.dtype("u1" if frame.bits_allocated == 8 else f"{order}u2"))
    return words.reshape(frame.rows, frame.columns).astype(np.uint16) & np.uint16((1 << frame.bits_stored) - 1)
