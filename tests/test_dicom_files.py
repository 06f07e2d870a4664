"""What is done to a file → the pixels that are decoded, or what is said: one table each. The head alone says the same.

Files that break the standard, or use its corners, give their picture, or are named for what they are.
"""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_files import (
    BASELINE,
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    J2K,
    JPEG_LS,
    LOSSLESS,
    NATIVE,
    RLE,
    SV1,
    encode,
    in_fragments,
    jpeg2000,
    literal,
    make_dicom,
    read_in,
    smooth,
    textured,
)
from lossless_jpeg import encode_lossless
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended

from rsna_kit.dicom.decode import decode
from rsna_kit.dicom.frame import read_frame, read_head
from rsna_kit.dicom.pyramid import Pyramid
from rsna_kit.runtime.errors import HeaderError, ImageError

Case = Callable[[], bytes]
HTJ2K = [f"1.2.840.10008.1.2.4.20{number}" for number in (1, 2, 3)]
PLAIN = (*NATIVE, RLE, SV1, JPEG_LS, J2K)
# Kind of codestream → its syntax and who writes it.
KINDS: dict[str, tuple[str, Callable[[np.ndarray], bytes]]] = {
    ".70": (SV1, lambda pixels: encode_lossless(pixels, 12)),
    ".57": (LOSSLESS, lambda pixels: encode(pixels, LOSSLESS)),
    ".80": (JPEG_LS, lambda pixels: encode(pixels, JPEG_LS)),
    ".90 bare": (J2K, lambda pixels: jpeg2000(pixels, no_jp2=True)),
    ".90 in boxes": (J2K, jpeg2000),
}


def of(syntax: str, stream: bytes | None = None, **facts: object) -> bytes:
    return make_dicom(smooth(), syntax, codestream=stream, **facts)


def coded(kind: str, change: Callable[[bytes], bytes] = lambda stream: stream, **facts: object) -> bytes:
    """A file of one of KINDS whose codestream is changed."""
    return of(KINDS[kind][0], change(KINDS[kind][1](smooth())), **facts)


def cut_up(kind: str, pieces: Callable[[bytes], list[bytes]]) -> bytes:
    return in_fragments(smooth(), KINDS[kind][0], pieces(KINDS[kind][1](smooth())))


def without_delimiter(content: bytes, instead: bytes = b"") -> bytes:
    at = content.rindex(b"\xfe\xff\xdd\xe0")
    return content[:at] + instead + content[at + 8 :]


def before_pixels(content: bytes, order: str, *elements: tuple[int, int]) -> bytes:
    """With item tags of these numbers and lengths in front of Pixel Data."""
    at = content.rindex(struct.pack(f"{order}HH", 0x7FE0, 0x0010))
    return content[:at] + b"".join(struct.pack(f"{order}HHI", 0xFFFE, *one) for one in elements) + content[at:]


def with_table(kind: str, table: str) -> bytes:
    """In three fragments behind an offset table."""
    stream = KINDS[kind][1](smooth())
    dataset = pydicom.dcmread(io.BytesIO(coded(kind)))
    if table == "extended":
        dataset.PixelData, offsets, lengths = encapsulate_extended([stream])
        dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    else:
        dataset.PixelData = encapsulate([stream], fragments_per_frame=3, has_bot=True)
    if table == "wrong":  # stale since somebody changed the fragments
        dataset.PixelData = dataset.PixelData[:8] + b"\xff\xff\xff\x7f" + dataset.PixelData[12:]
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def plain_under(uid: str) -> bytes:
    """Plain pixels under a compressed syntax."""
    told = EXPLICIT.encode() + b"\0"
    uid += "\0" * (len(uid) % 2)
    at = (content := of(EXPLICIT)).index(told)
    content = content[:at] + uid.encode() + content[at + len(told) :]
    return content[: at - 2] + struct.pack("<H", len(uid)) + content[at:]


def patched(content: bytes, find: bytes, skip: int, new: bytes) -> bytes:
    """With other bytes `skip` behind the first `find`."""
    at = content.index(find) + skip
    return content[:at] + new + content[at + len(new) :]


def padded() -> np.ndarray:
    return np.where(smooth() < 99, 65535, smooth()).astype(np.uint16)


def eight() -> np.ndarray:
    return (smooth() >> 4).astype(np.uint8)


# Every one of these shows `smooth`, or the pixels that PIXELS names by the beginning of the case's name.
READABLE: dict[str, Case] = {
    "frames 0": lambda: of(EXPLICIT, NumberOfFrames="0"),
    "frames empty": lambda: of(SV1, NumberOfFrames=""),
    "no delimiter": lambda: without_delimiter(of(SV1)),
    "deflated": lambda: of(DEFLATED),
    "12 bits coded under 10 stored": lambda: of(SV1, encode_lossless(smooth(), 12), BitsStored=10),
    "12 bits coded under 16 stored": lambda: of(SV1, encode_lossless(smooth(), 12), BitsStored=16),
    "12 bits coded in JPEG 2000 under 9 stored": lambda: of(
        J2K, imagecodecs.jpeg2k_encode(smooth(), reversible=True, codecformat="j2k", bitspersample=12), BitsStored=9
    ),
    "boxes behind the codestream": lambda: of(
        J2K, encode(smooth(), J2K) + struct.pack(">I4s", 108, b"xml ") + bytes(100)
    ),
    "an overlay above the stored bits": lambda: make_dicom(smooth() | ring()),
    "no length of a tile-part": lambda: coded(".90 bare", lambda s: patched(s, b"\xff\x90", 6, bytes(4))),
    **{f"a stale High Bit of {s}": lambda s=s: of(s, BitsStored=12, HighBit=15) for s in (SV1, J2K)},
    **{
        f"{count} bytes {fill!r} behind native pixels of {s}": lambda s=s, f=fill, n=count: of(
            s, smooth().astype("<u2").tobytes() + f * n
        )
        for s in (IMPLICIT, EXPLICIT)
        for fill, count in ((b"\0", 128), (b"\0", 9000), (b"\xff", 700), (b"ab", 20))
    },
    **{
        f"{name} in the place of the delimiter of {s}": lambda s=s, i=instead: without_delimiter(of(s), i)
        for s in (SV1, RLE)
        for name, instead in (
            ("8 zeros", bytes(8)),
            ("3000 zeros", bytes(3000)),
            ("a trailer", b"\xfc\xff\xfc\xff\x08\0\0\0" + b"anything"),
        )
    },
    **{
        f"{count} x {fill!r} behind the end marker of {kind}": lambda k=kind, f=fill, n=count: coded(
            k, lambda stream: stream + f * n
        )
        for kind in KINDS
        for fill, count in ((b"\0", 5000), (b"\xff", 3000), (b"\0\xff", 2000), (b"garbage!", 3))
    },
    "much behind the box of a codestream": lambda: coded(".90 in boxes", lambda stream: stream + b"garbage!" * 100),
    **{f"garbage behind {s}": lambda s=s: of(s) + b"\xff\xd8\xff\xe0" * 999 for s in (EXPLICIT, SV1)},
    **{
        f"{elements} astray in {s}": lambda s=s, e=elements: before_pixels(of(s), ">" if s == BIG_ENDIAN else "<", *e)
        for s in (*NATIVE, SV1)
        for elements in (((0xE000, 0),), ((0xE000, 0xFFFFFFFF), (0xE00D, 0)), ((0xE0DD, 0), (0xE00D, 0)))
    },
    **{
        f"{uid} by {name}": lambda u=uid, e=encoder: of(u, e(smooth()))
        for uid in HTJ2K
        for name, encoder in (
            ("OpenJPH", lambda pixels: imagecodecs.htj2k_encode(pixels, reversible=True)),
            ("classic blocks", lambda pixels: jpeg2000(pixels, no_jp2=True)),
        )
    },
    **{f"12 bits under 10 stored in {s}": lambda s=s: of(s, BitsStored=10) for s in PLAIN},
    **{
        f"padding above the stored bits of {s}": lambda s=s: make_dicom(padded(), s, PixelPaddingValue=65535)
        for s in PLAIN
    },
    **{
        f"eight bits coded where sixteen are allocated in {s}": lambda s=s: make_dicom(
            eight().astype(np.uint16), s, codestream=encode(eight(), s), BitsStored=8
        )
        for s in (LOSSLESS, SV1, JPEG_LS, J2K)
    },
    **{
        f"{table} offset table of {kind}": lambda k=kind, t=table: with_table(k, t)
        for kind in (".70", ".90 in boxes")
        for table in ("a filled", "extended", "wrong")
    },
    **{
        f"{name} fragments of {kind}": lambda k=kind, p=pieces: cut_up(k, p)
        for kind in KINDS
        for name, pieces in {
            "empty and odd": lambda s: [b"", s[:7], b"", s[7:8], s[8:1001], b"", s[1001:], b""],
            "a second frame behind the": lambda s: [s, s],
        }.items()
    },
}
PIXELS: dict[str, Callable[[], np.ndarray]] = {"padding above": padded, "eight bits": eight}


def ring() -> np.ndarray:
    """Drawn in bit 12, which jumps where the picture does not."""
    y, x = np.mgrid[:60, :44]
    return (np.abs(np.hypot(y - 30, x - 20) - 12) < 2).astype(np.uint16) << 12


@pytest.mark.parametrize("name", READABLE)
def test_a_file_that_every_decoder_reads_is_read(tmp_path: Path, name: str) -> None:
    frame = read_in(tmp_path, READABLE[name]())
    head = read_head(tmp_path / "77.dcm")
    assert head.problem is None
    assert (head.frame.rows, head.frame.windows) == (frame.rows, frame.windows)
    expected = next((pixels for start, pixels in PIXELS.items() if name.startswith(start)), smooth)
    assert np.array_equal(decode(frame), expected())


def without_middle(stream: bytes, marker: bytes, share: float) -> bytes:
    """The first `share` of what follows the head, and the end marker."""
    head = stream.index(marker) + 10
    return stream[: head + int(share * (len(stream) - head - 2))] + stream[-2:]


def torn(kind: str, share: float) -> bytes:
    marker = b"\xff\x93" if kind.startswith(".90") else b"\xff\xda"
    return coded(kind, lambda stream: without_middle(stream, marker, share))


def thirds(stream: bytes) -> list[bytes]:
    third = len(stream) // 3
    return [stream[:third], stream[third : 2 * third], stream[2 * third :]]


ITEMS = b"\xe0\x7f\x10\x00OB"
# What is done to a file → what is said of it.
REFUSED: dict[str, tuple[Case, str]] = {
    # No DICOM
    "PNG": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(300), r"not a DICOM file \(it begins with 89 50 4e 47"),
    "one byte": (lambda: b"\x08", "not a DICOM file"),
    "a preamble alone": (lambda: bytes(128) + b"DICM", "begins with nothing"),
    "zeros": (lambda: bytes(4096), "not a DICOM file"),
    # Not one monochrome frame
    "colour": (lambda: of(SV1, SamplesPerPixel=3), r"SamplesPerPixel \(0028,0002\) is 3, expected 1 \(monochrome"),
    "RGB": (lambda: of(EXPLICIT, PhotometricInterpretation="RGB"), "is 'RGB', expected MONOCHROME1 or MONOCHROME2"),
    "no photometric": (lambda: of(EXPLICIT, PhotometricInterpretation=None), "is 'missing', expected MONOCHROME1"),
    "four frames": (lambda: of(EXPLICIT, NumberOfFrames="4"), r"\(0028,0008\) is 4, expected 1 \(one frame"),
    "17 bits": (lambda: of(EXPLICIT, BitsStored=17), r"BitsStored \(0028,0101\) is 17, expected 1 to 16"),
    "32 bits": (lambda: of(EXPLICIT, BitsAllocated=32), r"BitsAllocated \(0028,0100\) is 32, expected 8 or 16"),
    "no bits": (lambda: of(EXPLICIT, BitsAllocated=None), r"BitsAllocated \(0028,0100\) is missing"),
    "left-justified": (lambda: of(EXPLICIT, HighBit=15), r"HighBit \(0028,0102\) is 15, expected 11"),
    "no rows": (lambda: of(EXPLICIT, Rows=None), r"Rows \(0028,0010\) is missing, expected a number"),
    "0 rows": (lambda: of(EXPLICIT, Rows=0), "got 0 x 44 pixels"),
    "65535 rows": (lambda: of(EXPLICIT, Rows=65535, Columns=65535), "got 65535 x 65535 pixels, expected 1 to 67108864"),
    "8000 rows": (lambda: of(EXPLICIT, Rows=8000, Columns=8000), "has 5280 bytes, expected 128000000 bytes"),
    "groups of two frames": (
        lambda: of(EXPLICIT, PerFrameFunctionalGroupsSequence=[Dataset(), Dataset()]),
        "functional groups of 2 frames",
    ),
    # Native pixels
    "two frames": (lambda: of(EXPLICIT, smooth().tobytes() * 2), "has 10560 bytes, as many as 2 frames"),
    "two frames, called 0": (lambda: of(EXPLICIT, smooth().tobytes() * 2, NumberOfFrames="0"), "as many as 2 frames"),
    "three black frames": (lambda: of(EXPLICIT, smooth().tobytes() + bytes(2 * 5280)), "as many as 3 frames"),
    "a row more": (lambda: of(EXPLICIT, Rows=59), "has 5280 bytes, expected 5192 bytes for 59 x 44 pixels of 16"),
    "a column more": (lambda: of(EXPLICIT, Columns=43), "has 5280 bytes, expected 5160 .* Its header is wrong"),
    "a row less": (lambda: of(EXPLICIT, Rows=61), "has 5280 bytes, expected 5368 .* Its header is wrong; exclude"),
    "no pixels": (lambda: of(EXPLICIT)[: -smooth().nbytes - 12], "no Pixel Data"),
    # The wrong syntax
    "JPEG 2000 under .70": (lambda: of(SV1, encode(smooth(), J2K)), "is JPEG 2000 under the wrong transfer syntax"),
    "JPEG under .90": (lambda: of(J2K, encode(smooth(), SV1)), "it is JPEG under the wrong transfer syntax"),
    "JPEG-LS under .70": (lambda: of(SV1, encode(smooth(), JPEG_LS)), "is JPEG-LS under the wrong transfer syntax"),
    "JPEG under JPEG-LS": (lambda: of(JPEG_LS, encode(smooth(), SV1)), "is JPEG under the wrong transfer syntax"),
    "JPEG under RLE": (lambda: of(RLE, encode(smooth(), SV1)), "1.2.5 is JPEG. Write JPEG's UID"),
    "items under an uncompressed syntax": (
        lambda: of(SV1).replace(SV1.encode(), EXPLICIT.encode() + b"\0" * 3),
        "has JPEG under the uncompressed syntax 1.2.840.10008.1.2.1, expected 5280",
    ),
    "a JPEG under an uncompressed syntax": (
        lambda: of(EXPLICIT, encode(smooth(), SV1)[:5000]),
        "has JPEG under the uncompressed syntax",
    ),
    "plain pixels under .70": (lambda: plain_under(SV1), "it is that of uncompressed pixels"),
    "a private syntax": (lambda: plain_under("1.2.840.113619.5.2"), "private transfer syntax '1.2.840.113619.5.2'"),
    "an unknown syntax": (lambda: plain_under("1.2.840.10008.1.2.4.100"), "no decoder knows transfer syntax"),
    # The stream contradicts the header
    **{
        f"another size than {kind}": (
            lambda k=kind: coded(k, Rows=61),
            "holds 60 x 44 pixels, expected the header's 61 x 44. Exclude",
        )
        for kind in KINDS
    },
    "three components": (
        lambda: make_dicom(eight(), BASELINE, codestream=imagecodecs.jpeg8_encode(np.dstack([eight()] * 3))),
        "holds 3 components",
    ),
    "16 bits where 8 are allocated": (
        lambda: of(J2K, BitsAllocated=8, BitsStored=8),
        "holds 1 components of 16 bits, expected 1 of at most the 8 bits",
    ),
    "lines behind the scan": (  # DNL is legal (T.81 B.2.5), no decoder here reads it
        lambda: of(SV1, encode_lossless(smooth(), 12, lines_in_dnl=True)),
        "holds 0 x 44 pixels, expected the header's 60 x 44",
    ),
}
DAMAGED: dict[str, tuple[Case, str]] = {
    "empty": (lambda: b"", "the file is empty, expected a DICOM file"),
    "no deflated data": (lambda: of(DEFLATED)[:-3000] + bytes(100), "damaged or cut short|has .* cut short"),
    "native pixels cut": (lambda: of(EXPLICIT)[:-2640], "has 2640 of 5280 bytes, expected 5280 bytes for 60 x 44"),
    "a private value representation": (  # pydicom raises NotImplementedError when such an element is asked for
        lambda: of(EXPLICIT).replace(b"\x28\x00\x02\x01US\x02\x00\x0b\x00", b"\x28\x00\x02\x01U\x02\x00\x00"),
        "Unknown Value Representation",
    ),
    **{
        f"the last fragment of {kind} cut": (
            lambda k=kind: cut_up(k, thirds)[:-100],
            r"Pixel Data item 3 says \d+ bytes, only \d+ are left",
        )
        for kind in KINDS
    },
    "no fragment": (lambda: in_fragments(smooth(), SV1, []), "holds no fragment"),
    "an empty fragment": (lambda: in_fragments(smooth(), SV1, [b""]), "holds no fragment"),
    "damaged items": (lambda: patched(of(SV1), ITEMS, 12, b"\x01" + bytes(40)), r"item 0 begins with \(0001,0000\)"),
    **{
        f"the end of {kind} missing": (lambda k=kind: coded(k, lambda stream: stream[:-40]), "cut short")
        for kind in KINDS
    },
    **{
        f"the middle of {kind} missing": (lambda k=kind: torn(k, 0.5), "cut short|no decoder could read")
        for kind in (".57", ".80", ".90 bare", ".90 in boxes")
    },
    **{
        f"{share} of predictor {p} left": (
            lambda p=p, share=share: of(
                LOSSLESS, without_middle(encode_lossless(smooth(), 12, p), b"\xff\xda", share), BitsStored=12
            ),
            "cut short|no decoder could read",  # decoders fill the missing rows with half the range, without an error
        )
        for p in (1, 6)
        for share in (0.3, 0.9)
    },
    **{
        f"zeros behind half of {uid}": (
            lambda u=uid: make_dicom(
                eight(), u, codestream=(s := encode(eight(), u))[: len(s) // 2] + bytes(len(s) - len(s) // 2)
            ),
            "cut short",
        )
        for uid in (LOSSLESS, SV1)
    },
    **{
        f"much behind the end marker of {kind}": (
            lambda k=kind: coded(k, lambda stream: stream + b"garbage!" * 100),
            r"do not end with an end marker \(FF D9\)",
        )
        for kind in KINDS
        if kind != ".90 in boxes"
    },
    "a stream of two bytes": (lambda: of(SV1, b"\xff\xd8"), "end inside the stream's head"),
    "a comment without an end": (lambda: of(SV1, b"\xff\xd8\xff\xfe\x60\x00" + bytes(8)), "inside the stream's head"),
    "an end without a frame": (lambda: of(SV1, b"\xff\xd8\xff\xd9"), "begin before any frame header"),
    "no marker": (lambda: of(SV1, b"\xff\xd8\x00\x00"), "no marker at byte 2"),
    "zeros for a stream": (lambda: of(J2K, bytes(100_000)), "begins with 00 00 00 00, expected JPEG 2000"),
    **{
        f"a box of {length} bytes": (  # an extended box length (T.800 I.4) has 64 bits
            lambda n=length: coded(".90 in boxes", lambda s: s[:12] + struct.pack(">I4sQ", 1, b"xml ", n) + s[12:]),
            "end inside the stream's head",
        )
        for length in (2**63, 2**64 - 1)
    },
    "more pixels than bits": (  # 8191 squared is just under the limit; 90 bytes must not cost 128 MiB
        lambda: make_dicom(
            literal(),
            SV1,
            codestream=patched(encode(literal(), SV1), b"\xff\xc3", 5, (8191).to_bytes(2, "big") * 2),
            Rows=8191,
            Columns=8191,
        ),
        "bytes for 67092481 pixels: cut short",
    ),
    "a lost Huffman table": (  # crashes decoders
        lambda: of(SV1, patched(encode(smooth(), SV1), b"\xff\xc4", 0, b"\0")),
        "no decoder could read",
    ),
    "16 bits of JPEG 2000 under 9 stored": (
        lambda: make_dicom(textured(), J2K, BitsStored=9),
        "largest value of 4095, expected at most 511",
    ),
}


@pytest.mark.parametrize("name", [*REFUSED, *DAMAGED])
def test_a_file_that_cannot_be_used_is_one_error_and_the_advice_can_help(tmp_path: Path, name: str) -> None:
    content, said = {**REFUSED, **DAMAGED}[name]
    path = tmp_path / "77.dcm"
    path.write_bytes(content())
    with pytest.raises(ImageError, match=said) as caught:
        decode(read_frame(path))
    message = str(caught.value)
    assert "77.dcm" in message
    assert name in DAMAGED or "again" not in message.replace("convert it again", "")
    try:
        seen = read_head(path).problem
    except HeaderError as error:
        seen = str(error)
    assert seen in (message, None)  # what is damaged may lie behind the head
    if seen is None:
        with pytest.raises(ImageError):
            halved(path)


def halved(path: Path) -> np.ndarray:
    """The picture at half its size, where there is that."""
    pyramid = Pyramid(read_frame(path))
    return pyramid.halved(min(1, pyramid.halvings))


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
        {"rows": 8191, "columns": 8191, "precinct": 1},
    ],
    ids=str,
)
def test_a_hundred_bytes_that_promise_a_mammogram_are_refused(tmp_path: Path, stream: dict[str, int]) -> None:
    facts = {"Rows": stream["rows"], "Columns": stream["columns"], "BitsStored": 16}
    read_in(tmp_path, make_dicom(literal(), J2K, codestream=hollow(**stream), **facts))  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        halved(tmp_path / "77.dcm")


@pytest.mark.parametrize("wrapped", [False, True], ids=["file", "codestream"])
@pytest.mark.parametrize("syntax", [EXPLICIT, SV1, JPEG_LS, J2K, RLE])
def test_truncation_anywhere_is_an_image_error(tmp_path: Path, syntax: str, wrapped: bool) -> None:
    """Never another exception, never pixels from half a file; nor where the file is whole and its lengths agree."""
    if wrapped and syntax == EXPLICIT:
        pytest.skip("native pixels are no codestream")
    pixels = np.random.default_rng(16).integers(0, 4096, (16, 12)).astype(np.uint16)
    whole = encode(pixels, syntax) if wrapped else make_dicom(pixels, syntax, WindowCenter="5", WindowWidth="4")
    delimiter = 1 if wrapped else 0 if syntax == EXPLICIT else 8  # its loss is tolerated
    for length in range(2, len(whole) - delimiter, 90 if wrapped and syntax == RLE else 13):  # RLE costs a process each
        content = make_dicom(pixels, syntax, codestream=whole[:length]) if wrapped else whole[:length]
        with pytest.raises(ImageError):
            decode(read_in(tmp_path, content))


@pytest.mark.parametrize("syntax", [EXPLICIT, SV1, J2K])
def test_damaged_files_have_the_head_of_the_whole_or_its_error(tmp_path: Path, syntax: str) -> None:
    """100 files with one to three wrong bytes in front of or at the start of their pixels."""
    rng = np.random.default_rng(11)
    whole = make_dicom(textured(160, 160), syntax, WindowCenter="5", WindowWidth="4")
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole)
        for at in rng.integers(128, 800, rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        (tmp_path / "77.dcm").write_bytes(bytes(damaged))
        head, seen, full = None, "", ""
        try:
            head = read_head(tmp_path / "77.dcm")
            seen = head.problem or ""
        except HeaderError as error:
            seen = str(error)
        try:
            frame = read_frame(tmp_path / "77.dcm")
            Pyramid(frame)
        except ImageError as error:
            full = str(error)
        if full:  # what is damaged may lie behind the head, such as a later item
            assert seen in (full, "")
            refused += 1
        else:
            assert head is not None
            assert dataclasses.replace(frame, codestream=b"") == head.frame or frame.voi_luts
            assert seen == ""
    assert 10 < refused < 100
