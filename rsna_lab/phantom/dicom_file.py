"""Pixels and facts → one DICOM file as the competition stores it.

The organisers re-encoded every file and kept about 26 elements: no Modality, no SOPClassUID, no ViewPosition, no
Manufacturer. The pixel data is one encapsulated frame behind an empty Basic Offset Table, either

* JPEG 2000 lossless (`JPEG2000`): a JP2 file with its boxes; SIZ says 16-bit unsigned whatever is stored, reversible
  5/3 wavelet, 5 decomposition levels, 64x64 blocks, one tile, LRCP; or
* JPEG lossless, first-order prediction (`JPEG_LOSSLESS`): SOF3, predictor 1, precision 16.

Nothing here depends on the clock, the host or the process: the same arguments give the same bytes.
Not covered: signed pixels, several frames, colour, Modality and VOI LUT sequences (the competition has none).

References: DICOM PS3.3 C.7.6.3 (image pixel), C.11.2 (VOI LUT), PS3.5 A.4 (encapsulation), PS3.10 7.1 (file meta).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from rsna_kit.runtime.files import write_bytes

JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
JPEG2000 = "1.2.840.10008.1.2.4.90"
SYNTAXES = (JPEG_LOSSLESS, JPEG2000)

_DIGITAL_XRAY_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"
_IMPLEMENTATION = "2.25.281044925713870927331529084917716241925"  # a fixed UUID-derived UID of this writer
_CONTENT_DATE = "20221118"  # the one date every competition file carries


@dataclass(frozen=True)
class DicomFacts:
    """What the header of one image says, apart from its matrix size.

    `windows` are (centre, width) pairs in stored values; an empty `voi_function` leaves the element out, which
    PS3.3 C.11.2.1.3 defines as LINEAR. `padding` None and `rescale` False leave those elements out.
    """

    patient_id: str
    image_id: str
    laterality: str  # "L" or "R"
    transfer_syntax: str  # JPEG_LOSSLESS or JPEG2000
    bits_stored: int  # 1..16; bits allocated is always 16
    photometric: str = "MONOCHROME2"
    windows: tuple[tuple[float, float], ...] = ()
    voi_function: str = ""
    padding: int | None = 0
    relationship_sign: int = -1  # Pixel Intensity Relationship Sign, -1 or +1
    rescale: bool = True  # write slope 1, intercept 0
    instance_number: int = 1


def encode_pixels(pixels: np.ndarray, transfer_syntax: str) -> bytes:
    """Losslessly encode `pixels` (uint16 (rows, columns), any value) as one codestream of `transfer_syntax`.

    Raises:
        ValueError: a transfer syntax other than the two of the competition.
    """
    if transfer_syntax == JPEG2000:
        # `resolutions=6` is 5 decomposition levels; 64x64 blocks and LRCP are the encoder's defaults.
        encoded = imagecodecs.jpeg2k_encode(
            pixels, level=0, codecformat="jp2", reversible=True, resolutions=6, bitspersample=16, numthreads=1
        )
    elif transfer_syntax == JPEG_LOSSLESS:
        encoded = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=16)
    else:
        raise ValueError(f"transfer syntax: got {transfer_syntax!r}, expected one of {', '.join(SYNTAXES)}")
    return bytes(encoded)


def write_dicom(path: Path, pixels: np.ndarray, facts: DicomFacts) -> None:
    """Write one DICOM file, whole or not at all (temporary name beside it, then a rename).

    Args:
        path: the target; its folder is made when it is missing.
        pixels: uint16 (rows, columns), values at most 2**facts.bits_stored - 1, stored as they are.
        facts: the header.

    Raises:
        ValueError: wrong dtype, shape or range of `pixels`, or an unknown transfer syntax or photometric.
    """
    if pixels.dtype != np.uint16 or pixels.ndim != 2 or 0 in pixels.shape:
        raise ValueError(f"pixels: got {pixels.dtype} {pixels.shape}, expected uint16 (rows, columns)")
    if not (1 <= facts.bits_stored <= 16 and int(pixels.max()) < 1 << facts.bits_stored):
        raise ValueError(
            f"image {facts.image_id}: pixel value {pixels.max()} does not fit in {facts.bits_stored} bits stored"
        )
    if facts.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"photometric: got {facts.photometric!r}, expected MONOCHROME1 or MONOCHROME2")
    dataset = _elements(pixels, facts)
    meta = dataset.file_meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = UID(_DIGITAL_XRAY_FOR_PRESENTATION)
    meta.MediaStorageSOPInstanceUID = _uid(facts.patient_id, facts.image_id)
    meta.TransferSyntaxUID = UID(facts.transfer_syntax)
    meta.ImplementationClassUID = UID(_IMPLEMENTATION)
    meta.ImplementationVersionName = "RSNA_KIT_1"
    memory = io.BytesIO()  # pydicom answers a full disk with its own traceback as the message
    dataset.save_as(memory, enforce_file_format=True)
    write_bytes(path, memory.getbuffer())


def _uid(*parts: str) -> UID:
    """A UID that depends on nothing but `parts` (PS3.5 B.2: 2.25 and a 128-bit integer)."""
    digest = hashlib.sha256("/".join(("rsna-kit phantom", *parts)).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")


def _elements(pixels: np.ndarray, facts: DicomFacts) -> Dataset:
    dataset = Dataset()
    dataset.SOPInstanceUID = _uid(facts.patient_id, facts.image_id)
    dataset.ContentDate = _CONTENT_DATE
    dataset.PatientID = facts.patient_id
    dataset.StudyInstanceUID = _uid(facts.patient_id)
    dataset.SeriesInstanceUID = _uid(facts.patient_id, "series")
    dataset.InstanceNumber = facts.instance_number
    dataset.ImageLaterality = facts.laterality
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = facts.photometric
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = facts.bits_stored
    dataset.HighBit = facts.bits_stored - 1
    dataset.PixelRepresentation = 0
    if facts.padding is not None:
        dataset.add_new("PixelPaddingValue", "US", facts.padding)
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = facts.relationship_sign
    if facts.windows:
        # Decimal strings have at most 16 characters (PS3.5 6.2, DS).
        centres, widths = ([f"{pair[k]:.10g}" for pair in facts.windows] for k in (0, 1))
        dataset.WindowCenter = centres if len(centres) > 1 else centres[0]
        dataset.WindowWidth = widths if len(widths) > 1 else widths[0]
    if facts.rescale:
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    if facts.voi_function:
        dataset.VOILUTFunction = facts.voi_function
    dataset.LossyImageCompression = "00"
    dataset.PixelData = encapsulate([encode_pixels(pixels, facts.transfer_syntax)], has_bot=False)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset
