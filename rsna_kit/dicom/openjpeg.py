"""JPEG 2000 at a reduced resolution and by region, through the OpenJPEG library that a wheel already brought.

Decoding costs what the finest subbands cost: leaving the finest level out takes 0.27 of the time of a full decode, two
levels 0.08, three 0.025. imagecodecs' `jpeg2k_decode` leaves levels out since 2026.10.10 (`skipres`), which needs
Python 3.12, and knows no regions; Pillow's holds the interpreter lock and multiplies 12-bit pictures by 16, glymur
wants a system library. So this is the smallest possible ctypes binding to `libopenjp2` (2.5), which lies in the wheels
of imagecodecs and of Pillow: no compiler, no package more. ctypes releases the interpreter lock, so threads are enough
to use every core.

The structures are OpenJPEG's public ones (openjpeg.h, `opj_image_t`, `opj_image_comp_t`), unchanged since 2.1; still, a
library is used only after it decoded a small known stream at full size, reduced and by region.
"""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_CODEC_J2K, _CODEC_JP2 = 0, 2  # OPJ_CODEC_FORMAT
_PARAMETERS = 2**14  # more than sizeof(opj_dparameters_t), 8,256 bytes in 2.5

# The pixel of row y and column x is 37 x + 91 y: 14 x 12, 16 bits, two levels of the reversible wavelet, one tile.
_KNOWN = base64.b64decode(
    "/0//UQApAAAAAAAMAAAADgAAAAAAAAAAAAAADAAAAA4AAAAAAAAAAAABDwEB/1IADAAAAAEAAgQEAAH/XAAKQICIiJCIiJD/kAAKAAAAAABQAAH/"
    "k9/4kMASBcr4PQ7F9neD1XX3VY0mZHQE6M8KJn/AB9oNAAPkBhz4uHMufw4+H8AD6geAD7QYLFn7oECQpzpWxTFvH//Z"
)


class _Component(ctypes.Structure):
    """`opj_image_comp_t`."""

    _fields_ = (
        *(
            (name, ctypes.c_uint32)
            for name in ("dx", "dy", "w", "h", "x0", "y0", "prec", "bpp", "sgnd", "resno", "factor")
        ),
        ("data", ctypes.POINTER(ctypes.c_int32)),
        ("alpha", ctypes.c_uint16),
    )


class _Image(ctypes.Structure):
    """`opj_image_t`."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("x0", "y0", "x1", "y1", "numcomps")),
        ("color_space", ctypes.c_int),
        ("comps", ctypes.POINTER(_Component)),
        ("icc_profile", ctypes.c_void_p),
        ("icc_length", ctypes.c_uint32),
    )


_Message = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p)
_Handle, _ImagePointer = ctypes.c_void_p, ctypes.POINTER(_Image)

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "opj_version": (ctypes.c_char_p, ()),
    "opj_create_decompress": (_Handle, (ctypes.c_int,)),
    "opj_destroy_codec": (None, (_Handle,)),
    "opj_set_default_decoder_parameters": (None, (ctypes.c_void_p,)),
    "opj_setup_decoder": (ctypes.c_int, (_Handle, ctypes.c_void_p)),
    "opj_set_error_handler": (ctypes.c_int, (_Handle, _Message, ctypes.c_void_p)),
    "opj_read_header": (ctypes.c_int, (_Handle, _Handle, ctypes.POINTER(_ImagePointer))),
    "opj_set_decoded_resolution_factor": (ctypes.c_int, (_Handle, ctypes.c_uint32)),
    "opj_set_decode_area": (ctypes.c_int, (_Handle, _ImagePointer, *[ctypes.c_int32] * 4)),
    "opj_decode": (ctypes.c_int, (_Handle, _Handle, _ImagePointer)),
    "opj_image_destroy": (None, (_ImagePointer,)),
    "opj_stream_create_default_file_stream": (_Handle, (ctypes.c_char_p, ctypes.c_int)),
    "opj_stream_destroy": (None, (_Handle,)),
}


class OpenJpegError(RuntimeError):
    """The library refused a stream, in its own words."""


def is_available() -> bool:
    """Whether a library was found that passes its test."""
    return _library() is not None


def describe() -> str:
    """Which library is used, for logs: its version and file, or that there is none."""
    library = _library()
    if library is None:
        return "no usable OpenJPEG library found: JPEG 2000 is decoded in full"
    return f"OpenJPEG {library.opj_version().decode()} of {Path(library._name).parent.name}"


def decode_reduced(codestream: bytes, reduce: int, area: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """The picture, halved `reduce` times by leaving out the finest wavelet levels.

    Args:
        codestream: JPEG 2000 with or without JP2 boxes; one component, unsigned, at most 16 bits.
        reduce: 0 for the full picture; at most the levels of the stream.
        area: (top, left, bottom, right), half-open, in full-resolution pixels; None for the whole picture. Pixels are
            the same as in the whole picture.

    Returns:
        uint16 (h, w): rows ceil(top / 2**reduce) to ceil(bottom / 2**reduce) of the reduced picture, columns alike.

    Raises:
        OpenJpegError: no library, or it refused the stream.
    """
    library = _library()
    if library is None:
        raise OpenJpegError("no usable OpenJPEG library found")
    return _decode(library, codestream, reduce, area)


@cache
def _library() -> ctypes.CDLL | None:
    """The first library that decodes the known stream as it must."""
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            if _passes(library):
                return library
        except (OSError, AttributeError, OpenJpegError):
            continue
    return None


def _candidates() -> Iterator[str]:
    """Paths of OpenJPEG libraries: those inside wheels first, whose versions are pinned."""
    for package, folder in (("imagecodecs", "imagecodecs.libs"), ("PIL", "pillow.libs")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            yield from map(str, sorted((Path(spec.origin).parents[1] / folder).glob("libopenjp2*.so*")))
    system = ctypes.util.find_library("openjp2")
    if system is not None:
        yield system


def _passes(library: ctypes.CDLL) -> bool:
    """Whether the library gives the known picture at full size, halved, and a part of it."""
    y, x = np.mgrid[:14, :12]
    known = (37 * x + 91 * y).astype(np.uint16)
    even = known[::2, ::2]  # the low subband of a ramp, but for its last row and column
    return (
        np.array_equal(_decode(library, _KNOWN, 0, None), known)
        and np.array_equal(_decode(library, _KNOWN, 1, None)[:-1, :-1], even[:-1, :-1])
        and np.array_equal(_decode(library, _KNOWN, 1, (4, 2, 12, 8)), even[2:6, 1:4])
    )


def _decode(library: ctypes.CDLL, codestream: bytes, reduce: int, area: tuple[int, int, int, int] | None) -> np.ndarray:
    said: list[str] = []
    listen = _Message(lambda text, _: said.append(text.decode(errors="replace")))  # kept alive until the end
    codec = stream = None
    image = _ImagePointer()

    def must(done: object, what: str) -> None:
        if not done:
            raise OpenJpegError(f"{what}: {' '.join(' '.join(said).split()) or 'no reason given'}")

    memory = os.memfd_create("codestream")
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(codestream)
        codec = library.opj_create_decompress(_CODEC_JP2 if codestream.startswith(_JP2_SIGNATURE) else _CODEC_J2K)
        stream = library.opj_stream_create_default_file_stream(f"/proc/self/fd/{memory}".encode(), 1)
        must(codec and stream, "out of memory")
        library.opj_set_error_handler(codec, listen, None)
        parameters = ctypes.create_string_buffer(_PARAMETERS)
        library.opj_set_default_decoder_parameters(parameters)
        must(library.opj_setup_decoder(codec, parameters), "set-up")
        must(library.opj_read_header(stream, codec, ctypes.byref(image)), "header")
        must(library.opj_set_decoded_resolution_factor(codec, reduce), f"reduction {reduce}")
        if area is not None:
            top, left, bottom, right = area
            must(library.opj_set_decode_area(codec, image, left, top, right, bottom), f"area {area}")
        must(library.opj_decode(codec, stream, image), "decode")
        if image.contents.numcomps != 1:
            raise OpenJpegError(f"gave {image.contents.numcomps} components, expected 1")
        part = image.contents.comps[0]
        if part.sgnd or part.prec > 16 or not part.data:
            raise OpenJpegError(f"gave {part.prec} bits, signed {part.sgnd}, expected unsigned of at most 16 bits")
        return np.ctypeslib.as_array(part.data, (part.h, part.w)).astype(np.uint16)
    finally:
        if image:
            library.opj_image_destroy(image)
        if stream:
            library.opj_stream_destroy(stream)
        if codec:
            library.opj_destroy_codec(codec)
        os.close(memory)
