"""Which rungs of the ladder are there, and what counts when none of them is in range."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dicom_files import J2K, RLE, SV1, literal, make_dicom
from pydicom.pixels import get_decoder

from rsna_kit.dicom import backend_dicomsdl, backend_imagecodecs, backend_pydicom
from rsna_kit.dicom import decode as decode_module
from rsna_kit.dicom.decode import LADDER, backends, decode
from rsna_kit.dicom.frame import EncodedFrame, read_frame
from rsna_kit.runtime.errors import DecodeError


@pytest.fixture
def only_pillow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """pydicom with Pillow, nothing else: what a notebook has before any wheel is installed."""
    for uid in backend_pydicom.UIDS:
        decoder = get_decoder(uid)
        for name in ("gdcm", "pylibjpeg", "pyjpegls"):
            if name in decoder._available:
                monkeypatch.delitem(decoder._available, name)
                monkeypatch.setitem(decoder._unavailable, name, (name,))
    monkeypatch.setattr(backend_imagecodecs, "is_available", lambda: False)
    monkeypatch.setattr(backend_dicomsdl, "is_available", lambda: False)
    backend_pydicom.absence.cache_clear()
    yield
    backend_pydicom.absence.cache_clear()


def frame_of(folder: Path, pixels: np.ndarray, syntax: str) -> EncodedFrame:
    (folder / "77.dcm").write_bytes(make_dicom(pixels, syntax, BitsStored=12, HighBit=11))
    return read_frame(folder / "77.dcm")


@pytest.mark.usefixtures("only_pillow")
def test_pydicom_is_a_decoder_where_one_of_its_plugins_is_installed(tmp_path: Path) -> None:
    there = {uid[18:]: dict(backends(uid))["pydicom"] for uid in backend_pydicom.UIDS}
    assert there == {
        "4.50": True, "4.51": True, "4.57": False, "4.70": False, "4.80": False, "4.81": False, "4.90": True,
        "4.91": True, "4.201": False, "4.202": False, "4.203": False, "5": True,
    }  # fmt: skip
    with pytest.raises(DecodeError, match="no decoder could read") as caught:
        decode(frame_of(tmp_path, literal(), SV1))
    *said, pydicoms = str(caught.value).splitlines()[1:]
    assert said == ["  imagecodecs: not installed", "  dicomsdl: not installed"]
    assert pydicoms.startswith("  pydicom: ")
    assert "gdcm is not installed (requires gdcm)" in pydicoms


def test_a_decoder_without_plugins_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in LADDER:
        if module is not backend_pydicom:
            monkeypatch.setattr(module, "is_available", lambda: False)
    monkeypatch.setattr(backend_pydicom, "absence", lambda uid: "no plug-in" if uid == SV1 else "")
    asked = []
    monkeypatch.setattr(decode_module, "decode_apart", lambda module, frame: asked.append(module) or literal())
    with pytest.raises(DecodeError, match="pydicom: no plug-in"):
        decode(frame_of(tmp_path, literal(), SV1))
    assert asked == []
    assert np.array_equal(decode(frame_of(tmp_path, literal(), RLE)), literal())
    assert asked == [backend_pydicom]


@pytest.mark.parametrize("syntax", [SV1, J2K])
def test_two_rungs_above_the_range_that_differ_are_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    """Then the third is asked; where two agree above it, the third would only mask the bits."""
    marked, other = literal(), literal()
    marked[2, 3], other[2, 3], third = 65535, 65534, literal() ^ np.uint16(1)
    answers, asked = {backend_dicomsdl: other, backend_pydicom: third}, []
    monkeypatch.setattr(backend_imagecodecs, "decode", lambda frame: marked)
    monkeypatch.setattr(decode_module, "decode_apart", lambda module, frame: asked.append(module) or answers[module])
    frame = frame_of(tmp_path, literal(), syntax)
    assert np.array_equal(decode(frame), third)
    assert asked == [backend_dicomsdl, backend_pydicom]
    answers[backend_dicomsdl] = marked
    assert decode(frame)[2, 3] == 4095
    assert asked[2:] == [backend_dicomsdl]
