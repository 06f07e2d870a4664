"""Compressed frame → array through dicomsdl: the second rung, independent builds of the same families."""

from __future__ import annotations

import numpy as np

from rsna_kit.dicom.frame import JPEG2000_UIDS, JPEG_UIDS, EncodedFrame, stream_facts
from rsna_kit.dicom.part10 import write_part10
from rsna_kit.runtime.lazy import absence

UIDS = (*JPEG_UIDS, *JPEG2000_UIDS)


def is_available() -> bool:
    """Whether dicomsdl is installed and can be imported."""
    return not absence("dicomsdl")


def decode(frame: EncodedFrame) -> np.ndarray:
    """The stored values as dicomsdl hands them over."""
    import dicomsdl

    facts = stream_facts(frame, frame.codestream)
    if facts is not None and facts.precision <= 8 < frame.bits_allocated:  # it fills half of the bytes
        raise RuntimeError(
            f"not asked: {facts.precision} coded bits where 16 are allocated; it is wrong for 8 bits there"
        )
    dicomsdl.set_loglevel(dicomsdl.LogLevel.ERROR)  # its warnings go to stderr, past the run's own voice
    dataset = dicomsdl.open_memory(write_part10(frame))
    try:
        return dataset.pixelData(storedvalue=True)
    finally:
        dataset.close()
