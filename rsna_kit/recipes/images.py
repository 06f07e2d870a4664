"""DICOM files → a stream of images that may be believed: heads, proof, queue. `prepare` and `infer` both start here."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rsna_kit.config import DecodeConfig, ImageConfig
from rsna_kit.runtime.errors import MissingDependencyError, UsageError
from rsna_kit.runtime.events import Events

if TYPE_CHECKING:
    import numpy as np

    from rsna_kit.dicom.frame import EncodedFrame
    from rsna_kit.dicom.trust import Trust
    from rsna_kit.imaging.stream import Device, ImageStream, Outcome

_PROOF_S = 900.0  # a minute or two for the competition's twenty kinds of file
_EXAMPLES = 4  # times as many files as count: blank and damaged ones are passed over


def open_stream(
    files: Sequence[tuple[str, Path]], image: ImageConfig, settings: DecodeConfig, events: Events
) -> ImageStream:
    """Read every head, prove the decoders on a few files of each kind, and open the queue of this process.

    Args:
        files: image ids and their DICOM files.
        image: the image section of the configuration.
        settings: the decode section.
        events: told what was found.
    """
    from rsna_kit.imaging.stream import ImageStream

    devices = _devices(settings, events)
    return ImageStream(files, image, settings.workers, _prove(files, settings, devices, events), devices)


def open_images(
    files: Sequence[tuple[str, Path]], image: ImageConfig, settings: DecodeConfig, events: Events
) -> ImageStream | Generator[Outcome]:
    """The same as an iterator of outcomes, by the backend that the settings name.

    Raises:
        UsageError: GPUs together with a backend of several processes.
        MissingDependencyError: Dask is asked for and not installed.
    """
    from rsna_kit.imaging.spread import spread_images

    if settings.backend == "threads":
        return open_stream(files, image, settings, events)
    if settings.gpus != "none":
        raise UsageError(f"decode.gpus={settings.gpus} works with decode.backend=threads, got {settings.backend}")
    trust = _prove(files, settings, [], events)
    return spread_images(files, image, settings.backend, settings.workers, trust, settings.scheduler or None)


def _devices(settings: DecodeConfig, events: Events) -> list[Device]:
    """The GPUs that shall decode; one that cannot is said once, and the threads do its work."""
    if settings.gpus == "none":
        return []
    from rsna_kit.dicom.dali import DaliDecoder, gpu_count

    devices: list[Device] = []
    for number in range(gpu_count()):
        try:
            devices.append(DaliDecoder(number))
        except MissingDependencyError as error:
            events.say(f"GPU {number} does not decode: {error}")
    if not devices:
        events.say("decode.gpus=all: no GPU that decodes, the CPU does everything")
    return devices


def _prove(
    files: Sequence[tuple[str, Path]], settings: DecodeConfig, devices: Sequence[Device], events: Events
) -> Trust:
    """Which decoders may be believed for these files."""
    from rsna_kit.dicom import openjpeg
    from rsna_kit.dicom.proof import Decoder, Proof, prove
    from rsna_kit.dicom.pyramid import REDUCER, decode_for_proof
    from rsna_kit.dicom.survey import survey
    from rsna_kit.dicom.trust import TRUST_ALL, Trust

    if not settings.proof_files or not files:
        return TRUST_ALL
    with events.progress(len(files), "headers", "files") as progress:
        found = survey(files, advance=progress.advance)
    if found.failures:
        events.say(f"{len(found.failures)} files cannot be read, the first: {found.failures[0].reason}")
    extra: dict[str, Decoder] = {device.name: partial(_decode_one, device) for device in devices}
    if openjpeg.is_available():
        extra[REDUCER] = decode_for_proof
    examples = found.examples(_EXAMPLES * settings.proof_files)
    events.say(f"proof: {len(examples)} kinds of file, decoded by two decoders each; {openjpeg.describe()}")
    done: list[Proof | Exception] = []

    def judge() -> None:
        try:
            done.append(prove(examples, extra, settings.proof_files, settings.workers))
        except Exception as error:
            done.append(error)

    # A decoder that hangs cannot be stopped from outside; what it was to prove is left unproven.
    thread = threading.Thread(target=judge, name="proof", daemon=True)
    thread.start()
    thread.join(_PROOF_S)
    if not done:
        events.say(f"the proof did not end within {_PROOF_S:g} s, a decoder hangs: not used: {', '.join(extra)}")
        return Trust(extra=frozenset(extra))
    proof = done[0]
    if isinstance(proof, Exception):  # a bug here must not cost a run that would go well without it
        events.say(f"the proof failed ({type(proof).__name__}: {proof}): not used: {', '.join(extra)}")
        return Trust(extra=frozenset(extra))
    for line in proof.lines:
        events.say(f"  {line}", kind="proof_line")
    events.record("proof", **proof.to_dict())
    return proof.trust


def _decode_one(device: Device, frame: EncodedFrame) -> np.ndarray | None:
    """A device's answer for one frame, None when it does not take such frames."""
    from rsna_kit.dicom.decode import check_stream
    from rsna_kit.runtime.errors import DecodeError

    if not device.takes(frame, check_stream(frame)):
        return None
    answer = device.decode([frame])[0]
    if isinstance(answer, DecodeError):
        raise answer
    return answer
