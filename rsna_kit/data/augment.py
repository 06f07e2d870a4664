"""An image and a seed to a slightly different image (training only).

The recipe keeps what the image promises: the chest wall stays left, so there is no horizontal flip; air stays 0,
so grey-level changes and blur are undone where the moved picture is 0. Same image and seed, same bytes, in any
thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.lazy import require

Augmentation = Callable[[np.ndarray, int], np.ndarray]


def build_augmentation(name: str) -> Augmentation:
    """The named recipe as a function of a uint8 (h, w) image and a seed, giving uint8 (h, w).

    Args:
        name: `"light"` (Albumentations), `"flip"` (see `flips`) or `"none"`.

    Raises:
        UsageError: another name.
    """
    if name == "none":
        return lambda image, seed: image
    if name == "flip":
        return lambda image, seed: image[::-1] if flips(seed) else image
    if name != "light":
        raise UsageError(f"data.augment: got {name!r}, expected one of light, flip, none")
    return _Light()


def flips(seed: int) -> bool:
    """Whether the recipe `"flip"` turns the image upside down for this seed: every other seed."""
    return bool(seed & 1)


class _Light:
    """Albumentations objects hold their own random state, so each thread has its own pair."""

    def __init__(self) -> None:
        # Otherwise the import asks the network for a newer version.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        self._albumentations = require("albumentations", "train")
        self._local = threading.local()

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        if not hasattr(self._local, "pair"):
            self._local.pair = _geometry(self._albumentations), _tone(self._albumentations)
        geometry, tone = self._local.pair
        geometry.set_random_seed(seed)
        tone.set_random_seed(seed)
        moved = geometry(image=image)["image"]
        toned = tone(image=moved)["image"]
        return np.where(moved == 0, np.uint8(0), toned)


def _geometry(albumentations: Any) -> Any:
    return albumentations.Compose(
        [
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
    )


def _tone(albumentations: Any) -> Any:
    return albumentations.Compose(
        [
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
    )
