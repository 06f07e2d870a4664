"""Codestreams to stored pixels: literal pixels through every syntax and backend, and every kind of damage."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import imagecodecs
import numpy as np
import pytest
from dicom_files import (
    BASELINE,
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
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
)
from realdata import find_realdata, realdata

from rsna_kit.dicom import backend_dicomsdl, backend_imagecodecs, backend_native, backend_pydicom
from rsna_kit.dicom import decode as decode_module
from rsna_kit.dicom.apart import decode_apart
from rsna_kit.dicom.decode import (
    LADDER,
    backends,
    decode,
    decode_with,
    holds_a_picture,
    is_constant,
)
from rsna_kit.dicom.frame import EncodedFrame, read_frame
from rsna_kit.dicom.stored import stored_pixels
from rsna_kit.runtime.errors import DecodeError, ImageError

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


def test_bits_above_the_stored_ones_of_native_pixels_are_no_pixels(tmp_path: Path) -> None:
    """Old files keep an overlay there (PS3.5 8.1.1)."""
    content = make_dicom(literal() | np.uint16(0x8000))
    assert decode(frame_of(tmp_path, content)).tolist() == literal().tolist()


@pytest.mark.parametrize("module", [backend_imagecodecs, backend_dicomsdl, backend_pydicom], ids=lambda m: m.__name__)
@pytest.mark.parametrize("syntax", COMPRESSED)
def test_every_backend_alone_gives_the_same_pixels(tmp_path: Path, module: object, syntax: str) -> None:
    assert module.is_available()
    frame = frame_of(tmp_path, make_dicom(literal(), syntax))
    assert module.decode(frame).tolist() == literal().tolist()


def test_the_ladder_is_named_in_order() -> None:
    assert backends(SV1) == [("imagecodecs", True), ("dicomsdl", True), ("pydicom", True)]
    assert backends(IMPLICIT) == [("native", True)]
    assert backends("1.2.3") == []


def test_backends_share_three_names() -> None:
    for module in LADDER:
        assert module.UIDS
        assert callable(module.is_available)
        assert callable(module.decode)
    assert set(backend_native.UIDS) == {IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED}


@pytest.mark.parametrize("broken", ["raises", "wrong shape", "too large", "absent"])
def test_a_failing_rung_hands_over_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    frame = frame_of(tmp_path, make_dicom(literal(), SV1))
    answers = {
        "raises": lambda frame: 1 // 0,
        "wrong shape": lambda frame: literal().T,
        "too large": lambda frame: literal() + np.uint16(1),
        "absent": backend_imagecodecs.decode,
    }
    monkeypatch.setattr(backend_imagecodecs, "decode", answers[broken])
    monkeypatch.setattr(backend_imagecodecs, "is_available", lambda: broken != "absent")
    assert decode(frame).tolist() == literal().tolist()


def test_when_all_rungs_fail_one_error_names_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = frame_of(tmp_path, make_dicom(literal(), SV1))
    monkeypatch.setattr(backend_imagecodecs, "is_available", lambda: False)
    answers = {backend_dicomsdl: literal() + np.uint16(800), backend_pydicom: literal().astype(np.float32)}
    monkeypatch.setattr(decode_module, "decode_apart", lambda module, frame: answers[module])
    with pytest.raises(DecodeError, match="no decoder could read") as caught:
        decode(frame)
    said = str(caught.value)
    assert "imagecodecs: not installed" in said
    assert "dicomsdl: gave a largest value of 4895, expected at most 4095 (12 bits stored)" in said
    assert "pydicom: gave float32, expected integers" in said
    assert "77.dcm" in said


def noise(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows).integers(0, 4096, (rows, columns)).astype(np.uint16)


def zeros(frame: EncodedFrame) -> np.ndarray:
    return np.zeros((frame.rows, frame.columns), np.uint16)


@pytest.mark.parametrize("syntax", [SV1, J2K, JPEG_LS])
def test_zeros_from_a_stream_that_holds_more_are_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    monkeypatch.setattr(backend_imagecodecs, "decode", zeros)
    frame = frame_of(tmp_path, make_dicom(noise(64, 48), syntax))
    assert np.array_equal(decode(frame), noise(64, 48))
    assert is_constant(decode_with("imagecodecs", frame))


def test_when_only_zeros_come_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(module: ModuleType, frame: EncodedFrame) -> np.ndarray:
        raise RuntimeError("no memory")

    monkeypatch.setattr(backend_imagecodecs, "decode", zeros)
    monkeypatch.setattr(decode_module, "decode_apart", refuse)
    with pytest.raises(DecodeError, match="imagecodecs: gave 0 everywhere, which takes far fewer bytes"):
        decode(frame_of(tmp_path, make_dicom(noise(64, 48), SV1)))


def test_a_constant_picture_is_what_two_decoders_say_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 KB of a comment make its stream look like more."""
    blank = np.full((64, 48), 77, np.uint16)
    stream = encode(blank, SV1)
    comment = np.random.default_rng(0).bytes(3000)
    stream = stream[:2] + b"\xff\xfe" + struct.pack(">H", 3002) + comment + stream[2:]
    frame = frame_of(tmp_path, make_dicom(blank, SV1, codestream=stream))
    assert holds_a_picture(frame)
    asked = []
    monkeypatch.setattr(decode_module, "decode_apart", lambda module, frame: asked.append(module) or blank)
    assert np.array_equal(decode(frame), blank)
    assert asked == [backend_dicomsdl]


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 48), (500, 400), (1400, 1100)], ids=str)
@pytest.mark.parametrize("syntax", [*COMPRESSED, RLE])
def test_constant_pictures_of_any_size_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str, shape: tuple[int, int]
) -> None:
    asked = []

    def counting(module: ModuleType, frame: EncodedFrame) -> np.ndarray:
        asked.append(module)
        return np.full(shape, 1234, np.uint16)

    monkeypatch.setattr(decode_module, "decode_apart", counting)
    blank = np.full(shape, 1234, np.uint16)
    frame = frame_of(tmp_path, make_dicom(blank, syntax))
    assert np.array_equal(decode(frame), blank)
    assert asked == ([backend_pydicom] if syntax == RLE else [])
    assert not holds_a_picture(frame)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_one_bit_of_noise_in_a_tenth_of_the_picture_is_a_picture(tmp_path: Path, syntax: str) -> None:
    faint = np.zeros((500, 400), np.uint16)
    faint[:50] = noise(50, 400) & 1
    assert holds_a_picture(frame_of(tmp_path, make_dicom(faint, syntax)))


def test_native_pixels_are_what_they_are(tmp_path: Path) -> None:
    """Noise above the stored bits is an overlay; the picture below it is blank."""
    frame = frame_of(tmp_path, make_dicom(noise(64, 48) << 12, EXPLICIT))
    assert is_constant(decode(frame))


def test_one_different_pixel_anywhere_is_not_constant() -> None:
    for at in [(0, 0), (0, 1), (32, 32), (63, 47)]:
        pixels = np.full((64, 48), 5, np.uint16)
        assert is_constant(pixels)
        pixels[at] = 6
        assert not is_constant(pixels)


def test_unsigned_pixels_are_not_copied(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, make_dicom(literal(), SV1))
    pixels = literal()
    assert np.shares_memory(stored_pixels(pixels, frame), pixels)
    signed = frame_of(tmp_path, make_dicom(literal().astype(np.int16) - 2048, J2K))
    values = literal().astype(np.int16) - 2048
    assert np.shares_memory(stored_pixels(values, signed), values)


@pytest.mark.parametrize("value", [-2049, 4096])
def test_signed_values_outside_the_stored_bits_are_refused(tmp_path: Path, value: int) -> None:
    values = literal().astype(np.int16) - 2048
    frame = frame_of(tmp_path, make_dicom(values, J2K))
    values[2, 3] = value
    with pytest.raises(ValueError, match="gave values outside 12 signed bits"):
        stored_pixels(values, frame)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_decoders_run_apart_give_the_same_pixels(tmp_path: Path, syntax: str) -> None:
    frame = frame_of(tmp_path, make_dicom(literal(), syntax))
    assert decode_apart(backend_dicomsdl, frame).tolist() == literal().tolist()


def test_a_decoder_that_crashes_costs_its_answer_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gdcm aborts and dicomsdl corrupts its heap on damaged streams; scripts/fuzz-decode finds such files."""
    frame = frame_of(tmp_path, make_dicom(literal(), SV1))
    (tmp_path / "dying.py").write_text("import os\n\ndef decode(frame):\n    os.abort()\n")
    (tmp_path / "failing.py").write_text("def decode(frame):\n    raise KeyError('no table')\n")
    (tmp_path / "leaving.py").write_text("import os\n\ndef decode(frame):\n    os._exit(3)\n")
    (tmp_path / "sleeping.py").write_text("import time\n\ndef decode(frame):\n    time.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, said in [("dying", r"crashed \(SIGABRT\)"), ("failing", "no table"), ("leaving", "exit code 3"),
                       ("sleeping", "nothing within 3 s")]:  # fmt: skip
        if name == "sleeping":  # the others may take long to start on a busy machine
            monkeypatch.setattr("rsna_kit.dicom.apart._PATIENCE_S", 3)
        with pytest.raises(RuntimeError, match=said):
            decode_apart(ModuleType(name), frame)


def test_damage_that_crashes_decoders_is_one_typed_error(tmp_path: Path) -> None:
    """A Huffman table lost to one flipped byte, and a precision above the bits allocated."""
    lost = bytearray(encode(literal(), SV1))
    lost[lost.index(b"\xff\xc4")] = 0
    with pytest.raises(DecodeError, match="no decoder could read"):
        decode(frame_of(tmp_path, make_dicom(literal(), SV1, codestream=bytes(lost))))
    deep = bytearray(encode(literal(np.uint8), SV1))
    deep[deep.index(b"\xff\xc3") + 4] = 10
    with pytest.raises(DecodeError, match="of 10 bits, expected 1 of at most the 8 bits allocated"):
        decode(frame_of(tmp_path, make_dicom(literal(np.uint8), SV1, codestream=bytes(deep))))


def test_an_unknown_syntax_is_refused_by_its_uid(tmp_path: Path) -> None:
    frame = dataclasses.replace(
        frame_of(tmp_path, make_dicom(literal(), SV1)), transfer_syntax="1.2.840.10008.1.2.4.100"
    )
    with pytest.raises(DecodeError, match=r"no decoder knows transfer syntax '1\.2\.840\.10008\.1\.2\.4\.100'"):
        decode(frame)


def test_boxes_behind_the_codestream_are_no_damage(tmp_path: Path) -> None:
    """A JP2 file may end with an XML or UUID box: the codestream ends where its own box does."""
    pixels = literal()
    jp2 = encode(pixels, J2K) + struct.pack(">I4s", 108, b"xml ") + b"x" * 100
    assert np.array_equal(decode(frame_of(tmp_path, make_dicom(pixels, J2K, codestream=jp2))), pixels)


@pytest.mark.parametrize("syntax", [SV1, J2K])
def test_a_stale_high_bit_of_a_compressed_frame_is_ignored(tmp_path: Path, syntax: str) -> None:
    pixels = literal()
    assert np.array_equal(decode(frame_of(tmp_path, make_dicom(pixels, syntax, BitsStored=12, HighBit=15))), pixels)


@pytest.mark.parametrize("syntax", [SV1, J2K])
def test_a_burnt_in_marker_above_the_stored_bits_is_clipped(tmp_path: Path, syntax: str) -> None:
    """One pixel of 35 is a marker; where two fifths of them are above, the stream or the decoder is wrong."""
    marked, scaled, expected = literal(), literal(), literal()
    marked[2, 3], scaled[:2], expected[2, 3] = 65535, 60000, 4095
    facts = {"BitsStored": 12, "HighBit": 11}
    assert np.array_equal(decode(frame_of(tmp_path, make_dicom(marked, syntax, **facts))), expected)
    with pytest.raises(DecodeError, match="largest value of 60000, expected at most 4095"):
        decode(frame_of(tmp_path, make_dicom(scaled, syntax, **facts)))


@pytest.mark.parametrize(
    ("syntax", "codestream", "said"),
    [
        (SV1, encode(literal().T.copy(), SV1), "holds 7 x 5 pixels, expected the header's 5 x 7"),
        (J2K, encode(literal().T.copy(), J2K), "holds 7 x 5 pixels, expected the header's 5 x 7"),
        (J2K, encode(literal(), SV1), "expected JPEG 2000"),
        (SV1, encode(literal(), J2K), "expected JPEG"),
        (SV1, encode(literal(), SV1)[:-2], "do not end with an end marker"),
        (J2K, encode(literal(), J2K)[:-2], "is cut short: 2 of its box's"),
        (SV1, b"\xff\xd8", "end inside the stream's head"),
        (SV1, b"\xff\xd8\xff\xd9", "begin before any frame header"),
        (SV1, b"\xff\xd8\x00\x00", "no marker at byte 2"),
        (BASELINE, imagecodecs.jpeg8_encode(np.dstack([literal(np.uint8)] * 3)), "holds 3 components"),
    ],
)
def test_a_codestream_that_contradicts_the_header_is_refused(
    tmp_path: Path, syntax: str, codestream: bytes, said: str
) -> None:
    content = make_dicom(literal(), syntax, codestream=codestream)
    with pytest.raises(DecodeError, match=said):
        decode(frame_of(tmp_path, content))


def test_a_header_that_promises_more_than_its_bytes_can_hold_is_refused_at_once(tmp_path: Path) -> None:
    """8191 squared is just under the limit of pixels; 90 bytes of codestream must not cost 128 MiB."""
    stream = bytearray(encode(literal(), SV1))
    at = stream.index(b"\xff\xc3") + 5
    stream[at : at + 4] = (8191).to_bytes(2, "big") * 2
    content = make_dicom(literal(), SV1, codestream=bytes(stream), Rows=8191, Columns=8191)
    with pytest.raises(DecodeError, match="bytes for 67092481 pixels: cut short"):
        decode(frame_of(tmp_path, content))


@pytest.mark.parametrize("syntax", [EXPLICIT, SV1, JPEG_LS, J2K, RLE])
def test_truncation_at_any_byte_is_an_image_error(tmp_path: Path, syntax: str) -> None:
    """Never another exception, never pixels from half a file."""
    path = tmp_path / "77.dcm"
    noise = np.random.default_rng(0).integers(0, 4096, (16, 12)).astype(np.uint16)
    whole = make_dicom(noise, syntax, WindowCenter=["5", "6"], WindowWidth=["4", "4"])
    delimiter = 0 if syntax == EXPLICIT else 8  # its loss is tolerated
    for length in range(len(whole) - delimiter):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError):
            decode(read_frame(path))


@pytest.mark.parametrize("syntax", [SV1, JPEG_LS, J2K, RLE])
def test_a_codestream_cut_before_it_was_wrapped_is_an_image_error(tmp_path: Path, syntax: str) -> None:
    """The file is whole and its lengths agree: only the codestream itself can tell."""
    noise = np.random.default_rng(0).integers(0, 4096, (16, 12)).astype(np.uint16)
    stream = encode(noise, syntax)
    for length in range(2, len(stream) - 1, 90 if syntax == RLE else 1):  # RLE costs a process each
        frame = frame_of(tmp_path, make_dicom(noise, syntax, codestream=stream[:length]))
        with pytest.raises(ImageError):
            decode(frame)


def test_threads_get_the_same_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    frames, truth = [], []
    for number in range(24):
        truth.append(rng.integers(0, 4096, (64, 48)).astype(np.uint16))
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(make_dicom(truth[-1], COMPRESSED[number % 6]))
        frames.append(path)
    with ThreadPoolExecutor(4) as pool:
        for pixels, expected in zip(pool.map(lambda path: decode(read_frame(path)), frames), truth, strict=True):
            assert np.array_equal(pixels, expected)


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


def test_the_real_data_are_all_there() -> None:
    """20 of the 21 files have an expected hash; none may drop out of the parametrised test unseen."""
    realdata("dicom")
    assert sum("pixel_sha256" in facts for facts in manifest()) == 20


@pytest.mark.parametrize("module", [backend_imagecodecs, backend_dicomsdl, backend_pydicom], ids=lambda m: m.__name__)
def test_real_mammograms_are_the_same_from_every_backend(module: object) -> None:
    for name in ("mg_OutOfBoundsOverlay_jpll", "nema_RG3_J2KR_mono1_10bit", "nema_RG3_JLSL_mono1_10bit"):
        frame = read_frame(realdata("dicom") / f"{name}.dcm")
        assert np.array_equal(module.decode(frame), decode(frame))


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


def test_edge_damaged_lossless_decodes_alike_everywhere_and_is_not_detected() -> None:
    """The damage lies in the entropy-coded data, where JPEG has no checksum."""
    frame = read_frame(realdata("dicom") / "EDGE_ct_JPEGLossless_p14_57_bad.dcm")
    assert frame.padding == -2000
    for module in (backend_imagecodecs, backend_dicomsdl, backend_pydicom):
        assert np.array_equal(module.decode(frame).view(np.uint16), decode(frame))
