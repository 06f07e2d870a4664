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

    from rsna_kit.dicom.decode import Trust
    from rsna_kit.dicom.decoders import Device
    from rsna_kit.dicom.frame import EncodedFrame
    from rsna_kit.dicom.survey import Survey
    from rsna_kit.imaging.stream import ImageStream, Outcome

_START_S = 900.0  # for heads and proof: a minute or two for the competition's files
_START_SHARE = 0.05  # of the time that is left, at most
_EXAMPLES = 8  # files of each kind that the proof may try: blank and damaged ones are passed over


def open_stream(
    files: Sequence[tuple[str, Path]],
    image: ImageConfig,
    settings: DecodeConfig,
    events: Events,
    clock: Clock | None = None,
    batch_size: int = 0,
) -> ImageStream:
    """Read every head, prove the decoders on a few files of each kind, and open the queue of this process.

    Args:
        files: image ids and their DICOM files.
        image: the image section of the configuration.
        settings: the decode section.
        events: told what was found.
        clock: when its time is over, nothing more is handed out; heads and proof take a twentieth of it at most.
        batch_size: images that are taken together, and decoded ahead while those before are worked on.
    """
    from rsna_kit.imaging.stream import ImageStream

    devices = _devices(settings, events)
    trust = _look(files, settings, devices, events, clock or Clock())
    late = settings.gpus == "auto"
    return ImageStream(files, image, settings.workers, trust, devices, late, batch_size, clock=clock)


def open_images(
    files: Sequence[tuple[str, Path]], image: ImageConfig, settings: DecodeConfig, events: Events
) -> ImageStream | Generator[Outcome]:
    """The same as an iterator of outcomes, by the backend that the settings name.

    Raises:
        UsageError: GPUs together with Dask, or a scheduler without it.
        MissingDependencyError: Dask is asked for and not installed.
    """
    if settings.backend == "threads":
        if settings.scheduler:
            raise UsageError(f"decode.scheduler={settings.scheduler} needs decode.backend=dask, got threads")
        return open_stream(files, image, settings, events)
    if settings.gpus == "all":
        raise UsageError(f"decode.gpus={settings.gpus} works with decode.backend=threads, got {settings.backend}")
    from rsna_kit.imaging.spread import spread_images

    trust = _look(files, settings, [], events, Clock())
    return spread_images(files, image, settings.workers, trust, settings.scheduler or None)


def _devices(settings: DecodeConfig, events: Events) -> list[Device]:
    """The GPUs that shall decode; one that cannot is said once, and the threads do its work.

    With "auto" it is the last of several, if DALI is installed: the only one has scoring to do.
    """
    from rsna_kit.dicom.dali import DaliDecoder, gpu_count, is_installed

    auto = settings.gpus == "auto"
    if settings.gpus == "none" or (auto and not (is_installed() and gpu_count() > 1)):
        return []
    devices: list[Device] = []
    for number in range(gpu_count() - 1 if auto else 0, gpu_count()):
        try:
            devices.append(DaliDecoder(number))
        except MissingDependencyError as error:
            events.say(f"GPU {number} does not decode: {error}")
    if not devices and not auto:
        events.say("decode.gpus=all: no GPU that decodes, the CPU does everything")
    return devices


def _look(
    files: Sequence[tuple[str, Path]], settings: DecodeConfig, devices: Sequence[Device], events: Events, clock: Clock
) -> Trust:
    """Which decoders may be believed for these files. Nothing that goes wrong here costs the run."""
    from rsna_kit.dicom.decode import TRUST_ALL, backends
    from rsna_kit.dicom.survey import survey

    if not files:
        return TRUST_ALL
    end = clock.elapsed_s() + min(_START_S, _START_SHARE * clock.remaining_s())
    with events.progress(len(files), "headers", "files") as progress:
        found = survey(files, advance=progress.advance, limit_s=end - clock.elapsed_s())
    if found.left:
        events.say(f"{found.left} heads were not read in time")
    if found.failures:
        events.say(f"{len(found.failures)} files cannot be read, the first: {found.failures[0].reason}")
    for group, alike in found.groups.items():
        if not any(installed for _, installed in backends(group.transfer_syntax)):
            events.say(
                f"{len(alike)} files of transfer syntax {group.transfer_syntax} have no decoder here. Install "
                "imagecodecs and dicomsdl, or attach the dataset rsna-wheels"
            )
    return _prove(found, settings, devices, events, end - clock.elapsed_s())


def _prove(found: Survey, settings: DecodeConfig, devices: Sequence[Device], events: Events, limit_s: float) -> Trust:
    from rsna_kit.dicom import openjpeg
    from rsna_kit.dicom.decode import Trust
    from rsna_kit.dicom.proof import Decoder, prove
    from rsna_kit.dicom.pyramid import REDUCER, decode_for_proof

    extra: dict[str, Decoder] = {device.name: partial(_decode_one, device) for device in devices}
    if openjpeg.is_available():
        extra[REDUCER] = decode_for_proof
    examples = {group: [file[:2] for file in files] for group, files in found.examples(_EXAMPLES).items()}
    events.say(f"proof: {len(examples)} kinds of file; {openjpeg.describe()}")
    try:
        proof = prove(examples, extra, settings.workers, limit_s)
    except Exception as error:  # a bug here must not cost a run that would go well without it
        events.say(f"the proof failed ({type(error).__name__}: {one_line(error)}); not used: {', '.join(extra)}")
        return Trust(extra=frozenset(extra))
    for verdict in proof.verdicts:
        events.say(f"  {verdict.line}", kind="proof_line")
    trust = proof.trust
    if proof.unfinished:  # the binding that reduces has passed its own test; a GPU has passed none
        events.say(f"{proof.unfinished} kinds of file were not proven in time")
        trust = Trust(trust.off, trust.extra - {REDUCER}, trust.proven)
    return trust


def _decode_one(device: Device, frame: EncodedFrame) -> np.ndarray | None:
    """A device's answer for one frame, None when it does not take such frames."""
    from rsna_kit.dicom.frame import check_stream

    if not device.takes(frame, check_stream(frame)):
        return None
    answer = device.decode([frame])[0]
    if isinstance(answer, DecodeError):
        raise answer
    return answer
