"""Proof before trust: right, wrong and failing decoders, on made files with known pixels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from dicom_files import BASELINE, EXPLICIT, J2K, JPEG_LS, RLE, SV1, make_dicom, stand_in

from rsna_kit.dicom.decode import TRUST_ALL, Group, Trust, decode
from rsna_kit.dicom.decoders import decode_imagecodecs
from rsna_kit.dicom.frame import EncodedFrame, check_stream, read_frame
from rsna_kit.dicom.proof import Proof, prove
from rsna_kit.runtime.errors import DecodeError

SV1_GROUP = Group(SV1, 16, 12, False, "MONOCHROME2")
J2K_GROUP = Group(J2K, 16, 12, False, "MONOCHROME2")
Examples = dict[Group, list[tuple[str, Path]]]


def picture(seed: int) -> np.ndarray:
    """64 x 48 pixels of 12 bits, all noise: two of them share next to nothing."""
    return np.random.default_rng(seed).integers(0, 4096, (64, 48)).astype(np.uint16)


def saved(folder: Path, name: str, content: bytes) -> tuple[str, Path]:
    path = folder / f"{name}.dcm"
    path.write_bytes(content)
    return name, path


def examples(folder: Path, *syntaxes: str, count: int = 3) -> Examples:
    """`count` good files of each syntax: 70-0.dcm, 70-1.dcm, ..."""
    return {
        Group(syntax, 16, 12, False, "MONOCHROME2"): [
            saved(folder, f"{syntax[-2:]}-{k}", make_dicom(picture(k), syntax)) for k in range(count)
        ]
        for syntax in syntaxes
    }


def lines(proof: Proof) -> list[str]:
    return [verdict.line for verdict in proof.verdicts]


def truth(frame: EncodedFrame) -> np.ndarray:
    return picture(int(frame.image_id[-1]))


def test_decoders_that_agree_stay_and_an_equal_extra_is_proven(tmp_path: Path) -> None:
    files = examples(tmp_path, SV1, J2K)
    proof = prove(files, {"right": truth})
    assert lines(proof) == [
        f"{group}: 3 files, imagecodecs and dicomsdl agree; proven: right" for group in (SV1_GROUP, J2K_GROUP)
    ]
    assert proof.trust == Trust(
        off=frozenset(), extra=frozenset({"right"}), proven=frozenset({(SV1_GROUP, "right"), (J2K_GROUP, "right")})
    )


def failing(frame: EncodedFrame) -> np.ndarray:
    raise RuntimeError("no\n   device")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        # 0 stays 0 under any factor: picture(0) has two such pixels.
        (lambda frame: truth(frame) << 4, "3070 of 3072 pixels differ, largest difference 61425, in image 70-0 "),
        (lambda frame: np.zeros((64, 48), np.uint16), "gives 0 everywhere in image 70-0 "),
        (failing, "fails on image 70-0 ({path}): no device"),
        (lambda frame: truth(frame).astype(np.int32), "gives int32 (64, 48) for image 70-0 "),
        (lambda frame: truth(frame).T, "gives uint16 (48, 64) for image 70-0 "),
        (lambda frame: truth(frame) + np.uint16(frame.image_id >= "70-1"), "largest difference 1, in image 70-1 "),
        (lambda frame: [1, 2], "fails on image 70-0 ({path}): 'list' object has no attribute"),
    ],
    ids=["scaled", "zeros", "raises", "type", "shape", "all but the first file", "no array"],
)
def test_an_extra_that_is_wrong_is_switched_off(
    tmp_path: Path, wrong: Callable[[EncodedFrame], np.ndarray], why: str
) -> None:
    assert (picture(0).min(), picture(0).max(), np.count_nonzero(picture(0))) == (0, 4095, 3070)
    proof = prove(examples(tmp_path, SV1), {"wrong": wrong, "right": truth})
    assert why.format(path=tmp_path / "70-0.dcm") in proof.verdicts[0].off["wrong"]
    assert proof.verdicts[0].proven == ["right"]
    frame = read_frame(tmp_path / "70-0.dcm")
    allows = {name: proof.trust.allows(name, frame, check_stream(frame)) for name in ("wrong", "right", "imagecodecs")}
    assert allows == {"wrong": False, "right": True, "imagecodecs": True}


def test_an_extra_is_not_believed_for_a_group_that_was_never_seen(tmp_path: Path) -> None:
    trust = prove(examples(tmp_path, SV1), {"gpu": truth}).trust
    _, path = saved(tmp_path, "new", make_dicom(picture(0), JPEG_LS))
    frame = read_frame(path)
    facts = check_stream(frame)
    assert not trust.allows("gpu", frame, facts)
    assert trust.allows("imagecodecs", frame, facts)
    assert TRUST_ALL.allows("gpu", frame, facts)


def wrong_for(*numbers: int) -> Callable[[EncodedFrame], np.ndarray]:
    """A decoder that is one level off in the files of these numbers."""
    return lambda frame: truth(frame) ^ np.uint16(int(frame.image_id[-1]) in numbers)


@pytest.mark.parametrize(
    ("numbers", "count", "proven"),
    [((0,), 8, True), ((2,), 8, True), ((0, 2), 8, False), ((0,), 1, False), ((0,), 2, False), ((3,), 8, True)],
)
def test_an_extra_must_be_right_more_often_than_wrong_in_three_files(
    tmp_path: Path, numbers: tuple[int, ...], count: int, proven: bool
) -> None:
    """One damaged file is no proof: lenient decoders make different pictures of it."""
    proof = prove(examples(tmp_path, SV1, count=count), {"gpu": wrong_for(*numbers)})
    pair = frozenset({(SV1_GROUP, "gpu")})
    assert proof.trust == (Trust(frozenset(), frozenset({"gpu"}), pair) if proven else Trust(pair, frozenset({"gpu"})))
    assert proof.verdicts[0].files == min(count, 3)
    assert proven or f"in image 70-{numbers[0]} " in proof.verdicts[0].off["gpu"]


def test_a_decoder_that_two_others_contradict_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = examples(tmp_path, SV1, J2K)
    real = decode_imagecodecs
    stand_in(monkeypatch, imagecodecs=lambda frame: real(frame) ^ (frame.transfer_syntax == J2K))
    proof = prove(files)
    assert proof.trust == Trust(off=frozenset({(J2K_GROUP, "imagecodecs")}))
    assert lines(proof)[1] == (
        f"{J2K_GROUP}: 3 files, dicomsdl and pydicom agree; switched off: imagecodecs (3072 of 3072 pixels differ, "
        f"largest difference 1, in image 90-0 ({tmp_path / '90-0.dcm'}))"
    )
    frame = read_frame(files[J2K_GROUP][2][1])
    assert not np.array_equal(decode(frame), picture(2))
    assert np.array_equal(decode(frame, proof.trust), picture(2))


def test_where_no_two_agree_nothing_is_proven_and_nothing_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(
        monkeypatch,
        imagecodecs=lambda frame: truth(frame) ^ 1,
        dicomsdl=lambda frame: np.full((64, 48), 7, np.uint16),
        pydicom=truth,
    )
    proof = prove(examples(tmp_path, SV1, count=2), {"gpu": truth})
    assert (proof.verdicts[0].off, proof.verdicts[0].proven) == ({}, [])
    assert proof.verdicts[0].passed_over == [
        f"image 70-0 ({tmp_path / '70-0.dcm'}): no two decoders agree (imagecodecs, dicomsdl and pydicom differ)",
        f"image 70-1 ({tmp_path / '70-1.dcm'}): no two decoders agree (imagecodecs, dicomsdl and pydicom differ)",
    ]
    assert lines(proof)[0].startswith(f"{SV1_GROUP}: not proven, no example on which two decoders agree; passed over:")


def test_a_decoder_that_fails_is_no_evidence_against_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, imagecodecs=failing, dicomsdl=truth, pydicom=failing)
    verdict = prove(examples(tmp_path, SV1)).verdicts[0]
    assert (verdict.files, verdict.agreed, verdict.off) == (0, [], {})
    assert verdict.passed_over[0].endswith("(imagecodecs: no device; pydicom: no device)")


def test_blank_and_damaged_files_are_passed_over(tmp_path: Path) -> None:
    blank = saved(tmp_path, "blank", make_dicom(np.full((64, 48), 9, np.uint16), SV1))
    damaged = saved(tmp_path, "damaged", make_dicom(picture(5), SV1)[:-40])
    absent = ("absent", tmp_path / "absent.dcm")
    good = examples(tmp_path, SV1, count=1)[SV1_GROUP]
    zeros = {"zeros": lambda frame: np.full((64, 48), 9, np.uint16)}
    proof = prove({SV1_GROUP: [blank, damaged, absent, *good]}, zeros)
    verdict = proof.verdicts[0]
    assert verdict.files == 1
    assert verdict.off == {"zeros": f"gives 9 everywhere in image 70-0 ({tmp_path / '70-0.dcm'})"}
    assert verdict.passed_over[0] == f"image blank ({tmp_path / 'blank.dcm'}): imagecodecs and dicomsdl find it blank"
    assert [said.split()[1] for said in verdict.passed_over] == ["blank", "damaged", "absent"]
    assert lines(proof)[0].endswith("imagecodecs and dicomsdl find it blank, and 2 more")
    only = prove({SV1_GROUP: [blank]}, zeros).verdicts[0]
    assert (only.files, only.proven, only.off) == (0, [], {})


@pytest.mark.parametrize(("syntax", "decoder"), [(EXPLICIT, "native"), (RLE, "pydicom")])
def test_a_syntax_with_one_decoder_is_proven_by_an_extra_that_gives_the_same(
    tmp_path: Path, syntax: str, decoder: str
) -> None:
    files = examples(tmp_path, syntax, count=4)
    (group,) = files
    asked: list[EncodedFrame] = []
    proof = prove(files, {"gpu": asked.append})
    assert lines(proof) == [f"{group}: not proven, {decoder} alone decodes it"]
    name, path = files[group][0]
    assert [frame.image_id for frame in asked] == [name]
    assert not proof.trust.allows("gpu", read_frame(path, name), None)
    assert np.array_equal(decode(read_frame(path, name), proof.trust), picture(0))
    proof = prove(files, {"gpu": truth, "bad": wrong_for(0, 1)})
    assert lines(proof)[0].startswith(
        f"{group}: 3 files, {decoder} and gpu agree; proven: gpu; switched off: bad (3072"
    )
    assert proof.trust.proven == {(group, "gpu")}
    blank = saved(tmp_path, "blank-0", make_dicom(np.full((64, 48), 9, np.uint16), syntax))
    only = prove({group: [blank]}, {"gpu": lambda frame: np.full((64, 48), 9, np.uint16)}).verdicts[0]
    assert (only.files, only.proven) == (0, [])


def test_lossy_decoders_may_round_differently_and_extra_ones_must_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8-bit baseline: a decoder 2 levels off is right, one 3 levels off is not."""
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8) + np.uint8(20)
    stream = imagecodecs.jpeg8_encode(smooth, level=80)
    file = saved(tmp_path, "50-0", make_dicom(smooth, BASELINE, codestream=stream))
    group = Group(BASELINE, 8, 8, False, "MONOCHROME2")
    right = imagecodecs.jpeg8_decode(stream)
    stand_in(
        monkeypatch, imagecodecs=lambda frame: right - 3, dicomsdl=lambda frame: right, pydicom=lambda frame: right + 2
    )
    verdict = prove({group: [file]}, {"gpu": lambda frame: (right + 2).astype(np.uint16)}).verdicts[0]
    assert verdict.agreed == ["dicomsdl", "pydicom"]
    assert list(verdict.off) == ["imagecodecs", "gpu"]


def test_differences_of_signed_pixels_are_differences_of_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-1 and 0 are one level apart, though their bit patterns are 65535 apart."""
    values = picture(0).astype(np.int16) - 2048
    values[3, 4] = 0
    other = values.copy()
    other[3, 4] = -1
    stand_in(monkeypatch, imagecodecs=lambda frame: other, dicomsdl=lambda frame: values, pydicom=lambda frame: values)
    file = saved(tmp_path, "90-0", make_dicom(values, J2K))
    verdict = prove({Group(J2K, 16, 12, True, "MONOCHROME2"): [file]}).verdicts[0]
    assert verdict.off["imagecodecs"].startswith("1 of 3072 pixels differ, largest difference 1, in image 90-0")


def test_groups_that_are_not_done_in_time_have_no_verdict(tmp_path: Path) -> None:
    """The first group is stuck in a decoder; the others are judged without it, the same by any number of threads."""
    files = examples(tmp_path, J2K, SV1, JPEG_LS, EXPLICIT)
    free = threading.Event()

    def gpu(frame: EncodedFrame) -> np.ndarray:
        if frame.transfer_syntax == J2K:
            free.wait(60)
        return truth(frame)

    proof = prove(files, {"gpu": gpu, "wrong": failing}, workers=3, limit_s=3)
    free.set()
    assert ([verdict.group for verdict in proof.verdicts], proof.unfinished) == (list(files)[1:], 1)
    assert proof.verdicts == prove(files, {"gpu": truth, "wrong": failing}, workers=1).verdicts[1:]


def test_a_decoder_that_is_switched_off_is_named_when_no_other_is_left(tmp_path: Path) -> None:
    files = examples(tmp_path, SV1)
    off = Trust(off=frozenset((SV1_GROUP, name) for name in ("imagecodecs", "dicomsdl", "pydicom")))
    with pytest.raises(DecodeError, match="imagecodecs: switched off, it gave wrong pixels"):
        decode(read_frame(files[SV1_GROUP][0][1]), off)
