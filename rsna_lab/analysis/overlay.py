"""Lesion masks and points between the full picture and the image a model sees; a map drawn over its mammogram.

`render` cuts a box out of the full picture, scales it, mirrors it where the chest wall is right, and places it in the
image. A mask of the same picture goes the same way, and a point that was found on the image goes back.
"""

from __future__ import annotations

import cv2
import numpy as np

from rsna_kit.config import ImageConfig
from rsna_kit.imaging.breast import Box

_WEAK = 1 / 3  # below this share of its maximum a map is not drawn
_OPACITY = 0.7  # how far the strongest colour covers the picture
_VERMILION = (213, 94, 0)  # Okabe and Ito: told apart from the map's blue to yellow with any colour vision


def mask_to_image(mask: np.ndarray, box: Box, image: ImageConfig) -> np.ndarray:
    """A mask of the full picture as the image shows it.

    Args:
        mask: (rows, columns) of the full picture, more than 0 inside.
        box: of the rendered picture.
        image: the section it was rendered with.

    Returns:
        bool (height, width): the pixels at least half covered. A mask too small for that keeps the pixel that it covers
        most; one outside the box is empty.
    """
    rows, columns = box.fitted(image.height, image.width)
    crop = (mask[box.top : box.bottom, box.left : box.right] > 0).astype(np.float32)
    if crop.shape != (box.height, box.width):
        raise ValueError(f"mask {mask.shape} does not hold {box}: it is not of the picture that was rendered")
    grows = rows > box.height or columns > box.width
    small = cv2.resize(crop, (columns, rows), interpolation=cv2.INTER_LINEAR if grows else cv2.INTER_AREA)
    share = np.zeros((image.height, image.width), np.float32)
    top = (image.height - rows) // 2
    share[top : top + rows, :columns] = small[:, ::-1] if box.flip else small
    return (share >= min(0.5, float(share.max()))) & (share > 0)


def point_in_picture(row: int, column: int, box: Box, image: ImageConfig) -> tuple[int, int]:
    """Row and column of the full picture in the middle of what one pixel of the image shows.

    A pixel of the padding gives the nearest point of the box.
    """
    rows, columns = box.fitted(image.height, image.width)
    down = (row - (image.height - rows) // 2 + 0.5) / rows
    across = (column + 0.5) / columns
    across = 1 - across if box.flip else across
    return (
        box.top + int(np.clip(down * box.height, 0, box.height - 1)),
        box.left + int(np.clip(across * box.width, 0, box.width - 1)),
    )


def draw_map(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A map in colour over its mammogram.

    The colours are matplotlib's plasma, dark blue to yellow: perceptually uniform, readable with any colour vision,
    and never grey as the mammogram is. The weakest third of the range is not drawn, so that the tissue stays to be
    seen; air stays black.

    Args:
        picture: uint8 (h, w), air 0.
        heat: float (h, w) in [0, 1].

    Returns:
        uint8 (h, w, 3), red, green, blue.
    """
    if picture.shape != heat.shape or picture.dtype != np.uint8:
        raise ValueError(f"got a {picture.dtype} picture {picture.shape} and a map {heat.shape}, expected uint8, equal")
    strength = np.clip(heat, 0, 1).astype(np.float32)
    colours = cv2.applyColorMap(np.rint(strength * 255).astype(np.uint8), cv2.COLORMAP_PLASMA)[..., ::-1]
    cover = _OPACITY * np.clip((strength - _WEAK) / (1 - _WEAK), 0, 1) * (picture > 0)
    mixed = picture[..., None] * (1 - cover[..., None]) + colours * cover[..., None]
    return np.rint(mixed).astype(np.uint8)


def draw_outline(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The outline of a mask, bool (h, w), drawn one pixel wide on a copy of a picture, uint8 (h, w) or (h, w, 3)."""
    drawn = np.ascontiguousarray(picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)).copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, _VERMILION, 1)
    return drawn


def draw_peak(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """A ring around a point, white in black so that it shows on any ground, on a copy of uint8 (h, w, 3)."""
    drawn = np.ascontiguousarray(picture).copy()
    radius = max(5, round(max(picture.shape) / 50))
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.circle(drawn, (column, row), radius, colour, thickness, cv2.LINE_AA)
    return drawn
