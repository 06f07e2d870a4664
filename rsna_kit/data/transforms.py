"""Albumentations transforms that the package lacks or has only in a slow form: a crop that keeps its scale, elastic.

Both draw from the random state that `Compose.set_random_state` gives them, and take and give uint8 (h, w).
"""

from __future__ import annotations

import math
import random
from typing import Any

import cv2
import numpy as np

Range = tuple[float, float]
_GRID = 1 / 8  # of the picture's height: how far apart the points are that `elastic` moves


def crop_box(height: int, width: int, share: Range, aspect: Range, draw: random.Random) -> tuple[int, int, int, int]:
    """A random rectangle inside a picture.

    Args:
        height, width: of the picture, pixels.
        share: least and most of the picture's area; the drawn share is uniform between them, for any picture.
        aspect: least and most width / height; drawn log-uniformly from what fits into the picture, and the nearest
            that fits when nothing between them does.
        draw: where the randomness comes from.

    Returns:
        Top, left, height, width in pixels.
    """
    part = draw.uniform(*share)
    fits = part * width / height, width / height / part
    low, high = (min(max(bound, fits[0]), fits[1]) for bound in aspect)
    ratio = math.exp(draw.uniform(math.log(low), math.log(high)))
    area = part * height * width
    rows, columns = min(round(math.sqrt(area / ratio)), height), min(round(math.sqrt(area * ratio)), width)
    return draw.randint(0, height - rows), draw.randint(0, width - columns), rows, columns


def crop_without_resize(albumentations: Any, share: Range, aspect: Range, p: float) -> Any:
    """A transform that keeps a random rectangle (`crop_box`) at its scale and makes the rest air.

    The rectangle is placed as rendering places a breast: at the left edge, in the middle between top and bottom.
    """

    class CropWithoutResize(albumentations.ImageOnlyTransform):
        def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            height, width = params["shape"][:2]
            return {"box": crop_box(height, width, share, aspect, self.py_random)}

        def apply(self, img: np.ndarray, box: tuple[int, int, int, int], **params: Any) -> np.ndarray:
            top, left, rows, columns = box
            cropped, start = np.zeros_like(img), (img.shape[0] - rows) // 2
            cropped[start : start + rows, :columns] = img[top : top + rows, left : left + columns]
            return cropped

    return CropWithoutResize(p=p)


def elastic(albumentations: Any, strength: float, p: float) -> Any:
    """A transform that moves the points of a coarse grid at random, and what lies between them smoothly.

    As in Ronneberger et al., U-Net, 2015: Gaussian displacements on a coarse grid, bicubic between the points.
    Albumentations' own `ElasticTransform` blurs noise at full size with a kernel as wide as the smoothness that is
    wanted: some thirty times the CPU time for a picture of 1536x768.

    Args:
        albumentations: the package.
        strength: standard deviation of the displacements in rows and columns, as a share of the picture's height.
        p: share of the pictures.
    """

    class Elastic(albumentations.ImageOnlyTransform):
        def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            height, width = params["shape"][:2]
            points = 1 + round(1 / _GRID), 1 + max(1, round(width / height / _GRID))
            return {"moves": self.random_generator.standard_normal((*points, 2), np.float32) * strength * height}

        def apply(self, img: np.ndarray, moves: np.ndarray, **params: Any) -> np.ndarray:
            height, width = img.shape[:2]
            columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
            moves = cv2.resize(moves, (width, height), interpolation=cv2.INTER_CUBIC)
            return cv2.remap(
                img, moves[..., 0] + columns, moves[..., 1] + rows, cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT, borderValue=0,
            )  # fmt: skip

    return Elastic(p=p)
