"""The composition: literal images, invariances, refusals, and real mammograms through every syntax."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from dicom_files import EXPLICIT, J2K, SV1, breast, framed, jpeg2000, lut, make_dicom
from realdata import realdata

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.decode import decode
from rsna_kit.dicom.frame import LookupTable, read_frame
from rsna_kit.imaging.breast import Box
from rsna_kit.imaging.render import Rendered, encode_picture, read_image, render
from rsna_kit.imaging.window import tones
from rsna_kit.runtime.errors import DecodeError, HeaderError, RenderError

EXACT = ImageConfig(height=80, width=60, margin=0.0)
SMALL = ImageConfig(height=64, width=32)


def block(value: int = 2048, air: int = 0) -> np.ndarray:
    """80 x 60, a breast of one value in rows 20 to 59 and columns 0 to 29."""
    pixels = np.full((80, 60), air, dtype=np.uint16)
    pixels[20:60, :30] = value
    return pixels


def shown(pixels: np.ndarray, image: ImageConfig = EXACT, **facts: object) -> Rendered:
    return render(pixels, framed(pixels, **facts), image)


def test_a_block_is_enlarged_to_fill_height_or_width() -> None:
    rendered = shown(block())
    assert rendered.box == Box(20, 0, 60, 30, False)
    assert rendered.image.dtype == np.uint8
    assert rendered.image.shape == (80, 60)
    assert (rendered.image[6:-6, :-6] == 128).all()  # 2048 of 4095 is 127.53 of 255; corners fade
    assert rendered.image.min() > 100


def test_a_narrow_box_is_padded_right_and_a_flat_one_above_and_below() -> None:
    narrow = shown(block(), ImageConfig(height=40, width=60, margin=0.0)).image
    assert (narrow[4:-4, :26] == 128).all()
    assert (narrow[:, 30:] == 0).all()
    flat = shown(block(), ImageConfig(height=80, width=30, margin=0.0)).image
    assert (flat[24:56, :26] == 128).all()
    assert (flat[:20] == 0).all()
    assert (flat[60:] == 0).all()


def test_the_chest_wall_comes_left_by_content() -> None:
    pixels = block()
    pixels[20:60, 20:30] = 3000
    right = shown(pixels[:, ::-1].copy())
    assert right.box == Box(20, 30, 60, 60, False) or right.box.flip
    y, x = np.mgrid[:80, :60]
    round_breast = np.where(np.hypot((y - 40) / 35, x / 40) < 1, 1000 + 10 * x, 0).astype(np.uint16)
    left, mirrored = shown(round_breast), shown(round_breast[:, ::-1].copy())
    assert (left.box.flip, mirrored.box.flip) == (False, True)
    assert np.array_equal(left.image, mirrored.image)


def test_monochrome1_air_becomes_zero_and_tones_are_inverted_once() -> None:
    """Site 2's machine 29: air = padding = the largest value of the picture, SIGMOID window far below it."""
    facts = {"photometric": "MONOCHROME1", "windows": ((1802.31, 1091.97),), "voi_function": "SIGMOID"}
    pixels = block(value=1802, air=3044)
    image = shown(pixels, ImageConfig(height=40, width=60), bits_stored=16, padding=3044, **facts).image
    assert (image[5:35, 2:25] == 128).all()
    assert (image[:, 40:] == 0).all()  # 1 - sigmoid(3044) alone would leave 3


@pytest.mark.parametrize(
    ("air", "facts"),
    [
        (
            3044,
            {"photometric": "MONOCHROME1", "windows": ((1802.31, 1091.97),), "voi_function": "SIGMOID"},
        ),  # 2.7 of 255
        (700, {"windows": ((1802.0, 1091.0),), "voi_function": "SIGMOID"}),  # 4.4
        (200, {}),  # fog: 12.5
        (
            0,
            {"windows": (), "voi_luts": (LookupTable(0, 12, np.linspace(50, 4095, 4096).round().astype(np.uint16)),)},
        ),  # 3
    ],
)
def test_air_is_zero_beside_the_breast_whatever_makes_the_tones(air: int, facts: dict) -> None:
    """And what is four times as bright, or brighter, is what it was."""
    y, x = np.mgrid[:400, :300]
    breast = np.hypot((y - 200) / 150, x / 200) < 1
    pixels = np.where(breast, 1802, air + np.random.default_rng(0).integers(-2, 3, breast.shape)).clip(0)
    pixels = pixels.astype(np.uint16)
    rendered = shown(pixels, ImageConfig(height=400, width=300, margin=0.1), **facts)
    tissue = round(255 * float(tones(pixels, framed(pixels, **facts), ImageConfig()).table[1802]))
    assert rendered.image[200, 50] == tissue
    seen = np.bincount(rendered.image.ravel(), minlength=256)
    assert seen[0] > 0.3 * rendered.image.size
    assert seen[1:8].sum() < 0.002 * rendered.image.size


def test_monochrome1_is_the_negative_of_monochrome2() -> None:
    pixels = np.random.default_rng(0).integers(500, 3500, (80, 60)).astype(np.uint16)
    pixels[:, 40:] = 0
    inverted = (4095 - pixels).astype(np.uint16)
    two, one = shown(pixels), shown(inverted, photometric="MONOCHROME1")
    assert two.box == one.box
    assert np.abs(two.image.astype(int) - one.image).max() <= 1


@pytest.mark.parametrize("padding", [700, 2000, 4095])
def test_padding_brighter_than_air_becomes_air(padding: int) -> None:
    """A border of padding beside the breast, dim or bright: nothing of it is left, and the breast is what it was."""
    pixels = block(value=3000)
    clean = shown(pixels, ImageConfig(height=40, width=60, margin=0.2)).image
    pixels[:, 50:] = padding
    image = shown(pixels, ImageConfig(height=40, width=60, margin=0.2), padding=padding).image
    assert np.array_equal(image, clean)


@pytest.mark.parametrize("signed", [False, True])
def test_padding_below_the_air_is_no_part_of_the_range(signed: bool) -> None:
    """Without a window the tones follow from the range of the pixels: air 1000 is black, and padding 0 is not asked."""
    y, x = np.mgrid[:400, :300]
    pixels = np.where(np.hypot((y - 200) / 150, x / 200) < 1, 2000, 1000).astype(np.uint16)
    pixels[100:200, 60:100] = 3000
    pixels[:, 280:] = 0
    facts: dict[str, object] = {"windows": (), "padding": 0}
    if signed:
        pixels, facts = (
            (pixels.astype(np.int16) - 500).view(np.uint16),
            {"windows": (), "padding": -500, "signed": True},
        )
    image = shown(pixels, ImageConfig(height=300, width=300), **facts).image
    assert abs(int(np.median(image[image > 60])) - 128) <= 2  # 2000, half way from 1000 to 3000
    assert image.max() >= 250


def test_signed_pixels_render_like_their_unsigned_twins() -> None:
    rng = np.random.default_rng(1)
    pixels = np.where(block() > 0, rng.integers(1000, 3000, (80, 60)), 0).astype(np.uint16)
    signed = (pixels.astype(np.int16) - 2048).view(np.uint16)
    image = ImageConfig(height=30, width=20)
    facts = {"signed": True, "windows": ((0.0, 4096.0),), "padding": -2048}
    difference = shown(signed, image, **facts).image.astype(int) - shown(pixels, image).image
    assert np.abs(difference).max() <= 1  # cv2 averages in float32, which rounds larger numbers otherwise


def test_resizing_averages_areas_before_quantising() -> None:
    """Columns alternate between 2000 and 2096: their mean 2048 is what is quantised."""
    pixels = block()
    pixels[20:60, 0:30:2], pixels[20:60, 1:30:2] = 2000, 2096
    image = shown(pixels, ImageConfig(height=20, width=30, margin=0.0)).image
    assert (image[2:-2, :13] == 128).all()


def test_a_marker_in_the_air_inside_the_box_is_removed() -> None:
    y, x = np.mgrid[:800, :600]
    pixels = np.where(np.hypot((y - 400) / 350, x / 400) < 1, 2000, 0).astype(np.uint16)
    pixels[60:110, 330:380] = 4095  # above the breast, inside its box
    rendered = shown(pixels, ImageConfig(height=768, width=384))
    assert rendered.box.right > 380
    assert rendered.image.max() <= 126


def test_any_size_works_and_the_aspect_is_kept() -> None:
    y, x = np.mgrid[:300, :200]
    pixels = np.where(np.hypot((y - 150) / 100, x / 100) < 1, 2000, 0).astype(np.uint16)
    for height, width in [(1536, 768), (37, 91), (64, 32), (1, 1)]:
        image = shown(pixels, ImageConfig(height=height, width=width)).image
        assert image.shape == (height, width)
    image = shown(pixels, ImageConfig(height=200, width=200, margin=0.0)).image
    lit = image > 60
    assert abs(lit.any(axis=1).sum() / lit.any(axis=0).sum() - 2.0) < 0.1


def specks() -> np.ndarray:
    pixels = np.zeros((400, 300), dtype=np.uint16)
    pixels[200, 100:140] = 4000
    return pixels


@pytest.mark.parametrize(
    ("pixels", "facts", "said"),
    [
        (np.full((80, 60), 7, np.uint16), {}, "the picture is 7 everywhere, expected a mammogram"),
        (block(value=9, air=4000), {"padding": 4000}, "the picture is 9 everywhere"),
        (specks(), {}, "image 77: no breast stands out"),
        (block().astype(np.int32), {}, r"got int32 .*, expected uint16 \(80, 60\)"),
    ],
)
def test_what_is_no_picture_is_refused(pixels: np.ndarray, facts: dict[str, object], said: str) -> None:
    with pytest.raises(RenderError, match=said) as caught:
        shown(pixels, **facts)
    assert caught.value.stage == "render"


@pytest.mark.parametrize("syntax", [EXPLICIT, SV1, J2K])
def test_a_file_becomes_the_same_image_in_every_syntax(tmp_path: Path, syntax: str) -> None:
    path = tmp_path / "77.dcm"
    path.write_bytes(make_dicom(block(), syntax, WindowCenter="2048", WindowWidth="4096"))
    assert np.array_equal(read_image(path, "77", EXACT).image, shown(block()).image)


def test_a_file_fails_at_the_stage_that_is_to_blame(tmp_path: Path) -> None:
    path = tmp_path / "77.dcm"
    for content, error in [
        (b"", HeaderError),
        (make_dicom(block(), SV1, codestream=b"\xff\xd8\xff\xd9"), DecodeError),
        (make_dicom(np.zeros((80, 60), np.uint16), SV1), RenderError),
    ]:
        path.write_bytes(content)
        with pytest.raises(error, match="image 5 "):
            read_image(path, "5", EXACT)


def picture(
    folder: Path, pixels: np.ndarray, syntax: str = EXPLICIT, image: ImageConfig = SMALL, **facts: object
) -> Rendered:
    stream = jpeg2000(pixels, 5) if syntax == J2K else None
    (folder / "77.dcm").write_bytes(make_dicom(pixels, syntax, codestream=stream, **facts))
    return read_image(folder / "77.dcm", "77", image)


def test_a_lookup_table_is_as_deep_as_its_entries(tmp_path: Path) -> None:
    tables = [[lut(0, bits, list(range(4096)))] for bits in (12, 8, 16)]
    images = [picture(tmp_path, breast(400, 300), VOILUTSequence=table).image for table in tables]
    assert all(np.array_equal(image, images[0]) for image in images)
    assert images[0].max() > 150


@pytest.mark.parametrize("inverted", [False, True])
def test_a_range_of_padding_is_all_padding(tmp_path: Path, inverted: bool) -> None:
    """Padding of 0 to 2 under pixels from 3000 on: without it they would have a quarter of the tones."""
    pixels = (3000 + breast(400, 300) // 4).astype(np.uint16)
    first, last = (4095, 4093) if inverted else (0, 2)
    facts: dict[str, object] = {"PhotometricInterpretation": "MONOCHROME1"} if inverted else {}
    pixels = 4095 - pixels if inverted else pixels
    pixels[:20], pixels[20:40] = first, last
    facts["PixelPaddingValue"] = first
    expected = picture(tmp_path, np.where(pixels == last, first, pixels).astype(np.uint16), **facts).image
    assert np.array_equal(picture(tmp_path, pixels, PixelPaddingRangeLimit=last, **facts).image, expected)
    assert not np.array_equal(picture(tmp_path, pixels, **facts).image, expected)


def test_a_range_of_padding_that_would_take_the_picture_is_not_believed(tmp_path: Path) -> None:
    one, other = (
        picture(tmp_path, breast(400, 300), PixelPaddingValue=0, **limit).image
        for limit in ({}, {"PixelPaddingRangeLimit": 4000})
    )
    assert np.array_equal(one, other)


@pytest.mark.parametrize("how", ["reduced", "exact"])
@pytest.mark.parametrize("syntax", [SV1, J2K])
def test_an_inverted_file_with_its_air_as_padding_shows_the_same_breast(tmp_path: Path, syntax: str, how: str) -> None:
    """MONOCHROME1, padding = the largest value = air, as a third of the competition's machines write it."""
    pixels, image = breast(), ImageConfig(height=290, width=150, decode=how)  # type: ignore[arg-type]
    window = {"WindowCenter": "2048", "WindowWidth": "4096"}
    inverted = {"PixelPaddingValue": 4095, "PhotometricInterpretation": "MONOCHROME1"}
    plain = picture(tmp_path, pixels, syntax, image, PixelPaddingValue=0, **window)
    other = picture(tmp_path, 4095 - pixels, syntax, image, **inverted, **window)
    assert plain.box == other.box
    assert np.abs(other.image.astype(float) - plain.image)[plain.image > 0].mean() < 0.5
    assert ((plain.image == 0) == (other.image == 0)).mean() > 0.995
    assert (other.image[:, -5:] == 0).all()


def test_pictures_round_trip_through_png_and_nearly_through_jpeg() -> None:
    def decoded(encoded: bytes) -> np.ndarray:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)

    image = np.random.default_rng(0).integers(0, 256, (50, 40)).astype(np.uint8)
    assert np.array_equal(decoded(encode_picture(image, "png")), image)
    smooth = np.tile(np.arange(40, dtype=np.uint8), (50, 1))
    assert np.abs(decoded(encode_picture(smooth, "jpeg")).astype(int) - smooth).max() <= 2
    with pytest.raises(ValueError, match="got 'gif', expected png or jpeg"):
        encode_picture(image, "gif")


def test_the_real_ge_mammogram_in_three_syntaxes_is_one_image(tmp_path: Path) -> None:
    """No open mammogram in JPEG 2000 exists: its real pixels, in a stream of our own."""
    source = realdata("dicom") / "mg_GH133_jpll_voilutseq_sigmoid.dcm"
    pixels, image = decode(read_frame(source)), ImageConfig()
    expected = read_image(source, "GH133", image)
    assert expected.box.flip  # a right breast, chest wall right
    for syntax in (SV1, J2K):
        path = tmp_path / "again.dcm"
        window = {"WindowCenter": "2653", "WindowWidth": "900", "VOILUTFunction": "SIGMOID"}
        path.write_bytes(make_dicom(pixels, syntax, PixelPaddingValue=0, **window))
        again = read_image(path, "GH133", image)
        assert again.box == expected.box
        assert np.array_equal(again.image, expected.image)


def test_the_real_ge_mammogram_fills_the_image_and_its_air_is_black() -> None:
    image = read_image(realdata("dicom") / "mg_GH133_jpll_voilutseq_sigmoid.dcm", "GH133", ImageConfig()).image
    assert image.shape == (1536, 768)
    assert image[:, :20].mean() > image[:, -20:].mean()
    assert (image == 0).mean() > 0.15
    assert image.max() > 200


def test_the_label_and_clip_of_a_real_film_end_outside() -> None:
    """nema_MG1: a left MLO film, label in the air at the right, a bright bar below."""
    rendered = read_image(realdata("dicom") / "nema_MG1_J2KI.dcm", "MG1", ImageConfig())
    assert not rendered.box.flip
    assert rendered.box.right < 2300  # of 3064 columns; the label begins at 2500
