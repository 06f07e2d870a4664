"""Tones: literal numbers for each function of the standard, and the slow twin that follows its text."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from dicom_files import framed as frame_of
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import realdata

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.decode import decode
from rsna_kit.dicom.frame import EncodedFrame, LookupTable, read_frame
from rsna_kit.imaging.window import (
    apply_voi,
    linear,
    modality_values,
    sigmoid,
    tones,
    value_range,
)

FIVE = np.array([[0, 1, 2048, 4094, 4095]], dtype=np.uint16)


def framed(**facts: object) -> EncodedFrame:
    return frame_of(FIVE, **facts)


def table(first: int, bits: int, *entries: int) -> LookupTable:
    return LookupTable(first, bits, np.array(entries, dtype=np.uint16))


def slow_voi(x: float, function: str, c: float, w: float, y_max: float) -> float:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, word for word, with y_min = 0."""
    if function == "SIGMOID":
        return y_max / (1 + math.exp(-4 * (x - c) / w))
    if function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0.0
        return y_max if x > c + w / 2 else ((x - c) / w + 0.5) * y_max
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    return y_max if x > c - 0.5 + (w - 1) / 2 else ((x - (c - 0.5)) / (w - 1) + 0.5) * y_max


def to_unit(pixels: np.ndarray, frame: EncodedFrame, image: ImageConfig) -> np.ndarray:
    """The whole picture as tones."""
    return tones(pixels, frame, image).table[pixels]


def test_linear_of_width_one_is_a_step() -> None:
    assert linear(np.array([9.0, 9.5, 9.6, 10.0]), 10, 1, 255).tolist() == [0.0, 0.0, 255.0, 255.0]


def test_sigmoid_is_half_at_the_centre_and_never_overflows() -> None:
    out = sigmoid(np.array([-1e9, 2.0, 3.0, 1e9]), 2, 4, 4095)
    assert out[0] == pytest.approx(0, abs=1e-300)
    assert out[1] == 2047.5
    assert out[2] == pytest.approx(4095 / (1 + math.exp(-1)))
    assert out[3] == 4095.0


@settings(max_examples=300, deadline=None)
@given(
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    centre=st.floats(-5000, 70000),
    width=st.floats(1, 70000),
    values=st.lists(st.integers(0, 4095), min_size=1, max_size=6),
)
def test_windows_agree_with_the_text_of_the_standard(
    function: str, centre: float, width: float, values: list[int]
) -> None:
    frame = framed(windows=((centre, width), (20.0, 4.0)), voi_function=function)  # of several the first counts
    if function == "SIGMOID" and abs(4 * 70000 / width) > 700:
        return
    if function == "LINEAR" and width - 1 < 1e-6:
        return  # the text divides by w - 1
    fast = apply_voi(np.array(values, dtype=np.float64), frame)
    slow = [slow_voi(value, function, centre, width, 4095.0) for value in values]
    np.testing.assert_allclose(fast, slow, rtol=1e-9, atol=1e-6)


def test_signed_patterns_become_negative_values() -> None:
    patterns = np.array([-2048, -1, 0, 2047], dtype=np.int16).view(np.uint16)
    assert modality_values(patterns, framed(signed=True)).tolist() == [-2048.0, -1.0, 0.0, 2047.0]
    moved = modality_values(patterns, framed(signed=True, slope=2.0, intercept=-1.0))
    assert moved.tolist() == [-4097.0, -3.0, -1.0, 4093.0]


def test_a_modality_lut_replaces_slope_and_clamps_at_both_ends() -> None:
    frame = framed(modality_lut=table(1, 16, 10, 20, 30), slope=9.0)
    assert modality_values(np.arange(6, dtype=np.uint16), frame).tolist() == [10.0, 10.0, 20.0, 30.0, 30.0, 30.0]


def test_a_voi_lut_is_scaled_to_the_stored_range() -> None:
    frame = framed(bits_stored=8, voi_luts=(table(2, 16, 0, 257, 65535), table(0, 8, 0, 255)))
    values = np.array([0.0, 2.0, 3.0, 4.0, 9.0])
    assert apply_voi(values, frame, voi="lut").tolist() == [0.0, 0.0, 1.0, 255.0, 255.0]


def test_each_kind_of_voi_falls_back_to_what_the_file_has() -> None:
    values = np.array([1.0, 3.0, 5.0])
    only_lut = framed(windows=(), voi_luts=(table(0, 12, 0, 1, 2, 4095),))
    assert apply_voi(values, only_lut).tolist() == [1.0, 4095.0, 4095.0]
    assert apply_voi(values, framed(), voi="lut").tolist() == [1.0, 3.0, 5.0]
    assert apply_voi(values, framed(windows=())).tolist() == [0.0, 2047.5, 4095.0]
    assert apply_voi(values, framed(), voi="minmax").tolist() == [0.0, 2047.5, 4095.0]


def test_the_range_leaves_padding_out() -> None:
    pixels = np.array([[3000, 9, 5, 3000]], dtype=np.uint16)
    values = np.arange(65536.0)
    assert value_range(pixels, framed(padding=3000), values) == (5.0, 9.0)
    assert value_range(pixels, framed(padding=None), values) == (5.0, 3000.0)
    assert value_range(np.full((2, 2), 3000, np.uint16), framed(padding=3000), values) == (3000.0, 3000.0)


def test_monochrome1_is_inverted_once() -> None:
    unit = to_unit(FIVE, framed(photometric="MONOCHROME1"), ImageConfig())
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[1.0, 1 - 1 / 4095, 2047 / 4095, 1 / 4095, 0.0]], atol=1e-7)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_table_is_exactly_the_direct_formula(function: str, signed: bool, photometric: str) -> None:
    frame = framed(voi_function=function, signed=signed, photometric=photometric, windows=((900.0, 777.5),), slope=1.5)
    pixels = np.random.default_rng(2).integers(0, 65536, (40, 50)).astype(np.uint16)
    direct = apply_voi(modality_values(pixels, frame), frame) / 4095
    direct = (1 - direct if photometric == "MONOCHROME1" else direct).astype(np.float32)
    assert np.array_equal(to_unit(pixels, frame, ImageConfig()), direct)


def test_a_window_that_shows_nothing_is_replaced_by_the_range() -> None:
    """A real file (dx_J2KR_u16_16) has window 2725/5310 over pixels from 32744 to 65535: all white."""
    pixels = np.array([[32744, 40000, 65535]], dtype=np.uint16)
    frame = framed(bits_stored=16, windows=((2725.0, 5310.0),))
    unit = to_unit(pixels, frame, ImageConfig())
    assert unit[0, 0] == 0.0
    assert unit[0, 1] == pytest.approx((40000 - 32744) / (65535 - 32744))
    assert unit[0, 2] == 1.0


def test_a_window_that_clips_most_of_the_picture_is_kept() -> None:
    pixels = np.zeros((100, 100), dtype=np.uint16)
    pixels[:, :2] = 2048
    unit = to_unit(pixels, framed(windows=((2048.0, 200.0),)), ImageConfig())
    assert unit[0, 0] == pytest.approx(0.5, abs=0.01)


def ge_mammogram() -> tuple[EncodedFrame, np.ndarray, dict]:
    folder = realdata("dicom")
    name = "mg_GH133_jpll_voilutseq_sigmoid.dcm"
    facts = next(f for f in json.loads((folder / "manifest.json").read_text()) if f["file"] == name)
    frame = read_frame(folder / name)
    return frame, decode(frame), facts


def test_the_real_ge_mammogram_by_its_sigmoid_window() -> None:
    frame, pixels, facts = ge_mammogram()
    shown = apply_voi(modality_values(pixels, frame), frame, voi="window")
    assert shown.mean() == pytest.approx(331.394, abs=0.01)
    expected = facts["window0_pydicom"]
    assert [shown.min(), shown.max()] == pytest.approx([expected["min"], expected["max"]], abs=1e-3)


def test_the_real_ge_mammogram_by_its_own_lut() -> None:
    """The vendor's table and the SIGMOID formula agree to 0.02 of 4095 levels: independent of any code of ours."""
    frame, pixels, facts = ge_mammogram()
    shown = apply_voi(modality_values(pixels, frame), frame, voi="lut")
    assert shown.mean() == pytest.approx(331.376, abs=0.01)
    assert [shown.min(), shown.max()] == [facts["voi_seq0_pydicom"]["min"], facts["voi_seq0_pydicom"]["max"]]


def test_real_files_with_plain_windows_match_their_manifest() -> None:
    folder, checked = realdata("dicom"), 0
    for facts in json.loads((folder / "manifest.json").read_text()):
        frame = read_frame(folder / facts["file"])
        if "window0_pydicom" not in facts or frame.signed or (frame.slope, frame.intercept) != (1.0, 0.0):
            continue  # pydicom shifts the output range by slope and sign; ours is always 0 … 2**bits - 1
        shown, expected = apply_voi(modality_values(decode(frame), frame), frame), facts["window0_pydicom"]
        found = [shown.min(), shown.max(), shown.mean()]
        assert found == pytest.approx([expected["min"], expected["max"], expected["mean"]], abs=2e-3)
        checked += 1
    assert checked >= 10


def test_real_lookup_tables_match_their_manifest() -> None:
    folder = realdata("dicom")
    for facts in json.loads((folder / "manifest.json").read_text()):
        frame = read_frame(folder / facts["file"])
        if "modality_lut_pydicom" in facts:
            values, expected = modality_values(decode(frame), frame), facts["modality_lut_pydicom"]
            assert [values.min(), values.max()] == [expected["min"], expected["max"]]
            assert values.mean() == pytest.approx(expected["mean"], abs=1e-3)
        if facts["file"].startswith("ot_vlut"):
            shown = apply_voi(modality_values(decode(frame), frame), frame, voi="lut") * (65535 / 255)
            assert shown.mean() == pytest.approx(facts["voi_seq0_pydicom"]["mean"], abs=1e-3)
