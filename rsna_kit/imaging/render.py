"""Stored pixels → the image a model sees. THE composition: training and inference both call it.

Order, and why:

1. **Thumbnail**: at least 320 pixels long, each standing for a block of 2**n x 2**n stored pixels. A lossless JPEG 2000
   stream is decoded at so low a resolution for it that it is a fiftieth of the work; other pictures are sampled and
   averaged.
2. **Tones** (`window.tones`): Modality LUT or slope and intercept → VOI → photometric interpretation, as
   one table over the 65,536 possible stored values.
3. **Padding**: pixels equal to Pixel Padding Value that would not be dark, or where tones follow from the range of the
   pixels, become the darkest stored value that occurs besides it, before anything is averaged with them. In the
   competition's files padding is the air, dark, and there is a window: nothing is done.
4. **Box** (`breast`): found on the thumbnail's stored range, not on the window: windows of digital mammograms turn the
   thin outer breast black, and a useless window must not lose the breast.
5. **Decode** what the image will show: the box, at the largest halving that still has a row for every row of the
   image (`image.decode="reduced"`, lossless JPEG 2000 only; "exact" decodes and averages every pixel). The halved
   picture is moved by the half pixel that it lies off (`pyramid.aligned`).
6. **Resize** the stored values in uint16, aspect kept, by area (linear where the image must grow). Averaging before
   the window is what the detector would have done with larger pixels, and the rounding (one stored level) is far
   below one level of the 8-bit image.
7. **Tones by table** on the small picture: ten times fewer look-ups than on the full one.
8. **Air**: its tone beside the breast (film fog, a sigmoid's tail, a table that begins above 0) becomes 0, with a ramp
   to four times that tone, from which on tones stay. Outside the breast the image is exactly 0, through a soft edge,
   whatever the photometric interpretation or markers say.
9. **Flip** so that the chest wall is left; **pad** right, and top and bottom equally, with 0.
10. **Quantise** once, to uint8, rounding half to even.

An undamaged file and the same image section give the same bytes whichever decoder is there. (A damaged codestream that
still decodes may differ between a reduced decode and a full one.)
Changing any of this changes bytes: raise `config.IMAGE_RECIPE_VERSION`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.decode import TRUST_ALL, Trust
from rsna_kit.dicom.frame import EncodedFrame, read_frame
from rsna_kit.dicom.pyramid import Pyramid
from rsna_kit.imaging.breast import Box, box_of, keep_weight, segment
from rsna_kit.imaging.window import Tones, modality_values, tones
from rsna_kit.runtime.errors import RenderError

_THUMBNAIL = 320  # longer side of the picture the box is found on, at least
_PLENTY = 3  # halvings of a thumbnail from which four of the pixels of each block, or sixteen, are enough
_SIGN = 0x8000
_AIR = 75  # percentile of the tones beside the breast, at the end of its soft edge, that is air
_DARK = 0.02  # tones this close to the darkest are as dark: a wavelet's overshoot at an edge is darker than air


@dataclass(frozen=True)
class Rendered:
    """`image` uint8 (height, width) and the `box` it shows, in full-resolution coordinates."""

    image: np.ndarray
    box: Box


def read_image(path: Path, image_id: str, image: ImageConfig, trust: Trust = TRUST_ALL, coarser: int = 0) -> Rendered:
    """File to image: what `prepare` and `infer` both call.

    Args:
        path: a DICOM file.
        image_id: how errors name it.
        image: the image section of the configuration.
        trust: decoders that are switched off are not asked.
        coarser: further halvings, which trade detail for time: a run out of time asks for them, and gets other bytes.
            Exact images stay exact.

    Raises:
        ImageError: the file cannot be read (stage header), decoded (decode) or holds no picture (render).
    """
    return render_pyramid(Pyramid(read_frame(path, image_id), trust), image, coarser)


def render(pixels: np.ndarray, frame: EncodedFrame, image: ImageConfig) -> Rendered:
    """Stored pixels to the image: the bytes that `read_image` gives for the file they come from.

    Args:
        pixels: uint16 (rows, columns) bit patterns from `decode`, or a decoder proven equal.
        frame: what the header says.
        image: the image section of the configuration.

    Raises:
        RenderError: constant pixels, or nothing that stands out from the air.
    """
    shape = (frame.rows, frame.columns)
    if pixels.dtype != np.uint16 or pixels.shape != shape:
        raise RenderError(f"{frame.where}: got {pixels.dtype} {pixels.shape}, expected uint16 {shape}")
    return render_pyramid(Pyramid(frame, pixels=pixels), image)


def render_pyramid(pyramid: Pyramid, image: ImageConfig, coarser: int = 0) -> Rendered:
    """One frame to the image, in the order the module describes.

    Raises:
        DecodeError: no decoder could read the frame.
        RenderError: constant pixels, or nothing that stands out from the air.
    """
    frame = pyramid.frame
    view = _view_halved(pyramid, image) if pyramid.halvings else None
    if view is None:
        view = _view_whole(pyramid, image)
    if view.thumbnail.min() == view.thumbnail.max():
        raise RenderError(
            f"{frame.where}: the picture is {view.thumbnail[0, 0]} everywhere, expected a mammogram. Exclude the image"
        )
    parts = segment(_gray(view.thumbnail, frame))
    found = box_of(parts.breast, image.margin)
    if found is None:
        raise RenderError(f"{frame.where}: no breast stands out from the air. Look at it; exclude it if it is blank")
    box = found.scaled(1 << view.step, frame.rows, frame.columns)
    scale = min(image.height / box.height, image.width / box.width)
    size = box.fitted(image.height, image.width)[::-1]
    times = 0
    if view.pixels is None:
        while (2 << times) * scale <= 1:
            times += 1
        times = min(times + coarser, pyramid.halvings, view.step) if image.decode == "reduced" else 0
        crop = pyramid.halved(times, (box.top, box.left, box.bottom, box.right))
    else:
        crop = view.pixels[box.top : box.bottom, box.left : box.right]
    weight = keep_weight(parts)
    beside = view.table[view.thumbnail[(weight > 0) & (weight < 1)]]
    air = float(np.percentile(beside, _AIR)) if beside.size else 0.0
    table = np.minimum(view.table, (view.table - air) * (4 / 3))  # the same from four times the air's tone on
    weight = cv2.resize(weight[found.top : found.bottom, found.left : found.right], size)
    toned = np.take(table, _resized(crop, size, times > 0), mode="clip")  # "clip" is faster; every uint16 has a tone
    return Rendered(_place(cv2.multiply(toned, weight, scale=255, dtype=cv2.CV_8U), box.flip, image), box)


@dataclass(frozen=True)
class _View:
    """A frame as far as it was looked at. Signed values are moved so that their order is that of unsigned ones.

    `thumbnail`: uint16, a pixel for each block of 2**step x 2**step. `table`: float32 (65536,), the tone of every
    value. `pixels`: uint16 (rows, columns), None when only the thumbnail was decoded.
    """

    thumbnail: np.ndarray
    step: int
    table: np.ndarray
    pixels: np.ndarray | None


def _view_halved(pyramid: Pyramid, image: ImageConfig) -> _View | None:
    """What a decode of the thumbnail tells; None when all pixels are needed because padding must be taken out."""
    frame = pyramid.frame
    step = _thumbnail_step(frame)
    times = min(step, pyramid.halvings)
    thumbnail = _averaged(pyramid.halved(times), step - times)
    table, from_range = tones(thumbnail, frame, image)
    if _padding_matters(frame.padding, thumbnail, table, from_range):
        return None
    return _View(thumbnail, step, table, None)


def _view_whole(pyramid: Pyramid, image: ImageConfig) -> _View:
    """All pixels, padding replaced."""
    frame, pixels, padding = pyramid.frame, pyramid.full(), pyramid.frame.padding
    if frame.signed:  # to unsigned in the order of the values, so that averages are averages of values
        pixels = pixels ^ np.uint16(_SIGN)
        padding = None if padding is None else (padding & 0xFFFF) ^ _SIGN
    step = _thumbnail_step(frame)
    thumbnail = _sampled(pixels, step)
    table, from_range = _ordered_tones(thumbnail, frame, image)
    if _padding_matters(padding, thumbnail, table, from_range):
        pixels = _without_padding(pixels, padding, _ordered_tones(pixels, frame, image).table)
        thumbnail = _sampled(pixels, step)
        table = _ordered_tones(thumbnail, frame, image).table
    return _View(thumbnail, step, table, pixels)


def _ordered_tones(sample: np.ndarray, frame: EncodedFrame, image: ImageConfig) -> Tones:
    """`tones` for values in the order of a `_View`."""
    if not frame.signed:
        return tones(sample, frame, image)
    table, from_range = tones(sample ^ np.uint16(_SIGN), frame, image)
    return Tones(table[np.arange(65536) ^ _SIGN], from_range)


def _padding_matters(padding: int | None, thumbnail: np.ndarray, table: np.ndarray, from_range: bool) -> bool:
    """Whether padding must be taken out: it is in the range that makes the tones, or its tone is not the darkest."""
    if padding is None:
        return False
    if from_range or not 0 <= padding < 65536:
        return True
    low, high = int(thumbnail.min()), int(thumbnail.max())
    return bool(table[padding] > table[low : high + 1].min() + _DARK)


def _without_padding(pixels: np.ndarray, padding: int | None, table: np.ndarray) -> np.ndarray:
    """Pixels with padding replaced by the darkest stored value that occurs besides it."""
    present = np.zeros(65536, dtype=bool)
    present[pixels] = True
    if padding is None or not (0 <= padding < 65536 and present[padding]) or present.sum() == 1:
        return pixels
    present[padding] = False
    occurring = np.flatnonzero(present)
    darkest = occurring[np.argmin(table[occurring])]
    return np.where(pixels == padding, np.uint16(darkest), pixels)


def _thumbnail_step(frame: EncodedFrame) -> int:
    """How often a frame is halved for its thumbnail."""
    step = 0
    while max(frame.rows, frame.columns) >> (step + 1) >= _THUMBNAIL:
        step += 1
    return step


def _sampled(pixels: np.ndarray, times: int) -> np.ndarray:
    """A thumbnail as `_averaged` gives it, of every fourth row and column where there are plenty.

    Reading all of a 27 MB picture once more would take as long as everything else that is done with the thumbnail.
    """
    if times < _PLENTY:
        return _averaged(pixels, times)
    rows, columns = (max(1, side >> times) for side in pixels.shape)
    middle = pixels[2 : rows << times : 4, 2 : columns << times : 4]
    return _averaged(np.ascontiguousarray(middle), times - 2)


def _averaged(pixels: np.ndarray, times: int) -> np.ndarray:
    """The averages of whole blocks of 2**times x 2**times pixels, uint16; what is left over at the ends is left out.

    Halving by exact twos is ten times faster than one resize by the whole factor.
    """
    rows, columns = (max(1, side >> times) for side in pixels.shape)
    small = pixels[: rows << times, : columns << times]
    for _ in range(times):
        half = (max(1, small.shape[1] // 2), max(1, small.shape[0] // 2))
        small = cv2.resize(small, half, interpolation=cv2.INTER_AREA)
    return small


def _resized(crop: np.ndarray, size: tuple[int, int], halved: bool = False) -> np.ndarray:
    """A crop at (width, height) `size`, by area, or linear where it must grow.

    From twice the size on, the area of a pixel is taken as the average of two times two points in it, after halving the
    crop as often as it stays four times as large: a third of the time of cv2.INTER_AREA, which has fast code for exact
    halves only, and 0.2 of 255 grey levels off it. Below twice the size it would lie 0.5 off. A crop that a wavelet
    halved has few points to spare; cubic interpolation between them keeps its fine contrast.
    """
    width, height = size
    if crop.shape[0] < height or crop.shape[1] < width:
        return cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR)
    times = 0
    while crop.shape[0] >> (times + 1) >= 2 * height and crop.shape[1] >> (times + 1) >= 2 * width:
        times += 1
    small = _averaged(crop, times)
    if small.shape == (height, width):
        return small
    if not halved and (small.shape[0] < 2 * height or small.shape[1] < 2 * width):
        return cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    between = cv2.INTER_CUBIC if halved else cv2.INTER_LINEAR
    twice = cv2.resize(small, (2 * width, 2 * height), interpolation=between)
    return cv2.resize(twice, size, interpolation=cv2.INTER_AREA)


def _gray(thumbnail: np.ndarray, frame: EncodedFrame) -> np.ndarray:
    """The thumbnail's stored range as uint8, air dark.

    The range is what 99.8 % of its pixels span: a dead pixel or a marker must not set it.
    """
    lowest, highest = int(thumbnail.min()), int(thumbnail.max())
    stored = np.arange(lowest, highest + 1).astype(np.uint16)  # everything is decided for the values that occur
    values = modality_values(stored ^ np.uint16(_SIGN) if frame.signed else stored, frame)
    if frame.photometric == "MONOCHROME1":
        values = -values
    index = thumbnail - np.uint16(lowest)
    counts = np.bincount(index.ravel(), minlength=len(values))
    order = np.argsort(values, kind="stable")  # a Modality LUT may fall
    below = np.cumsum(counts[order])
    low, high = (values[order[np.searchsorted(below, share * thumbnail.size)]] for share in (0.001, 0.999))
    if high <= low:
        there = values[counts > 0]
        low, high = there.min(), max(there.max(), there.min() + 1)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)[index]


def _place(picture: np.ndarray, flip: bool, image: ImageConfig) -> np.ndarray:
    """Chest wall left, padded right and symmetric top and bottom."""
    canvas = np.zeros((image.height, image.width), dtype=np.uint8)
    rows, columns = picture.shape
    top = (image.height - rows) // 2
    canvas[top : top + rows, :columns] = picture[:, ::-1] if flip else picture
    return canvas


def encode_picture(image: np.ndarray, fmt: str) -> bytes:
    """A uint8 image as PNG (exact, zlib level 2) or JPEG (quality 95, for looking at).

    Raises:
        ValueError: another format.
    """
    options = {"png": (".png", [cv2.IMWRITE_PNG_COMPRESSION, 2]), "jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95])}
    if fmt not in options:
        raise ValueError(f"picture format: got {fmt!r}, expected png or jpeg")
    done, encoded = cv2.imencode(options[fmt][0], image, options[fmt][1])
    if not done:
        raise ValueError(f"picture {image.dtype} {image.shape} could not be encoded as {fmt}")
    return encoded.tobytes()
