"""Made DICOM files: literal pixels in, the bytes of a file out, in every transfer syntax that can be written here.

The writer is pydicom, not the kit's own, so that reading is checked against somebody else's idea of a file. Headers
hold what the competition's files hold and no more: no Modality, no SOP Class, no View Position.
"""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from rsna_kit.dicom.decoders import DECODERS
from rsna_kit.dicom.frame import EncodedFrame, read_frame

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
BASELINE, RLE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5"
LOSSLESS, SV1 = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_LS_NEAR = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"
J2K, J2K_LOSSY = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN)

# Syntax → pixels to codestream. Precisions are what real files have: 16 in the competition's JPEG 2000.
ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    LOSSLESS: lambda pixels: imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=6, bitspersample=_depth(pixels)),
    SV1: lambda pixels: imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=_depth(pixels)),
    JPEG_LS: lambda pixels: imagecodecs.jpegls_encode(pixels),
    JPEG_LS_NEAR: lambda pixels: imagecodecs.jpegls_encode(pixels, level=0),
    J2K: lambda pixels: imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="jp2", resolutions=2),
    J2K_LOSSY: lambda pixels: imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="j2k", resolutions=2),
}


def _depth(pixels: np.ndarray) -> int:
    return 8 * pixels.dtype.itemsize


def literal(kind: type = np.uint16) -> np.ndarray:
    """5 x 7 pixels with the extremes of 12 bits (of 8, for uint8)."""
    top = 255 if kind is np.uint8 else 4095
    return np.linspace(0, top, 35).round().astype(kind).reshape(5, 7)


def textured(rows: int = 64, columns: int = 48, top: int = 4095) -> np.ndarray:
    """Noise, a ramp and hard edges at the extremes, where a wavelet overshoots: uint16 0..top."""
    rng = np.random.default_rng(rows * 1000 + columns)
    y, x = np.mgrid[:rows, :columns]
    pixels = (x * top // max(columns, 2) + rng.integers(0, top // 4, x.shape)).clip(0, top)
    pixels[(y // 5 + x // 7) % 3 == 0] = top
    pixels[(y // 4 + x // 9) % 4 == 0] = 0
    return pixels.astype(np.uint16)


def smooth(top: int = 4095, rows: int = 60, columns: int = 44) -> np.ndarray:
    """A blob over dark noise: the upper bits change where the picture is smooth."""
    y, x = np.mgrid[:rows, :columns]
    blob = np.exp(-((y / rows - 0.5) ** 2 + (x / columns - 0.4) ** 2) * 8) * top * 0.97
    return (blob + np.random.default_rng(1).integers(0, top // 64, y.shape)).clip(0, top).astype(np.uint16)


def breast(rows: int = 1400, columns: int = 900, top: int = 3500) -> np.ndarray:
    """A half ellipse on the left with texture of every scale and specks of one pixel, air 0: uint16."""
    rng = np.random.default_rng(rows)
    spectrum = np.fft.rfft2(rng.normal(size=(rows, columns)))
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns))
    texture = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / rows) ** 1.5, (rows, columns))
    texture = (texture - texture.mean()) / texture.std()
    pixels = 0.6 * top + 0.08 * top * texture + 20 * rng.normal(size=texture.shape)
    pixels.ravel()[rng.integers(0, pixels.size, 200)] = top
    y, x = np.mgrid[:rows, :columns]
    inside = np.hypot((y - rows / 2) / (0.42 * rows), x / (0.6 * columns)) < 1
    return np.where(inside, pixels.clip(1, top), 0).astype(np.uint16)


def jpeg2000(pixels: np.ndarray, levels: int = 3, **options: object) -> bytes:
    """Encoded by Pillow, whose OpenJPEG honours every option at every size."""
    buffer = io.BytesIO()
    options = {"irreversible": False, "num_resolutions": levels + 1, **options}
    Image.fromarray(pixels).save(buffer, "JPEG2000", **options)
    return buffer.getvalue()


def make_dicom(
    pixels: np.ndarray, syntax: str = EXPLICIT, *, codestream: bytes | None = None, fragments: int = 1, **elements: Any
) -> bytes:
    """A file of one frame.

    Args:
        pixels: uint8, uint16 or int16; the values as they are stored.
        codestream: used instead of encoding `pixels`.
        fragments: into how many pieces the codestream is cut.
        elements: keyword=value of further elements, or replacing the ones set here; None removes one.
    """
    dataset = Dataset()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = _depth(pixels)
    dataset.BitsStored = 8 if pixels.dtype.itemsize == 1 else 12
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if "HighBit" not in elements and "BitsStored" in dataset:
        dataset.HighBit = dataset.BitsStored - 1
    if syntax in (*NATIVE, DEFLATED):
        order = ">" if syntax == BIG_ENDIAN else "<"
        raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() if codestream is None else codestream
        dataset.PixelData = raw + b"\0" * (len(raw) % 2)
        dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize == 2 or syntax == IMPLICIT else "OB"
    else:
        stream = encode(pixels, syntax) if codestream is None else codestream
        dataset.PixelData = encapsulate([stream], fragments_per_frame=fragments, has_bot=False)
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    file = io.BytesIO()
    dataset.save_as(file, implicit_vr=syntax == IMPLICIT, little_endian=syntax != BIG_ENDIAN, force_encoding=True)
    content = file.getvalue()
    return content if content[128:132] == b"DICM" else bytes(128) + b"DICM" + content


def in_fragments(pixels: np.ndarray, syntax: str, fragments: list[bytes]) -> bytes:
    """A file whose codestream is cut into these pieces."""
    whole = make_dicom(pixels, syntax)
    at = whole.index(b"\xe0\x7f\x10\x00OB") + 12
    items = [struct.pack("<HHI", 0xFFFE, 0xE000, len(piece)) + piece for piece in [b"", *fragments]]
    return whole[:at] + b"".join(items) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def lut(first: int, bits: int, entries: list[int] | bytes | None) -> Dataset:
    """An item of a LUT sequence; without data for None."""
    item = Dataset()
    item.LUTDescriptor = [3 if entries is None else len(entries) // (1 + isinstance(entries, bytes)), first, bits]
    item["LUTDescriptor"].VR = "US" if first >= 0 else "SS"
    if entries is not None:
        words = entries if isinstance(entries, bytes) else struct.pack(f"<{len(entries)}H", *entries)
        item.add_new(0x00283006, "OW", words)
    return item


def read_in(folder: Path, content: bytes) -> EncodedFrame:
    """The frame of a file of this content, folder/77.dcm."""
    path = folder / "77.dcm"
    path.write_bytes(content)
    return read_frame(path)


def encode(pixels: np.ndarray, syntax: str) -> bytes:
    """The codestream of `pixels`."""
    if syntax == RLE:
        return _rle(pixels)
    return ENCODERS[syntax](pixels)


def _rle(pixels: np.ndarray) -> bytes:
    """RLE segments written by hand as literal runs (PS3.5 G), high byte plane first."""
    planes = [pixels.astype(">u2").tobytes()[k::2] for k in range(2)] if _depth(pixels) == 16 else [pixels.tobytes()]
    segments = []
    for plane in planes:
        runs = b"".join(bytes([len(plane[k : k + 128]) - 1]) + plane[k : k + 128] for k in range(0, len(plane), 128))
        segments.append(runs + b"\x80" * (len(runs) % 2))
    offsets = [64 + sum(map(len, segments[:k])) for k in range(len(segments))]
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


def stand_in(monkeypatch: pytest.MonkeyPatch, **answers: Callable[[EncodedFrame], Any] | None) -> None:
    """Let decoders, by name, answer with a function of this process; None for one that is not installed."""
    for name, answer in answers.items():
        absent = "not installed" if answer is None else ""
        decoder = dataclasses.replace(DECODERS[name], apart=False, absence=lambda uid, said=absent: said)
        monkeypatch.setitem(DECODERS, name, dataclasses.replace(decoder, decode=answer or decoder.decode))


def framed(pixels: np.ndarray, **facts: Any) -> EncodedFrame:
    """What `read_frame` gives for unsigned pixels of 12 bits with one window, and a header of these facts."""
    plain: dict[str, Any] = {"modality_lut": None, "slope": 1.0, "intercept": 0.0, "padding": None, "voi_luts": ()}
    plain |= {"signed": False, "photometric": "MONOCHROME2", "windows": ((2048.0, 4096.0),), "voi_function": "LINEAR"}
    plain |= {"image_id": "77", "path": None, "transfer_syntax": EXPLICIT, "codestream": b"", "bits_stored": 12}
    return EncodedFrame(
        rows=pixels.shape[0], columns=pixels.shape[1], bits_allocated=_depth(pixels), **{**plain, **facts}
    )
