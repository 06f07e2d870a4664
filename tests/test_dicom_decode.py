"""Codestreams to stored pixels: literal pixels through every syntax and backend, and every kind of damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    EXPLICIT,
    J2K,
    J2K_LOSSY,
    JPEG_LS,
    JPEG_LS_NEAR,
    LOSSLESS,
    NATIVE,
    RLE,
    SV1,
    encode,
    literal,
    make_dicom,
    stand_in,
)
from pydicom.pixels import get_decoder
from realdata import find_realdata, realdata

from rsna_kit.dicom.decode import backends, decode, decode_with
from rsna_kit.dicom.decoders import DECODERS
from rsna_kit.dicom.frame import EncodedFrame, read_frame
from rsna_kit.dicom.stored import stored_pixels
from rsna_kit.runtime.errors import DecodeError

COMPRESSED = [LOSSLESS, SV1, JPEG_LS, JPEG_LS_NEAR, J2K, J2K_LOSSY]
SYNTAXES = [*NATIVE, *COMPRESSED, RLE]


def frame_of(tmp_path: Path, content: bytes) -> EncodedFrame:
    path = tmp_path / "77.dcm"
    path.write_bytes(content)
    return read_frame(path)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_literal_pixels_come_back_from_every_syntax(tmp_path: Path, syntax: str) -> None:
    pixels = decode(frame_of(tmp_path, make_dicom(literal(), syntax)))
    assert pixels.dtype == np.uint16
    assert pixels.flags.c_contiguous
    assert pixels.tolist() == literal().tolist()
    assert pixels[0, :3].tolist() == [0, 120, 241]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_eight_bit_pixels_are_widened(tmp_path: Path, syntax: str) -> None:
    pixels = decode(frame_of(tmp_path, make_dicom(literal(np.uint8), syntax)))
    assert pixels.dtype == np.uint16
    assert pixels.tolist() == literal(np.uint8).tolist()


@pytest.mark.parametrize("syntax", [*NATIVE, RLE, J2K, J2K_LOSSY])
def test_signed_pixels_come_back_as_sign_extended_bit_patterns(tmp_path: Path, syntax: str) -> None:
    signed = literal().astype(np.int16) - 2048
    pixels = decode(frame_of(tmp_path, make_dicom(signed, syntax)))
    assert pixels.dtype == np.uint16
    assert pixels.view(np.int16).tolist() == signed.tolist()
    assert pixels[0, 0] == 0xF800


@pytest.mark.parametrize("syntax", [SV1, JPEG_LS, J2K])
def test_signed_pixels_kept_as_low_bits_are_sign_extended(tmp_path: Path, syntax: str) -> None:
    """JPEG has no sign: encoders store 12-bit two's complement; J2K files exist whose SIZ says unsigned."""
    signed = literal().astype(np.int16) - 2048
    low = (signed & 0xFFF).astype(np.uint16)
    content = make_dicom(signed, syntax, codestream=encode(low, syntax))
    assert decode(frame_of(tmp_path, content)).view(np.int16).tolist() == signed.tolist()


def test_a_signed_codestream_under_an_unsigned_header_keeps_its_bits(tmp_path: Path) -> None:
    signed = literal().astype(np.int16) - 2048
    content = make_dicom(literal(), J2K, codestream=encode(signed, J2K))
    assert decode(frame_of(tmp_path, content)).tolist() == (signed & 0xFFF).tolist()


def test_sixteen_bits_stored_use_the_whole_range(tmp_path: Path) -> None:
    wide = np.array([[0, 1, 32767, 32768, 65534, 65535]], dtype=np.uint16)
    for syntax in (EXPLICIT, SV1, J2K):
        assert decode(frame_of(tmp_path, make_dicom(wide, syntax, BitsStored=16))).tolist() == wide.tolist()


@pytest.mark.parametrize("name", ["imagecodecs", "dicomsdl", "pydicom"])
@pytest.mark.parametrize("syntax", COMPRESSED)
def test_every_decoder_alone_gives_the_same_pixels(tmp_path: Path, name: str, syntax: str) -> None:
    frame = frame_of(tmp_path, make_dicom(literal(), syntax))
    assert backends(syntax)[0] == ("imagecodecs", True)
    assert dict(backends(syntax))[name]
    assert decode_with(name, frame).tolist() == literal().tolist()


def blank(frame: EncodedFrame) -> np.ndarray:
    return np.zeros((frame.rows, frame.columns), np.uint16)


@pytest.mark.parametrize(
    "broken",
    [lambda frame: 1 // 0, lambda frame: literal().T, lambda frame: literal() + np.uint16(1), blank, None],
    ids=["raises", "wrong shape", "too large", "zeros", "absent"],
)
def test_a_failing_decoder_hands_over_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable | None
) -> None:
    stand_in(monkeypatch, imagecodecs=broken)
    assert decode(frame_of(tmp_path, make_dicom(literal(), SV1))).tolist() == literal().tolist()


def test_when_all_decoders_fail_one_error_names_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = frame_of(tmp_path, make_dicom(literal(), SV1))
    above = {"dicomsdl": lambda frame: literal() + np.uint16(800), "pydicom": lambda frame: literal().astype("f4")}
    stand_in(monkeypatch, imagecodecs=None, **above)
    with pytest.raises(DecodeError, match=r"77\.dcm.*no decoder could read") as caught:
        decode(frame)
    said = str(caught.value)
    assert "imagecodecs: not installed" in said
    assert "dicomsdl: gave a largest value of 4895, expected at most 4095 (12 bits stored)" in said
    assert "pydicom: gave float32, expected integers" in said
    stand_in(monkeypatch, imagecodecs=blank, dicomsdl=None, pydicom=None)
    with pytest.raises(DecodeError, match="imagecodecs: gave 0 everywhere"):
        decode(frame)


def test_a_constant_picture_is_what_two_decoders_say_it_is(tmp_path: Path) -> None:
    content = make_dicom(np.full((64, 48), 77, np.uint16), SV1)
    assert (decode(frame_of(tmp_path, content)) == 77).all()


def noise(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows).integers(0, 4096, (rows, columns)).astype(np.uint16)


@pytest.mark.parametrize("value", [-2049, 4096])
def test_signed_values_outside_the_stored_bits_are_refused(tmp_path: Path, value: int) -> None:
    values = literal().astype(np.int16) - 2048
    frame = frame_of(tmp_path, make_dicom(values, J2K))
    values[2, 3] = value
    with pytest.raises(ValueError, match="gave values outside 12 signed bits"):
        stored_pixels(values, frame)


@pytest.mark.parametrize("syntax", [SV1, J2K])
def test_a_burnt_in_marker_above_the_stored_bits_is_clipped(tmp_path: Path, syntax: str) -> None:
    """One pixel of 35 is a marker; where two fifths of them are above, the stream or the decoder is wrong."""
    marked, scaled, expected = literal(), literal(), literal()
    marked[2, 3], scaled[:2], expected[2, 3] = 65535, 60000, 4095
    facts = {"BitsStored": 12, "HighBit": 11}
    assert np.array_equal(decode(frame_of(tmp_path, make_dicom(marked, syntax, **facts))), expected)
    with pytest.raises(DecodeError, match="largest value of 60000, expected at most 4095"):
        decode(frame_of(tmp_path, make_dicom(scaled, syntax, **facts)))


def manifest() -> list[dict]:
    folder = find_realdata("dicom")
    return json.loads((folder / "manifest.json").read_text()) if folder else []


@pytest.mark.parametrize("facts", [f for f in manifest() if "pixel_sha256" in f], ids=lambda f: f["file"])
def test_real_files_decode_to_the_pixels_of_three_other_decoders(facts: dict) -> None:
    frame = read_frame(realdata("dicom") / facts["file"])
    pixels = decode(frame)
    values = pixels.view(np.int16) if frame.signed else pixels
    assert [int(values.min()), int(values.max())] == [facts["min"], facts["max"]]
    assert hashlib.sha256(values.astype(facts["dtype"]).tobytes()).hexdigest() == facts["pixel_sha256"]


def test_a_real_lossy_file_that_overshoots_its_bits_stored_is_clipped() -> None:
    """12-bit JPEG Extended with a bad scan header over 10 bits stored: 8 of 3 million pixels reach 1024."""
    pixels = decode(read_frame(realdata("dicom") / "NEGATIVE_nema_RG3_JPLY_12bit_extended_badSOS.dcm"))
    lossless = decode(read_frame(realdata("dicom") / "nema_RG3_JPLL_mono1_10bit.dcm"))
    assert pixels.max() == 1023
    assert np.abs(pixels.astype(int) - lossless).mean() < 2


def test_edge_j2k_pixelrep_mismatch_is_sign_extended() -> None:
    """PixelRepresentation says signed, SIZ says unsigned 13 bits: the values are two's complement."""
    frame = read_frame(realdata("dicom") / "EDGE_ct_J2K_pixelrep_mismatch.dcm")
    values = decode(frame).view(np.int16)
    assert (frame.bits_stored, int(values.min()), int(values.max())) == (13, -2000, 1896)


def test_edge_toshiba_keeps_the_bits_of_a_signed_stream_under_an_unsigned_header() -> None:
    """gdcm and pylibjpeg agree on this reading; Pillow adds 32768 instead."""
    frame = read_frame(realdata("dicom") / "EDGE_ct_TOSHIBA_J2K_SIZ1_PixRep0.dcm")
    pixels = decode(frame)
    assert not frame.signed
    assert (int(pixels.min()), int(pixels.max())) == (0, 65535)
    assert (int(pixels.view(np.int16).min()), int(pixels.view(np.int16).max())) == (-2048, 1717)


def test_pydicom_is_a_decoder_where_one_of_its_plugins_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Pillow alone: what a notebook has before any wheel is installed."""
    absence, uids = DECODERS["pydicom"].absence, DECODERS["pydicom"].syntaxes
    for decoder in map(get_decoder, uids):
        for name in {"gdcm", "pylibjpeg", "pyjpegls"} & set(decoder._available):
            monkeypatch.delitem(decoder._available, name)
            monkeypatch.setitem(decoder._unavailable, name, (name,))
    stand_in(monkeypatch, imagecodecs=None, dicomsdl=None)
    absence.cache_clear()
    there = {uid[18:] for uid in uids if dict(backends(uid))["pydicom"]}
    with pytest.raises(DecodeError, match=r"dicomsdl: not installed\n  pydicom: .*gdcm is not installed \(requires"):
        decode(frame_of(tmp_path, make_dicom(literal(), SV1)))
    absence.cache_clear()
    assert there == {"4.50", "4.51", "4.90", "4.91", "5"}


@pytest.mark.parametrize("syntax", [SV1, J2K])
def test_two_decoders_above_the_range_that_differ_are_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    """Then the third is asked; where two agree above it, the third would only mask the bits."""
    marked, other, third = literal(), literal(), literal() ^ np.uint16(1)
    marked[2, 3], other[2, 3] = 65535, 65534
    frame = frame_of(tmp_path, make_dicom(literal(), syntax))
    stand_in(monkeypatch, imagecodecs=lambda _: marked, dicomsdl=lambda _: other, pydicom=lambda _: third)
    assert np.array_equal(decode(frame), third)
    stand_in(monkeypatch, dicomsdl=lambda _: marked, pydicom=lambda _: pytest.fail("asked"))
    assert decode(frame)[2, 3] == 4095
