"""Uncompressed pixels → array, with NumPy alone."""

from __future__ import annotations

import numpy as np

from rsna_kit.dicom.elements import EXPLICIT_BIG_ENDIAN, NATIVE_UIDS
from rsna_kit.dicom.frame import EncodedFrame

UIDS = NATIVE_UIDS


def is_available() -> bool:
    """Always: NumPy is all it takes."""
    return True


def decode(frame: EncodedFrame) -> np.ndarray:
    """The words as uint16 (rows, columns), with whatever stands above the stored bits."""
    order = ">" if frame.transfer_syntax == EXPLICIT_BIG_ENDIAN else "<"
    words = np.frombuffer(frame.codestream, np.dtype("u1" if frame.bits_allocated == 8 else f"{order}u2"))
    return words.reshape(frame.rows, frame.columns).astype(np.uint16)
