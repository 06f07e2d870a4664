"""Bad and unusual files, one by one: the outcome is the right picture, or one ImageError that says what is wrong."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_files import EXPLICIT, J2K, JPEG_LS, LOSSLESS, SV1, encode, make_dicom
from lossless_jpeg import encode_lossless
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import get_decoder
from test_dicom_frame import in_fragments
from test_dicom_pyramid import jpeg2000, textured
from test_imaging_reduced import breast, off

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.codestream import read_facts
from rsna_kit.dicom.decode import decode, decode_with
from rsna_kit.dicom.frame import EncodedFrame, read_frame, read_head
from rsna_kit.dicom.pyramid import Pyramid
from rsna_kit.imaging.render import read_image, render
from rsna_kit.runtime.errors import DecodeError, HeaderError

SMALL = ImageConfig(height=64, width=32)
Encoder = Callable[[np.ndarray], bytes]

# Kind of codestream → its syntax and who writes it.
KINDS: dict[str, tuple[str, Encoder]] = {
    ".70": (SV1, lambda pixels: encode_lossless(pixels, 12)),
    ".57": (LOSSLESS, lambda pixels: encode(pixels, LOSSLESS)),
    ".80": (JPEG_LS, lambda pixels: encode(pixels, JPEG_LS)),
    ".90 bare": (J2K, lambda pixels: jpeg2000(pixels, no_jp2=True)),
    ".90 in boxes": (J2K, jpeg2000),
}


def frame_of(
    tmp_path: Path, pixels: np.ndarray, syntax: str, stream: bytes | None = None, **facts: object
) -> EncodedFrame:
    return frame_in(tmp_path, make_dicom(pixels, syntax, codestream=stream, **facts))


def frame_in(tmp_path: Path, content: bytes) -> EncodedFrame:
    path = tmp_path / "77.dcm"
    path.write_bytes(content)
    return read_frame(path)


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


# Cut streams


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_native_pixels_that_are_cut_say_how_many_are_left(tmp_path: Path, share: float) -> None:
    pixels = textured(40, 30)
    content = make_dicom(pixels, EXPLICIT)
    start = len(content) - pixels.nbytes
    left = int(share * pixels.nbytes)
    with pytest.raises(HeaderError, match=f"has {left} of 2400 bytes, expected 2400 bytes for 40 x 30 pixels of 16"):
        frame_in(tmp_path, content[: start + left])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_whose_last_fragment_is_cut_says_so(tmp_path: Path, kind: str) -> None:
    syntax, encoder = KINDS[kind]
    stream = encoder(textured(40, 30))
    third = len(stream) // 3
    pieces = [stream[:third], stream[third : 2 * third], stream[2 * third :]]
    whole = in_fragments(textured(40, 30), syntax, pieces)
    assert np.array_equal(decode(frame_in(tmp_path, whole)), textured(40, 30))
    with pytest.raises(HeaderError, match=r"Pixel Data item 3 says \d+ bytes, only \d+ are left"):
        frame_in(tmp_path, whole[: -8 - third // 2])
    shortened = in_fragments(textured(40, 30), syntax, [*pieces[:2], pieces[2][: third // 2]])
    with pytest.raises(DecodeError, match="cut short"):
        decode(frame_in(tmp_path, shortened))


def without_middle(stream: bytes, share: float, head: int) -> bytes:
    """The first `share` of what follows the head, and the end marker."""
    return stream[: head + int(share * (len(stream) - head - 2))] + stream[-2:]


@pytest.mark.parametrize("share", [0.5])
@pytest.mark.parametrize("kind", [".80", ".90 bare", ".90 in boxes", "without a length"])
def test_a_stream_without_its_middle_is_refused_though_it_ends_well(tmp_path: Path, kind: str, share: float) -> None:
    """Tile-parts state their length; one that states none (Psot 0) lasts to the end, and its packets tell."""
    pixels = textured(60, 50)
    syntax, encoder = KINDS.get(kind, KINDS[".90 bare"])
    stream = encoder(pixels)
    if kind == "without a length":
        at = stream.index(b"\xff\x90") + 6
        stream = stream[:at] + bytes(4) + stream[at + 4 :]
        assert np.array_equal(decode(frame_of(tmp_path, pixels, syntax, stream)), pixels)
    head = stream.index({".80": b"\xff\xda"}.get(kind, b"\xff\x93")) + 10
    frame = frame_of(tmp_path, pixels, syntax, without_middle(stream, share, head))
    with pytest.raises(DecodeError):
        decode(frame)
    with pytest.raises(DecodeError):
        Pyramid(frame).halved(1) if syntax == J2K else decode(frame)


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("precision", [12])
@pytest.mark.parametrize("predictor", [1, 6])
def test_lossless_jpeg_without_its_middle_is_refused_though_it_ends_well(
    tmp_path: Path, predictor: int, precision: int, share: float
) -> None:
    """Every decoder fills the rows that are missing with half the range, without an error."""
    pixels = textured(60, 50)
    stream = encode_lossless(pixels, precision, predictor)
    cut = without_middle(stream, share, stream.index(b"\xff\xda") + 10)
    with pytest.raises(DecodeError):
        decode(frame_of(tmp_path, pixels, LOSSLESS, cut, BitsStored=precision))


# Header and stream disagree


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(39, 30), (40, 31)])
def test_another_size_than_the_header_says_is_refused(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    syntax, encoder = KINDS[kind]
    pixels = textured(40, 30)
    frame = frame_of(tmp_path, pixels, syntax, encoder(pixels), Rows=size[0], Columns=size[1])
    with pytest.raises(DecodeError, match=f"holds 40 x 30 pixels, expected the header's {size[0]} x {size[1]}"):
        decode(frame)


@pytest.mark.parametrize("stored", [9, 11, 12, 13, 16])
@pytest.mark.parametrize("kind", [".70", ".80", ".90 of 12 bits", ".90 bare"])
def test_more_bits_stored_than_coded_are_fine_and_fewer_are_the_streams(tmp_path: Path, kind: str, stored: int) -> None:
    """A precision of 12 bits is believed; one of 16 says no more than that 16 are allocated."""
    pixels = textured(40, 30)  # its values have 12 bits
    if kind == ".90 of 12 bits":
        syntax, stream = J2K, imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="j2k", bitspersample=12)
        assert read_facts(stream, True).precision == 12
    else:
        syntax, stream = KINDS[kind][0], KINDS[kind][1](pixels)
    frame = frame_of(tmp_path, pixels, syntax, stream, BitsStored=stored)
    if stored >= 12 or read_facts(stream, syntax == J2K).precision == 12:
        assert np.array_equal(decode(frame), pixels)
    else:
        with pytest.raises(DecodeError, match=f"largest value of 4095, expected at most {2**stored - 1}"):
            decode(frame)


@pytest.mark.parametrize("syntax", [LOSSLESS, SV1, JPEG_LS, J2K])
def test_dicomsdl_is_not_asked_for_eight_bits_where_sixteen_are_allocated(tmp_path: Path, syntax: str) -> None:
    """With 16 bits stored no range would give it away."""
    pixels = (textured(40, 30) >> 4).astype(np.uint8)
    frame = frame_of(tmp_path, pixels.astype(np.uint16), syntax, encode(pixels, syntax), BitsStored=16)
    with pytest.raises((RuntimeError, ValueError), match="8 bits"):
        decode_with("dicomsdl", frame)


# Frames, fragments and offset tables


@pytest.mark.parametrize("kind", KINDS)
def test_several_frames_are_refused_before_they_are_decoded(tmp_path: Path, kind: str) -> None:
    syntax, encoder = KINDS[kind]
    two = in_fragments(textured(40, 30), syntax, [encoder(textured(40, 30)), encoder(textured(40, 30)[::-1])])
    dataset = pydicom.dcmread(io.BytesIO(two))
    dataset.NumberOfFrames = 2
    dataset.save_as(tmp_path / "77.dcm")
    with pytest.raises(HeaderError, match=r"NumberOfFrames \(0028,0008\) is 2, expected 1 \(one frame"):
        read_frame(tmp_path / "77.dcm")


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_frames_that_the_header_calls_one_the_first_is_shown(tmp_path: Path, kind: str) -> None:
    syntax, encoder = KINDS[kind]
    pixels = textured(40, 30)
    two = in_fragments(pixels, syntax, [encoder(pixels), encoder(pixels[::-1].copy())])
    assert np.array_equal(decode(frame_in(tmp_path, two)), pixels)


def test_two_native_frames_that_the_header_calls_one_are_refused(tmp_path: Path) -> None:
    pixels = textured(40, 30)
    with pytest.raises(HeaderError, match="has 4800 bytes, as many as 2 frames or deeper pixels, expected 2400"):
        frame_of(tmp_path, pixels, EXPLICIT, np.vstack([pixels, pixels]).tobytes())


@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("table", ["none", "filled", "extended", "wrong"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_table_of_any_kind_is_passed_over(tmp_path: Path, kind: str, table: str, fragments: int) -> None:
    syntax, encoder = KINDS[kind]
    pixels = textured(40, 30)
    stream = encoder(pixels)
    dataset = pydicom.dcmread(io.BytesIO(make_dicom(pixels, syntax, codestream=stream)))
    if table == "extended":
        dataset.PixelData, offsets, lengths = encapsulate_extended([stream])
        dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    else:
        dataset.PixelData = encapsulate([stream], fragments_per_frame=fragments, has_bot=table != "none")
    if table == "wrong":  # stale since somebody changed the fragments
        dataset.PixelData = dataset.PixelData[:8] + b"\xff\xff\xff\x7f" + dataset.PixelData[12:]
    dataset.save_as(tmp_path / "77.dcm")
    assert np.array_equal(decode(read_frame(tmp_path / "77.dcm")), pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_odd_fragments_are_joined_like_others(tmp_path: Path, kind: str) -> None:
    syntax, encoder = KINDS[kind]
    pixels = textured(40, 30)
    stream = encoder(pixels)
    pieces = [b"", stream[:7], b"", stream[7:8], stream[8:1001], b"", stream[1001:], b""]
    assert np.array_equal(decode(frame_in(tmp_path, in_fragments(pixels, syntax, pieces))), pixels)


@pytest.mark.parametrize("garbage", [b"\0", b"garbage", b"\xff\xd8\xff\xe0", bytes(100_000)])
@pytest.mark.parametrize("syntax", [EXPLICIT, SV1, J2K])
def test_garbage_behind_the_file_is_passed_over(tmp_path: Path, syntax: str, garbage: bytes) -> None:
    pixels = textured(40, 30)
    assert np.array_equal(decode(frame_in(tmp_path, make_dicom(pixels, syntax) + garbage)), pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_little_behind_the_end_marker_is_padding_and_more_is_damage(tmp_path: Path, kind: str) -> None:
    """In JP2 the box's own length says where the codestream ends, so more may follow it."""
    syntax, encoder = KINDS[kind]
    pixels = textured(40, 30)
    stream = encoder(pixels)
    assert np.array_equal(decode(frame_of(tmp_path, pixels, syntax, stream + b"garbage!" * 3)), pixels)
    more = frame_of(tmp_path, pixels, syntax, stream + b"garbage!" * 100)
    if kind == ".90 in boxes":
        assert np.array_equal(decode(more), pixels)
    else:
        with pytest.raises(DecodeError, match=r"do not end with an end marker \(FF D9\)"):
            decode(more)


# JPEG 2000 of every make

MAKES: dict[str, dict[str, object]] = {
    "no level": {"num_resolutions": 1},
    "one level": {"num_resolutions": 2},
    "RLCP": {"progression": "RLCP"},
    "RPCL": {"progression": "RPCL"},
    "PCRL": {"progression": "PCRL"},
    "CPRL": {"progression": "CPRL"},
    "layers": {"quality_mode": "rates", "quality_layers": [60, 20, 1]},
    "precincts": {"precinct_size": (64, 64)},
    "precincts and layers, RPCL": {
        "precinct_size": (64, 64),
        "progression": "RPCL",
        "quality_mode": "rates",
        "quality_layers": [60, 20, 1],
    },
    "small blocks": {"codeblock_size": (4, 4)},
    "lengths of packets": {"plt": True},
    "a comment": {"comment": b"anything \xff\xd9 at all"},
    "tiles": {"tile_size": (300, 64)},
    "an offset": {"offset": (5, 3), "tile_size": (305, 403)},
    "an offset of whole blocks": {"offset": (64, 32), "tile_size": (512, 512)},
    "a tile offset": {"offset": (32, 32), "tile_offset": (16, 16), "tile_size": (512, 512)},
    "bare": {"no_jp2": True},
}


@pytest.mark.parametrize("make", MAKES)
def test_every_make_of_jpeg_2000_gives_the_picture(tmp_path: Path, make: str) -> None:
    """At full size and as an image, where a reduced decode must show what the full picture shows."""
    pixels = breast(400, 300)
    stream = jpeg2000(pixels, **{"num_resolutions": 4, **MAKES[make]})
    frame = frame_of(tmp_path, pixels, J2K, stream)
    assert np.array_equal(decode(frame), pixels)
    assert all(np.array_equal(said, pixels) for said in judges(tmp_path / "77.dcm"))
    plain = "tile" not in make and "offset" not in make
    assert (Pyramid(frame).halvings > 0) == (plain and make != "no level")
    image = read_image(tmp_path / "77.dcm", "77", SMALL).image
    assert np.array_equal(image, render(pixels, frame, SMALL).image)
    native = frame_of(tmp_path, pixels, EXPLICIT)
    assert off(image, render(pixels, native, SMALL).image) < 6


def test_a_lossy_stream_under_the_lossless_uid_is_decoded_at_full_size(tmp_path: Path) -> None:
    pixels = breast(400, 300)
    frame = frame_of(tmp_path, pixels, J2K, jpeg2000(pixels, irreversible=True))
    assert Pyramid(frame).halvings == 0
    assert np.abs(decode(frame).astype(int) - pixels).max() <= 3
    native = frame_of(tmp_path, pixels, EXPLICIT)
    frame_of(tmp_path, pixels, J2K, jpeg2000(pixels, irreversible=True))
    assert off(read_image(tmp_path / "77.dcm", "77", SMALL).image, render(pixels, native, SMALL).image) < 1


def test_a_stream_that_was_coded_with_loss_shows_what_is_there(tmp_path: Path) -> None:
    """Its encoder left layers out, its wavelet is the reversible one and nothing is cut: reduced and full agree."""
    pixels = breast(400, 300)
    frame = frame_of(tmp_path, pixels, J2K, jpeg2000(pixels, quality_mode="rates", quality_layers=[20]), BitsStored=16)
    full = decode(frame)
    assert 2 < np.abs(full.astype(int) - pixels).mean() < 100
    assert Pyramid(frame).halvings == 3
    image = read_image(tmp_path / "77.dcm", "77", SMALL).image
    assert off(image, render(full, frame, SMALL).image) < 1


# JPEG 2000 that asks for too much


def hollow(
    rows: int,
    columns: int,
    tile: tuple[int, int] | None = None,
    levels: int = 5,
    layers: int = 1,
    order: int = 0,
    precinct: int | None = None,
    offset: int = 0,
) -> bytes:
    """A main header (T.800 A.5, A.6), one tile-part without a packet, the end marker."""
    width, height = tile or (columns + offset, rows + offset)
    size = (columns + offset, rows + offset, offset, offset, width, height, 0, 0)
    siz = struct.pack(">HHH8IHBBB", 0xFF51, 41, 0, *size, 1, 15, 1, 1)
    sizes = b"" if precinct is None else bytes([precinct * 17] * (levels + 1))
    cod = struct.pack(">BBHBBBBBB", precinct is not None, order, layers, 0, levels, 4, 4, 0, 1) + sizes
    qcd = bytes([0x40] + [0x80] * (3 * levels + 1))
    main = siz + b"".join(struct.pack(">HH", m, len(c) + 2) + c for m, c in ((0xFF52, cod), (0xFF5C, qcd)))
    return b"\xff\x4f" + main + struct.pack(">HHHIBB", 0xFF90, 10, 0, 14, 0, 1) + b"\xff\x93\xff\xd9"


@pytest.mark.parametrize(
    "stream",
    [
        {"rows": 8191, "columns": 8191},
        {"rows": 255, "columns": 257, "tile": (1, 1), "levels": 0},
        {"rows": 8191, "columns": 8191, "tile": (1, 1)},
        {"rows": 700, "columns": 500, "levels": 32, "order": 2},
        {"rows": 700, "columns": 500, "levels": 33},
        {"rows": 5000, "columns": 4000, "layers": 65535},
        {"rows": 700, "columns": 500, "layers": 65535, "precinct": 1, "order": 2},
        {"rows": 700, "columns": 500, "precinct": 0},
        {"rows": 700, "columns": 500, "precinct": 15},
        {"rows": 700, "columns": 500, "offset": 2**31},
        pytest.param(
            {"rows": 8191, "columns": 8191, "precinct": 1},
        ),
    ],
    ids=str,
)
def test_a_hundred_bytes_that_promise_a_mammogram_are_refused(tmp_path: Path, stream: dict[str, int]) -> None:
    facts = {"Rows": stream["rows"], "Columns": stream["columns"], "BitsStored": 16}
    with pytest.raises(DecodeError):
        read_image_of(tmp_path, make_dicom(textured(2, 2), J2K, codestream=hollow(**stream), **facts))  # type: ignore[arg-type]


def read_image_of(tmp_path: Path, content: bytes) -> np.ndarray:
    path = tmp_path / "77.dcm"
    path.write_bytes(content)
    return read_image(path, "77", SMALL).image


# Lossless JPEG of every make


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
        {"restart_rows": 3},
        {"fill_bytes": 2},
        {"fill_bytes": 1, "restart_rows": 2},
        {"predictor": 7, "restart_rows": 2},
        {"predictor": 4, "restart_rows": 3},
    ],
    ids=str,
)
def test_restart_markers_and_fill_bytes_are_read(tmp_path: Path, make: dict[str, int]) -> None:
    pixels = textured(40, 30)
    frame = frame_of(tmp_path, pixels, SV1, encode_lossless(pixels, 12, **make))  # type: ignore[arg-type]
    assert np.array_equal(decode(frame), pixels)
    assert all(np.array_equal(said, pixels) for said in judges(tmp_path / "77.dcm"))
    assert read_facts(frame.codestream, jpeg2000=False).restart_interval == make.get("restart_rows", 0) * 30


@pytest.mark.parametrize("shift", [1, 4])
def test_a_point_transform_leaves_the_low_bits_out(tmp_path: Path, shift: int) -> None:
    pixels = textured(40, 30)
    frame = frame_of(tmp_path, pixels, SV1, encode_lossless(pixels, 12, point_transform=shift))
    assert np.array_equal(decode(frame), pixels >> shift << shift)


def test_a_number_of_lines_behind_the_scan_is_refused(tmp_path: Path) -> None:
    """DNL is legal (T.81 B.2.5), no decoder here reads it, and no mammogram is known to have it."""
    frame = frame_of(tmp_path, textured(40, 30), SV1, encode_lossless(textured(40, 30), 12, lines_in_dnl=True))
    with pytest.raises(DecodeError, match="holds 0 x 30 pixels, expected the header's 40 x 30"):
        decode(frame)


# What the competition's files do


@pytest.mark.parametrize("how", ["reduced", "exact"])
@pytest.mark.parametrize("syntax", [SV1, J2K])
def test_an_inverted_file_with_its_air_as_padding_shows_the_same_breast(tmp_path: Path, syntax: str, how: str) -> None:
    """MONOCHROME1, padding = the largest value = air, as a third of the competition's machines write it."""
    pixels, image = breast(1400, 900), ImageConfig(height=290, width=150, decode=how)  # type: ignore[arg-type]
    window = {"WindowCenter": "2048", "WindowWidth": "4096"}
    shown = []
    for stored, facts in (
        (pixels, {"PixelPaddingValue": 0}),
        (4095 - pixels, {"PixelPaddingValue": 4095, "PhotometricInterpretation": "MONOCHROME1"}),
    ):
        stream = jpeg2000(stored, 5) if syntax == J2K else None
        (tmp_path / "77.dcm").write_bytes(make_dicom(stored, syntax, codestream=stream, **window, **facts))
        shown.append(read_image(tmp_path / "77.dcm", "77", image))
    assert shown[0].box == shown[1].box
    assert off(shown[1].image, shown[0].image) < 0.5
    assert ((shown[0].image == 0) == (shown[1].image == 0)).mean() > 0.995
    assert (shown[1].image[:, -5:] == 0).all()


@pytest.mark.parametrize("syntax", [LOSSLESS, SV1, JPEG_LS, J2K])
def test_eight_bits_coded_where_sixteen_are_allocated(tmp_path: Path, syntax: str) -> None:
    pixels = (textured(40, 30) >> 4).astype(np.uint8)
    frame = frame_of(tmp_path, pixels.astype(np.uint16), syntax, encode(pixels, syntax), BitsStored=8)
    assert np.array_equal(decode(frame), pixels)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1])
def test_a_box_longer_than_any_file_is_refused(tmp_path: Path, length: int) -> None:
    """An extended box length (T.800 I.4) has 64 bits."""
    pixels = textured(40, 30)
    stream = jpeg2000(pixels)
    stream = stream[:12] + struct.pack(">I4sQ", 1, b"xml ", length) + stream[12:]
    frame = frame_of(tmp_path, pixels, J2K, stream)
    with pytest.raises(DecodeError, match="end inside the stream's head"):
        decode(frame)
    problem = read_head(tmp_path / "77.dcm").problem
    assert problem is not None
    assert "end inside the stream's head" in problem
