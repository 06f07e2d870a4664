"""Masks and maps go the way of the picture: held against `render` itself, to a pixel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.frame import EncodedFrame
from rsna_kit.imaging.breast import Box
from rsna_kit.imaging.render import Rendered, render
from rsna_lab.analysis.overlay import (
    draw_map,
    draw_outline,
    draw_peak,
    mask_to_image,
    point_in_picture,
)

FRAME = EncodedFrame(
    image_id="77", path=None, transfer_syntax="1.2.840.10008.1.2.1", codestream=b"", rows=0, columns=0,
    bits_allocated=16, bits_stored=12, signed=False, photometric="MONOCHROME2", windows=((2048.0, 4096.0),),
    voi_function="LINEAR", voi_luts=(), modality_lut=None, slope=1.0, intercept=0.0, padding=None,
)  # fmt: skip
DOT = (210, 110)  # row and column of the lesion, chest wall left
CASES = [
    pytest.param(photometric, right, size, id=f"{photometric}-{'right' if right else 'left'}-{size[0]}x{size[1]}")
    for photometric in ("MONOCHROME1", "MONOCHROME2")
    for right in (False, True)
    for size in ((128, 64), (64, 128), (100, 100), (600, 300))  # tall, flat, square, enlarged
]


def mammogram(photometric: str, right: bool, image: ImageConfig) -> tuple[Rendered, np.ndarray]:
    """A half disc of tissue with a bright dot, rendered; and the dot's mask in the full picture."""
    y, x = np.mgrid[:400, :300]
    pixels = np.where(np.hypot((y - 190) / 150, x / 200) < 1, 1200, 0)
    mask = np.hypot(y - DOT[0], x - DOT[1]) <= 12
    pixels[mask] = 3600
    if right:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    if photometric == "MONOCHROME1":
        pixels = 4095 - pixels
    frame = dataclasses.replace(FRAME, rows=400, columns=300, photometric=photometric)
    return render(np.ascontiguousarray(pixels, np.uint16), frame, image), mask


@pytest.mark.parametrize(("photometric", "right", "size"), CASES)
def test_a_mask_lands_where_the_picture_shows_its_lesion(photometric: str, right: bool, size: tuple[int, int]) -> None:
    image = ImageConfig(height=size[0], width=size[1])
    rendered, mask = mammogram(photometric, right, image)
    assert rendered.box.flip == right
    bright = rendered.image > 150  # half-way between tissue, 75, and lesion, 224
    moved = mask_to_image(mask, rendered.box, image)
    assert bright.sum() > 10
    edge = (bright != moved).sum()  # rounding at the rim alone
    assert edge <= 0.15 * bright.sum() + 4
    centres = [np.mean(np.nonzero(where), axis=1) for where in (bright, moved)]
    assert np.abs(centres[0] - centres[1]).max() < 0.3


def test_literal_places() -> None:
    """A box of 4 x 2 in an image of 4 x 4: scale 1, at the left edge; mirrored, its columns change places."""
    mask = np.zeros((6, 8), bool)
    mask[1:3, 5] = True
    image = ImageConfig(height=4, width=4)
    box = Box(1, 5, 5, 7, False)
    assert np.argwhere(mask_to_image(mask, box, image)).tolist() == [[0, 0], [1, 0]]
    flipped = dataclasses.replace(box, flip=True)
    assert np.argwhere(mask_to_image(mask, flipped, image)).tolist() == [[0, 1], [1, 1]]
    assert point_in_picture(0, 0, flipped, image) == (1, 6)
    assert point_in_picture(3, 1, flipped, image) == (4, 5)
    assert point_in_picture(3, 3, flipped, image) == (4, 5)  # padding: the nearest point of the box


def test_a_flat_box_is_centred() -> None:
    moved = mask_to_image(np.ones((2, 4)), Box(0, 0, 2, 4, False), ImageConfig(height=5, width=4))
    assert moved.sum(axis=1).tolist() == [0, 4, 4, 0, 0]


def test_a_tiny_mask_keeps_one_pixel_and_one_outside_the_box_none() -> None:
    mask = np.zeros((100, 100), bool)
    mask[42, 57] = True
    image = ImageConfig(height=10, width=10)
    assert np.argwhere(mask_to_image(mask, Box(0, 0, 100, 100, False), image)).tolist() == [[4, 5]]
    assert not mask_to_image(mask, Box(50, 0, 100, 100, False), image).any()


def test_a_mask_of_another_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="not of the picture"):
        mask_to_image(np.ones((4, 4)), Box(0, 0, 5, 4, False), ImageConfig(height=4, width=4))


def test_a_map_colours_only_tissue_where_it_is_strong() -> None:
    picture = np.full((3, 4), 100, np.uint8)
    picture[:, 3] = 0
    heat = np.array([[0, 0.2, 1, 1]] * 3, np.float32)
    drawn = draw_map(picture, heat)
    assert drawn.dtype == np.uint8
    assert drawn[0, :2].tolist() == [[100] * 3] * 2  # weak: the mammogram
    assert drawn[0, 3].tolist() == [0, 0, 0]  # air
    red, green, blue = drawn[0, 2].astype(int)  # plasma ends in yellow, 240 249 33
    assert (red, green, blue) == (round(30 + 0.7 * 240), round(30 + 0.7 * 249), round(30 + 0.7 * 33))
    with pytest.raises(ValueError, match="expected uint8"):
        draw_map(picture.astype(np.float32), heat)


def test_outline_and_ring_leave_the_given_picture_alone() -> None:
    picture = np.full((40, 40), 90, np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    drawn = draw_outline(picture, mask)
    assert drawn[10, 10:20].tolist() == [[213, 94, 0]] * 10
    assert drawn[15, 15].tolist() == [90, 90, 90]
    ring = draw_peak(drawn, 30, 30)
    assert ring[30, 30].tolist() == [90, 90, 90]
    assert ring[30, 35].min() > 150
    assert (picture == 90).all()
    assert (drawn[25:, 25:] == 90).all()
