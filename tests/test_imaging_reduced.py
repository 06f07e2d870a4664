"""The image from a reduced JPEG 2000 decode: which resolution is asked for, whose bytes it has, how far it is off."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from dicom_files import J2K, breast, jpeg2000, make_dicom
from realdata import realdata

from rsna_kit.config import ImageConfig
from rsna_kit.dicom import openjpeg
from rsna_kit.dicom.decode import decode
from rsna_kit.dicom.frame import read_frame
from rsna_kit.imaging.render import read_image, render


def write(tmp_path: Path, pixels: np.ndarray, levels: int = 5, **facts: object) -> Path:
    path = tmp_path / f"{levels}.dcm"
    window = {"WindowCenter": "2048", "WindowWidth": "4096", **facts}
    path.write_bytes(make_dicom(pixels, J2K, codestream=jpeg2000(pixels, levels), **window))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, object]]:
    """The reductions and areas that OpenJPEG is asked for."""
    openjpeg.is_available()  # its own test decodes, too
    seen: list[tuple[int, object]] = []
    real = openjpeg.decode_reduced

    def note(stream: bytes, reduce: int, area: object = None) -> np.ndarray:
        seen.append((reduce, area))
        return real(stream, reduce, area)

    monkeypatch.setattr(openjpeg, "decode_reduced", note)
    return seen


# The box is about 1208 rows high and 550 columns wide.
@pytest.mark.parametrize(
    ("size", "reduce"),
    [
        ((2000, 1200), 0),
        ((1000, 600), 0),
        ((610, 600), 0),
        ((590, 600), 1),
        ((590, 150), 1),
        ((590, 130), 2),
        ((290, 600), 2),
        ((64, 32), 2),
    ],
)
def test_every_row_of_the_image_has_a_row_to_come_from(
    tmp_path: Path, asked: list[tuple[int, object]], size: tuple[int, int], reduce: int
) -> None:
    """The thumbnail, halved twice, is where the box is found; coarser than that nothing is asked for."""
    rendered = read_image(write(tmp_path, breast()), "1", ImageConfig(height=size[0], width=size[1]))
    box = rendered.box
    scale = min(size[0] / box.height, size[1] / box.width)
    assert 2**reduce * scale <= 1 or reduce == 0
    assert reduce == 2 or 2 ** (reduce + 1) * scale > 1
    before, behind = (2**reduce, 2 * 2**reduce) if reduce else (0, 0)  # what aligning looks at
    area = (box.top - before, max(box.left - before, 0), box.bottom + behind, box.right + behind)
    assert asked == [(2, (0, 0, 1400, 900)), (reduce, area)]


def test_fewer_levels_than_asked_are_what_is_used(tmp_path: Path, asked: list[tuple[int, object]]) -> None:
    small = ImageConfig(height=290, width=600)
    one = read_image(write(tmp_path, breast(), levels=1), "1", small)
    assert [times for times, _ in asked] == [1, 1]
    asked.clear()
    none = read_image(write(tmp_path, breast(), levels=0), "1", small)
    assert asked == []
    exact = read_image(write(tmp_path, breast()), "1", dataclasses.replace(small, decode="exact"))
    for rendered in (one, none):
        assert rendered.box.flip == exact.box.flip
        assert off(rendered.image, exact.image) < 1


def off(image: np.ndarray, exact: np.ndarray) -> float:
    """Mean absolute difference on the breast, grey levels of 255."""
    return float(np.abs(image.astype(float) - exact)[exact > 0].mean())


@pytest.mark.parametrize("size", [(610, 600), (590, 600), (290, 150)])
@pytest.mark.parametrize("facts", [{}, {"PhotometricInterpretation": "MONOCHROME1", "VOILUTFunction": "SIGMOID"}])
def test_the_file_and_its_pixels_give_the_same_bytes(
    tmp_path: Path, size: tuple[int, int], facts: dict[str, object]
) -> None:
    """So a machine without the library, or one whose GPU decodes everything, trains and scores on the same images."""
    pixels = breast()
    if facts:
        pixels = 3500 - pixels
        facts = {**facts, "PixelPaddingValue": 3500}
    path, image = write(tmp_path, pixels, **facts), ImageConfig(height=size[0], width=size[1])
    frame = read_frame(path)
    assert np.array_equal(read_image(path, "1", image).image, render(decode(frame), frame, image).image)


def test_exact_is_every_pixel_and_reduced_is_near_it(tmp_path: Path, asked: list[tuple[int, object]]) -> None:
    path = write(tmp_path, breast())
    for size, most in [((610, 600), 0), ((590, 600), 1.5), ((290, 600), 1.5)]:
        image = ImageConfig(height=size[0], width=size[1])
        reduced = read_image(path, "1", image)
        asked.clear()
        exact = read_image(path, "1", dataclasses.replace(image, decode="exact"))
        assert [times for times, _ in asked] == [2, 0]
        assert reduced.box == exact.box
        assert off(reduced.image, exact.image) <= most


def test_coarser_asks_for_less_and_stays_a_picture(tmp_path: Path, asked: list[tuple[int, object]]) -> None:
    path, image = write(tmp_path, breast()), ImageConfig(height=610, width=600)
    fine = read_image(path, "1", image)
    for coarser, reduce in [(1, 1), (2, 2), (3, 2)]:
        asked.clear()
        rendered = read_image(path, "1", image, coarser=coarser)
        assert [times for times, _ in asked] == [2, reduce]
        assert rendered.box == fine.box
        assert 0 < off(rendered.image, fine.image) < 6


def test_padding_that_is_not_dark_takes_every_pixel(tmp_path: Path, asked: list[tuple[int, object]]) -> None:
    pixels = breast()
    pixels[:, 800:] = 4095  # a bright border, declared as padding
    image = ImageConfig(height=290, width=150)
    rendered = read_image(write(tmp_path, pixels, PixelPaddingValue=4095), "1", image)
    assert [times for times, _ in asked] == [2]
    assert rendered.box.right < 700
    assert (rendered.image[:, -5:] == 0).all()


def test_the_real_ge_mammogram_reduced_is_near_the_exact_one(tmp_path: Path) -> None:
    """Bar: nearer than linear interpolation of the full picture is to averaging it (1.6 to 2 levels on such files)."""
    source = realdata("dicom") / "mg_GH133_jpll_voilutseq_sigmoid.dcm"
    window = {"WindowCenter": "2653", "WindowWidth": "900", "VOILUTFunction": "SIGMOID"}
    path = write(tmp_path, decode(read_frame(source)), **window)
    image = ImageConfig(height=1024, width=512)
    reduced, exact = (read_image(path, "1", dataclasses.replace(image, decode=how)) for how in ("reduced", "exact"))
    assert reduced.box == exact.box
    assert 0 < off(reduced.image, exact.image) < 1.2
