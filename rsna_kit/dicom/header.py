"""DICOM elements → the checked facts that make an `EncodedFrame`.

The values are read here from the raw bytes, so that a malformed value in an element nobody needs costs nothing, and one
in an element we need is a typed error. The competition's files keep about 26 elements: Modality, SOP Class, View
Position and Manufacturer are absent there, so nothing here may ask for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from rsna_kit.dicom.elements import NATIVE_UIDS, Elements, order_of, raw_of, text_of, words_of
from rsna_kit.runtime.errors import HeaderError

# The largest mammogram of the competition has 28 million pixels. A header is never believed beyond this:
# 2**26 pixels are 128 MiB of uint16 (a decoder may need thrice that), so a damaged Rows cannot take the machine down.
MAX_PIXELS = 2**26

# Keyword → tag of every element the kit looks at.
TAGS = {
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "WindowCenter": 0x00281050,
    "WindowWidth": 0x00281051,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "VOILUTFunction": 0x00281056,
    "ModalityLUTSequence": 0x00283000,
    "VOILUTSequence": 0x00283010,
}
_LUT_DESCRIPTOR, _LUT_DATA = 0x00283002, 0x00283006
_PIXEL_DATA, _FLOAT_PIXELS = 0x7FE00010, (0x7FE00008, 0x7FE00009)
# Functional groups of enhanced images (PS3.3 C.7.6.16) → the elements that an ordinary header keeps at its top.
GROUPS = (0x52009230, 0x52009229)  # the frame's own, then those that frames share
_GROUPED = {
    0x00289145: ("RescaleIntercept", "RescaleSlope"),
    0x00289132: ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
}
_VOI_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class LookupTable:
    """One item of a Modality or VOI LUT Sequence (PS3.3 C.11.1, C.11.2).

    Attributes:
        first: the input value that maps to `entries[0]`; smaller inputs map there too.
        bits: bits that the largest entry takes, so the output range is 0 … 2**bits - 1. What the descriptor states is
            often the width of a word.
        entries: uint16 outputs; inputs beyond the end map to the last one.
    """

    first: int
    bits: int
    entries: np.ndarray


def parse_header(elements: Elements, name: str) -> dict[str, Any]:
    """The facts of one monochrome frame, checked, named as the fields of `EncodedFrame`.

    Raises:
        HeaderError: an element is missing or says something this kit does not cover.
    """
    dataset = elements.dataset
    if elements.pixels in _FLOAT_PIXELS:
        raise HeaderError(f"{name}: its pixels are floats, expected Pixel Data (7FE0,0010). Exclude the image")
    if elements.pixels != _PIXEL_DATA:
        raise HeaderError(f"{name}: no Pixel Data (7FE0,0010) found, expected 1 frame. Is the file cut short?")
    reader = _Reader(dataset, name)
    signed = reader.integer("PixelRepresentation", default=0, allowed=(0, 1)) == 1
    rows, columns = reader.integer("Rows"), reader.integer("Columns")
    if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
        raise HeaderError(f"{name}: got {rows} x {columns} pixels, expected 1 to {MAX_PIXELS}. The header is damaged")
    reader.integer("SamplesPerPixel", default=1, allowed=(1,), hint="monochrome; exclude colour images from the table")
    if reader.integer("NumberOfFrames", default=1):  # 0 and nothing at all are written for one
        reader.integer("NumberOfFrames", default=1, allowed=(1,), hint="one frame; split multi-frame files first")
    _take_from_groups(dataset, name)
    allocated = reader.integer("BitsAllocated", allowed=(8, 16))
    stored = reader.integer("BitsStored", allowed=tuple(range(1, allocated + 1)))
    if elements.transfer_syntax in NATIVE_UIDS:  # a codestream brings its own depth, and writers leave this one stale
        reader.integer("HighBit", default=stored - 1, allowed=(stored - 1,), hint="BitsStored - 1; right-justify first")
    photometric = reader.text("PhotometricInterpretation").upper()
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise HeaderError(
            f"{name}: Photometric Interpretation (0028,0004) is {photometric or 'missing'!r}, expected MONOCHROME1 or "
            "MONOCHROME2. Exclude the image from the table"
        )
    modality_luts = reader.tables("ModalityLUTSequence", signed)
    slope = reader.number("RescaleSlope", default=1.0) or 1.0
    intercept = reader.number("RescaleIntercept", default=0.0)
    # An unknown curve leaves its windows without a meaning: then the VOI LUT or the range of the pixels serves.
    function = reader.text("VOILUTFunction").split("\\")[0].strip().upper() or "LINEAR"
    pairs = zip(reader.numbers("WindowCenter"), reader.numbers("WindowWidth"), strict=False)
    windows = tuple(
        (c, width) for c, width in pairs if math.isfinite(c) and 0 < width < math.inf
    )  # others show nothing
    return {
        "transfer_syntax": elements.transfer_syntax,
        "rows": rows,
        "columns": columns,
        "bits_allocated": allocated,
        "bits_stored": stored,
        "signed": signed,
        "photometric": photometric,
        "windows": windows if function in _VOI_FUNCTIONS else (),
        "voi_function": function if function in _VOI_FUNCTIONS else "LINEAR",
        # PS3.3 C.11.2.1.1: the inputs of a VOI LUT are signed when the values before it can be.
        "voi_luts": reader.tables("VOILUTSequence", (signed and not modality_luts) or intercept < 0),
        "modality_lut": modality_luts[0] if modality_luts else None,
        "slope": slope,
        "intercept": intercept,
        "padding": reader.padding("PixelPaddingValue", allocated, signed),
        "padding_limit": reader.padding("PixelPaddingRangeLimit", allocated, signed),
    }


def _take_from_groups(dataset: Dataset, name: str) -> None:
    """Bring window, slope and intercept that stand in functional groups alone to where ordinary headers keep them."""
    for tag in GROUPS:
        items = dataset[tag].value or () if tag in dataset else ()
        if tag == GROUPS[0] and len(items) > 1:
            raise HeaderError(f"{name}: has functional groups of {len(items)} frames, expected 1. Split the file first")
        for group, keywords in _GROUPED.items():
            tags = [TAGS[keyword] for keyword in keywords]
            if items and group in items[0] and not any(t in dataset and dataset.get_item(t).value for t in tags):
                for item in (items[0][group].value or ())[:1]:
                    for t in (t for t in tags if t in item):
                        dataset[t] = item.get_item(t)


class _Reader:
    """Typed access to the raw elements of one header."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self._dataset, self._name = dataset, name

    def integer(self, keyword: str, default: int | None = None, allowed: tuple[int, ...] = (), hint: str = "") -> int:
        """An integer element (US, SS or IS); a missing one takes the default, or is an error."""
        tag = TAGS[keyword]
        label = f"{self._name}: {keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"
        value: int | None
        if keyword == "NumberOfFrames":  # the only integer kept as text
            number = self.number(keyword, default=math.nan)
            value = int(number) if math.isfinite(number) else None
        else:
            words = words_of(self._dataset, tag)
            value = words[0] if words else None
        if value is None:
            if default is None:
                raise HeaderError(f"{label} is missing, expected a number. The header is damaged or not of an image")
            value = default
        if allowed and value not in allowed:
            listed = f"{allowed[0]} to {allowed[-1]}" if len(allowed) > 3 else " or ".join(map(str, allowed))
            raise HeaderError(f"{label} is {value}, expected {listed}" + (f" ({hint})" if hint else ""))
        return value

    def text(self, keyword: str) -> str:
        """A text element without padding, empty when missing."""
        return text_of(self._dataset, TAGS[keyword])

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """All numbers of a decimal string element by position; NaN where there is none."""
        return tuple(map(_decimal, text_of(self._dataset, TAGS[keyword]).split("\\")))

    def number(self, keyword: str, default: float) -> float:
        """The first number of a decimal string element, the default when it is missing or no finite number."""
        first = self.numbers(keyword)[0]
        return first if math.isfinite(first) else default

    def padding(self, keyword: str, allocated: int, signed: bool) -> int | None:
        """A limit of padding as a stored value. Some writers leave the sign bits off or on: both are folded."""
        words = words_of(self._dataset, TAGS[keyword])
        if not words:
            return None
        value = words[0] & ((1 << allocated) - 1)
        return value - (1 << allocated) if signed and value >= 1 << (allocated - 1) else value

    def tables(self, keyword: str, signed: bool) -> tuple[LookupTable, ...]:
        """The usable items of a LUT sequence; an item without data is left out (real files carry such)."""
        if TAGS[keyword] not in self._dataset:
            return ()
        try:
            items = list(self._dataset[TAGS[keyword]].value or ())
        except Exception as error:  # a sequence is parsed here, on access
            raise HeaderError(f"{self._name}: {keyword} is damaged ({error}). Copy the file again") from error
        return tuple(table for item in items if (table := _table(item, signed)) is not None)


def _table(item: Dataset, signed: bool) -> LookupTable | None:
    """One LUT item, None when its descriptor or data are missing or contradict each other."""
    descriptor, raw = words_of(item, _LUT_DESCRIPTOR), raw_of(item, _LUT_DATA)
    if len(descriptor) != 3 or not raw:
        return None
    count, first, bits = descriptor[0] or 65536, descriptor[1], descriptor[2]
    if len(raw) in (count, count + 1) and bits <= 8:  # PS3.3 C.11.1.1.1: 8-bit entries may be packed
        entries = np.frombuffer(raw, np.uint8)[:count].astype(np.uint16)
    elif len(raw) >= 2 * count:
        entries = np.frombuffer(raw, f"{order_of(item, _LUT_DATA)}u2", count=count).astype(np.uint16)
    else:
        return None
    reached = max(int(entries.max()).bit_length(), 1)
    return LookupTable(first - 65536 if signed and first >= 32768 else first, reached, entries)


def _decimal(text: str) -> float:
    """A decimal string as a number, NaN when it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
