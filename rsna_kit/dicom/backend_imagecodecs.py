"""Compressed frame → array through imagecodecs: the first rung of the ladder.

libjpeg-turbo 3 for JPEG (5 to 7 times pydicom with pylibjpeg on lossless files, exact), OpenJPEG for JPEG
2000, CharLS for JPEG-LS. All of them release the GIL, so threads are enough to use every core. They run inside this
process because fuzzing them has not crashed them; its `ljpeg_decode` is left out because fuzzing crashed it.
"""

from __future__ import annotations

import numpy as np

from rsna_kit.dicom.frame import EncodedFrame
from rsna_kit.runtime.lazy import absence

_DECODERS = {
    "1.2.840.10008.1.2.4.50": "jpeg8_decode",  # JPEG baseline, 8 bit, lossy
    "1.2.840.10008.1.2.4.51": "jpeg8_decode",  # JPEG extended, 12 bit, lossy
    "1.2.840.10008.1.2.4.57": "jpeg8_decode",  # JPEG lossless, any predictor
    "1.2.840.10008.1.2.4.70": "jpeg8_decode",  # JPEG lossless, predictor 1: site 1
    "1.2.840.10008.1.2.4.80": "jpegls_decode",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81": "jpegls_decode",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90": "jpeg2k_decode",  # JPEG 2000 lossless: site 2
    "1.2.840.10008.1.2.4.91": "jpeg2k_decode",  # JPEG 2000
    "1.2.840.10008.1.2.4.201": "jpeg2k_decode",  # High-Throughput JPEG 2000 lossless
    "1.2.840.10008.1.2.4.202": "jpeg2k_decode",  # the same, by resolution
    "1.2.840.10008.1.2.4.203": "jpeg2k_decode",  # High-Throughput JPEG 2000
}
UIDS = tuple(_DECODERS)


def is_available() -> bool:
    """Whether imagecodecs is installed and can be imported."""
    return not absence("imagecodecs")


def decode(frame: EncodedFrame) -> np.ndarray:
    """The pixels as imagecodecs hands them over; int16 when a JPEG 2000 stream calls itself signed."""
    import imagecodecs

    return getattr(imagecodecs, _DECODERS[frame.transfer_syntax])(frame.codestream)
