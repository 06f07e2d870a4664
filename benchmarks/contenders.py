"""Who is measured: ways from a DICOM file to the uint8 image of a model.

The peers share the steps after decoding, so that they differ by their decoder: those of a notebook of 2023 at full
size, window, inversion, one contour, one area resize. The window of the pydicom peers is pydicom's own `apply_voi_lut`,
as its documentation and the competition's notebooks have it. It computes in float64; `tuned` does the same in float32
and in place, as cheap as it can be written simply, so that nobody has to ask what that alone would have given.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from rsna_kit.config import ImageConfig
from rsna_kit.imaging.render import read_image

REFERENCE = "reference"
Size = tuple[int, int]  # rows, columns of the image


@dataclass(frozen=True)
class Contender:
    """A column of the tables: `read` makes the image; `needs` are the modules it imports."""

    name: str
    what: str
    needs: tuple[str, ...]
    read: Callable[[Path, Size], np.ndarray]

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [module for module in self.needs if importlib.util.find_spec(module) is None]


@dataclass(frozen=True)
class Header:
    """What the steps after decoding need: the first window, None without one."""

    window: tuple[float, float] | None
    function: str
    inverted: bool  # MONOCHROME1


def notebook_steps(gray: np.ndarray, size: Size) -> np.ndarray:
    """Breast box, crop, resize: uint8 of `size`, the breast at the top left.

    Args:
        gray: uint8 (rows, columns), windowed, air dark.
        size: of the image.
    """
    _, bright = cv2.threshold(gray, 20, 255, cv2.THRESH_BINARY)
    outlines, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if outlines:
        left, top, width, height = cv2.boundingRect(max(outlines, key=cv2.contourArea))
        gray = gray[top : top + height, left : left + width]
    rows, columns = gray.shape
    scale = min(size[0] / rows, size[1] / columns)
    small = cv2.resize(gray, (round(columns * scale), round(rows * scale)), interpolation=cv2.INTER_AREA)
    image = np.zeros(size, np.uint8)
    image[: small.shape[0], : small.shape[1]] = small
    return image


def _window(pixels: np.ndarray, header: Header) -> np.ndarray:
    """VOI (PS3.3 C.11.2) and photometric interpretation at full size: uint8, air dark."""
    tones = pixels.astype(np.float32)
    low, high = float(tones.min()), float(tones.max())
    centre, width = header.window or ((low + high + 1) / 2, high - low + 1)
    if header.function == "SIGMOID":
        tones -= centre
        tones *= -4 / width
        np.exp(tones, out=tones)
        tones += 1
        np.divide(255, tones, out=tones)
    else:
        tones -= centre - 0.5 - (width - 1) / 2
        tones *= 255 / max(width - 1, 1)
        np.clip(tones, 0, 255, out=tones)
    if header.inverted:
        np.subtract(255, tones, out=tones)
    return tones.astype(np.uint8)


def _header(dataset: Any) -> Header:
    """From a dataset of pydicom or dicomsdl: elements as attributes, an absent one is None or an AttributeError."""
    centre: Any = getattr(dataset, "WindowCenter", None)
    width: Any = getattr(dataset, "WindowWidth", None)
    if hasattr(centre, "__getitem__"):  # several windows
        centre, width = centre[0], width[0]
    return Header(
        window=None if centre is None or width is None else (float(centre), float(width)),
        function=getattr(dataset, "VOILUTFunction", None) or "LINEAR",
        inverted=dataset.PhotometricInterpretation == "MONOCHROME1",
    )


def _reference(path: Path, size: Size) -> np.ndarray:
    import pydicom
    from pydicom.pixels import apply_voi_lut

    dataset = pydicom.dcmread(path)
    dataset.pixel_array_options(decoding_plugin="pylibjpeg")
    tones = apply_voi_lut(dataset.pixel_array, dataset, prefer_lut=False)
    tones = tones - tones.min()
    tones = tones / max(tones.max(), 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        tones = 1 - tones
    return notebook_steps((tones * 255).astype(np.uint8), size)


def _tuned(path: Path, size: Size) -> np.ndarray:
    """pydicom with pylibjpeg, and the window in float32 and in place."""
    import pydicom

    dataset = pydicom.dcmread(path)
    dataset.pixel_array_options(decoding_plugin="pylibjpeg")
    return notebook_steps(_window(dataset.pixel_array, _header(dataset)), size)


def _seed(path: Path, size: Size) -> np.ndarray:
    """dicomsdl, and the image as PNG on disk, as the notebooks that prepared before they trained."""
    import dicomsdl

    dicomsdl.set_loglevel(dicomsdl.LogLevel.ERROR)
    dataset = dicomsdl.open(str(path))
    image = notebook_steps(_window(dataset.pixelData(storedvalue=True), _header(dataset)), size)
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        cv2.imwrite(file.name, image)
    return image


def _kit(decode: Literal["reduced", "exact"]) -> Callable[[Path, Size], np.ndarray]:
    def read(path: Path, size: Size) -> np.ndarray:
        return read_image(path, path.stem, ImageConfig(height=size[0], width=size[1], decode=decode)).image

    return read


CONTENDERS = (
    Contender(
        REFERENCE,
        "pydicom with pylibjpeg and apply_voi_lut, then the steps of a notebook at full size",
        ("pydicom", "pylibjpeg", "openjpeg", "libjpeg"),
        _reference,
    ),
    Contender(
        "tuned",
        "the same with a window in float32 and in place",
        ("pydicom", "pylibjpeg", "openjpeg", "libjpeg"),
        _tuned,
    ),
    Contender("seed", "tuned, but dicomsdl, and a PNG on disk", ("dicomsdl",), _seed),
    Contender("exact", "rsna_kit with image.decode=exact: every pixel is decoded", (), _kit("exact")),
    Contender("rsna_kit", "rsna_kit as it is: JPEG 2000 at the resolution that the image needs", (), _kit("reduced")),
)
