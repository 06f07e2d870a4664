from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from rsna_kit.config import PRIOR
from rsna_kit.models.anomaly import CALIBRATION_PICTURES, anomaly_score, calibration, inside_breast
from rsna_kit.runtime.errors import RsnaKitError

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


def test_calibration_centres_healthy_pictures_on_the_prior() -> None:
    scores = {"a": 1.0, "b": 3.0, "c": 5.0}
    slope, offset = calibration(lambda ids: np.array([[scores[one]] for one in ids]), list(scores))
    deviation = math.sqrt(8 / 3)
    assert slope == pytest.approx(1 / deviation)
    assert 1 / (1 + math.exp(-(slope * 3 + offset))) == pytest.approx(PRIOR)
    one_more = 1 / (1 + math.exp(-(slope * (3 + deviation) + offset)))
    assert one_more / (1 - one_more) == pytest.approx(math.e * PRIOR / (1 - PRIOR))


def test_calibration_scores_at_most_512_spread_over_all() -> None:
    asked: list[str] = []

    def predict(ids: object) -> np.ndarray:
        asked.extend(ids)  # type: ignore[call-overload]
        return np.arange(len(asked), dtype=np.float32)

    calibration(predict, [str(number) for number in range(5110)])
    assert len(asked) == len(set(asked)) == CALIBRATION_PICTURES == 512
    assert (asked[0], asked[-1]) == ("0", "5109")


def test_equal_scores_keep_the_slope() -> None:
    slope, offset = calibration(lambda ids: np.full(len(ids), -2.5), ["a", "b"])
    assert slope == 1.0
    assert offset == pytest.approx(math.log(PRIOR / (1 - PRIOR)) + 2.5)


def test_calibration_refuses_nothing_and_what_is_not_finite() -> None:
    with pytest.raises(RsnaKitError, match="no healthy training picture"):
        calibration(lambda ids: np.zeros(0), [])
    with pytest.raises(RsnaKitError, match="picture b is not finite, so training has diverged"):
        calibration(lambda ids: np.array([1.0, math.nan, 2.0]), ["a", "b", "c"])
