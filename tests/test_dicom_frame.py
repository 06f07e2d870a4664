"""Headers and heads: what is read from files of every kind. What is refused: test_dicom_files."""

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
    lut,
    make_dicom,
    read_in,
)
from pydicom.dataset import Dataset

from rsna_kit.dicom.codestream import StreamFacts, Wavelet
from rsna_kit.dicom.frame import Head, check_stream, read_frame, read_head
from rsna_kit.runtime.errors import HeaderError


def read_head_of(tmp_path: Path, content: bytes) -> Head:
    path = tmp_path / "77.dcm"
    path.write_bytes(content)
    return read_head(path)


def noise(side: int = 160) -> np.ndarray:
    """Pixels whose codestream is longer than the first look at it."""
    return np.random.default_rng(7).integers(0, 4096, (side, side), dtype=np.uint16)


def test_a_header_as_poor_as_the_competitions_is_enough(tmp_path: Path) -> None:
    """No Modality, SOP Class, View Position or Manufacturer: code that asks for them breaks on the real thing."""
    frame = read_in(tmp_path, make_dicom(literal(), SV1, ImageLaterality="L", PixelPaddingValue=0))
    assert (frame.image_id, frame.transfer_syntax) == ("77", SV1)
    assert (frame.rows, frame.columns, frame.bits_allocated, frame.bits_stored, frame.signed) == (5, 7, 16, 12, False)
    assert (frame.photometric, frame.windows, frame.voi_function) == ("MONOCHROME2", (), "LINEAR")
    assert (frame.slope, frame.intercept, frame.padding, frame.modality_lut, frame.voi_luts) == (1.0, 0.0, 0, None, ())


def test_several_windows_stay_pairs_in_their_order(tmp_path: Path) -> None:
    facts = {"WindowCenter": ["1802.31", "2020.704", "9"], "WindowWidth": ["1091.97", "0", "5"]}
    frame = read_in(tmp_path, make_dicom(literal(), VOILUTFunction="SIGMOID", **facts))
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
    frame = read_in(tmp_path, content)
    assert frame.modality_lut is not None
    assert (frame.modality_lut.first, frame.modality_lut.bits) == (5, 9)
    assert frame.modality_lut.entries.tolist() == [1, 2, 300]
    assert [(table.first, table.bits) for table in frame.voi_luts] == [(0, 9), (9, 9)]


def test_a_lookup_table_without_data_is_left_out(tmp_path: Path) -> None:
    """A real file (ot_JPEGLossless_sv1) has empty LUT items; pydicom's apply_voi_lut raises on it."""
    frame = read_in(tmp_path, make_dicom(literal(), VOILUTSequence=[lut(0, 12, None), lut(4, 12, [7, 8, 9])]))
    assert [table.entries.tolist() for table in frame.voi_luts] == [[7, 8, 9]]


def test_signed_pixels_have_signed_padding_and_signed_lut_inputs(tmp_path: Path) -> None:
    facts = {"PixelPaddingValue": -2000, "ModalityLUTSequence": [lut(-5, 16, [1, 2, 3])]}
    frame = read_in(tmp_path, make_dicom(literal().astype(np.int16) - 2000, **facts))
    assert frame.signed
    assert frame.padding == -2000
    assert frame.modality_lut is not None
    assert frame.modality_lut.first == -5


def test_a_codestream_inside_the_header_is_not_mistaken_for_the_frame(tmp_path: Path) -> None:
    """Searching for the first bytes of a codestream, as the 2023 solutions did, finds this decoy."""
    decoy = make_dicom(literal(), SV1)[132:]
    frame = read_in(tmp_path, make_dicom(literal()[::-1], SV1, EncapsulatedDocument=decoy))
    assert frame.codestream.rstrip(b"\0") == encode(literal()[::-1], SV1).rstrip(b"\0")


def test_a_file_without_meta_group_is_implicit_or_explicit_by_its_first_element(tmp_path: Path) -> None:
    whole = make_dicom(literal(), IMPLICIT, StudyDate="20221118")
    bare = whole[whole.index(b"\x08\x00\x20\x00") :]
    frame = read_in(tmp_path, bare)
    assert frame.transfer_syntax == IMPLICIT
    assert frame.codestream == literal().tobytes()
    whole = make_dicom(literal(), EXPLICIT, StudyDate="20221118")
    assert read_in(tmp_path, whole[whole.index(b"\x08\x00\x20\x00DA") :]).transfer_syntax == EXPLICIT


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


@pytest.mark.parametrize(("function", "windows"), [("LOG", 0), (["LINEAR", "SIGMOID"], 1), ("SIGMOID", 1)])
def test_windows_of_an_unknown_curve_are_left_out(tmp_path: Path, function: str, windows: int) -> None:
    """A machine with a word of its own must not cost its images: the range of the pixels serves."""
    facts = {"WindowCenter": 2048, "WindowWidth": 4096}
    frame = read_in(tmp_path, make_dicom(literal(), VOILUTFunction=function, **facts))
    assert len(frame.windows) == windows
    assert frame.voi_function in ("LINEAR", "SIGMOID")


@pytest.mark.parametrize("where", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_what_stands_in_functional_groups_alone_counts(tmp_path: Path, where: str) -> None:
    window = {"WindowCenter": ["1500", "7"], "WindowWidth": ["900", "3"], "VOILUTFunction": "SIGMOID"}
    group = {where: shared("FrameVOILUTSequence", **window)}
    frame = read_in(tmp_path, make_dicom(literal(), **group))
    assert (frame.windows, frame.voi_function) == (((1500.0, 900.0), (7.0, 3.0)), "SIGMOID")
    frame = read_in(tmp_path, make_dicom(literal(), WindowCenter="9", WindowWidth="4", **group))
    assert (frame.windows, frame.voi_function) == (((9.0, 4.0),), "LINEAR")
    values = shared("PixelValueTransformationSequence", RescaleSlope="-1", RescaleIntercept="4095")
    frame = read_in(tmp_path, make_dicom(literal(), WindowCenter="", **{where: values}))
    assert (frame.slope, frame.intercept) == (-1.0, 4095.0)


def shared(tag: str, **elements: object) -> list[Dataset]:
    """One item of functional groups with one group of these elements."""
    group, item = Dataset(), Dataset()
    for keyword, value in elements.items():
        setattr(group, keyword, value)
    setattr(item, tag, [group])
    return [item]
