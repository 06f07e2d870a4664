"""Undamaged codestreams of every make: lossless JPEG by an encoder of our own, JPEG 2000 by Pillow's."""

from __future__ import annotations

import contextlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_files import (
    EXPLICIT,
    J2K,
    J2K_LOSSY,
    JPEG_LS,
    LOSSLESS,
    SV1,
    breast,
    encode,
    jpeg2000,
    make_dicom,
    read_in,
    textured,
)
from lossless_jpeg import encode_lossless
from pydicom.pixels import get_decoder

from rsna_kit.config import ImageConfig
from rsna_kit.dicom import openjpeg
from rsna_kit.dicom.codestream import read_facts
from rsna_kit.dicom.decode import decode, decode_with
from rsna_kit.dicom.frame import EncodedFrame
from rsna_kit.dicom.pyramid import Pyramid, decode_for_proof
from rsna_kit.imaging.render import read_image, render

SMALL = ImageConfig(height=64, width=32)


def frame_of(
    tmp_path: Path, pixels: np.ndarray, syntax: str, stream: bytes | None = None, **facts: object
) -> EncodedFrame:
    return read_in(tmp_path, make_dicom(pixels, syntax, codestream=stream, **facts))


def judges(path: Path) -> list[np.ndarray]:
    """What the plug-ins of pydicom that can read a file say its pixels are. Pillow is not asked: it mixes up tiles."""
    dataset = pydicom.dcmread(path)
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    said = []
    for plugin in set(decoder.available_plugins) - {"pillow"}:
        with contextlib.suppress(ValueError):  # pylibjpeg gives the empty margin of an offset, too
            said.append(decoder.as_array(dataset, index=0, raw=True, decoding_plugin=plugin)[0])
    assert said
    return said


LAYERS = {"quality_mode": "rates", "quality_layers": [60, 20, 1]}
MAKES: dict[str, dict[str, object]] = {
    "no level": {"num_resolutions": 1},
    "one level": {"num_resolutions": 2},
    "RLCP": {"progression": "RLCP"},
    "PCRL": {"progression": "PCRL"},
    "CPRL": {"progression": "CPRL"},
    "layers": LAYERS,
    "precincts": {"precinct_size": (64, 64)},
    "precincts and layers, RPCL": {"precinct_size": (64, 64), "progression": "RPCL", **LAYERS},
    "small blocks": {"codeblock_size": (4, 4)},
    "lengths of packets": {"plt": True},
    "a comment": {"comment": b"anything \xff\xd9 at all"},
    "tiles": {"tile_size": (300, 64)},
    "an offset": {"offset": (5, 3), "tile_size": (305, 403)},
    "a tile offset": {"offset": (32, 32), "tile_offset": (16, 16), "tile_size": (512, 512)},
    "bare": {"no_jp2": True},
}


def off(image: np.ndarray, exact: np.ndarray) -> float:
    """Mean absolute difference on the breast, grey levels of 255."""
    return float(np.abs(image.astype(float) - exact)[exact > 0].mean())


@pytest.mark.parametrize("make", MAKES)
def test_every_make_of_jpeg_2000_gives_the_picture(tmp_path: Path, make: str) -> None:
    """At full size and as an image, where a reduced decode must show what the full picture shows."""
    pixels = breast(400, 300)
    frame = frame_of(tmp_path, pixels, J2K, jpeg2000(pixels, **{"num_resolutions": 4, **MAKES[make]}))
    assert np.array_equal(decode(frame), pixels)
    assert all(np.array_equal(said, pixels) for said in judges(tmp_path / "77.dcm"))
    assert (Pyramid(frame).halvings > 0) == ("tile" not in make and "offset" not in make and make != "no level")
    image = read_image(tmp_path / "77.dcm", "77", SMALL).image
    assert np.array_equal(image, render(pixels, frame, SMALL).image)
    native = frame_of(tmp_path, pixels, EXPLICIT)
    assert off(image, render(pixels, native, SMALL).image) < 6


@pytest.mark.parametrize(
    ("make", "halvings", "most"),
    [({"irreversible": True}, 0, 3), ({"quality_mode": "rates", "quality_layers": [20]}, 3, 100)],
)
def test_a_stream_with_loss_under_the_lossless_uid_shows_what_is_there(
    tmp_path: Path, make: dict[str, object], halvings: int, most: int
) -> None:
    """The 9/7 wavelet is decoded at full size; where the encoder left layers out, reduced and full agree."""
    pixels = breast(400, 300)
    frame = frame_of(tmp_path, pixels, J2K, jpeg2000(pixels, **make), BitsStored=16)
    full = decode(frame)
    assert np.abs(full.astype(int) - pixels).mean() < most
    assert Pyramid(frame).halvings == halvings
    assert off(read_image(tmp_path / "77.dcm", "77", SMALL).image, render(full, frame, SMALL).image) < 1


@pytest.mark.parametrize("area", [None, (0, 0, 160, 96)])
def test_a_saturated_picture_coded_with_loss_is_the_same_whoever_reduces(
    tmp_path: Path, area: tuple[int, int, int, int] | None
) -> None:
    """It reconstructs beyond 16 bits, which a full decode cuts off before the wavelet."""
    x = np.arange(150)[None].repeat(200, 0)
    rng = np.random.default_rng(3)
    pixels = (65535 - 300 * np.abs(x - 70) + rng.integers(-4000, 4000, x.shape)).clip(0, 65535).astype(np.uint16)
    stream = jpeg2000(pixels, 3, quality_mode="rates", quality_layers=[6])
    frame = frame_of(tmp_path, pixels, J2K, stream, BitsStored=16)
    full = Pyramid(frame, pixels=decode(frame))
    direct = openjpeg.decode_reduced(stream, 1)
    assert not np.array_equal(direct, full._band(1, (0, 0, 200, 150)))  # what the test is about
    for times in (1, 2, 3):
        assert np.array_equal(Pyramid(frame).halved(times, area), full.halved(times, area))
    assert decode_for_proof(frame) is None  # no evidence against the library


@pytest.mark.parametrize("syntax", [J2K_LOSSY, J2K, "1.2.840.10008.1.2.4.51"])
def test_overshoot_of_a_stream_with_loss_is_clipped(tmp_path: Path, syntax: str) -> None:
    """Hard edges at the largest value: the decoders give up to a hundred levels more beside them."""
    pixels = np.zeros((200, 160), np.uint16)
    pixels[60:140, 50:90] = 1023
    if syntax.endswith("51"):
        stream = imagecodecs.jpeg8_encode(pixels, level=50, bitspersample=12)
        raw = imagecodecs.jpeg8_decode(stream)
    else:
        stream = jpeg2000(pixels, irreversible=True, no_jp2=True, quality_mode="rates", quality_layers=[300])
        raw = imagecodecs.jpeg2k_decode(stream)
    assert raw.max() > 1023
    assert np.array_equal(decode(frame_of(tmp_path, pixels, syntax, stream, BitsStored=10)), np.minimum(raw, 1023))


@pytest.mark.parametrize("uid", [LOSSLESS, SV1])
def test_a_baseline_stream_under_a_lossless_uid_is_read(tmp_path: Path, uid: str) -> None:
    pixels = (textured(40, 30) >> 4).astype(np.uint8)
    frame = frame_of(tmp_path, pixels, uid, imagecodecs.jpeg8_encode(pixels, level=95))
    assert np.abs(decode(frame).astype(int) - pixels).mean() < 4


@pytest.mark.parametrize("precision", [8, 10, 12, 16])
@pytest.mark.parametrize("predictor", [1, 2, 3, 4, 5, 6, 7])
def test_every_predictor_and_precision_of_lossless_jpeg(tmp_path: Path, predictor: int, precision: int) -> None:
    """Written from T.81 alone; differences of 32768, which have a category of their own, occur at 16 bits."""
    pixels = np.random.default_rng(predictor).integers(0, 2**precision, (20, 17))
    pixels[3::4, ::2], pixels[3::4, 1::2] = 0, 2 ** (precision - 1)
    pixels = pixels.astype(np.uint8 if precision == 8 else np.uint16)
    frame = frame_of(tmp_path, pixels, LOSSLESS, encode_lossless(pixels, precision, predictor), BitsStored=precision)
    assert np.array_equal(decode(frame), pixels)
    facts = read_facts(frame.codestream, jpeg2000=False)
    assert (facts.precision, facts.predictor, facts.restart_interval) == (precision, predictor, 0)


@pytest.mark.parametrize(
    "make",
    [
        {"restart_rows": 1},
        {"fill_bytes": 2},
        {"fill_bytes": 1, "restart_rows": 2},
        {"predictor": 4, "restart_rows": 3},
        {"point_transform": 1},
        {"point_transform": 4},
    ],
    ids=str,
)
def test_restart_markers_fill_bytes_and_point_transforms_are_read(tmp_path: Path, make: dict[str, int]) -> None:
    """A point transform leaves that many low bits out."""
    pixels, shift = textured(40, 30), make.get("point_transform", 0)
    frame = frame_of(tmp_path, pixels, SV1, encode_lossless(pixels, 12, **make))  # type: ignore[arg-type]
    assert np.array_equal(decode(frame), pixels >> shift << shift)
    assert shift or all(np.array_equal(said, pixels) for said in judges(tmp_path / "77.dcm"))
    assert read_facts(frame.codestream, jpeg2000=False).restart_interval == make.get("restart_rows", 0) * 30


@pytest.mark.parametrize("syntax", [LOSSLESS, J2K, JPEG_LS])
def test_dicomsdl_is_not_asked_for_eight_bits_where_sixteen_are_allocated(tmp_path: Path, syntax: str) -> None:
    """With 16 bits stored no range would give it away."""
    pixels = (textured(40, 30) >> 4).astype(np.uint8)
    frame = frame_of(tmp_path, pixels.astype(np.uint16), syntax, encode(pixels, syntax), BitsStored=16)
    with pytest.raises((RuntimeError, ValueError), match="8 bits"):
        decode_with("dicomsdl", frame)
