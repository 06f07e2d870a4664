"""Compressed frame → array through whichever of pydicom's plug-ins are installed: the last rung.

gdcm, pylibjpeg and Pillow are tried one by one, not by pydicom's own order, so that each failure has a name.
"""

from __future__ import annotations

import functools
import io

import numpy as np

from rsna_kit.dicom.frame import HTJ2K_UIDS, JPEG2000_UIDS, JPEG_UIDS, RLE, EncodedFrame
from rsna_kit.dicom.part10 import write_part10
from rsna_kit.runtime import lazy

UIDS = (*JPEG_UIDS, *JPEG2000_UIDS, *HTJ2K_UIDS, RLE)  # pydicom decodes RLE by itself


def is_available() -> bool:
    """Always: pydicom is a dependency. Whether it can decode a syntax is for `absence` to say."""
    return True


@functools.cache
def absence(uid: str) -> str:
    """Why pydicom cannot decode a syntax of `UIDS`: the plug-ins that could, none of which is installed.

    Returns:
        "" when one is installed, and for RLE, which needs none.
    """
    if too_old := lazy.absence("pydicom"):
        return too_old
    from pydicom.pixels import get_decoder

    decoder = get_decoder(uid)
    missing = "; ".join(f"{name} is not installed ({needs})" for name, needs in _missing(decoder))
    return "" if decoder.is_available else missing or "it has no plug-in for this syntax"


def decode(frame: EncodedFrame) -> np.ndarray:
    """The pixels from the first plug-in that succeeds.

    Raises:
        RuntimeError: every plug-in failed, or none is installed; the message holds what each said.
    """
    import pydicom
    from pydicom.pixels import get_decoder

    decoder = get_decoder(frame.transfer_syntax)
    dataset = pydicom.dcmread(io.BytesIO(write_part10(frame)))
    failures = [f"{name} is not installed ({needs})" for name, needs in _missing(decoder)]
    for plugin in decoder.available_plugins:
        try:
            return decoder.as_array(dataset, index=0, raw=True, decoding_plugin=plugin)[0]
        except Exception as error:  # plug-ins raise whatever their library raises
            reason = str(error).rsplit("\n", 1)[-1].strip()
            failures.append(reason if reason.startswith(f"{plugin}:") else f"{plugin}: {reason}")
    raise RuntimeError("; ".join(failures))


def _missing(decoder: object) -> list[tuple[str, str]]:
    """Plug-ins that know the syntax but are not installed, and what they need."""
    missing = []
    for line in getattr(decoder, "missing_dependencies", ()):
        name, _, needs = line.partition(" - ")
        missing.append((name, needs or "unknown package"))
    return missing
