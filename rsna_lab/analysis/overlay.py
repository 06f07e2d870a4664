"""Masks and maps between the full picture and the image a model sees; a map drawn over its mammogram.

`render` cuts a box out of the full picture, scales it, mirrors it where the chest wall is right, and places it in the
image. Here any other plane of the same picture (a lesion mask) goes the same way, and what was found on the image (a
map, a point) goes back. `Box` and the image section say all that is needed.
"""

from __future__ import annotations

import cv2
import numpy as np

from rsna_kit.config import ImageConfig
from rsna_kit.imaging.breast import Box

_WEAK = 1 / 3  # below this share of its maximum a map is not drawn
_OPACITY = 0.7  # how far the strongest colour covers the picture
_VERMILION = (213, 94, 0)  # Okabe and Ito: told apart from the map's blue to yellow with any colour vision


def to_image(plane: np.ndarray, box: Box, image: ImageConfig) -> np.ndarray:
    """A plane of the full picture as the image shows it.

    Args:
        plane: (rows, columns) of the full picture; any numbers, or bool for a mask.
        box: of the rendered picture.
        image: the section it was rendered with.

    Returns:
        float32 (height, width): each pixel the average of what it covers (a mask's share), linear where the picture
        was enlarged; 0 outside the box.
    """
    rows, columns = box.fitted(image.height, image.width)
    crop = plane[box.top : box.bottom, box.left : box.right].astype(np.float32)
    if crop.shape != (box.height, box.width):
        raise ValueError(f"plane {plane.shape} does not hold {box}: it is not of the picture that was rendered")
    grows = rows > box.height or columns > box.width
    small = cv2.resize(crop, (columns, rows), interpolation=cv2.INTER_LINEAR if grows else cv2.INTER_AREA)
    placed = np.zeros((image.height, image.width), np.float32)
    top = (image.height - rows) // 2
    placed[top : top + rows, :columns] = small[:, ::-1] if box.flip else small
    return placed


def mask_to_image(mask: np.ndarray, box: Box, image: ImageConfig) -> np.ndarray:
    """A mask of the full picture on the image: bool (height, width), the pixels at least half covered.

    A mask too small to cover half a pixel keeps the pixel that it covers most; one outside the box is empty.
    """
    share = to_image(mask > 0, box, image)
    return (share >= min(0.5, float(share.max()))) & (share > 0)


def to_picture(plane: np.ndarray, box: Box, image: ImageConfig, shape: tuple[int, int]) -> np.ndarray:
    """The inverse: a map on the image, laid over the full picture.

    Args:
        plane: float (height, width) of the image section.
        box: of the rendered picture.
        image: the section it was rendered with.
        shape: rows and columns of the full picture.

    Returns:
        float32 of `shape`, interpolated linearly; 0 outside the box.
    """
    if plane.shape != (image.height, image.width):
        raise ValueError(f"plane: got {plane.shape}, expected {(image.height, image.width)} of the image section")
    rows, columns = box.fitted(image.height, image.width)
    top = (image.height - rows) // 2
    small = plane[top : top + rows, :columns].astype(np.float32)
    shrinks = rows > box.height or columns > box.width
    large = cv2.resize(
        np.ascontiguousarray(small[:, ::-1] if box.flip else small),
        (box.width, box.height),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    full = np.zeros(shape, np.float32)
    full[box.top : box.bottom, box.left : box.right] = large
    return full


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
