"""The decoders, in the order in which they are asked. A new one is a function and an entry of `DECODERS`.

A function takes an `EncodedFrame` and gives its pixels as its library does; `decode` checks them against the header.

* native: NumPy.
* imagecodecs: libjpeg-turbo 3 for JPEG (5 to 7 times pydicom with pylibjpeg on lossless files, exact), OpenJPEG for
  JPEG 2000, CharLS for JPEG-LS. All release the GIL, so threads are enough to use every core. They run inside this
  process because fuzzing them has not crashed them; its `ljpeg_decode` is left out because fuzzing crashed it.
* dicomsdl: independent builds of the same families.
* pydicom: whichever of its plug-ins are installed (gdcm, pylibjpeg, Pillow), and RLE, which it decodes by itself.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rsna_kit.dicom.codestream import StreamFacts
from rsna_kit.dicom.elements import EXPLICIT_BIG_ENDIAN, NATIVE_UIDS
from rsna_kit.dicom.frame import HTJ2K_UIDS, JPEG2000_UIDS, JPEG_LS_UIDS, JPEG_UIDS, RLE, EncodedFrame, check_stream
from rsna_kit.runtime import lazy
from rsna_kit.runtime.errors import DecodeError


@dataclass(frozen=True)
class Decoder:
    """One way from coded bytes to pixels.

    Attributes:
        syntaxes: literal UIDs that it knows.
        decode: frame → integers of 8 or 16 bits (rows, columns), or any exception. A function of a module, so that a
            process of its own can import it.
        absence: syntax → why it cannot be asked here, "" where it can.
        apart: damaged streams crash it, so it runs in a process of its own.
    """

    syntaxes: tuple[str, ...]
    decode: Callable[[EncodedFrame], np.ndarray]
    absence: Callable[[str], str]
    apart: bool = False


class Device(Protocol):
    """A decoder of batches, such as `dali.DaliDecoder`, that works beside these in `imaging.stream`."""

    name: str
    batch_size: int

    def takes(self, frame: EncodedFrame, facts: StreamFacts | None) -> bool:
        """Whether it can decode this kind of frame."""

    def decode(self, frames: Sequence[EncodedFrame]) -> list[np.ndarray | DecodeError]:
        """Stored pixels, or what is wrong, for each frame."""


def decode_native(frame: EncodedFrame) -> np.ndarray:
    """The words as uint16, with whatever stands above the stored bits."""
    order = ">" if frame.transfer_syntax == EXPLICIT_BIG_ENDIAN else "<"
    words = np.frombuffer(frame.codestream, np.dtype("u1" if frame.bits_allocated == 8 else f"{order}u2"))
    return words.reshape(frame.rows, frame.columns).astype(np.uint16)


_IMAGECODECS = {
    **dict.fromkeys(JPEG_UIDS, "jpeg8_decode"),  # lossless JPEG of any predictor among them
    **dict.fromkeys(JPEG_LS_UIDS, "jpegls_decode"),
    **dict.fromkeys((*JPEG2000_UIDS, *HTJ2K_UIDS), "jpeg2k_decode"),
}


def decode_imagecodecs(frame: EncodedFrame) -> np.ndarray:
    """The pixels as imagecodecs hands them over; int16 when a JPEG 2000 stream calls itself signed."""
    import imagecodecs

    return getattr(imagecodecs, _IMAGECODECS[frame.transfer_syntax])(frame.codestream)


def decode_dicomsdl(frame: EncodedFrame) -> np.ndarray:
    """The stored values as dicomsdl hands them over."""
    import dicomsdl

    facts = check_stream(frame)
    if facts is not None and facts.precision <= 8 < frame.bits_allocated:  # it fills half of the bytes
        raise RuntimeError(f"not asked: it is wrong for {facts.precision} bits where 16 are allocated")
    dicomsdl.set_loglevel(dicomsdl.LogLevel.ERROR)  # its warnings go to stderr, past the run's own voice
    dataset = dicomsdl.open_memory(_part10(frame))
    try:
        return dataset.pixelData(storedvalue=True)
    finally:
        dataset.close()


def decode_pydicom(frame: EncodedFrame) -> np.ndarray:
    """The pixels from the first plug-in that succeeds, asked one by one so that each failure has a name.

    Raises:
        RuntimeError: every plug-in failed, or none is installed; the message holds what each said.
    """
    import pydicom
    from pydicom.pixels import get_decoder

    decoder = get_decoder(frame.transfer_syntax)
    dataset = pydicom.dcmread(io.BytesIO(_part10(frame)))
    failures = _missing(decoder)
    for plugin in decoder.available_plugins:
        try:
            return decoder.as_array(dataset, index=0, raw=True, decoding_plugin=plugin)[0]
        except Exception as error:  # plug-ins raise whatever their library raises
            reason = str(error).rsplit("\n", 1)[-1].strip()
            failures.append(reason if reason.startswith(f"{plugin}:") else f"{plugin}: {reason}")
    raise RuntimeError("; ".join(failures))


@functools.cache
def _absence_of_plugins(uid: str) -> str:
    """Why pydicom cannot decode a syntax: the plug-ins that could, none of which is installed."""
    if too_old := lazy.absence("pydicom"):
        return too_old
    from pydicom.pixels import get_decoder

    decoder = get_decoder(uid)
    return "" if decoder.is_available else "; ".join(_missing(decoder)) or "it has no plug-in for this syntax"


def _missing(decoder: object) -> list[str]:
    """Plug-ins that know the syntax but are not installed, and what they need."""
    missing = []
    for line in getattr(decoder, "missing_dependencies", ()):
        name, _, needs = line.partition(" - ")
        missing.append(f"{name} is not installed ({needs or 'unknown package'})")
    return missing


def _needs(package: str) -> Callable[[str], str]:
    """The absence of a decoder that one package brings."""
    return lambda uid: "not installed" if lazy.absence(package) else ""


DECODERS: dict[str, Decoder] = {
    "native": Decoder(NATIVE_UIDS, decode_native, lambda uid: ""),
    "imagecodecs": Decoder(tuple(_IMAGECODECS), decode_imagecodecs, _needs("imagecodecs")),
    "dicomsdl": Decoder((*JPEG_UIDS, *JPEG2000_UIDS), decode_dicomsdl, _needs("dicomsdl"), apart=True),
    "pydicom": Decoder((*JPEG_UIDS, *JPEG2000_UIDS, *HTJ2K_UIDS, RLE), decode_pydicom, _absence_of_plugins, apart=True),
}


def _part10(frame: EncodedFrame) -> bytes:
    """The smallest file (PS3.10) that holds a frame of a compressed syntax, for decoders that only take files."""
    stream = frame.codestream + b"\0" * (len(frame.codestream) % 2)
    items = struct.pack("<HHIHHI", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE000, len(stream)) + stream
    items += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    stored = frame.bits_allocated if frame.transfer_syntax == RLE else frame.bits_stored  # pydicom clears bits above it
    words = {
        0x0010: frame.rows,
        0x0011: frame.columns,
        0x0100: frame.bits_allocated,
        0x0101: stored,
        0x0102: stored - 1,
        0x0103: int(frame.signed),
    }
    syntax = _element(0x0002, 0x0010, "UI", frame.transfer_syntax.encode())
    elements = [
        _element(0x0002, 0x0000, "UL", struct.pack("<I", len(syntax))),
        syntax,
        _element(0x0028, 0x0002, "US", struct.pack("<H", 1)),
        _element(0x0028, 0x0004, "CS", frame.photometric.encode()),
        *(_element(0x0028, number, "US", struct.pack("<H", value)) for number, value in words.items()),
        struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF),
    ]
    return bytes(128) + b"DICM" + b"".join(elements) + items


def _element(group: int, number: int, vr: str, value: bytes) -> bytes:
    """One short explicit little endian element, padded to an even length."""
    value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr.encode(), len(value)) + value
