"""Reduced JPEG 2000: the wavelet against a literal transcription of T.800, OpenJPEG against the wavelet and Pillow."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from dicom_files import EXPLICIT, J2K, J2K_LOSSY, SV1, jpeg2000, make_dicom, read_in, textured
from PIL import Image

from rsna_kit.dicom import openjpeg, pyramid
from rsna_kit.dicom.decode import Trust, group_of
from rsna_kit.dicom.frame import EncodedFrame, check_stream
from rsna_kit.dicom.pyramid import Pyramid, aligned, clipped, low_band
from rsna_kit.runtime.errors import DecodeError

SHAPES = [(64, 48), (63, 47), (65, 50), (301, 7), (3, 33), (2, 2), (1, 9), (9, 1), (1, 1)]


def frame_of(
    tmp_path: Path, pixels: np.ndarray, stream: bytes | None, syntax: str = J2K, **facts: object
) -> EncodedFrame:
    return read_in(tmp_path, make_dicom(pixels, syntax, codestream=stream, **facts))


def band_of(pixels: np.ndarray, levels: int, precision: int) -> np.ndarray:
    """The low subband after so many decompositions, as a decoder hands it over."""
    for _ in range(levels):
        pixels = low_band(pixels)
    return clipped(pixels, precision)


def literal_low(signal: list[int]) -> list[int]:
    """1D_SD of T.800 F.4.8.1 sample by sample, with the periodic symmetric extension of F.3.7."""
    size = len(signal)
    if size == 1:
        return signal

    def x(i: int) -> int:
        i = i % (2 * (size - 1))
        return signal[min(i, 2 * (size - 1) - i)]

    def high(n: int) -> int:
        return x(2 * n + 1) - (x(2 * n) + x(2 * n + 2)) // 2

    return [x(2 * n) + (high(n - 1) + high(n) + 2) // 4 for n in range((size + 1) // 2)]


def literal_band(pixels: np.ndarray, levels: int, precision: int) -> np.ndarray:
    band = pixels.astype(int)
    for _ in range(levels):
        band = np.array([literal_low(list(column)) for column in band.T]).T
        band = np.array([literal_low(list(row)) for row in band])
    return band.clip(0, 2**precision - 1).astype(np.uint16)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_wavelet_is_that_of_the_standard(shape: tuple[int, int], levels: int) -> None:
    pixels = textured(*shape, top=65535)
    assert np.array_equal(band_of(pixels, levels, 16), literal_band(pixels, levels, 16))


@pytest.mark.parametrize("shape", [(200, 152), (128, 96), (64, 48)])
@pytest.mark.parametrize("reduce", [0, 1, 2, 3])
def test_a_reduced_decode_is_the_low_band_and_what_pillow_says(shape: tuple[int, int], reduce: int) -> None:
    """12 bits stored in a stream that says 16, as the competition's files are. (Pillow fails on odd reduced sizes.)"""
    pixels = textured(*shape)
    stream = jpeg2000(pixels, 5)
    band = openjpeg.decode_reduced(stream, reduce)
    assert band.dtype == np.uint16
    assert np.array_equal(band, band_of(pixels, reduce, 16))
    with Image.open(io.BytesIO(stream)) as picture:
        picture.reduce = reduce
        assert np.array_equal(band, np.asarray(picture))


def expected(pixels: np.ndarray, times: int, top: int = 4095) -> np.ndarray:
    band = np.minimum(aligned(band_of(pixels, times, 16), times), top)
    return band[: pixels.shape[0] >> times, : pixels.shape[1] >> times]


@pytest.mark.parametrize("times", [0, 1, 2, 3])
@pytest.mark.parametrize("area", [(0, 0, 151, 133), (16, 24, 80, 133), (0, 8, 151, 64), (144, 128, 151, 133)])
def test_a_part_is_the_same_as_in_the_whole(tmp_path: Path, times: int, area: tuple[int, int, int, int]) -> None:
    pixels = textured(151, 133)
    frame = frame_of(tmp_path, pixels, jpeg2000(pixels, 3))
    top, left, bottom, right = (side >> times for side in area)
    whole = expected(pixels, times)
    part = whole[top : max(bottom, top + 1), left : max(right, left + 1)]
    for source in (Pyramid(frame), Pyramid(frame, pixels=pixels)):
        found = source.halved(times, area)
        assert found.shape == (max(1, bottom - top), max(1, right - left))
        assert np.array_equal(found[: part.shape[0], : part.shape[1]], part)


def test_without_a_library_or_trust_the_bytes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = textured(150, 130)
    frame = frame_of(tmp_path, pixels, jpeg2000(pixels))
    off = Trust(frozenset({(group_of(frame, check_stream(frame)), pyramid.REDUCER)}))
    asked: list[int] = []
    real = openjpeg.decode_reduced
    monkeypatch.setattr(openjpeg, "decode_reduced", lambda *a: asked.append(a[1]) or real(*a))
    fast = Pyramid(frame).halved(2)
    assert asked == [2]
    assert np.array_equal(Pyramid(frame, off).halved(2), fast)
    monkeypatch.setattr(openjpeg, "is_available", lambda: False)
    assert np.array_equal(Pyramid(frame).halved(2), fast)
    assert asked == [2]


def test_a_library_that_refuses_leaves_the_frame_to_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = textured()
    frame = frame_of(tmp_path, pixels, jpeg2000(pixels))

    def refuse(*_: object) -> np.ndarray:
        raise openjpeg.OpenJpegError("no")

    monkeypatch.setattr(openjpeg, "decode_reduced", refuse)
    source = Pyramid(frame)
    assert np.array_equal(source.halved(1), expected(pixels, 1))
    assert np.array_equal(source.full(), pixels)


def test_only_what_every_decoder_agrees_on_is_halved(tmp_path: Path) -> None:
    pixels = textured()

    def halvings(stream: bytes | None, syntax: str = J2K, kind: np.ndarray = pixels, **facts: object) -> int:
        return Pyramid(frame_of(tmp_path, kind, stream, syntax, **facts)).halvings

    assert halvings(jpeg2000(pixels, 3)) == 3
    assert halvings(jpeg2000(pixels, 0)) == 0
    assert halvings(jpeg2000(pixels, 3, tile_size=(32, 32))) == 0
    assert halvings(jpeg2000(pixels, 3, irreversible=True), J2K_LOSSY) == 0
    assert halvings(jpeg2000(pixels, 3), J2K_LOSSY) == 0
    assert halvings(None, SV1) == 0
    assert halvings(None, EXPLICIT) == 0
    assert halvings(None, J2K, pixels.astype(np.int16)) == 0
    assert halvings(jpeg2000(pixels, 3), PixelRepresentation=1, BitsStored=16) == 0


def test_more_halvings_than_there_are_is_an_error(tmp_path: Path) -> None:
    pixels = textured()
    source = Pyramid(frame_of(tmp_path, pixels, jpeg2000(pixels, 2)))
    with pytest.raises(ValueError, match="asked for 3 halvings, it has 2"):
        source.halved(3)
    with pytest.raises(openjpeg.OpenJpegError, match="reduction 3"):
        openjpeg.decode_reduced(jpeg2000(pixels, 2), 3)


def test_overshoot_is_clipped_to_the_stored_bits(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), dtype=np.uint16)
    pixels[:, 31:] = 4095
    stream = jpeg2000(pixels)
    assert openjpeg.decode_reduced(stream, 1).max() > 4095
    assert Pyramid(frame_of(tmp_path, pixels, stream)).halved(1).max() == 4095


def test_markers_above_the_stored_bits_give_the_same_bytes_whoever_reduces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = textured(200, 150)
    pixels[20:24, 30:50] = 65535  # a label, 0.3 % of the pixels
    frame = frame_of(tmp_path, pixels, jpeg2000(pixels, 3))
    fast = [Pyramid(frame).halved(times) for times in range(4)]
    assert Pyramid(frame).full().max() == 4095
    monkeypatch.setattr(openjpeg, "is_available", lambda: False)
    for times, band in enumerate(fast):
        assert band.max() == 4095
        assert np.array_equal(Pyramid(frame).halved(times), band)


def test_a_stream_deeper_than_its_header_is_refused(tmp_path: Path) -> None:
    pixels = textured(top=65535)
    with pytest.raises(DecodeError, match="expected at most 4095"):
        Pyramid(frame_of(tmp_path, pixels, jpeg2000(pixels))).halved(1)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_alignment_moves_the_band_onto_the_blocks_averages(times: int) -> None:
    y, x = np.mgrid[:128, :96]
    pixels = (8 * x + 5 * y + 100).astype(np.uint16)
    blocks = pixels.reshape(128 >> times, 1 << times, 96 >> times, 1 << times).mean(axis=(1, 3))
    band = band_of(pixels, times, 16)
    inner = (slice(1, -2), slice(1, -2))
    assert np.abs(aligned(band, times) - blocks)[inner].max() <= 1  # rounding
    assert np.abs(band - blocks)[inner].min() > 5  # and without it the half pixel shows


def test_a_library_that_fails_the_known_stream_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    found = next(iter(openjpeg._candidates()))
    monkeypatch.setattr(openjpeg, "_candidates", lambda: iter(["/no/such/library.so", "libm.so.6", found]))
    assert openjpeg._library.__wrapped__() is not None
    monkeypatch.setattr(openjpeg, "_passes", lambda library: False)
    assert openjpeg._library.__wrapped__() is None


def test_garbage_is_an_error_and_not_a_crash() -> None:
    for stream in (b"", b"\xff", b"\x00\x00\x00\x0cjP  ", jpeg2000(textured())[:60], bytes(1000)):
        with pytest.raises(openjpeg.OpenJpegError):
            openjpeg.decode_reduced(stream, 0)


def test_the_proof_covers_the_full_picture_and_its_halvings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = textured(200, 150)
    frame = frame_of(tmp_path, pixels, jpeg2000(pixels, 5))
    found = pyramid.decode_for_proof(frame)
    assert found is not None
    assert np.array_equal(found, pixels)
    assert pyramid.decode_for_proof(frame_of(tmp_path, pixels, None, SV1)) is None
    real = openjpeg.decode_reduced
    monkeypatch.setattr(openjpeg, "decode_reduced", lambda stream, times: real(stream, times) ^ (times == 3))
    with pytest.raises(openjpeg.OpenJpegError, match="halving 3 is not the low subband"):
        pyramid.decode_for_proof(frame)
