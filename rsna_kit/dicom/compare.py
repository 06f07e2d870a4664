"""Two answers of decoders for one frame → whether they are the same picture, and how they differ."""

from __future__ import annotations

import numpy as np

from rsna_kit.dicom.decode import is_constant
from rsna_kit.dicom.frame import EncodedFrame
from rsna_kit.dicom.stored import distance


def fault(answer: np.ndarray, reference: np.ndarray, frame: EncodedFrame) -> str:
    """What is wrong with an extra decoder's answer, "" when it is the reference bit for bit."""
    if answer.shape != reference.shape or answer.dtype != reference.dtype:
        expected = f"{reference.dtype} {reference.shape}"
        return f"gives {answer.dtype} {answer.shape} for {frame.where}, expected {expected}"
    return "" if np.array_equal(answer, reference) else difference(answer, reference, frame)


def difference(answer: np.ndarray, reference: np.ndarray, frame: EncodedFrame) -> str:
    """In what way an answer that has the reference's shape and type is another picture."""
    if is_constant(answer):
        return f"gives {answer[0, 0]} everywhere in {frame.where}"
    levels = distance(answer, reference, frame.signed)
    return (
        f"{np.count_nonzero(levels)} of {levels.size} pixels differ, largest difference {levels.max()}, "
        f"in {frame.where}"
    )
