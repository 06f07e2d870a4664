"""Files that break the standard, or use its corners: they give their picture, or are named for what they are."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

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
    LOSSLESS,
    NATIVE,
    RLE,
    SV1,
    encode,
    make_dicom,
)
from lossless_jpeg import encode_lossless
from pydicom.dataset import Dataset
from test_dicom_frame import lut
from test_dicom_pyramid import jpeg2000
from test_imaging_reduced import breast

from rsna_kit.config import ImageConfig
from rsna_kit.dicom import openjpeg
from rsna_kit.dicom.decode import decode
from rsna_kit.dicom.frame import EncodedFrame, read_frame, read_head
from rsna_kit.dicom.pyramid import Pyramid, decode_for_proof
from rsna_kit.imaging.render import read_image
from rsna_kit.runtime.errors import ImageError

SMALL = ImageConfig(height=64, width=32)
HTJ2K = [f"1.2.840.10008.1.2.4.20{number}" for number in (1, 2, 3)]


def smooth(top: int = 4095, rows: int = 60, columns: int = 44) -> np.ndarray:
    """A blob over dark noise: the upper bits change where the picture is smooth."""
    y, x = np.mgrid[:rows, :columns]
    blob = np.exp(-((y / rows - 0.5) ** 2 + (x / columns - 0.4) ** 2) * 8) * top * 0.97
    return (blob + np.random.default_rng(1).integers(0, top // 64, y.shape)).clip(0, top).astype(np.uint16)


def frame_in(folder: Path, content: bytes) -> EncodedFrame:
    """The frame of a file, after its head alone said nothing else."""
    (folder / "77.dcm").write_bytes(content)
    head = read_head(folder / "77.dcm")
    frame = read_frame(folder / "77.dcm")
    assert head.problem is None
    assert (head.frame.rows, head.frame.windows) == (frame.rows, frame.windows)
    return frame


def without_delimiter(content: bytes, instead: bytes) -> bytes:
    at = content.rindex(b"\xfe\xff\xdd\xe0")
    return content[:at] + instead + content[at + 8 :]


def before_pixels(content: bytes, order: str, *elements: tuple[int, int]) -> bytes:
    """With item tags of these numbers and lengths in front of Pixel Data."""
    at = content.rindex(struct.pack(f"{order}HH", 0x7FE0, 0x0010))
    return content[:at] + b"".join(struct.pack(f"{order}HHI", 0xFFFE, *one) for one in elements) + content[at:]


def of(syntax: str, stream: bytes | None = None, **facts: object) -> bytes:
    return make_dicom(smooth(), syntax, codestream=stream, **facts)


def shared(tag: str, **elements: object) -> list[Dataset]:
    """One item of functional groups with one group of these elements."""
    group, item = Dataset(), Dataset()
    for keyword, value in elements.items():
        setattr(group, keyword, value)
    setattr(item, tag, [group])
    return [item]


def padded() -> np.ndarray:
    return np.where(smooth() < 99, 65535, smooth()).astype(np.uint16)


PLAIN = (*NATIVE, RLE, SV1, JPEG_LS, J2K)
READABLE: dict[str, Callable[[], bytes]] = {
    "frames 0": lambda: of(EXPLICIT, NumberOfFrames="0"),
    "frames empty": lambda: of(SV1, NumberOfFrames=""),
    **{
        f"{count} bytes {fill!r} behind native pixels of {syntax}": lambda s=syntax, f=fill, n=count: of(
            s, smooth().astype("<u2").tobytes() + f * n
        )
        for syntax in (IMPLICIT, EXPLICIT)
        for fill, count in ((b"\0", 128), (b"\0", 9000), (b"\xff", 700), (b"ab", 20))
    },
    **{
        f"{name} in the place of the delimiter of {syntax}": lambda s=syntax, i=instead: without_delimiter(of(s), i)
        for syntax in (SV1, JPEG_LS, J2K, RLE)
        for name, instead in (
            ("8 zeros", bytes(8)),
            ("3000 zeros", bytes(3000)),
            ("a trailer", b"\xfc\xff\xfc\xff\x08\0\0\0" + b"anything"),
        )
    },
    **{
        f"{count} x {fill!r} behind the end marker of {syntax}": lambda s=syntax, f=fill, n=count: of(
            s, encode(smooth(), s) + f * n
        )
        for syntax in (LOSSLESS, SV1, JPEG_LS, J2K, J2K_LOSSY)
        for fill, count in ((b"\0", 5000), (b"\xff", 3000), (b" ", 4000), (b"\0\xff", 2000))
    },
    **{
        f"{elements} astray in {syntax}": lambda s=syntax, e=elements: before_pixels(
            of(s), ">" if s == BIG_ENDIAN else "<", *e
        )
        for syntax in (*NATIVE, SV1, J2K)
        for elements in (((0xE000, 0),), ((0xE000, 0xFFFFFFFF), (0xE00D, 0)), ((0xE0DD, 0), (0xE00D, 0)))
    },
    "deflated": lambda: of(DEFLATED),
    **{
        f"{uid} by {name}": lambda u=uid, e=encoder: of(u, e(smooth()))
        for uid in HTJ2K
        for name, encoder in (
            ("OpenJPH", lambda pixels: imagecodecs.htj2k_encode(pixels, reversible=True)),
            ("classic blocks", lambda pixels: jpeg2000(pixels, no_jp2=True)),
        )
    },
    **{f"12 bits under 10 stored in {syntax}": lambda s=syntax: of(s, BitsStored=10) for syntax in PLAIN},
    "12 bits coded under 10 stored": lambda: of(SV1, encode_lossless(smooth(), 12), BitsStored=10),
    **{
        f"padding above the stored bits of {syntax}": lambda s=syntax: make_dicom(padded(), s, PixelPaddingValue=65535)
        for syntax in PLAIN
    },
}


@pytest.mark.parametrize("name", READABLE)
def test_a_file_that_every_decoder_reads_is_read(tmp_path: Path, name: str) -> None:
    pixels = decode(frame_in(tmp_path, READABLE[name]()))
    assert np.array_equal(pixels, padded() if "padding above" in name else smooth())
    assert read_image(tmp_path / "77.dcm", "77", SMALL).image.max() > 100


@pytest.mark.parametrize("uid", [LOSSLESS, SV1])
def test_a_baseline_stream_under_a_lossless_uid_is_read(tmp_path: Path, uid: str) -> None:
    pixels = (smooth() >> 4).astype(np.uint8)
    stream = imagecodecs.jpeg8_encode(pixels, level=95)
    found = decode(frame_in(tmp_path, make_dicom(pixels, uid, codestream=stream)))
    assert np.abs(found.astype(int) - pixels).max() < 12


@pytest.mark.parametrize("syntax", [J2K_LOSSY, J2K, "1.2.840.10008.1.2.4.51"])
def test_overshoot_of_a_stream_with_loss_is_clipped(tmp_path: Path, syntax: str) -> None:
    """Hard edges at the largest value: the decoders give up to a hundred levels more beside them."""
    pixels = np.zeros((200, 160), np.uint16)
    pixels[60:140, 50:90] = 1023
    if syntax.endswith("51"):
        stream = imagecodecs.jpeg8_encode(pixels, level=50, bitspersample=12)
    else:
        stream = jpeg2000(pixels, irreversible=True, no_jp2=True, quality_mode="rates", quality_layers=[300])
    frame = frame_in(tmp_path, make_dicom(pixels, syntax, codestream=stream, BitsStored=10))
    raw = imagecodecs.jpeg8_decode(stream) if syntax.endswith("51") else imagecodecs.jpeg2k_decode(stream)
    assert raw.max() > 1023
    assert np.array_equal(decode(frame), np.minimum(raw, 1023))


def test_an_overlay_above_the_stored_bits_is_no_picture(tmp_path: Path) -> None:
    """A ring drawn in bit 12, which jumps where the picture does not."""
    pixels, (y, x) = smooth(), np.mgrid[:60, :44]
    ring = (np.abs(np.hypot(y - 30, x - 20) - 12) < 2).astype(np.uint16) << 12
    assert np.array_equal(decode(frame_in(tmp_path, make_dicom(pixels | ring))), pixels)


def picture(folder: Path, pixels: np.ndarray, **facts: object) -> np.ndarray:
    frame_in(folder, make_dicom(pixels, **facts))
    return read_image(folder / "77.dcm", "77", SMALL).image


def test_a_lookup_table_is_as_deep_as_its_entries(tmp_path: Path) -> None:
    entries = struct.pack("<4096H", *range(4096))

    def table(bits: int) -> list[Dataset]:
        item = lut(0, bits, entries)
        item.LUTDescriptor = [4096, 0, bits]
        return [item]

    pixels = breast(400, 300)
    shown = picture(tmp_path, pixels, VOILUTSequence=table(12))
    for bits in (8, 16):
        assert np.array_equal(picture(tmp_path, pixels, VOILUTSequence=table(bits)), shown)
    assert shown.max() > 150


@pytest.mark.parametrize("inverted", [False, True])
def test_a_range_of_padding_is_all_padding(tmp_path: Path, inverted: bool) -> None:
    """Padding of 0 to 2 under pixels from 3000 on: without it they would have a quarter of the tones."""
    pixels = (3000 + breast(400, 300) // 4).astype(np.uint16)
    ends = (4095, 4093) if inverted else (0, 2)
    facts = {"PhotometricInterpretation": "MONOCHROME1"} if inverted else {}
    pixels = 4095 - pixels if inverted else pixels
    pixels[:20], pixels[20:40] = ends
    one = np.where(pixels == ends[1], ends[0], pixels).astype(np.uint16)
    expected = picture(tmp_path, one, PixelPaddingValue=ends[0], **facts)
    assert np.array_equal(
        picture(tmp_path, pixels, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1], **facts), expected
    )
    assert not np.array_equal(picture(tmp_path, pixels, PixelPaddingValue=ends[0], **facts), expected)


def test_a_range_of_padding_that_would_take_the_picture_is_not_believed(tmp_path: Path) -> None:
    shown = picture(tmp_path, breast(400, 300), PixelPaddingValue=0)
    assert np.array_equal(picture(tmp_path, breast(400, 300), PixelPaddingValue=0, PixelPaddingRangeLimit=4000), shown)


@pytest.mark.parametrize("where", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_what_stands_in_functional_groups_alone_counts(tmp_path: Path, where: str) -> None:
    window = {"WindowCenter": ["1500", "7"], "WindowWidth": ["900", "3"], "VOILUTFunction": "SIGMOID"}
    group = {where: shared("FrameVOILUTSequence", **window)}
    frame = frame_in(tmp_path, make_dicom(smooth(), **group))
    assert (frame.windows, frame.voi_function) == (((1500.0, 900.0), (7.0, 3.0)), "SIGMOID")
    frame = frame_in(tmp_path, make_dicom(smooth(), WindowCenter="9", WindowWidth="4", **group))
    assert (frame.windows, frame.voi_function) == (((9.0, 4.0),), "LINEAR")
    values = shared("PixelValueTransformationSequence", RescaleSlope="-1", RescaleIntercept="4095")
    frame = frame_in(tmp_path, make_dicom(smooth(), WindowCenter="", **{where: values}))
    assert (frame.slope, frame.intercept) == (-1.0, 4095.0)


@pytest.mark.parametrize("area", [None, (0, 0, 160, 96)])
def test_a_saturated_picture_coded_with_loss_is_the_same_whoever_reduces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, area: tuple[int, int, int, int] | None
) -> None:
    """It reconstructs beyond 16 bits, which a full decode cuts off before the wavelet."""
    x = np.arange(150)[None].repeat(200, 0)
    rng = np.random.default_rng(3)
    pixels = (65535 - 300 * np.abs(x - 70) + rng.integers(-4000, 4000, x.shape)).clip(0, 65535).astype(np.uint16)
    stream = jpeg2000(pixels, 3, quality_mode="rates", quality_layers=[6])
    frame = frame_in(tmp_path, make_dicom(pixels, J2K, codestream=stream, BitsStored=16))
    full = Pyramid(frame, pixels=decode(frame))
    direct = openjpeg.decode_reduced(stream, 1)
    assert not np.array_equal(direct, full._band(1, (0, 0, 200, 150)))  # what the test is about
    for times in (1, 2, 3):
        assert np.array_equal(Pyramid(frame).halved(times, area), full.halved(times, area))
    assert decode_for_proof(frame) is None  # no evidence against the library


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "two frames": (lambda: of(EXPLICIT, smooth().tobytes() * 2), "has 10560 bytes, as many as 2 frames"),
    "two frames, called 0": (lambda: of(EXPLICIT, smooth().tobytes() * 2, NumberOfFrames="0"), "as many as 2 frames"),
    "three black frames": (lambda: of(EXPLICIT, smooth().tobytes() + bytes(2 * 5280)), "as many as 3 frames"),
    "a row more": (lambda: of(EXPLICIT, Rows=59), "has 5280 bytes, expected 5192 bytes for 59 x 44 pixels of 16"),
    "a column more": (lambda: of(EXPLICIT, Columns=43), "has 5280 bytes, expected 5160 .* Its header is wrong"),
    "a row less": (lambda: of(EXPLICIT, Rows=61), "has 5280 bytes, expected 5368 .* Its header is wrong; exclude"),
    "JPEG 2000 under .70": (lambda: of(SV1, encode(smooth(), J2K)), "is JPEG 2000 under the wrong transfer syntax"),
    "JPEG under .90": (lambda: of(J2K, encode(smooth(), SV1)), "it is JPEG under the wrong transfer syntax"),
    "JPEG-LS under .70": (lambda: of(SV1, encode(smooth(), JPEG_LS)), "is JPEG-LS under the wrong transfer syntax"),
    "JPEG under JPEG-LS": (lambda: of(JPEG_LS, encode(smooth(), SV1)), "is JPEG under the wrong transfer syntax"),
    "a private syntax": (lambda: plain_under("1.2.840.113619.5.2"), "private transfer syntax '1.2.840.113619.5.2'"),
    "JPEG under RLE": (lambda: of(RLE, encode(smooth(), SV1)), "1.2.5 is JPEG. Write JPEG's UID"),
    "items under an uncompressed syntax": (
        lambda: of(SV1).replace(SV1.encode(), EXPLICIT.encode() + b"\0" * 3),
        "has JPEG under the uncompressed syntax 1.2.840.10008.1.2.1, expected 5280",
    ),
    "a JPEG under an uncompressed syntax": (
        lambda: of(EXPLICIT, encode(smooth(), SV1)[:5000]),
        "has JPEG under the uncompressed syntax",
    ),
    "plain pixels under .70": (
        lambda: plain_under(SV1),
        "it is that of uncompressed pixels",
    ),
    "an unknown syntax": (lambda: plain_under("1.2.840.10008.1.2.4.100"), "no decoder knows transfer syntax"),
    "colour": (lambda: of(SV1, SamplesPerPixel=3), "SamplesPerPixel"),
    "groups of two frames": (
        lambda: of(EXPLICIT, PerFrameFunctionalGroupsSequence=[Dataset(), Dataset()]),
        "functional groups of 2 frames",
    ),
    "another size": (lambda: of(SV1, Rows=61), "holds 60 x 44 pixels, expected the header's 61 x 44. Exclude"),
    "no deflated data": (lambda: of(DEFLATED)[:-3000] + bytes(100), "damaged or cut short|has .* cut short"),
}


def plain_under(uid: str) -> bytes:
    """Plain pixels under a compressed syntax."""
    told = EXPLICIT.encode() + b"\0"
    uid += "\0" * (len(uid) % 2)
    at = (content := of(EXPLICIT)).index(told)
    content = content[:at] + uid.encode() + content[at + len(told) :]
    return content[: at - 2] + struct.pack("<H", len(uid)) + content[at:]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_and_the_advice_can_help(tmp_path: Path, name: str) -> None:
    content, said = REFUSED[name]
    (tmp_path / "77.dcm").write_bytes(content())
    with pytest.raises(ImageError, match=said) as caught:
        decode(read_frame(tmp_path / "77.dcm"))
    assert "opy the file again" not in str(caught.value)


@pytest.mark.parametrize("uid", [BASELINE, SV1])
def test_zeros_that_fill_a_cut_stream_are_no_padding(tmp_path: Path, uid: str) -> None:
    pixels = (smooth() >> 4).astype(np.uint8)
    stream = imagecodecs.jpeg8_encode(pixels, level=95) if uid == BASELINE else encode(pixels, uid)
    cut = stream[: len(stream) // 2] + bytes(len(stream) - len(stream) // 2)
    with pytest.raises(ImageError, match="cut short"):
        decode(frame_in(tmp_path, make_dicom(pixels, uid, codestream=cut)))
