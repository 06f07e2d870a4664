from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from rsna_kit.models.reconstructions import draw_extremes, draw_reconstructions
from rsna_kit.runtime.errors import UsageError

pytest.importorskip("matplotlib")


class Fixed:
    """Stands for a Keras model: applies a function, remembers what it was asked."""

    def __init__(self, answer: object) -> None:
        self.answer, self.seen = answer, []  # type: ignore[var-annotated]

    def predict_on_batch(self, pictures: np.ndarray) -> np.ndarray:
        self.seen.append(int(pictures[0, 0, 0, 0]))
        return np.asarray(self.answer(pictures), np.float32)  # type: ignore[operator]


def models(error: float = 0.5) -> tuple[Fixed, Fixed]:
    return Fixed(lambda pictures: pictures / 255), Fixed(lambda pictures: np.full(pictures.shape, error))


def test_one_row_for_each_picture(tmp_path: Path) -> None:
    pictures = np.full((3, 32, 16), 200, np.uint8)
    sizes = []
    for count in (1, 3):
        draw_reconstructions(tmp_path / "drawn.png", pictures[:count], models(), ["title"] * count)
        sizes.append(cv2.imread(str(tmp_path / "drawn.png")).shape)
    assert sizes[1][0] == 3 * sizes[0][0]
    assert sizes[1][1] == sizes[0][1]
    assert [path.name for path in tmp_path.iterdir()] == ["drawn.png"]


def test_errors_are_drawn_brighter_where_they_are_larger(tmp_path: Path) -> None:
    def left_half(pictures: np.ndarray) -> np.ndarray:
        return np.where(np.arange(pictures.shape[2])[None, None, :, None] < 16, 0.4, 0.0) + 0 * pictures

    black = np.zeros((1, 32, 32), np.uint8)
    draw_reconstructions(tmp_path / "drawn.png", black, (models()[0], Fixed(left_half)), ["x"])
    drawn = cv2.imread(str(tmp_path / "drawn.png"))
    yellow = (drawn[..., 2] > 230) & (drawn[..., 1] > 230) & (drawn[..., 0] < 190)  # the top of the colour scale
    columns = np.flatnonzero(yellow.sum(axis=0) > 100)
    width = drawn.shape[1]
    assert len(columns) > 0.05 * width
    assert width / 2 < columns.min() < columns.max() < width


def test_highest_come_first_and_the_middle_is_left_out(tmp_path: Path) -> None:
    greys = {"low": 10, "middle": 20, "high": 30, "higher": 40, "lowest": 5}
    values = {"low": 0.1, "middle": 0.3, "high": 0.6, "higher": 0.9, "lowest": 0.05}
    scores = pd.DataFrame({"image_id": list(values), "score": list(values.values()), "cancer": [0, 0, 1, 1, 0]})
    drawing = models()

    def load(image_id: str) -> np.ndarray:
        return np.full((16, 16), greys[image_id], np.uint8)

    draw_extremes(tmp_path / "drawn.png", load, drawing, scores, each=2)
    assert drawing[0].seen == drawing[1].seen == [40, 30, 10, 5]
    drawing = models()
    draw_extremes(tmp_path / "drawn.png", load, drawing, scores.drop(columns="cancer"), each=3)
    assert drawing[0].seen == [40, 30, 20, 10, 5]


@pytest.mark.parametrize(
    ("pictures", "titles"),
    [
        (np.zeros((1, 8, 8), np.float32), ["x"]),
        (np.zeros((8, 8), np.uint8), ["x"]),
        (np.zeros((0, 8, 8), np.uint8), []),
        (np.zeros((2, 8, 8), np.uint8), ["x"]),
    ],
)
def test_other_pictures_are_refused(tmp_path: Path, pictures: np.ndarray, titles: list[str]) -> None:
    with pytest.raises(UsageError, match="expected uint8"):
        draw_reconstructions(tmp_path / "drawn.png", pictures, models(), titles)
    assert not list(tmp_path.iterdir())
