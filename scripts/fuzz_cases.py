"""What `fuzz-decode` does to files, and what it asks about them: made files, damage, and one case judged.

A case ends as "image" (what the undamaged file shows), "another image", or the type of an error. Its notes say what
else was seen; a note in capitals is a fault of the kit.
"""

from __future__ import annotations

import functools
import io
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import dicom_files as made
import imagecodecs
import numpy as np
from PIL import Image

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.decode import check_stream
from rsna_kit.dicom.frame import read_frame, read_head
from rsna_kit.dicom.openjpeg import OpenJpegError, decode_reduced
from rsna_kit.dicom.pyramid import Pyramid
from rsna_kit.dicom.wavelet import low_band
from rsna_kit.imaging.render import read_image
from rsna_kit.runtime.errors import DecodeError, HeaderError, ImageError

ITEMS = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"  # Pixel Data of a compressed file; its items follow
DELIMITER = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
TAIL = len(DELIMITER) + 3  # with an end marker and a pad byte
HARMLESS = "nothing that matters"


@dataclass(frozen=True, eq=False)
class Base:
    """An undamaged file, and its parts that damage is aimed at: their names, and where they begin and end."""

    name: str
    content: bytes
    parts: dict[str, tuple[int, int]]
    stream_at: int  # where the codestream begins, 0 for native pixels


@functools.cache
def bases() -> list[Base]:
    """A small file for each syntax and kind of pixel, and JPEG 2000 of every make, large enough to be read reduced."""
    facts = {"WindowCenter": ["2048", "900"], "WindowWidth": ["4096", "600"], "VOILUTFunction": "SIGMOID",
             "PixelPaddingValue": 0, "RescaleSlope": "1", "RescaleIntercept": "0"}  # fmt: skip
    small, large = breast(64, 48), breast(700, 500)
    files = []
    for syntax in [*made.NATIVE, *made.ENCODERS, made.RLE]:
        files.append((f"{syntax} u16", made.make_dicom(small, syntax, **facts)))
        files.append((f"{syntax} u8", made.make_dicom((small / 16).astype(np.uint8), syntax, **facts)))
        if syntax in (*made.NATIVE, made.J2K):
            files.append((f"{syntax} i16", made.make_dicom(small.astype(np.int16) - 500, syntax, **facts)))
    for name, stream in jpeg2000(large).items():
        files.append((f"large {name}", made.make_dicom(large, made.J2K, codestream=stream, **facts)))
    return [Base(name, content, *parts_of(content)) for name, content in files]


def breast(rows: int, columns: int) -> np.ndarray:
    """A half disc of tissue on the left, air 0: uint16, 12 bits."""
    y, x = np.mgrid[:rows, :columns]
    noise = np.random.default_rng(0).normal(0, 30, x.shape)
    inside = np.hypot((y - rows / 2) / rows, x / (1.2 * columns)) < 0.44
    return np.where(inside, 1500 + 200 * np.sin(x / 3) + noise, 0).clip(0, 4095).astype(np.uint16)


def jpeg2000(pixels: np.ndarray) -> dict[str, bytes]:
    """The same pixels coded in every way that takes another path through a decoder."""
    makes: dict[str, dict[str, Any]] = {
        "boxes": {},
        "bare": {"no_jp2": True},
        "RPCL": {"progression": "RPCL", "precinct_size": (128, 128)},
        "layers": {"quality_mode": "rates", "quality_layers": [40, 10, 1]},
        "tiles": {"tile_size": (500, 256)},
        "blocks": {"codeblock_size": (8, 8), "no_jp2": True},
        "offset": {"offset": (5, 3), "tile_size": (800, 800)},
        "9/7": {"irreversible": True},
    }
    streams: dict[str, Any] = {
        "12 bit": imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="j2k", bitspersample=12)
    }
    for name, options in makes.items():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG2000", **{"irreversible": False, "num_resolutions": 6, **options})
        streams[name] = file.getvalue()
    return streams


def parts_of(content: bytes) -> tuple[dict[str, tuple[int, int]], int]:
    """Where the parts of a made file lie; the first of several that are written alike is the one meant."""
    size = len(content)
    at = content.find(ITEMS)
    if at < 0:
        at = max(content.find(tag, 132) for tag in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"))
        return {"header": (128, at), "native pixels": (at, size)}, 0
    stream = at + len(ITEMS) + 16  # behind the empty offset table and the item's own header
    parts = {"header": (128, at), "items": (at, stream), "stream": (stream, size)}
    jpeg = content.startswith(b"\xff\xd8", stream)
    head, first, data = ("segments", b"\xff\xda", "scan") if jpeg else ("main header", b"\xff\x90", "packets")
    scan = content.find(first, stream)
    if jpeg or content.startswith((b"\xff\x4f", b"\0\0\0\x0cjP"), stream):
        parts |= {head: (stream, scan), f"start of {data}": (scan, scan + 14), data: (scan + 14, size)}
    return parts, stream


@dataclass(frozen=True)
class Case:
    """A file to be read: the `base` it was, `how` and in what `part` that was changed, and the result."""

    base: Base
    how: str
    part: str  # HARMLESS when the picture must stay
    content: bytes

    @property
    def what(self) -> str:
        """In words."""
        return f"{self.how} in {self.part} of {self.base.name}"


def case(seed: int, number: int) -> Case:
    """Case `number` of `seed`, the same everywhere."""
    rng = np.random.default_rng([seed, number])
    base = bases()[rng.integers(len(bases()))]
    if rng.random() < 0.1:
        how, content = harmless(base, rng)
        return Case(base, how, HARMLESS, content)
    part = str(rng.choice(list(base.parts)))
    how = str(rng.choice(["bits", "bytes", "cut", "remove", "repeat", "extreme", "middle"]))
    content = damaged(base.content, base.parts[part], how, rng)
    if 0 < base.stream_at <= base.parts[part][0] and rng.random() < 0.7:
        content = repaired(content, base.stream_at)  # or every other length would keep the damage from the decoders
    return Case(base, how, part, content)


def damaged(whole: bytes, part: tuple[int, int], how: str, rng: np.random.Generator) -> bytes:
    """`whole` with one to eight wounds inside `part`."""
    content = bytearray(whole)
    start, end = part
    if how == "cut":
        return whole[: rng.integers(start, end)]
    if how == "middle":  # what follows the wound is the end marker and a delimiter
        return whole[: rng.integers(start, max(start + 1, end - TAIL))] + whole[-TAIL:]
    for _ in range(int(rng.integers(1, 9))):
        at, length = int(rng.integers(start, end)), int(rng.integers(1, 64))
        if at >= len(content):
            break
        if how == "bits":
            content[at] ^= 1 << int(rng.integers(8))
        elif how == "bytes":
            content[at] = int(rng.integers(256))
        elif how == "extreme":
            content[at : at + 2] = bytes([[0, 0], [255, 255], [127, 255], [255, 79]][rng.integers(4)])
        elif how == "remove":
            del content[at : at + length]
        else:
            content[at:at] = content[at : at + length]
    return bytes(content)


def repaired(content: bytes, stream_at: int) -> bytes:
    """A file whose one item has the length that is left."""
    length = max(len(content) - stream_at - (8 if content.endswith(DELIMITER) else 0), 0)
    return content[: stream_at - 4] + struct.pack("<I", length) + content[stream_at:]


def harmless(base: Base, rng: np.random.Generator) -> tuple[str, bytes]:
    """A file that differs from `base` and must show the same picture."""
    content, at = base.content, base.stream_at
    how = str(rng.choice(["preamble", "behind", "fragments", "comment"] if at else ["preamble", "behind"]))
    if how == "preamble":
        return how, rng.bytes(128) + content[128:]
    if how == "behind":
        return how, content + rng.bytes(int(rng.integers(1, 2000)))
    stream = content[at : at + struct.unpack_from("<I", content, at - 4)[0]]
    if how == "comment" and stream[:2] in (b"\xff\x4f", b"\xff\xd8"):
        text = rng.bytes(int(rng.integers(1, 500)))  # COM of JPEG 2000 begins with a kind, and comes behind SIZ
        size = struct.unpack_from(">H", stream, 4)[0] + 4 if stream[1] == 0x4F else 2
        comment = b"\xff\x64" if stream[1] == 0x4F else b"\xff\xfe"
        stream = stream[:size] + comment + struct.pack(">HH", len(text) + 4, 0) + text + stream[size:]
    cuts = sorted(rng.integers(0, len(stream), int(rng.integers(0, 5))).tolist())
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    items = [struct.pack("<HHI", 0xFFFE, 0xE000, len(piece)) + piece for piece in [b"", *pieces]]
    return how, content[: at - 16] + b"".join(items) + DELIMITER


@functools.cache
def shown(base: Base) -> bytes | None:
    """The image of an undamaged file, None when the decoders that are asked cannot read it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.dcm"
        path.write_bytes(base.content)
        try:
            return image_of(path, "0")
        except ImageError:
            return None


def image_of(path: Path, image_id: str) -> bytes:
    """What the library makes of a file."""
    return read_image(path, image_id, ImageConfig(height=128, width=64)).image.tobytes()


def outcome_of(case: Case, path: Path) -> tuple[str, list[str]]:
    """How a case ended that lies at `path`, and what is to be noted about it; a note in capitals is bad."""
    must_show = case.part == HARMLESS and shown(case.base) is not None
    try:
        same = image_of(path, path.stem) == shown(case.base)
        outcome = "image" if same else "another image"
    except ImageError as error:
        same, outcome = False, type(error).__name__
        if must_show:
            return outcome, [f"HARMLESS CHANGE COSTS THE IMAGE: {error}"]
    except BaseException as error:
        return "UNTYPED", [f"UNTYPED {type(error).__name__}: {error}"]
    notes = [] if same or not must_show else ["HARMLESS CHANGE SHOWS ANOTHER IMAGE"]
    try:
        return outcome, notes + compared(path)
    except BaseException as error:
        return outcome, [*notes, f"UNTYPED {type(error).__name__} when compared: {error}"]


def compared(path: Path) -> list[str]:
    """Where two ways to read one file disagree."""
    head, frame = attempt(read_head, HeaderError, path), attempt(read_frame, HeaderError, path)
    if isinstance(frame, HeaderError):
        return []  # the head may be whole
    if isinstance(head, HeaderError):
        return ["HEAD REFUSED, FRAME READ"]
    facts = attempt(check_stream, DecodeError, frame)
    if isinstance(facts, DecodeError):
        if head.problem == str(facts):
            return []
        return ["the head is whole, the end is cut short" if head.problem is None else "refused for two reasons"]
    if head.problem is not None:
        return ["HEAD REFUSED, STREAM READ"]
    pyramid = Pyramid(frame)
    return decoders_compared(frame.codestream, pyramid.halvings, facts.precision) if pyramid.halvings else []


def decoders_compared(stream: bytes, halvings: int, precision: int) -> list[str]:
    """The two decoders of this process at full size; reduced decodes and the wavelet; a part and the whole."""
    notes = []
    full = attempt(decode_reduced, OpenJpegError, stream, 0)
    other = attempt(imagecodecs.jpeg2k_decode, imagecodecs.Jpeg2kError, stream)
    if isinstance(full, Exception) != isinstance(other, Exception):
        notes.append("one decoder refuses at full size, the other does not")
    elif not isinstance(full, Exception) and not np.array_equal(full, other):
        notes.append("TWO DECODERS DIFFER AT FULL SIZE")
    for times in range(1, min(halvings, 2) + 1):
        band = attempt(decode_reduced, OpenJpegError, stream, times)
        if isinstance(band, Exception) or isinstance(full, Exception):
            if isinstance(band, Exception) != isinstance(full, Exception):
                notes.append(
                    "full size is refused, reduced is not" if isinstance(full, Exception) else "REDUCED REFUSED"
                )
            continue
        differ = band != low_band(full, times, precision)
        if differ.any():
            near = near_limits(full, times, precision)
            notes.append(
                "reduced differs near clipping" if near[differ].all() else "REDUCED DIFFERS, NOTHING IS CLIPPED"
            )
        rows, columns = (side // 2 >> times << times for side in full.shape)
        part = attempt(decode_reduced, OpenJpegError, stream, times, (0, 0, rows, columns))
        if isinstance(part, Exception) or not np.array_equal(part, band[: rows >> times, : columns >> times]):
            notes.append("A PART DIFFERS FROM THE WHOLE")
    return notes


def near_limits(full: np.ndarray, times: int, precision: int) -> np.ndarray:
    """Where a low subband of a picture has a pixel at the end of its range in its reach: bool, as large as the band.

    What a decoder clips at full size is lost to the wavelet of the result, not to a reduced decode.
    """
    limits = ((full == 0) | (full == (1 << precision) - 1)).astype(np.uint8)
    reach = 2 * (2**times - 1)
    return cv2.dilate(limits, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))[:: 1 << times, :: 1 << times] > 0


def attempt(function: Callable[..., Any], expected: type[Exception], *arguments: object) -> Any:
    """What a function returns, or the error of the expected type that it raises."""
    try:
        return function(*arguments)
    except expected as error:
        return error
