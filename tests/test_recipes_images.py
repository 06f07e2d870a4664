"""The start that prepare and infer share: heads, proof, queue; nothing that goes wrong in it may cost the run."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import J2K, SV1, breast, jpeg2000, make_dicom, stand_in

from rsna_kit.config import DecodeConfig, ImageConfig
from rsna_kit.dicom import dali, openjpeg, proof
from rsna_kit.dicom.decoders import decode_imagecodecs
from rsna_kit.imaging.render import read_image
from rsna_kit.recipes import images
from rsna_kit.recipes.images import open_images, open_stream
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import MissingDependencyError, UsageError
from rsna_kit.runtime.events import Events

IMAGE = ImageConfig(height=290, width=150)
Files = list[tuple[str, Path]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Two breasts in each of the competition's two syntaxes."""
    folder, found, pixels = tmp_path_factory.mktemp("files"), [], breast(700, 500)
    for k in range(4):
        syntax, stream = (J2K, jpeg2000(pixels + np.uint16(k), 5)) if k % 2 else (SV1, None)
        path = folder / f"{k}.dcm"
        path.write_bytes(make_dicom(pixels + np.uint16(k), syntax, codestream=stream))
        found.append((str(k), path))
    return found


@pytest.fixture(scope="module")
def expected(files: Files) -> list[np.ndarray]:
    """What one thread alone makes of them."""
    return [read_image(path, image_id, IMAGE).image for image_id, path in files]


def run(files: Files, expected: list[np.ndarray], out: Path | None = None, **settings: object) -> str:
    """Read all of them, see that the images are right, and return what was said."""
    said = io.StringIO()
    with open_stream(files, IMAGE, DecodeConfig(workers=1, **settings), Events(out, said)) as stream:
        outcomes = list(stream)
    assert [outcome.image_id for outcome in outcomes] == [image_id for image_id, _ in files]
    for outcome, wanted in zip(outcomes, expected, strict=True):
        assert outcome.rendered is not None
        assert np.array_equal(outcome.rendered.image, wanted)
    return said.getvalue()


def test_what_was_proven_is_said_and_recorded(files: Files, expected: list[np.ndarray], tmp_path: Path) -> None:
    lines = run(files, expected, tmp_path / "events.jsonl").splitlines()
    assert any(line.startswith("proof: 2 kinds of file; OpenJPEG 2.") for line in lines)
    proven = [line for line in lines if "imagecodecs and dicomsdl agree" in line]
    assert len(proven) == 2
    assert sum("proven: openjpeg" in line for line in proven) == 1  # JPEG 2000 alone
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "proof_line" for event in events) == 2


def test_decoders_that_are_wrong_are_switched_off_and_the_images_are_right(
    files: Files, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = openjpeg.decode_reduced
    monkeypatch.setattr(openjpeg, "decode_reduced", lambda stream, times, area=None: real(stream, times, area) // 2)
    stand_in(monkeypatch, imagecodecs=lambda frame: decode_imagecodecs(frame) >> 1)
    said = run(files, expected)
    assert said.count("switched off: imagecodecs") == 2
    assert "switched off: openjpeg" in said


@pytest.mark.parametrize("ends", [True, False])
def test_a_proof_that_fails_or_does_not_end_costs_speed_alone(
    files: Files, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """Where it does not end, the binding that reduces stays, because it has passed its own test."""
    free, asked, real = threading.Event(), list[int](), openjpeg.decode_reduced
    monkeypatch.setattr(openjpeg, "decode_reduced", lambda *rest: asked.append(1) or real(*rest))
    if ends:
        monkeypatch.setattr(proof, "prove", lambda *rest: 1 // 0)
    else:
        monkeypatch.setattr("rsna_kit.dicom.pyramid.decode_for_proof", lambda frame: free.wait())
        monkeypatch.setattr(images, "_START_S", 3.0)
    said = run(files, expected)
    free.set()
    failed = "the proof failed (ZeroDivisionError: integer division or modulo by zero); not used: openjpeg"
    assert (failed if ends else "kinds of file were not proven in time") in said
    assert bool(asked) != ends


def test_a_short_clock_leaves_little_to_heads_and_proof(files: Files) -> None:
    said = io.StringIO()
    with open_stream(files, IMAGE, DecodeConfig(workers=1), Events(stream=said), Clock(0.01)) as stream:
        assert next(stream).rendered is not None
    assert "heads were not read in time" in said.getvalue() or "were not proven in time" in said.getvalue()


def test_what_cannot_be_read_or_decoded_is_said_once_before_the_work(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kaggle's image without the wheels: nothing decodes lossless JPEG there."""
    monkeypatch.setattr("rsna_kit.dicom.decode.backends", lambda uid: [("imagecodecs", uid != SV1)])
    said = io.StringIO()
    gone = [("7", tmp_path / "gone.dcm"), ("8", tmp_path / "away.dcm")]
    with open_stream([*files, *gone], IMAGE, DecodeConfig(workers=1), Events(stream=said)) as stream:
        assert sum(outcome.rendered is None for outcome in stream) == 2
    assert f"2 files of transfer syntax {SV1} have no decoder here. Install imagecodecs" in said.getvalue()
    assert said.getvalue().count("2 files cannot be read, the first: image 7") == 1
    assert run([], []) == ""


def test_gpus_that_are_not_there_are_said_once(
    files: Files, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(number: int) -> None:
        raise MissingDependencyError("the driver is too old")

    monkeypatch.setattr(dali, "gpu_count", lambda: 2)
    monkeypatch.setattr(dali, "DaliDecoder", broken)
    said = run(files, expected, gpus="all")
    assert said.count("decode.gpus=all: no GPU that decodes, the CPU does everything") == 1
    assert "GPU 1 does not decode: the driver is too old" in said


@pytest.mark.parametrize(
    ("gpus", "there", "installed", "used"),
    [
        ("auto", 2, True, [1]),
        ("auto", 1, True, []),
        ("auto", 2, False, []),
        ("all", 1, True, [0]),
        ("none", 2, True, []),
    ],
)
def test_of_several_gpus_the_last_may_decode(
    monkeypatch: pytest.MonkeyPatch, gpus: str, there: int, installed: bool, used: list[int]
) -> None:
    monkeypatch.setattr(dali, "gpu_count", lambda: there)
    monkeypatch.setattr(dali, "is_installed", lambda: installed)
    monkeypatch.setattr(dali, "DaliDecoder", lambda number: number)
    assert images._devices(DecodeConfig(gpus=gpus), Events(stream=io.StringIO())) == used


@pytest.mark.parametrize("spoil", [lambda answer: answer, lambda answer: answer << 1], ids=["right", "stretched"])
def test_a_device_is_used_for_what_it_was_proven_for(
    files: Files,
    expected: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[np.ndarray], np.ndarray],
) -> None:
    """DALI's CPU decoder stands in for a GPU; the dishonest one stretches, as DALI does on a real one."""
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'rsna-kit[dali]'")
    device = dali.DaliDecoder(None, batch_size=2, threads=1)
    real, honest = device.decode, spoil(np.int64(1)) == 1
    monkeypatch.setattr(device, "decode", lambda frames: [spoil(answer) for answer in real(frames)])
    monkeypatch.setattr(images, "_devices", lambda settings, events: [device])
    said = io.StringIO()
    with open_stream(files * 8, IMAGE, DecodeConfig(workers=1, gpus="all"), Events(stream=said)) as stream:
        for outcome, wanted in zip(stream, expected * 8, strict=True):
            assert outcome.rendered is not None
            assert np.array_equal(outcome.rendered.image, wanted)
    assert (stream.counts["dali"] > 0) == honest
    assert ("switched off: dali" in said.getvalue()) != honest


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (DecodeConfig(backend="dask", gpus="all"), r"decode\.gpus=all works with decode\.backend=threads, got dask"),
        (DecodeConfig(scheduler="tcp://x:1"), r"scheduler=tcp://x:1 needs decode\.backend=dask, got threads"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: DecodeConfig, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        open_images([], IMAGE, settings, Events(stream=io.StringIO()))
