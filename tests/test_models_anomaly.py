from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from rsna_kit.config import PRIOR
from rsna_kit.models.cvae import anomaly_score, inside_breast
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.training.learner import CALIBRATION_PICTURES, calibrate_cvae

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf


def inside(picture: np.ndarray) -> np.ndarray:
    return np.asarray(inside_breast(picture[None, ..., None].astype(np.float32)))[0, ..., 0]


def test_inside_leaves_out_the_rim_but_not_the_chest_wall() -> None:
    picture = np.zeros((20, 16), np.float32)
    picture[:, :10] = 0.4  # chest wall on the left, breast from the top to the bottom
    expected = np.zeros((20, 16), np.float32)
    expected[:, :8] = 1
    np.testing.assert_array_equal(inside(picture), expected)


def test_holes_belong_to_the_inside_and_large_gaps_do_not() -> None:
    picture = np.full((31, 31), 0.4, np.float32)
    picture[8:12, 8:12] = 0
    assert inside(picture).all()
    picture[8:20, 8:20] = 0
    assert not inside(picture)[6:22, 6:22].any()
    assert inside(picture)[5, 5] == 1


def test_half_a_grey_level_is_air() -> None:
    picture = np.full((12, 12), 0.49 / 255, np.float32)
    picture[:, :6] = 1.0 / 255
    np.testing.assert_array_equal(inside(picture)[0], [1] * 4 + [0] * 8)


@pytest.mark.parametrize("breast", [0, 3])
def test_a_picture_without_an_inside_counts_as_a_whole(breast: int) -> None:
    picture = np.zeros((20, 20), np.float32)
    picture[8 : 8 + breast, 8 : 8 + breast] = 0.5
    assert inside(picture).all()


def test_inside_equals_opencv() -> None:
    rng = np.random.default_rng(1)
    picture = cv2.GaussianBlur(rng.normal(0, 1, (70, 45)).astype(np.float32), (0, 0), 4)
    picture = np.where(picture > -0.05, 0.3, 0).astype(np.float32)
    grown = cv2.dilate((picture > 0).astype(np.uint8), np.ones((5, 5), np.uint8))
    twin = cv2.erode(grown, np.ones((9, 9), np.uint8))
    assert 0.05 < twin.mean() < 0.95
    np.testing.assert_array_equal(inside(picture), twin)


def test_score_is_the_log_of_the_mean_error_that_counts() -> None:
    errors = np.array([[1.0, 2.0], [4.0, 9.0]], np.float32)[None, ..., None]
    mask = np.array([[1.0, 1.0], [0.0, 0.0]], np.float32)[None, ..., None]
    for scale, expected in ((1, 1.5), (2, 3.0), (0, 1e-6)):
        score = np.asarray(anomaly_score(np.float32(scale) * errors, mask))
        assert score.shape == (1, 1)
        assert np.exp(score.item()) == pytest.approx(expected)


class Logit:
    """The last layer of a CVAE, which keeps what it is given."""

    def get_layer(self, name: str) -> Logit:
        assert name == "logit"
        return self

    def set_weights(self, weights: list[np.ndarray]) -> None:
        self.slope, self.offset = weights[0].item(), weights[1].item()


def calibrated(scores: list[float]) -> Logit:
    logit = Logit()
    calibrate_cvae(logit, lambda ids: np.array([scores[int(one)] for one in ids]), list(map(str, range(len(scores)))))
    return logit


def test_calibration_centres_healthy_pictures_on_the_prior() -> None:
    """And scores that are all equal keep the slope."""
    found, deviation = calibrated([1.0, 3.0, 5.0]), math.sqrt(8 / 3)
    assert found.slope == pytest.approx(1 / deviation)
    assert found.slope * 3 + found.offset == pytest.approx(math.log(PRIOR / (1 - PRIOR)), rel=1e-5)
    equal = calibrated([-2.5, -2.5])
    assert (equal.slope, equal.offset) == (1.0, pytest.approx(math.log(PRIOR / (1 - PRIOR)) + 2.5))


def test_calibration_scores_at_most_512_spread_over_all() -> None:
    asked: list[str] = []

    def predict(ids: Sequence[str]) -> np.ndarray:
        asked.extend(ids)
        return np.arange(len(asked), dtype=np.float32)

    calibrate_cvae(Logit(), predict, [str(number) for number in range(5110)])
    assert len(asked) == len(set(asked)) == CALIBRATION_PICTURES == 512
    assert (asked[0], asked[-1]) == ("0", "5109")


def test_calibration_refuses_nothing_and_what_is_not_finite() -> None:
    with pytest.raises(RsnaKitError, match="no healthy training picture"):
        calibrated([])
    with pytest.raises(RsnaKitError, match="picture 1 is not finite, so training has diverged"):
        calibrated([1.0, math.nan, 2.0])
