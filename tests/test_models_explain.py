"""Maps with known answers: a network whose every number is chosen, and the geometry of real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dicom_files import framed
from toy_networks import toy_mammogram, toy_network

from rsna_kit.config import ImageConfig, ModelConfig, preset, with_overrides
from rsna_kit.imaging.breast import Box
from rsna_kit.imaging.render import render
from rsna_kit.models.network import cell_centres
from rsna_lab.analysis.explain import (
    combine,
    draw_map,
    error_map,
    grad_cam,
    gradient_of_logit,
    peak,
    point_in_picture,
)

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf


# ---- Grad-CAM ----


def test_grad_cam_is_what_the_formula_says() -> None:
    """Mean gradients are kernel / cells, so the map is (grey * 3 - 1 * 0.5) / 32 where that is positive."""
    heat = grad_cam(toy_network((3.0, -0.5)))(toy_mammogram())
    assert heat.shape == (1, 64, 32)
    assert heat.dtype == np.float32
    cells = np.full((8, 4), 0.2)
    cells[5, 1] = 1.0
    cells[:, 3] = 0.0
    expected = np.maximum(3 * cells - 0.5, 0) / 32
    middles = heat[0, 3::8, 3::8] + heat[0, 4::8, 4::8]  # a cell's centre lies between two pixels
    np.testing.assert_allclose(
        middles[5, 1] / 2, expected[5, 1] * (15 / 16) ** 2 + expected[4, 1] / 16 + expected[5, 0] / 16, rtol=0.02
    )
    assert peak(heat[0], toy_mammogram()[0, ..., 0]) in {(r, c) for r in (43, 44) for c in (11, 12)}


def test_what_speaks_against_cancer_is_left_out() -> None:
    heat = grad_cam(toy_network((-1.0, 0.0)))(toy_mammogram())
    assert (heat == 0).all()
    assert peak(heat[0], toy_mammogram()[0, ..., 0]) is None


def test_a_network_for_breasts_is_asked_for_its_pictures_logit() -> None:
    maps = [grad_cam(toy_network((3.0, -0.5), columns))(toy_mammogram()) for columns in (1, 2)]
    assert maps[0].max() > 0
    np.testing.assert_array_equal(maps[0], maps[1])


def test_gradients_match_finite_differences() -> None:
    """Twin: the gradient of a head that is smooth and not linear, by differences."""
    keras.utils.set_random_seed(3)
    features, dense = keras.Input((4, 3, 5)), keras.layers.Dense
    pooled = keras.layers.GlobalAveragePooling2D()(dense(6, activation="tanh")(features))
    head = keras.Model(features, dense(1)(pooled))
    maps = np.random.default_rng(0).uniform(1, 2, size=(2, 4, 3, 5)).astype(np.float32)
    found = gradient_of_logit(head, maps)
    assert found.shape == maps.shape
    step = 0.05
    for place in [(0, 0, 0, 0), (0, 2, 1, 3), (1, 3, 2, 4)]:
        sides = []
        for sign in (1, -1):
            moved = maps.copy()
            moved[place] += sign * step
            sides.append(float(np.asarray(head(moved, training=False))[place[0], 0]))
        assert abs(found[place]) > 1e-3
        assert found[place] == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=0.02)


def strided(kernels: list[int], padding: str, explicit: bool = False) -> Any:
    """Convolutions of stride 2 that add up what they see."""
    picture = keras.Input((64, 48, 1))
    tensor = picture
    for kernel in kernels:
        if explicit:  # as keras.applications pads an even picture
            tensor = keras.layers.ZeroPadding2D(((kernel // 2 - 1, kernel // 2),) * 2)(tensor)
        layer = keras.layers.Conv2D(1, kernel, strides=2, padding=padding, use_bias=False, kernel_initializer="ones")
        tensor = layer(tensor)
    return keras.Model(picture, tensor)


@pytest.mark.parametrize(
    ("kernels", "padding", "explicit", "centre"),
    [([3, 3, 5], "same", False, 7.5), ([2, 2, 2], "valid", False, 4.0), ([3, 5, 3], "valid", True, 7.5)],
)
def test_cells_look_where_the_arithmetic_says(kernels: list[int], padding: str, explicit: bool, centre: float) -> None:
    """Twin: the middle of the pixels that move an inner cell, found by lighting each row of pixels."""
    trunk = strided(kernels, padding, explicit)
    down, across = cell_centres(trunk)
    assert down == across == (centre, 8.0)
    rows = np.eye(64, dtype=np.float32)[:, :, None, None] * np.ones((1, 1, 48, 1), np.float32)
    answer = np.asarray(trunk(rows))[:, 4, 3, 0]
    seen = float((answer * (np.arange(64) + 0.5)).sum() / answer.sum())
    assert seen == pytest.approx(centre + 4 * 8.0)


def test_the_cells_of_efficientnet_lite_look_half_a_cell_down_and_right() -> None:
    from rsna_kit.models.network import build_classifier, split_classifier

    model = ModelConfig(backbone="efficientnet_lite0", head="linear")
    trunk, _ = split_classifier(build_classifier(model, ImageConfig(height=64, width=96)))
    assert cell_centres(trunk) == ((31.5, 32.0), (31.5, 32.0))


# ---- reconstruction errors, and what all share ----


def test_the_error_map_has_each_cells_error_where_the_cell_looks() -> None:
    from rsna_kit.models.network import build_network

    config = with_overrides(preset("cvae"), ["image.height=64", "image.width=32", "model.weights=none"])
    network = build_network(config, config.image)
    cells = np.asarray(keras.Model(network.input, network.get_layer("cells").output)(toy_mammogram()))
    heat = error_map(network)(toy_mammogram())
    assert (heat.shape, heat.dtype) == ((1, 64, 32), np.float32)
    assert cells.max() > 0
    np.testing.assert_allclose(heat[:, 15::16, 15::16], cells, rtol=1e-5)  # the first looks at pixel 15.5


def test_maps_of_several_models_are_weighed_after_normalising() -> None:
    first = np.array([[[0, 4], [2, 0]]], np.float32)
    second = np.array([[[100, 0], [0, 0]]], np.float32)
    nothing = np.zeros((1, 2, 2), np.float32)
    assert combine([first, second]).tolist() == [[[0.5, 0.5], [0.25, 0]]]
    assert combine([first, second], [0.75, 0.25]).tolist() == [[[0.25, 0.75], [0.375, 0]]]
    assert combine([first, nothing]).tolist() == [[[0, 0.5], [0.25, 0]]]
    assert combine([nothing]).tolist() == nothing.tolist()
    assert combine([first]).dtype == np.float32


def test_the_peak_lies_on_the_breast() -> None:
    heat = np.array([[1, 9], [5, 2]], np.float32)
    picture = np.array([[7, 0], [7, 7]], np.uint8)
    assert peak(heat, picture) == (1, 0)
    assert peak(np.zeros((2, 2), np.float32), picture) is None
    assert peak(heat, np.zeros((2, 2), np.uint8)) is None


# ---- the picture with its map, and places in the full picture ----


def test_a_map_colours_only_tissue_where_it_is_strong_and_rings_its_peak() -> None:
    picture = np.full((40, 40), 100, np.uint8)
    picture[:, 30:] = 0
    heat = np.zeros((40, 40), np.float32)
    heat[:, :5], heat[20, 20], heat[0, 35] = 0.2, 1, 1
    drawn = draw_map(picture, heat)
    assert drawn[0, 0].tolist() == [100] * 3  # weak: the mammogram
    assert drawn[0, 35].tolist() == [0, 0, 0]  # air
    # plasma ends in yellow, 240 249 33
    assert drawn[20, 20].tolist() == [round(30 + 0.7 * 240), round(30 + 0.7 * 249), round(30 + 0.7 * 33)]
    assert drawn[20, 25].min() > 150
    assert draw_map(picture, np.zeros_like(heat))[20, 25].tolist() == [100] * 3
    with pytest.raises(ValueError, match="expected uint8"):
        draw_map(picture.astype(np.float32), heat)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("size", [(128, 64), (64, 128), (600, 300)])  # tall, flat, enlarged
def test_a_point_goes_back_to_where_the_full_picture_has_it(right: bool, size: tuple[int, int]) -> None:
    """Against `render` itself: the middle of the bright dot that it shows."""
    y, x = np.mgrid[:400, :300]
    pixels = np.where(np.hypot((y - 190) / 150, x / 200) < 1, 1200, 0).astype(np.uint16)
    pixels[np.hypot(y - 210, x - 110) <= 12] = 3600
    stored = np.ascontiguousarray(pixels[:, ::-1] if right else pixels)
    image = ImageConfig(height=size[0], width=size[1])
    rendered = render(stored, framed(stored), image)
    assert rendered.box.flip == right
    row, column = np.mean(np.nonzero(rendered.image > 150), axis=1)
    found = point_in_picture(round(row), round(column), rendered.box, image)
    assert np.hypot(found[0] - 210, found[1] - (189 if right else 110)) < 6


def test_a_point_of_the_padding_gives_the_nearest_of_the_box() -> None:
    box, image = Box(1, 5, 5, 7, True), ImageConfig(height=4, width=4)
    assert point_in_picture(0, 0, box, image) == (1, 6)
    assert point_in_picture(3, 3, box, image) == point_in_picture(3, 1, box, image) == (4, 5)
