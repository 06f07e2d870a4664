"""Stored pixels → the image a model sees. THE composition: training and inference both call it.

Order, and why:

1. **Tones** (`window.tone_table`): Modality LUT or slope and intercept → VOI → photometric interpretation, as
   one table over the 65,536 possible stored values.
2. **Padding**: pixels equal to Pixel Padding Value become the darkest stored value that occurs, before anything is
   averaged with them.
3. **Box** (`breast`): found on a thumbnail of the stored range, not of the window: windows of digital mammograms
   turn the thin outer breast black, and a useless window must not lose the breast.
4. **Crop**, so that all that follows costs what the breast costs.
5. **Resize** the stored values in uint16, aspect kept, by area (linear where the image must grow). Averaging before
   the window is what the detector would have done with larger pixels, and the rounding (one stored level) is far
   below one level of the 8-bit image.
6. **Tones by table** on the small picture: ten times fewer look-ups than on the full one.
7. **Air**: outside the breast the image is exactly 0, through a soft edge, whatever the photometric
   interpretation, film fog or markers say.
8. **Flip** so that the chest wall is left; **pad** right, and top and bottom equally, with 0.
9. **Quantise** once, to uint8, rounding half to even.

Changing any of this changes bytes: raise `config.IMAGE_RECIPE_VERSION`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.decode import decode
from rsna_kit.dicom.frame import EncodedFrame, read_frame
from rsna_kit.imaging.breast import Box, box_of, keep_weight, segment
from rsna_kit.imaging.window import modality_values, tone_table
from rsna_kit.runtime.errors import RenderError

_THUMBNAIL = 512  # longer side of the picture the box is found on, at least
_SIGN = 0x8000


@dataclass(frozen=True)
class Rendered:
    """Door 5: `image` uint8 (height, width) and the `box` it shows, in full-resolution coordinates."""

    image: np.ndarray
    box: Box


def read_image(path: Path, image_id: str, image: ImageConfig) -> Rendered:
    """File to image: what `prepare` and `infer` both call.

    Raises:
        ImageError: the file cannot be read (stage header), decoded (decode) or holds no picture (render).
    """
    frame = read_frame(path, image_id)
    return render(decode(frame), frame, image)


def render(pixels: np.ndarray, frame: EncodedFrame, image: ImageConfig) -> Rendered:
    """Stored pixels to the image, in the order the module describes.

    Args:
        pixels: uint16 (rows, columns) bit patterns from `decode`.

    Raises:
        RenderError: constant pixels, or nothing that stands out from the air.
    """
    if pixels.dtype != np.uint16 or pixels.ndim != 2:
        raise RenderError(f"{frame.where}: got {pixels.dtype} {pixels.shape}, expected uint16 (rows, columns)")
    table = tone_table(pixels, frame, image)
    padding = frame.padding
    if frame.signed:  # to unsigned in the order of the values, so that averages are averages of values
        pixels, table = pixels ^ np.uint16(_SIGN), table[np.arange(65536) ^ _SIGN]
        padding = None if padding is None else (padding & 0xFFFF) ^ _SIGN
    pixels = _without_padding(pixels, padding, table)
    if pixels.min() == pixels.max():
        raise RenderError(f"{frame.where}: every pixel is {pixels[0, 0]}, expected a picture. Exclude the image")
    gray, step = _thumbnail(pixels, frame)
    parts = segment(gray)
    found = box_of(parts.breast, image.margin)
    if found is None:
        raise RenderError(f"{frame.where}: no breast stands out from the air. Look at it; exclude it if it is blank")
    box = found.scaled(step, *pixels.shape)
    scale = min(image.height / box.height, image.width / box.width)
    size = (max(1, min(image.width, round(box.width * scale))), max(1, min(image.height, round(box.height * scale))))
    crop = pixels[box.top : box.bottom, box.left : box.right]
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    weight = keep_weight(parts)[found.top : found.bottom, found.left : found.right]
    tones = table[small] * cv2.resize(weight, size, interpolation=cv2.INTER_LINEAR)
    return Rendered(_place(tones, box.flip, image), box)


def _without_padding(pixels: np.ndarray, padding: int | None, table: np.ndarray) -> np.ndarray:
    """Pixels with padding replaced by the darkest stored value that occurs besides it.

    Nothing is done, and nothing copied, when padding already is as dark as any value from the smallest to the
    largest: 0 in MONOCHROME2, the maximum in MONOCHROME1, as in the competition's files that are described.
    """
    low, high = int(pixels.min()), int(pixels.max())
    if padding is None or not low <= padding <= high or low == high:
        return pixels
    if table[padding] <= table[low : high + 1].min():
        return pixels
    present = np.zeros(65536, dtype=bool)
    present[pixels] = True
    present[padding] = False
    occurring = np.flatnonzero(present)
    darkest = occurring[np.argmin(table[occurring])]
    return np.where(pixels == padding, np.uint16(darkest), pixels)


def _thumbnail(pixels: np.ndarray, frame: EncodedFrame) -> tuple[np.ndarray, int]:
    """A gray picture of the stored range, air dark, by averaging whole blocks, and the side of a block.

    The range is what 99.8 % of its pixels span: a dead pixel or a marker must not set it.
    """
    step = max(1, max(pixels.shape) // _THUMBNAIL)
    rows, columns = (max(1, side // step) for side in pixels.shape)
    small = pixels[: rows * step, : columns * step]
    if step > 1:
        small = cv2.resize(small, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.uint16, copy=False)
    values = modality_values(small ^ np.uint16(_SIGN) if frame.signed else small, frame)
    if frame.photometric == "MONOCHROME1":
        values = -values
    low, high = np.percentile(values, (0.1, 99.9))
    if high <= low:
        low, high = values.min(), max(values.max(), values.min() + 1)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8), step


def _place(tones: np.ndarray, flip: bool, image: ImageConfig) -> np.ndarray:
    """Chest wall left, padded right and symmetric top and bottom, quantised."""
    canvas = np.zeros((image.height, image.width), dtype=np.uint8)
    rows, columns = tones.shape
    top = (image.height - rows) // 2
    canvas[top : top + rows, :columns] = np.rint((tones[:, ::-1] if flip else tones) * np.float32(255))
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


def decode_picture(encoded: bytes) -> np.ndarray:
    """The inverse: uint8 (h, w).

    Raises:
        ValueError: not a picture.
    """
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE) if encoded else None
    if image is None:
        raise ValueError(f"{len(encoded)} bytes are no PNG or JPEG picture")
    return image
