"""Two answers of decoders for one frame → whether they are the same picture, and how they differ."""

from __future__ import annotations

import numpy as np

from rsna_kit.dicom.codestream import StreamFacts
from rsna_kit.dicom.decode import is_constant
from rsna_kit.dicom.frame import EncodedFrame

# The inverse transforms of lossy JPEG and of the 9/7 wavelet are defined up to rounding (T.81 A.3.3, T.800 F.3.8), so
# two right decoders may be this many levels apart. libjpeg-turbo and dicomsdl differ by 2 on a real 12-bit file.
_ROUNDING = 2
_LOSSY_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")


def rounding(frame: EncodedFrame, facts: StreamFacts | None) -> int:
    """How many levels two right decoders may be apart."""
    nine_seven = facts is not None and facts.wavelet is not None and not facts.wavelet.reversible
    return _ROUNDING if nine_seven or frame.transfer_syntax in _LOSSY_JPEG else 0


def alike(one: np.ndarray, other: np.ndarray, tolerance: int, signed: bool) -> bool:
    """Whether no pixel of two arrays of one shape is more than `tolerance` levels apart."""
    if np.array_equal(one, other):
        return True
    return tolerance > 0 and int(_distance(one, other, signed).max()) <= tolerance


def _distance(one: np.ndarray, other: np.ndarray, signed: bool) -> np.ndarray:
    """Levels between two arrays of stored pixels, int32."""
    kind = np.int16 if signed else np.uint16
    return np.abs(np.subtract(one.view(kind), other.view(kind), dtype=np.int32))


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
    distance = _distance(answer, reference, frame.signed)
    return (
        f"{np.count_nonzero(distance)} of {distance.size} pixels differ, largest difference {distance.max()}, "
        f"in {frame.where}"
    )
