"""DICOM files → a stream of images that may be believed: heads, proof, queue. `prepare` and `infer` both start here."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rsna_kit.config import DecodeConfig, ImageConfig
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import DecodeError, MissingDependencyError, UsageError, one_line
from rsna_kit.runtime.events import Events

if TYPE_CHECKING:
    import numpy as np

    from rsna_kit.dicom.frame import EncodedFrame
    from rsna_kit.dicom.survey import Survey
    from rsna_kit.dicom.trust import Trust
    from rsna_kit.imaging.outcome import Device, Outcome
    from rsna_kit.imaging.stream import ImageStream

_START_S = 900.0  # for heads and proof: a minute or two for the competition's files
_START_SHARE = 0.05  # of the time that is left, at most
_EXAMPLES = 4  # times as many files as count: blank and damaged ones are passed over


def open_stream(
    files: Sequence[tuple[str, Path]],
    image: ImageConfig,
    settings: DecodeConfig,
    events: Events,
    clock: Clock | None = None,
) -> ImageStream:
    """Read every head, prove the decoders on a few files of each kind, and open the queue of this process.

    Args:
        files: image ids and their DICOM files.
        image: the image section of the configuration.
        settings: the decode section.
        events: told what was found.
        clock: when its time is over, nothing more is handed out; heads and proof take a twentieth of it at most.
    """
    from rsna_kit.imaging.stream import ImageStream

    devices = _devices(settings, events)
    trust = _look(files, settings, devices, events, clock or Clock())
    return ImageStream(files, image, settings.workers, trust, devices, clock=clock)


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
    trust = _look(files, settings, [], events, Clock())
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


def _look(
    files: Sequence[tuple[str, Path]], settings: DecodeConfig, devices: Sequence[Device], events: Events, clock: Clock
) -> Trust:
    """Which decoders may be believed for these files. Nothing that goes wrong here costs the run."""
    from rsna_kit.dicom.survey import survey
    from rsna_kit.dicom.trust import TRUST_ALL

    if not settings.proof_files or not files:
        return TRUST_ALL
    end = clock.elapsed_s() + min(_START_S, _START_SHARE * clock.remaining_s())
    with events.progress(len(files), "headers", "files") as progress:
        found = survey(files, advance=progress.advance, limit_s=end - clock.elapsed_s())
    if found.left:
        events.say(f"{found.left} heads were not read in time")
    if found.failures:
        events.say(f"{len(found.failures)} files cannot be read, the first: {found.failures[0].reason}")
    _say_what_has_no_decoder(found, events)
    return _prove(found, settings, devices, events, end - clock.elapsed_s())


def _say_what_has_no_decoder(found: Survey, events: Events) -> None:
    from rsna_kit.dicom.decode import backends

    for group, files in found.groups.items():
        if not any(installed for _, installed in backends(group.transfer_syntax)):
            events.say(
                f"{len(files)} files of transfer syntax {group.transfer_syntax} have no decoder here. Install "
                "imagecodecs and dicomsdl, or attach the dataset rsna-wheels"
            )


def _prove(found: Survey, settings: DecodeConfig, devices: Sequence[Device], events: Events, limit_s: float) -> Trust:
    from rsna_kit.dicom import openjpeg
    from rsna_kit.dicom.proof import Decoder, prove
    from rsna_kit.dicom.pyramid import REDUCER, decode_for_proof
    from rsna_kit.dicom.trust import Trust

    extra: dict[str, Decoder] = {device.name: partial(_decode_one, device) for device in devices}
    if openjpeg.is_available():
        extra[REDUCER] = decode_for_proof
    examples = found.examples(_EXAMPLES * settings.proof_files)
    events.say(f"proof: {len(examples)} kinds of file; {openjpeg.describe()}")
    try:
        proof = prove(examples, extra, settings.proof_files, settings.workers, limit_s=limit_s)
    except Exception as error:  # a bug here must not cost a run that would go well without it
        events.say(f"the proof failed ({type(error).__name__}: {one_line(error)}); not used: {', '.join(extra)}")
        return Trust(extra=frozenset(extra))
    for line in proof.lines:
        events.say(f"  {line}", kind="proof_line")
    events.record("proof", **proof.to_dict())
    trust = proof.trust
    if proof.unfinished:  # the binding that reduces has passed its own test; a GPU has passed none
        events.say(f"{proof.unfinished} kinds of file were not proven in time")
        trust = Trust(trust.off, trust.extra - {REDUCER}, trust.proven)
    return trust


def _decode_one(device: Device, frame: EncodedFrame) -> np.ndarray | None:
    """A device's answer for one frame, None when it does not take such frames."""
    from rsna_kit.dicom.decode import check_stream

    if not device.takes(frame, check_stream(frame)):
        return None
    answer = device.decode([frame])[0]
    if isinstance(answer, DecodeError):
        raise answer
    return answer
