"""Headers and codestreams: what is read from files of every kind, and how bad files are refused."""

from __future__ import annotations

import dataclasses
import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    BIG_ENDIAN,
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
from pydicom.dataset import Dataset

from rsna_kit.dicom.codestream import StreamFacts, Wavelet
from rsna_kit.dicom.decode import decode
from rsna_kit.dicom.frame import EncodedFrame, Head, check_stream, read_frame, read_head
from rsna_kit.runtime.errors import DecodeError, HeaderError, ImageError


def read(tmp_path: Path, content: bytes) -> EncodedFrame:
    path = tmp_path / "77.dcm"
    path.write_bytes(content)
    return read_frame(path)


def read_head_of(tmp_path: Path, content: bytes) -> Head:
    path = tmp_path / "77.dcm"
    path.write_bytes(content)
    return read_head(path)


def in_fragments(pixels: np.ndarray, syntax: str, fragments: list[bytes]) -> bytes:
    """A file whose codestream is cut into these pieces."""
    whole = make_dicom(pixels, syntax)
    at = whole.index(b"\xe0\x7f\x10\x00OB") + 12
    items = [struct.pack("<HHI", 0xFFFE, 0xE000, len(piece)) + piece for piece in [b"", *fragments]]
    return whole[:at] + b"".join(items) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def noise(side: int = 160) -> np.ndarray:
    """Pixels whose codestream is longer than the first look at it."""
    return np.random.default_rng(7).integers(0, 4096, (side, side), dtype=np.uint16)


def lut(first: int, bits: int, entries: list[int] | bytes | None) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [3, first, bits]
    item["LUTDescriptor"].VR = "US" if first >= 0 else "SS"
    if entries is not None:
        item.add_new(
            0x00283006, "OW", entries if isinstance(entries, bytes) else struct.pack(f"<{len(entries)}H", *entries)
        )
    return item


def test_a_header_as_poor_as_the_competitions_is_enough(tmp_path: Path) -> None:
    """No Modality, SOP Class, View Position or Manufacturer: code that asks for them breaks on the real thing."""
    frame = read(tmp_path, make_dicom(literal(), SV1, ImageLaterality="L", PixelPaddingValue=0))
    assert (frame.image_id, frame.transfer_syntax) == ("77", SV1)
    assert (frame.rows, frame.columns, frame.bits_allocated, frame.bits_stored, frame.signed) == (5, 7, 16, 12, False)
    assert (frame.photometric, frame.windows, frame.voi_function) == ("MONOCHROME2", (), "LINEAR")
    assert (frame.slope, frame.intercept, frame.padding, frame.modality_lut, frame.voi_luts) == (1.0, 0.0, 0, None, ())


def test_several_windows_stay_pairs_in_their_order(tmp_path: Path) -> None:
    facts = {"WindowCenter": ["1802.31", "2020.704", "9"], "WindowWidth": ["1091.97", "0", "5"]}
    frame = read(tmp_path, make_dicom(literal(), VOILUTFunction="SIGMOID", **facts))
    assert frame.windows == ((1802.31, 1091.97), (9.0, 5.0))  # a window of width 0 shows nothing
    assert frame.voi_function == "SIGMOID"


@pytest.mark.parametrize("syntax", NATIVE)
def test_lookup_tables_are_read_in_every_byte_order(tmp_path: Path, syntax: str) -> None:
    entries = struct.pack(">3H" if syntax == BIG_ENDIAN else "<3H", 1, 2, 300)
    content = make_dicom(
        literal(),
        syntax,
        ModalityLUTSequence=[lut(5, 16, entries)],
        VOILUTSequence=[lut(0, 12, entries), lut(9, 8, entries)],
    )
    frame = read(tmp_path, content)
    assert frame.modality_lut is not None
    assert (frame.modality_lut.first, frame.modality_lut.bits) == (5, 9)
    assert frame.modality_lut.entries.tolist() == [1, 2, 300]
    assert [(table.first, table.bits) for table in frame.voi_luts] == [(0, 9), (9, 9)]


def test_a_lookup_table_without_data_is_left_out(tmp_path: Path) -> None:
    """A real file (ot_JPEGLossless_sv1) has empty LUT items; pydicom's apply_voi_lut raises on it."""
    frame = read(tmp_path, make_dicom(literal(), VOILUTSequence=[lut(0, 12, None), lut(4, 12, [7, 8, 9])]))
    assert [table.entries.tolist() for table in frame.voi_luts] == [[7, 8, 9]]


def test_signed_pixels_have_signed_padding_and_signed_lut_inputs(tmp_path: Path) -> None:
    facts = {"PixelPaddingValue": -2000, "ModalityLUTSequence": [lut(-5, 16, [1, 2, 3])]}
    frame = read(tmp_path, make_dicom(literal().astype(np.int16) - 2000, **facts))
    assert frame.signed
    assert frame.padding == -2000
    assert frame.modality_lut is not None
    assert frame.modality_lut.first == -5


def test_a_codestream_inside_the_header_is_not_mistaken_for_the_frame(tmp_path: Path) -> None:
    """Searching for the first bytes of a codestream, as the 2023 solutions did, finds this decoy."""
    decoy = make_dicom(literal(), SV1)[132:]
    frame = read(tmp_path, make_dicom(literal()[::-1], SV1, EncapsulatedDocument=decoy))
    assert frame.codestream.rstrip(b"\0") == encode(literal()[::-1], SV1).rstrip(b"\0")


def test_a_file_without_meta_group_is_read_as_implicit_little_endian(tmp_path: Path) -> None:
    whole = make_dicom(literal(), IMPLICIT, StudyDate="20221118")
    bare = whole[whole.index(b"\x08\x00\x20\x00") :]
    frame = read(tmp_path, bare)
    assert frame.transfer_syntax == IMPLICIT
    assert frame.codestream == literal().tobytes()


def test_a_file_without_meta_group_whose_elements_carry_vrs_is_explicit(tmp_path: Path) -> None:
    whole = make_dicom(literal(), EXPLICIT, StudyDate="20221118")
    assert read(tmp_path, whole[whole.index(b"\x08\x00\x20\x00DA") :]).transfer_syntax == EXPLICIT


HALVED_ONCE = Wavelet(levels=1, reversible=True, layers=1, progression="LRCP", tiles=1, plain=True)
NOT_HALVED = dataclasses.replace(HALVED_ONCE, levels=0)  # the encoder does not halve 5 x 7 pixels


@pytest.mark.parametrize(
    ("syntax", "facts", "jp2"),
    [
        *((syntax, None, False) for syntax in (*NATIVE, RLE)),
        (LOSSLESS, StreamFacts(5, 7, 1, 16, False, predictor=6), False),
        (SV1, StreamFacts(5, 7, 1, 16, False, predictor=1), False),
        (JPEG_LS, StreamFacts(5, 7, 1, 16, False, jpeg_ls=True), False),
        (JPEG_LS_NEAR, StreamFacts(5, 7, 1, 16, False, jpeg_ls=True), False),
        (J2K, StreamFacts(5, 7, 1, 16, False, NOT_HALVED), True),
        (J2K_LOSSY, StreamFacts(5, 7, 1, 16, False, NOT_HALVED), False),
    ],
)
def test_a_head_is_the_frame_without_its_codestream_and_how_that_is_coded(
    tmp_path: Path, syntax: str, facts: StreamFacts | None, jp2: bool
) -> None:
    content = make_dicom(literal(), syntax, WindowCenter="5", WindowWidth="4")
    head = read_head_of(tmp_path, content)
    frame = read_frame(tmp_path / "77.dcm")
    assert vars(head.frame) == {**vars(frame), "codestream": b""}
    assert (head.facts, head.jp2, head.size, head.problem) == (facts, jp2, len(content), None)
    assert check_stream(frame, frame.codestream) == facts


def test_a_head_takes_one_read_however_long_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """32,000 files on a network disk: a MiB of each was 32 GB."""
    reads: list[int] = []

    class Counting(io.FileIO):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            reads.append(len(buffer))
            return super().readinto(buffer) or 0

    content = make_dicom(noise(400), J2K)
    assert len(content) > 200_000
    monkeypatch.setattr(io, "FileIO", Counting)
    assert read_head_of(tmp_path, content).facts is not None
    assert reads == [65536]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, SV1, J2K])
def test_pixels_behind_a_long_element_are_found(tmp_path: Path, syntax: str) -> None:
    content = make_dicom(literal(), syntax, EncapsulatedDocument=bytes(3 * 2**20))
    head = read_head_of(tmp_path, content)
    assert (head.frame.rows, head.frame.columns, head.problem) == (5, 7, None)
    assert (head.facts is None) == (syntax in NATIVE)


def test_a_damaged_length_allocates_no_more_than_the_file_holds(tmp_path: Path) -> None:
    whole = make_dicom(literal(), IMPLICIT)
    at = whole.index(b"\x28\x00\x10\x00") + 4  # Rows
    tracemalloc.start()
    with pytest.raises(HeaderError, match="no Pixel Data"):
        read_head_of(tmp_path, whole[:at] + b"\xf0\xff\xff\xff" + whole[at + 4 :])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("comments", [0, 1, 2, 18])
def test_a_frame_header_behind_long_comments_is_found(tmp_path: Path, comments: int) -> None:
    """Of 64 KiB each: it lies behind the first, the second and the third look."""
    stream = encode(noise(), SV1)
    stream = stream[:2] + comments * (b"\xff\xfe\xff\xff" + bytes(65533)) + stream[2:]
    head = read_head_of(tmp_path, make_dicom(noise(), SV1, codestream=stream))
    assert head.facts == StreamFacts(160, 160, 1, 16, False, predictor=1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (make_dicom(literal(), SV1, Rows=6), "holds 5 x 7 pixels, expected the header's 6 x 7"),
        (make_dicom(literal(), J2K, BitsAllocated=8, BitsStored=8), "holds 1 components of 16 bits, expected 1 of at"),
        (make_dicom(literal(), SV1, codestream=encode(literal(), J2K)), "begins with 00 00, expected JPEG"),
        (make_dicom(literal(), J2K, codestream=encode(literal(), SV1)), "begins with ff d8 ff e0, expected JPEG 2000"),
        (make_dicom(literal(), SV1, codestream=b"\xff\xd8\xff\xfe\x60\x00" + bytes(8)), "end inside the stream's head"),
        (make_dicom(noise(), J2K, codestream=bytes(100_000)), "begins with 00 00 00 00, expected JPEG 2000"),
    ],
)
def test_a_head_that_contradicts_its_header_says_what_decode_will_say(
    tmp_path: Path, content: bytes, said: str
) -> None:
    head = read_head_of(tmp_path, content)
    assert head.facts is None
    assert head.problem is not None
    assert said in head.problem
    with pytest.raises(DecodeError) as caught:
        decode(read_frame(tmp_path / "77.dcm"))
    assert str(caught.value) == head.problem


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no DICOM file",
        make_dicom(literal())[:-2],
        make_dicom(literal())[:-100],
        make_dicom(noise(), SV1)[:-2000],
        make_dicom(noise(), J2K)[:-20],
        in_fragments(literal(), J2K, []),
        in_fragments(literal(), J2K, [b""]),
        make_dicom(literal(), SV1, SamplesPerPixel=3),
    ],
)
def test_a_head_refuses_what_the_frame_refuses(tmp_path: Path, content: bytes) -> None:
    """Also a file that is cut short behind its head: its items say how long they should be."""
    with pytest.raises(HeaderError) as caught:
        read(tmp_path, content)
    with pytest.raises(HeaderError) as head:
        read_head_of(tmp_path, content)
    assert str(head.value) == str(caught.value)


@pytest.mark.parametrize("syntax", [EXPLICIT, SV1, J2K])
def test_damaged_files_have_the_head_of_the_whole_or_its_error(tmp_path: Path, syntax: str) -> None:
    """300 files with one to three wrong bytes in front of or at the start of their pixels."""
    rng = np.random.default_rng(11)
    whole = make_dicom(noise(), syntax, VOILUTSequence=[lut(0, 12, [7, 8, 9])], WindowCenter="5", WindowWidth="4")
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(128, 900, rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        head, frame, facts, seen, full = None, None, None, "", ""
        try:
            head = read_head_of(tmp_path, bytes(damaged))
            seen = head.problem or ""
        except HeaderError as error:
            seen = str(error)
        try:
            frame = read_frame(tmp_path / "77.dcm")
            facts = check_stream(frame, frame.codestream)
        except ImageError as error:
            full = str(error)
        if full:  # what is damaged may lie behind the head, such as a later item
            assert seen in (full, "")
            refused += 1
        else:
            assert head is not None
            assert frame is not None
            assert (seen, head.facts, head.frame.windows) == ("", facts, frame.windows)
    assert 30 < refused < 300


@pytest.mark.parametrize(("function", "windows"), [("LOG", 0), (["LINEAR", "SIGMOID"], 1), ("SIGMOID", 1)])
def test_windows_of_an_unknown_curve_are_left_out(tmp_path: Path, function: str, windows: int) -> None:
    """A machine with a word of its own must not cost its images: the range of the pixels serves."""
    facts = {"WindowCenter": 2048, "WindowWidth": 4096}
    frame = read(tmp_path, make_dicom(literal(), VOILUTFunction=function, **facts))
    assert len(frame.windows) == windows
    assert frame.voi_function in ("LINEAR", "SIGMOID")


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"SamplesPerPixel": 3}, r"SamplesPerPixel \(0028,0002\) is 3, expected 1 \(monochrome"),
        ({"NumberOfFrames": "4"}, r"NumberOfFrames \(0028,0008\) is 4, expected 1 \(one frame"),
        ({"PhotometricInterpretation": "RGB"}, "is 'RGB', expected MONOCHROME1 or MONOCHROME2"),
        ({"PhotometricInterpretation": None}, "is 'missing', expected MONOCHROME1"),
        ({"BitsStored": 17}, r"BitsStored \(0028,0101\) is 17, expected 1 to 16"),
        ({"BitsAllocated": 32}, r"BitsAllocated \(0028,0100\) is 32, expected 8 or 16"),
        ({"BitsAllocated": None}, r"BitsAllocated \(0028,0100\) is missing"),
        ({"HighBit": 15}, r"HighBit \(0028,0102\) is 15, expected 11"),
        ({"Rows": None}, r"Rows \(0028,0010\) is missing, expected a number"),
        ({"Rows": 0}, "got 0 x 7 pixels"),
        ({"Rows": 65535, "Columns": 65535}, "got 65535 x 65535 pixels, expected 1 to 67108864"),
        ({"Rows": 8000, "Columns": 8000}, "has 70 bytes, expected 128000000 bytes"),
        ({"Rows": 4}, "has 70 bytes, expected 56 bytes for 4 x 7 pixels of 16 bits"),
    ],
)
def test_a_header_that_is_not_one_monochrome_frame_is_refused(tmp_path: Path, elements: dict, said: str) -> None:
    with pytest.raises(HeaderError, match=said) as caught:
        read(tmp_path, make_dicom(literal(), **elements))
    assert "77.dcm" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty, expected a DICOM file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(300), r"not a DICOM file \(it begins with 89 50 4e 47"),
        (b"patient_id,image_id\n10006,1\n", "not a DICOM file"),
        (b"\x08", "not a DICOM file"),
        (bytes(128) + b"DICM", "begins with nothing"),
        (bytes(4096), "not a DICOM file"),
        (make_dicom(literal())[:-100], "no Pixel Data"),
    ],
)
def test_files_that_are_no_dicom_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(HeaderError, match=said):
        read(tmp_path, content)


def test_an_element_with_an_unknown_value_representation_is_refused(tmp_path: Path) -> None:
    """Found by scripts/fuzz-decode: pydicom raises NotImplementedError when such an element is empty and asked for."""
    whole = bytearray(make_dicom(literal()))
    at = whole.index(b"\x28\x00\x02\x01US")
    whole[at + 4 : at + 10] = b"U\x02\x00\x00"
    with pytest.raises(HeaderError, match="Unknown Value Representation"):
        read(tmp_path, bytes(whole))


def test_compressed_pixels_that_are_not_encapsulated_are_refused(tmp_path: Path) -> None:
    whole = make_dicom(literal(), SV1)
    at = whole.index(b"\xe0\x7f\x10\x00OB") + 8
    with pytest.raises(HeaderError, match="defined length of 16 bytes, expected encapsulated items"):
        read(tmp_path, whole[:at] + struct.pack("<I", 16) + whole[at + 4 :])


def test_a_missing_delimiter_after_whole_fragments_is_tolerated(tmp_path: Path) -> None:
    assert read(tmp_path, make_dicom(literal(), SV1)[:-8]).codestream


def test_an_empty_frame_is_refused(tmp_path: Path) -> None:
    whole = make_dicom(literal(), SV1)
    at = whole.index(b"\xe0\x7f\x10\x00OB") + 12
    with pytest.raises(HeaderError, match="holds no fragment"):
        read(tmp_path, whole[:at] + struct.pack("<HHI", 0xFFFE, 0xE000, 0))


def test_damaged_items_are_refused(tmp_path: Path) -> None:
    whole = make_dicom(literal(), SV1)
    at = whole.index(b"\xe0\x7f\x10\x00OB") + 12
    with pytest.raises(HeaderError, match=r"item 0 begins with \(0001,0000\)"):
        read(tmp_path, whole[:at] + b"\x01" + bytes(40))
