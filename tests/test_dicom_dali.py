"""DALI's decoder against imagecodecs and the CPU: on the CPU wherever DALI is, on a GPU wherever there is one."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import sys
from typing import Any

import imagecodecs
import numpy as np
import pytest
from dicom_files import BASELINE, EXPLICIT, J2K, J2K_LOSSY, JPEG_LS, LOSSLESS, RLE, SV1
from dicom_files import framed as frame_of
from realdata import find_realdata, realdata

from rsna_kit.dicom import dali as dali_module
from rsna_kit.dicom.codestream import StreamFacts, Wavelet
from rsna_kit.dicom.dali import DaliDecoder, gpu_count, unstretch
from rsna_kit.dicom.decode import decode
from rsna_kit.dicom.frame import EncodedFrame, check_stream, read_frame
from rsna_kit.runtime.errors import DecodeError, MissingDependencyError

needs_gpu = pytest.mark.skipif(gpu_count() == 0, reason="needs an NVIDIA GPU: the driver (libcuda.so.1) shows none")


@pytest.fixture(scope="module")
def cpu() -> DaliDecoder:
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'rsna-kit[dali]'")
    return DaliDecoder(None, batch_size=4, threads=2)


@pytest.fixture(scope="module")
def gpu() -> DaliDecoder:
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'rsna-kit[dali]'")
    return DaliDecoder(0, batch_size=4, threads=2)


def noise(rows: int, columns: int, bits: int, seed: int = 0) -> np.ndarray:
    """Every value equally often, with the extremes of `bits` bits."""
    pixels = np.random.default_rng([seed, rows, columns]).integers(0, 1 << bits, (rows, columns)).astype(np.uint16)
    pixels[0, 0], pixels[-1, -1] = 0, (1 << bits) - 1
    return pixels


def jpeg2000(pixels: np.ndarray, bits: int, boxed: bool = False) -> bytes:
    kind = "jp2" if boxed else "j2k"
    return imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat=kind, bitspersample=bits, resolutions=3)


def lossless_jpeg(pixels: np.ndarray, bits: int, predictor: int = 1) -> bytes:
    return imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits)


def framed(pixels: np.ndarray, codestream: bytes, bits_stored: int, syntax: str = J2K) -> EncodedFrame:
    return frame_of(pixels, codestream=codestream, bits_stored=bits_stored, transfer_syntax=syntax)


def j2k_frame(pixels: np.ndarray, bits: int, boxed: bool = False) -> EncodedFrame:
    return framed(pixels, jpeg2000(pixels, bits, boxed), bits)


def pixels_of(answer: np.ndarray | DecodeError) -> np.ndarray:
    assert not isinstance(answer, DecodeError), answer
    assert answer.dtype == np.uint16
    assert answer.flags.c_contiguous
    return answer


def reason_of(answer: np.ndarray | DecodeError) -> str:
    assert isinstance(answer, DecodeError)
    return str(answer)


@pytest.mark.parametrize("boxed", [False, True], ids=["bare", "jp2"])
@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_jpeg_2000_comes_back_bit_by_bit(cpu: DaliDecoder, bits: int, boxed: bool) -> None:
    frame = j2k_frame(noise(61, 47, bits), bits, boxed)
    expected = imagecodecs.jpeg2k_decode(frame.codestream)
    (answer,) = cpu.decode([frame])
    assert np.array_equal(pixels_of(answer), expected)
    assert np.array_equal(expected, noise(61, 47, bits))


def test_more_frames_than_a_batch_of_many_sizes_keep_their_order(
    cpu: DaliDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run = cpu._run
    monkeypatch.setattr(cpu, "_run", lambda streams: sizes.append(len(streams)) or run(streams))
    pictures = [noise(20 + 7 * (k % 5), 60 - 3 * k, 12, seed=k) for k in range(11)]
    answers = cpu.decode([j2k_frame(picture, 12) for picture in pictures])
    assert sizes == [4, 4, 3]
    for answer, picture in zip(answers, pictures, strict=True):
        assert np.array_equal(pixels_of(answer), picture)


def torn(frame: EncodedFrame) -> EncodedFrame:
    """Its second half gone, the end marker kept: seen by the decoder only."""
    half = frame.codestream[: len(frame.codestream) // 2]
    return dataclasses.replace(frame, codestream=half + b"\xff\xd9")


def test_one_broken_stream_costs_its_own_answer_only(cpu: DaliDecoder) -> None:
    pictures = [noise(50, 40 + k, 12, seed=k) for k in range(6)]
    frames = [j2k_frame(picture, 12) for picture in pictures]
    frames[2] = torn(frames[2])
    check_stream(frames[2])
    answers = cpu.decode(frames)
    assert reason_of(answers[2]) == "image 77: DALI could not decode it (Failed to decode sample #0)"
    for k in (0, 1, 3, 4, 5):
        assert np.array_equal(pixels_of(answers[k]), pictures[k])
    (after,) = cpu.decode([j2k_frame(pictures[0], 12)])
    assert np.array_equal(pixels_of(after), pictures[0])


def test_an_interrupted_run_leaves_nothing_behind(cpu: DaliDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between feeding and fetching: what was fed must not come out as the next frame's pixels."""
    first, second = noise(30, 30, 12, seed=1), noise(30, 30, 12, seed=2)
    cpu.decode([j2k_frame(first, 12)])
    run = cpu._pipeline.run

    def interrupted(**inputs: Any) -> None:
        run(**inputs)
        raise KeyboardInterrupt

    monkeypatch.setattr(cpu._pipeline, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cpu.decode([j2k_frame(first, 12)])
    (answer,) = cpu.decode([j2k_frame(second, 12)])
    assert np.array_equal(pixels_of(answer), second)


def test_what_the_cpu_refuses_before_decoding_is_refused_alike(cpu: DaliDecoder) -> None:
    good = j2k_frame(noise(30, 20, 12), 12)
    frames = [
        dataclasses.replace(good, rows=31),
        dataclasses.replace(good, codestream=good.codestream[:200]),
        dataclasses.replace(good, codestream=b""),
        dataclasses.replace(good, codestream=b"\0" * 50),
        good,
    ]
    *refused, last = cpu.decode(frames)
    for frame, answer in zip(frames, refused, strict=False):
        with pytest.raises(DecodeError) as decided:
            decode(frame)
        assert reason_of(answer) == str(decided.value)
    assert np.array_equal(pixels_of(last), noise(30, 20, 12))


def test_damage_that_ends_the_process_does_not_reach_dali(cpu: DaliDecoder) -> None:
    """Fuzzing found both: JP2 boxes with another width than the codestream, and a grid with steps of 0."""
    pixels = noise(57, 20, 12)
    boxed, bare = bytearray(jpeg2000(pixels, 12, boxed=True)), bytearray(jpeg2000(pixels, 12))
    width = boxed.index(b"ihdr") + 8
    assert boxed[width : width + 4] == b"\0\0\0\x14"
    boxed[width + 3] = 64
    assert bare[40:44] == b"\0\x01\x0b\x01"  # one component, 12 bits, a step of 1
    bare[43] = 0
    for _ in range(5):  # memory that is corrupted once need not show
        whole, thinned = cpu.decode([framed(pixels, bytes(boxed), 12), framed(pixels, bytes(bare), 12)])
        assert np.array_equal(pixels_of(whole), pixels)
        assert "a kind of frame that DALI does not decode" in reason_of(thinned)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((30, 20, 1), np.uint16), "gave a constant picture of 0"),
        (noise(20, 30, 12)[:, :, None], "gave uint16 of shape (20, 30), expected uint16 of (30, 20)"),
        (np.repeat(noise(30, 20, 12)[:, :, None], 3, axis=2), "gave uint16 of shape (30, 20, 3)"),
        (noise(30, 20, 8).astype(np.uint8)[:, :, None], "gave uint8 of shape (30, 20)"),
        (noise(30, 20, 16)[:, :, None], "cannot be told whether they are stretched"),
    ],
    ids=["zeros", "another shape", "three channels", "eight bits", "rescaled"],
)
def test_a_wrong_answer_is_an_error(
    cpu: DaliDecoder, monkeypatch: pytest.MonkeyPatch, given: np.ndarray, said: str
) -> None:
    """What nvJPEG and nvJPEG2000 have been seen to do, which the CPU decoder does not."""
    monkeypatch.setattr(cpu, "_run", lambda streams: [given])
    (answer,) = cpu.decode([j2k_frame(noise(30, 20, 12), 12)])
    assert said in reason_of(answer)


def stretch(pixels: np.ndarray, bits: int) -> np.ndarray:
    """DALI's ConvertGPU: one float32 multiplication, rounded to the nearest integer."""
    multiplier = np.float32(65535 / ((1 << bits) - 1))
    return np.rint(pixels.astype(np.float32) * multiplier).astype(np.uint16)


@pytest.mark.parametrize("bits", range(9, 16))
def test_unstretch_undoes_the_stretch_of_every_value(bits: int) -> None:
    every = np.arange(1 << bits, dtype=np.uint16)
    assert np.array_equal(unstretch(stretch(every, bits), bits), every)
    exact = np.array([round(value * 65535 / ((1 << bits) - 1)) for value in range(1 << bits)], np.uint16)
    assert np.array_equal(unstretch(exact, bits), every)
    assert unstretch(every, bits) is every  # the CPU decoder does not stretch


PLAIN = Wavelet(levels=2, reversible=True, layers=1, progression="LRCP", tiles=1, plain=True)
FACTS = StreamFacts(rows=30, columns=20, components=1, precision=12, signed=False, wavelet=PLAIN)


@pytest.mark.parametrize(
    ("syntax", "facts", "on_cpu", "on_gpu"),
    [
        (J2K, {}, True, True),
        (J2K_LOSSY, {"precision": 16}, True, True),
        (J2K, {"precision": 9}, True, True),
        (J2K, {"precision": 8}, False, False),
        (J2K, {"signed": True}, False, False),
        (J2K, {"components": 3}, False, False),
        (J2K, {"wavelet": dataclasses.replace(PLAIN, plain=False)}, False, False),
        (J2K, {"wavelet": None}, False, False),
        (SV1, {"predictor": 1}, False, True),
        (LOSSLESS, {"predictor": 1, "precision": 16}, False, True),
        (LOSSLESS, {"predictor": 6}, False, False),
        (SV1, {"predictor": 1, "precision": 8}, False, False),
        (SV1, {}, False, False),
        (BASELINE, {"precision": 8}, False, False),
        ("1.2.840.10008.1.2.4.51", {"precision": 12}, False, False),
        (JPEG_LS, {}, False, False),
        (EXPLICIT, None, False, False),
        (RLE, None, False, False),
    ],
)
def test_what_is_taken(
    cpu: DaliDecoder, monkeypatch: pytest.MonkeyPatch, syntax: str, facts: dict | None, on_cpu: bool, on_gpu: bool
) -> None:
    frame = framed(np.zeros((30, 20), np.uint16), b"", 12, syntax)
    known = None if facts is None else dataclasses.replace(FACTS, **facts)
    assert cpu.takes(frame, known) is on_cpu
    monkeypatch.setattr(dali_module, "gpu_count", lambda: 1)
    monkeypatch.setattr(DaliDecoder, "_build", lambda self: None)
    assert DaliDecoder(0).takes(frame, known) is on_gpu


@pytest.mark.skipif(gpu_count() > 0, reason="needs a machine without a GPU")
def test_a_gpu_that_cannot_be_used_is_one_clear_error(cpu: DaliDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali_module, "gpu_count", lambda: 1)
    with pytest.raises(MissingDependencyError, match=r"DALI cannot start on GPU 0: .* Look at the driver"):
        DaliDecoder(0)


def test_a_decoder_that_cannot_be_rebuilt_answers_with_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that fell off the bus costs the accelerator, and the CPU goes on."""
    monkeypatch.setitem(sys.modules, "nvidia.dali", sys)
    monkeypatch.setattr(DaliDecoder, "_build", lambda self: None)
    decoder = DaliDecoder(None)

    def lost(self: DaliDecoder) -> None:
        raise RuntimeError("CUDA error 719")

    monkeypatch.setattr(DaliDecoder, "_build", lost)
    answers = decoder.decode([j2k_frame(noise(30, 20, 12), 12)] * 3)
    assert [reason_of(answer) for answer in answers] == ["image 77: DALI could not decode it (CUDA error 719)"] * 3


def test_without_dali_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(MissingDependencyError, match=r"nvidia\.dali cannot be imported .* pip install 'rsna-kit\[dali"):
        DaliDecoder(None)


class Driver:
    """As libcuda.so.1: `codes` are what cuInit and cuDeviceGetCount return (0 is success)."""

    def __init__(self, *codes: int) -> None:
        self.codes = codes

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.codes[0]

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = 2
        return self.codes[1]


@pytest.mark.parametrize(("codes", "count"), [((0, 0), 2), ((100, 0), 0), ((0, 3), 0), (None, 0)])
def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch, codes: tuple[int, int] | None, count: int) -> None:
    """100 is CUDA_ERROR_NO_DEVICE; None: no driver at all."""

    def load(name: str) -> Driver:
        assert name == "libcuda.so.1"
        if codes is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return Driver(*codes)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert gpu_count() == count


def real_jpeg_2000() -> list[dict]:
    """Real files of .90 and .91 with the SHA-256 of their pixels that gdcm, pylibjpeg and Pillow agreed on."""
    folder = find_realdata("dicom")
    files = json.loads((folder / "manifest.json").read_text()) if folder else []
    return [file for file in files if file["transfer_syntax"] in (J2K, J2K_LOSSY) and "pixel_sha256" in file]


@pytest.mark.parametrize("facts", real_jpeg_2000(), ids=lambda facts: facts["file"])
def test_real_files_have_the_pixels_other_decoders_agree_on(cpu: DaliDecoder, facts: dict) -> None:
    frame = read_frame(realdata("dicom") / facts["file"])
    if not cpu.takes(frame, check_stream(frame)):
        assert "does not decode on the CPU" in reason_of(cpu.decode([frame])[0])
        return
    pixels = pixels_of(cpu.decode([frame])[0])
    values = pixels.view(np.int16) if frame.signed else pixels
    assert hashlib.sha256(values.astype(facts["dtype"]).tobytes()).hexdigest() == facts["pixel_sha256"]


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("boxed", [False, True], ids=["bare", "jp2"])
@pytest.mark.parametrize("bits", [12, 16])
def test_a_gpu_decodes_jpeg_2000_as_the_cpu_does(gpu: DaliDecoder, bits: int, boxed: bool) -> None:
    frames = [j2k_frame(noise(300 + 40 * k, 500 - 30 * k, bits, seed=k), bits, boxed) for k in range(6)]
    for answer, frame in zip(gpu.decode(frames), frames, strict=True):
        assert np.array_equal(pixels_of(answer), decode(frame))


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("bits", [12, 16])
def test_a_gpu_decodes_lossless_jpeg_as_the_cpu_does_or_says_no(gpu: DaliDecoder, bits: int) -> None:
    """nvJPEG before 13.0.2 gives zeros for 12 bits, which must be an error and never pixels."""
    pictures = [noise(300 + 40 * k, 500 - 30 * k, bits, seed=k) for k in range(6)]
    frames = [framed(picture, lossless_jpeg(picture, bits), bits, SV1) for picture in pictures]
    for answer, picture in zip(gpu.decode(frames), pictures, strict=True):
        if bits == 12 and isinstance(answer, DecodeError):
            assert "gave a constant picture of 0" in reason_of(answer)
        else:
            assert np.array_equal(pixels_of(answer), picture)
