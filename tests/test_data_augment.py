from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rsna_kit.data.augment import RECIPES, Augmentation, Recipe, build_augmentation, crop_box, flips
from rsna_kit.runtime.errors import UsageError

albumentations = pytest.importorskip("albumentations")

Both = tuple[str, Augmentation]
DRAWN = [name for name, recipe in RECIPES.items() if recipe is not None]


@pytest.fixture(scope="module", params=DRAWN)
def recipe(request: pytest.FixtureRequest) -> Both:
    return request.param, build_augmentation(request.param)


@pytest.fixture(scope="module")
def breast() -> np.ndarray:
    """Bright on the left, air on the right; read-only as cached pictures are."""
    picture = np.zeros((96, 48), np.uint8)
    picture[8:88, :24] = np.random.default_rng(0).integers(60, 200, (80, 24), np.uint8)
    picture.setflags(write=False)
    return picture


def test_one_seed_gives_one_picture_in_any_thread_and_order(recipe: Both, breast: np.ndarray) -> None:
    name, augment = recipe
    seeds = list(range(120))
    alone = [augment(breast, seed) for seed in seeds]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda seed: augment(breast, seed), reversed(seeds)))
    fresh = [build_augmentation(name)(breast, seed) for seed in seeds[:10]]
    np.testing.assert_array_equal(alone, threaded[::-1])
    np.testing.assert_array_equal(alone[:10], fresh)


def test_global_random_state_is_neither_read_nor_written(recipe: Both, breast: np.ndarray) -> None:
    _, augment = recipe
    pictures = []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)
        before = random.getstate(), np.random.get_state()[1].copy()
        pictures.append([augment(breast, seed) for seed in range(40)])
        assert random.getstate() == before[0]
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    np.testing.assert_array_equal(*pictures)


def test_seeds_give_different_pictures(recipe: Both, breast: np.ndarray) -> None:
    name, augment = recipe
    pictures = [augment(breast, seed).tobytes() for seed in range(120)]
    unchanged = pictures.count(breast.tobytes())
    assert len(set(pictures)) > (80 if name == "winner" else 100)
    # The winner's changes are each rare: 1 in 10 is left alone, and so are some of the rest.
    assert unchanged <= (40 if name == "winner" else 4)


@pytest.mark.parametrize("shape", [(96, 48), (64, 64), (40, 90)])
def test_pictures_stay_uint8_of_their_shape(recipe: Both, shape: tuple[int, int]) -> None:
    _, augment = recipe
    picture = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    for seed in range(40):
        image = augment(picture, seed)
        assert (image.dtype, image.shape) == (np.uint8, shape)


def test_the_chest_wall_stays_left(recipe: Both, breast: np.ndarray) -> None:
    """A horizontal flip would undo what rendering did."""
    _, augment = recipe
    for seed in range(60):
        image = augment(breast, seed)
        assert image[:, :24].mean() > 1.2 * image[:, 24:].mean()


@pytest.mark.parametrize("parts", DRAWN)
def test_air_stays_black(parts: str, breast: np.ndarray) -> None:
    """Brightness, contrast, noise and CLAHE would lift it: geometry alone may put tissue where air was."""
    augment = build_augmentation(parts)
    for seed in range(60):
        assert not augment(np.zeros_like(breast), seed).any()


@pytest.mark.parametrize("name", DRAWN)
def test_grey_levels_change_nothing_but_the_breast(name: str, breast: np.ndarray) -> None:
    """A recipe without its geometry: air is where it was, and the breast is another."""
    augment = build_augmentation(name)
    augment._recipe = augment._recipe._replace(geometry=lambda albumentations: [])  # type: ignore[attr-defined]
    images = [augment(breast, seed) for seed in range(100)]
    assert not np.any(images, axis=0)[breast == 0].any()
    assert len({image.tobytes() for image in images}) > (30 if name == "winner" else 70)


def test_a_recipe_of_ones_own_is_one_line_and_its_flips_and_tones_are_independent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Albumentations' set_random_seed gives every transform the same numbers, so a flip always came with a tone."""
    recipe = Recipe(
        geometry=lambda package: [package.VerticalFlip(p=0.5)],
        tone=lambda package: [package.OneOf([package.RandomGamma(gamma_limit=(60, 60), p=1.0)], p=0.5)],
        share=0.9,
    )
    monkeypatch.setattr("rsna_kit.data.augment.RECIPES", {"own": recipe})
    half = np.full((32, 16), 100, np.uint8)
    half[:16] = 120
    seen = [build_augmentation("own")(half, seed) for seed in range(400)]
    assert 0.86 < np.mean([image is not half for image in seen]) < 0.94
    flipped = np.array([image[0, 0] < image[-1, 0] for image in seen])
    toned = np.array([image.max() != 120 for image in seen])
    counts = np.bincount(2 * flipped + toned, minlength=4)
    assert counts.min() > 60, counts


def test_a_breast_is_never_lost(recipe: Both, breast: np.ndarray) -> None:
    """The crop keeps half of a picture, the rest moves and cuts less: tissue is left to learn from."""
    _, augment = recipe
    tissue = [np.count_nonzero(augment(breast, seed)) / np.count_nonzero(breast) for seed in range(150)]
    assert min(tissue) > 0.25
    assert max(tissue) < 1.7
    assert 0.75 < np.mean(tissue) < 1.05


@pytest.mark.parametrize("shape", [(2000, 1000), (1000, 1000), (1000, 2500)])
def test_the_crop_keeps_half_to_all_of_the_picture(shape: tuple[int, int]) -> None:
    """Its share is uniform whatever the shape; its aspect is the asked for one where that fits."""
    height, width = shape
    draw, shares, inside = random.Random(3), [], 0
    for _ in range(2000):
        top, left, rows, columns = crop_box(height, width, (0.5, 1.0), (0.5, 0.8), draw)
        assert 0 <= top <= height - rows
        assert 0 <= left <= width - columns
        shares.append(rows * columns / (height * width))
        inside += 0.499 < columns / rows < 0.801
    assert min(shares) > 0.498
    np.testing.assert_allclose(np.quantile(shares, [0.25, 0.5, 0.75, 1]), [0.625, 0.75, 0.875, 1], atol=0.03)
    assert inside / 2000 > {2000: 0.99, 1000: 0.55}[height] or width > height


def test_the_crop_keeps_its_scale_and_lies_where_a_breast_lies() -> None:
    """Left edge, middle of the height, the rest air: found by its own numbers, no pixel is resampled."""
    picture = np.arange(1, 20 * 10 + 1, dtype=np.uint8).reshape(20, 10)
    winner = RECIPES["winner"]
    assert winner is not None
    [crop, *_] = winner.geometry(albumentations)
    compose = albumentations.Compose([crop])
    places = set()
    for seed in range(40):
        compose.set_random_seed(seed)
        cropped = compose(image=picture)["image"]
        if np.array_equal(cropped, picture):
            continue  # six in ten
        rows, columns = np.flatnonzero(cropped[:, 0]), np.flatnonzero(cropped[cropped.shape[0] // 2])
        assert columns[0] == 0
        assert abs(rows[0] - (19 - rows[-1])) <= 1
        box = cropped[rows[0] : rows[-1] + 1, : columns[-1] + 1]
        assert np.count_nonzero(cropped) == box.size
        np.testing.assert_array_equal(box - box[0, 0], picture[: box.shape[0], : box.shape[1]] - 1)
        places.add(int(box[0, 0]))
    assert len(places) > 5


def test_flip_turns_every_other_seed_upside_down(breast: np.ndarray) -> None:
    assert build_augmentation("none")(breast, 1) is breast
    augment = build_augmentation("flip")
    np.testing.assert_array_equal(augment(breast, 7), breast[::-1])
    assert augment(breast, 8) is breast
    assert [flips(seed) for seed in range(4)] == [False, True, False, True]


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(UsageError, match=r"got 'wimner', expected one of light, winner, flip, none\..*'winner'"):
        build_augmentation("wimner")
