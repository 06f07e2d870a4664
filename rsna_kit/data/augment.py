"""An image and a seed → a slightly different image (training only).

Every recipe keeps what the image promises. The chest wall stays left: no recipe flips horizontally, not even
`winner`, whose source does so because its pictures show left and right breasts as they are; rendering has mirrored
ours, and a picture with the wall on the right is one that inference never sees. Air stays 0: geometry moves air with
the breast, cuts and holes become air, and what changes grey levels is undone wherever the moved picture is 0.

Same image and seed, same bytes: in any thread, after any other seed, and without a look at global random state.
A recipe of one's own is two functions here and a line in `RECIPES`; `data.augment` takes its name.
"""

from __future__ import annotations

import math
import os
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rsna_kit.runtime.errors import named
from rsna_kit.runtime.lazy import require

Range = tuple[float, float]
Augmentation = Callable[[np.ndarray, int], np.ndarray]
Transforms = Callable[[Any], list[Any]]  # from the package albumentations


def build_augmentation(name: str) -> Augmentation:
    """The named recipe as a function of a uint8 (h, w) image and a seed of at least 0, giving uint8 (h, w).

    The image is never written to; an image that a recipe leaves as it is may be returned itself.

    Raises:
        UsageError: an unknown name.
    """
    if (recipe := named("data.augment", name, RECIPES)) is not None:
        return _Augmentation(recipe)
    return lambda image, seed: image[::-1] if name == "flip" and flips(seed) else image


def flips(seed: int) -> bool:
    """Whether the recipe `"flip"` turns the image upside down for this seed: every other seed."""
    return bool(seed & 1)


class Recipe(NamedTuple):
    """Two lists of Albumentations transforms."""

    geometry: Transforms  # where a pixel goes
    tone: Transforms  # what becomes of its grey level
    share: float  # of the pictures that are changed at all


class _Augmentation:
    """Albumentations objects hold their own random state, so each thread has its own pair."""

    def __init__(self, recipe: Recipe) -> None:
        # Otherwise the import asks the network for a newer version.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        self._albumentations = require("albumentations", "train")
        self._recipe, self._local = recipe, threading.local()

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        # set_random_seed would give every transform the same numbers: each flip would come with the same change of
        # tone, and what is drawn with one probability would always come together.
        generator, draw = np.random.default_rng(seed), random.Random(seed)
        if draw.random() >= self._recipe.share:
            return image
        if not hasattr(self._local, "pair"):
            compose = self._albumentations.Compose
            self._local.pair = [compose(build(self._albumentations)) for build in self._recipe[:2]]
        geometry, tone = self._local.pair
        geometry.set_random_state(generator, draw)
        tone.set_random_state(generator, draw)
        moved = geometry(image=image)["image"]
        toned = tone(image=moved)["image"]
        return np.where(moved == 0, np.uint8(0), toned)


def _light_geometry(albumentations: Any) -> list[Any]:
    return [
        albumentations.VerticalFlip(p=0.5),
        albumentations.Affine(
            scale=(0.9, 1.1),
            rotate=(-10, 10),
            translate_percent={"x": (-0.03, 0.03), "y": (-0.05, 0.05)},
            fill=0,
            p=0.8,
        ),
        albumentations.CoarseDropout(
            num_holes_range=(1, 4), hole_height_range=(0.03, 0.10), hole_width_range=(0.03, 0.10), fill=0, p=0.2
        ),
    ]


def _light_tone(albumentations: Any) -> list[Any]:
    return [
        albumentations.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.15, p=0.5),
        albumentations.RandomGamma(gamma_limit=(80, 125), p=0.5),
        albumentations.OneOf(
            [
                albumentations.GaussianBlur(sigma_limit=(0.3, 0.8), blur_limit=0, p=1.0),
                albumentations.GaussNoise(std_range=(0.005, 0.02), p=1.0),
            ],
            p=0.2,
        ),
    ]


def _winner_geometry(albumentations: Any) -> list[Any]:
    """What the 2023 winner's training did to a picture's geometry, with the numbers of its code.

    Source: github.com/dangnh0611/kaggle_rsna_breast_cancer (MIT), exp7_fully_reproduce.py. Three things differ: no
    horizontal flip (above); geometry comes before tone, so that air can be kept; and no elastic transform: theirs moved
    a pixel by a hundredth of a pixel, and the whole picture by an affine map, whose share is larger here.
    """
    return [
        _crop_without_resize(albumentations, share=(0.5, 1.0), aspect=(0.5, 0.8), p=0.4),
        albumentations.VerticalFlip(p=0.5),
        albumentations.OneOf(
            [
                albumentations.Affine(
                    scale=(0.85, 1.15),
                    rotate=(-30, 30),
                    translate_percent={"x": (-0.1, 0.1), "y": (-0.2, 0.2)},
                    keep_ratio=True,
                    fill=0,
                    p=0.8,
                ),
                albumentations.GridDistortion(num_steps=5, distort_limit=0.3, fill=0, p=0.2),
            ],
            p=0.5,
        ),
        albumentations.CoarseDropout(
            num_holes_range=(1, 6), hole_height_range=(0.05, 0.15), hole_width_range=(0.10, 0.25), fill=0, p=0.25
        ),
    ]


def _winner_tone(albumentations: Any) -> list[Any]:
    """The same source's tone changes."""
    return [
        albumentations.Downscale(  # a coarser detector; 1 is OpenCV's INTER_LINEAR
            scale_range=(0.75, 0.95), interpolation_pair={"downscale": 1, "upscale": 1}, p=0.125
        ),
        albumentations.OneOf(
            [
                albumentations.RandomToneCurve(scale=0.3, p=0.5),
                albumentations.RandomBrightnessContrast(
                    brightness_limit=(-0.1, 0.2), contrast_limit=(-0.4, 0.5), brightness_by_max=True, p=0.5
                ),
            ],
            p=0.5,
        ),
    ]


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


def _crop_without_resize(albumentations: Any, share: Range, aspect: Range, p: float) -> Any:
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


RECIPES: Mapping[str, Recipe | None] = {
    "light": Recipe(_light_geometry, _light_tone, 1.0),
    "winner": Recipe(_winner_geometry, _winner_tone, 0.9),
    "flip": None,  # see `flips`
    "none": None,
}
