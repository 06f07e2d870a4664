"""Maps with known answers: a network whose every number is chosen, and the geometry of real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_networks import SIZE, toy_mammogram, toy_network

from rsna_kit.config import Config, CvaeConfig, ImageConfig, ModelConfig
from rsna_kit.runtime.errors import UsageError
from rsna_lab.analysis import explain
from rsna_lab.analysis.explain import (
    build_explainer,
    cell_centres,
    combine,
    error_map,
    grad_cam,
    local_mean,
    occlusion,
    peak,
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
    found = explain.gradient_of_logit(head, maps)
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
            tensor = keras.layers.ZeroPadding2D(((kernel // 2 - 1, kernel // 2), (kernel // 2 - 1, kernel // 2)))(
                tensor
            )
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


def test_jax_draws_the_same_map(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    expected = grad_cam(toy_network((3.0, -0.5)))(toy_mammogram())
    code = (
        "import sys, keras, numpy as np; from toy_networks import toy_mammogram, toy_network\n"
        "from rsna_lab.analysis.explain import grad_cam\n"
        "maps = grad_cam(toy_network((3.0, -0.5)))(toy_mammogram())\n"
        "assert keras.backend.backend() == 'jax'; np.save(sys.argv[1], maps)"
    )
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, str(tmp_path / "maps.npy")]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    np.testing.assert_allclose(np.load(tmp_path / "maps.npy"), expected, rtol=1e-5, atol=1e-8)


# ---- occlusion ----


class Brightest:
    """A network whose logit is the brightest pixel; remembers how many pictures of tissue it saw."""

    def __init__(self) -> None:
        self.seen = 0

    def predict_on_batch(self, pictures: np.ndarray) -> np.ndarray:
        assert pictures.shape == (16, *SIZE, 1)
        assert pictures.dtype == np.uint8
        self.seen += int(pictures.any(axis=(1, 2, 3)).sum())
        return pictures.max(axis=(1, 2, 3)).astype(np.float32)[:, None] / 10


def test_hiding_the_lesion_lowers_the_logit_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "_PATCH", 1 / 4)  # as large as the lesion
    picture = toy_mammogram()
    heat = occlusion(Brightest(), 16)(picture)
    assert heat.shape == (1, 64, 32)
    assert heat.dtype == np.float32
    row, column = peak(heat[0], picture[0, ..., 0]) or (-1, -1)
    assert 40 <= row < 48
    assert 8 <= column < 16
    lowest, highest = heat[0, :24].max(), heat.max()
    assert lowest == 0  # squares that do not cover the lesion change nothing
    assert 5 < highest < 25.5  # the local mean is left, no black hole


def test_squares_of_air_are_not_tried() -> None:
    scorer = Brightest()
    occlusion(scorer, 16)(toy_mammogram())
    assert scorer.seen == 1 + 31 * 12  # the picture itself, and the squares of 4 x 4, 2 apart, that show tissue


def test_the_local_mean_knows_no_air() -> None:
    picture = np.zeros((20, 20), np.uint8)
    picture[:, :10] = 100
    picture[8:12, 2:6] = 200
    filled = local_mean(picture, 5)
    assert (filled[:, 10:] == 0).all()
    assert (filled[0:5, 7:10] == 100).all()  # beside air it is not darker
    assert filled[10, 4] == round((16 * 200 + 4 * 100 + 5 * 100) / 25)  # rows 8 to 12, columns 2 to 6


# ---- reconstruction errors, and what all share ----


def test_the_error_map_shows_what_the_autoencoder_cannot_make() -> None:
    from rsna_kit.models.cvae import build_cvae

    keras.utils.set_random_seed(0)
    cvae = build_cvae(CvaeConfig(latent=2, filters=2), ImageConfig(height=64, width=32))
    heat = error_map(cvae.network)(toy_mammogram())
    assert heat.shape == (1, 64, 32)
    row, column = peak(heat[0], toy_mammogram()[0, ..., 0]) or (-1, -1)
    assert 40 <= row < 48
    assert 8 <= column < 16


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


def test_methods_belong_to_kinds_of_models(bundle: Path) -> None:
    from rsna_kit.models.bundle import Bundle, open_bundle

    opened = open_bundle(bundle)
    with pytest.raises(UsageError, match="expected one of grad-cam, occlusion, error"):
        build_explainer(opened, "lime", 1)
    with pytest.raises(UsageError, match="is of kind image"):
        build_explainer(opened, "error", 1)
    cvae = Bundle(bundle, Config(model=ModelConfig(kind="cvae")), 0.5, {})
    with pytest.raises(UsageError, match="is of kind cvae"):
        build_explainer(cvae, "grad-cam", 1)
