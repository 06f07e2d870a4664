"""Compressed frame → array through imagecodecs: the first rung of the ladder.

libjpeg-turbo 3 for JPEG (5 to 7 times pydicom with pylibjpeg on lossless files, exact), OpenJPEG for JPEG
2000, CharLS for JPEG-LS. All of them release the GIL, so threads are enough to use every core. They run inside this
process because fuzzing them has not crashed them; its `ljpeg_decode` is left out because fuzzing crashed it.
"""

from __future__ import annotations

import numpy as np

from rsna_kit.dicom.frame import HTJ2K_UIDS, JPEG2000_UIDS, JPEG_LS_UIDS, JPEG_UIDS, EncodedFrame
from rsna_kit.runtime.lazy import absence

_DECODERS = {
    **dict.fromkeys(JPEG_UIDS, "jpeg8_decode"),  # lossless JPEG of any predictor among them: site 1
    **dict.fromkeys(JPEG_LS_UIDS, "jpegls_decode"),
    **dict.fromkeys((*JPEG2000_UIDS, *HTJ2K_UIDS), "jpeg2k_decode"),  # site 2
}
UIDS = tuple(_DECODERS)


def is_available() -> bool:
    """Whether imagecodecs is installed and can be imported."""
    return not absence("imagecodecs")


def decode(frame: EncodedFrame) -> np.ndarray:
    """The pixels as imagecodecs hands them over; int16 when a JPEG 2000 stream calls itself signed."""
    import imagecodecs

    return getattr(imagecodecs, _DECODERS[frame.transfer_syntax])(frame.codestream)
