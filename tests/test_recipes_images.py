"""The start that prepare and infer share: heads, proof, queue; nothing that goes wrong in it may cost the run."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from dicom_files import J2K, SV1, breast, jpeg2000, make_dicom, stand_in

from rsna_kit.config import DecodeConfig, ImageConfig
from rsna_kit.dicom import dali, openjpeg, proof
from rsna_kit.dicom.decoders import decode_imagecodecs
from rsna_kit.recipes import images
from rsna_kit.recipes.images import open_images, open_stream
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import MissingDependencyError, UsageError
from rsna_kit.runtime.events import Events

IMAGE = ImageConfig(height=290, width=150)


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[str, Path]]:
    """Three breasts in each of the competition's two syntaxes."""
    found = []
    for k in range(6):
        pixels, path = breast(700, 500) + np.uint16(k), tmp_path / f"{k}.dcm"
        syntax, stream = (J2K, jpeg2000(pixels, 5)) if k % 2 else (SV1, None)
        path.write_bytes(make_dicom(pixels, syntax, codestream=stream))
        found.append((str(k), path))
    return found


def run(files: list[tuple[str, Path]], events: Events, **settings: object) -> list[np.ndarray]:
    with open_stream(files, IMAGE, DecodeConfig(workers=1, **settings), events) as stream:
        outcomes = list(stream)
    assert [outcome.image_id for outcome in outcomes] == [image_id for image_id, _ in files]
    assert all(outcome.rendered is not None for outcome in outcomes)
    return [outcome.rendered.image for outcome in outcomes if outcome.rendered is not None]


def test_what_was_proven_is_said_and_recorded(files: list[tuple[str, Path]], tmp_path: Path) -> None:
    said = io.StringIO()
    run(files, Events(tmp_path / "events.jsonl", said))
    lines = said.getvalue().splitlines()
    assert any(line.startswith("proof: 2 kinds of file; OpenJPEG 2.") for line in lines)
    proven = [line for line in lines if "imagecodecs and dicomsdl agree" in line]
    assert len(proven) == 2
    assert sum("proven: openjpeg" in line for line in proven) == 1  # JPEG 2000 alone
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "proof_line" for event in events) == 2


def test_a_decoder_that_scales_is_switched_off_and_the_images_are_right(
    files: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(files, Events(stream=io.StringIO()))
    stand_in(monkeypatch, imagecodecs=lambda frame: decode_imagecodecs(frame) >> 1)
    said = io.StringIO()
    for image, wanted in zip(run(files, Events(stream=said)), expected, strict=True):
        assert np.array_equal(image, wanted)
    assert said.getvalue().count("switched off: imagecodecs") == 2


def test_a_library_that_reduces_wrongly_is_not_used(
    files: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(files, Events(stream=io.StringIO()))
    real = openjpeg.decode_reduced
    monkeypatch.setattr(openjpeg, "decode_reduced", lambda stream, times, area=None: real(stream, times, area) // 2)
    said = io.StringIO()
    for image, wanted in zip(run(files, Events(stream=said)), expected, strict=True):
        assert np.array_equal(image, wanted)
    assert "switched off: openjpeg" in said.getvalue()


def test_a_proof_that_does_not_end_costs_nothing_but_the_proof(
    files: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The binding that reduces has passed its own test and stays; a device has passed none and is not used."""
    expected = run(files, Events(stream=io.StringIO()))
    free = threading.Event()
    monkeypatch.setattr("rsna_kit.dicom.pyramid.decode_for_proof", lambda frame: free.wait())
    monkeypatch.setattr(images, "_START_S", 3.0)
    asked: list[int] = []
    real = openjpeg.decode_reduced
    monkeypatch.setattr(openjpeg, "decode_reduced", lambda *rest: asked.append(1) or real(*rest))
    said = io.StringIO()
    pictures = run(files, Events(stream=said))
    free.set()
    assert "kinds of file were not proven in time" in said.getvalue()
    assert asked
    assert all(np.array_equal(one, other) for one, other in zip(pictures, expected, strict=True))


def test_a_proof_that_fails_costs_speed_alone(files: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(files, Events(stream=io.StringIO()))

    def bad(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(proof, "prove", bad)
    asked: list[int] = []
    real = openjpeg.decode_reduced
    monkeypatch.setattr(openjpeg, "decode_reduced", lambda *rest: asked.append(1) or real(*rest))
    said = io.StringIO()
    pictures = run(files, Events(stream=said))
    assert "the proof failed (RuntimeError: a bug); not used: openjpeg" in said.getvalue()
    assert asked == []
    assert all(np.array_equal(one, other) for one, other in zip(pictures, expected, strict=True))


def test_a_short_clock_leaves_little_to_heads_and_proof(files: list[tuple[str, Path]]) -> None:
    said = io.StringIO()
    settings = DecodeConfig(workers=1)
    with open_stream(files, IMAGE, settings, Events(stream=said), Clock(0.01)) as stream:
        assert next(stream).rendered is not None
    assert "heads were not read in time" in said.getvalue() or "were not proven in time" in said.getvalue()


def test_a_syntax_without_a_decoder_is_said_before_the_work(
    files: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kaggle's image without the wheels: nothing decodes lossless JPEG there."""
    monkeypatch.setattr("rsna_kit.dicom.decode.backends", lambda uid: [("imagecodecs", uid != SV1)])
    said = io.StringIO()
    run(files, Events(stream=said))
    assert f"3 files of transfer syntax {SV1} have no decoder here. Install imagecodecs" in said.getvalue()


def test_files_that_cannot_be_read_are_said_once(files: list[tuple[str, Path]], tmp_path: Path) -> None:
    said = io.StringIO()
    gone = [("7", tmp_path / "gone.dcm"), ("8", tmp_path / "away.dcm")]
    with open_stream([*files, *gone], IMAGE, DecodeConfig(workers=1), Events(stream=said)) as stream:
        assert sum(outcome.rendered is None for outcome in stream) == 2
    assert said.getvalue().count("2 files cannot be read, the first: image 7") == 1


def test_no_files_need_no_proof() -> None:
    said = io.StringIO()
    assert run([], Events(stream=said)) == []
    assert said.getvalue() == ""


def test_gpus_that_are_not_there_are_said_once(files: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(dali, "gpu_count", lambda: 0)
    run(files, Events(stream=said), gpus="all")
    assert said.getvalue().count("decode.gpus=all: no GPU that decodes, the CPU does everything") == 1

    def broken(number: int) -> None:
        raise MissingDependencyError("the driver is too old")

    monkeypatch.setattr(dali, "gpu_count", lambda: 2)
    monkeypatch.setattr(dali, "DaliDecoder", broken)
    run(files, Events(stream=said), gpus="all")
    assert "GPU 1 does not decode: the driver is too old" in said.getvalue()


@pytest.mark.parametrize("honest", [True, False])
def test_a_device_is_used_for_what_it_was_proven_for(
    files: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    """DALI's CPU decoder stands in for a GPU; the dishonest one stretches, as DALI does on a real one."""
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'rsna-kit[dali]'")
    expected = run(files, Events(stream=io.StringIO()))
    device = dali.DaliDecoder(None, batch_size=2, threads=1)
    if not honest:
        real = device.decode
        monkeypatch.setattr(device, "decode", lambda frames: [answer << 1 for answer in real(frames)])
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
