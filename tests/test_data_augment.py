from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rsna_kit.data.augment import Augmentation, build_augmentation
from rsna_kit.runtime.errors import UsageError

pytest.importorskip("albumentations")


@pytest.fixture(scope="module")
def light() -> Augmentation:
    return build_augmentation("light")


@pytest.fixture(scope="module")
def breast() -> np.ndarray:
    """Bright on the left, air on the right; read-only as cached pictures are."""
    picture = np.zeros((96, 48), np.uint8)
    picture[8:88, :30] = np.random.default_rng(0).integers(60, 200, (80, 30), np.uint8)
    picture.setflags(write=False)
    return picture


def test_one_seed_gives_one_picture_in_any_thread_and_order(light: Augmentation, breast: np.ndarray) -> None:
    seeds = list(range(60))
    alone = [light(breast, seed) for seed in seeds]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda seed: light(breast, seed), reversed(seeds)))
    fresh = [build_augmentation("light")(breast, seed) for seed in seeds[:5]]
    np.testing.assert_array_equal(alone, threaded[::-1])
    np.testing.assert_array_equal(alone[:5], fresh)


def test_seeds_give_different_pictures(light: Augmentation, breast: np.ndarray) -> None:
    pictures = {light(breast, seed).tobytes() for seed in range(60)}
    assert len(pictures) > 50


def test_the_chest_wall_stays_left(light: Augmentation, breast: np.ndarray) -> None:
    """A horizontal flip would undo what rendering did."""
    for seed in range(200):
        image = light(breast, seed)
        assert image.shape == breast.shape
        assert image.dtype == np.uint8
        assert image[:, :24].mean() > 2 * image[:, 24:].mean()


def test_air_stays_black(light: Augmentation, breast: np.ndarray) -> None:
    """Brightness, contrast and noise would lift it. The far right is air wherever the picture is moved."""
    for seed in range(200):
        assert not light(breast, seed)[:, 44:].any()
        assert not light(np.zeros_like(breast), seed).any()


def test_grey_levels_and_geometry_both_change(light: Augmentation, breast: np.ndarray) -> None:
    flat = np.where(breast > 0, np.uint8(120), np.uint8(0))
    images = [light(flat, seed) for seed in range(60)]
    assert len({int(np.median(image[image > 0])) for image in images}) > 10
    assert len({int((image > 0).sum()) for image in images}) > 10


def test_none_changes_nothing(breast: np.ndarray) -> None:
    assert build_augmentation("none")(breast, 1) is breast


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(UsageError, match="got 'heavy', expected one of light, flip, none"):
        build_augmentation("heavy")
