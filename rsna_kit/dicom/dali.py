"""Encoded frames → stored pixels through NVIDIA DALI: batches, on a GPU or, by the same code, on the CPU.

An accelerator beside `decode`, never instead of it: what DALI does not take, refuses or gets visibly wrong is a
`DecodeError`, and the caller asks `rsna_kit.dicom.decode.decode`, which has the last word. What comes out as an array
has the same shape, type and range. DALI's "mixed" decoder runs nvJPEG2000 and nvJPEG, its CPU decoder OpenJPEG.

It is a pipeline and not DALI's dynamic mode: that one is experimental, and of a failed batch it says no more than that
an error happened asynchronously. Not covered: 8-bit streams, colour, signed streams, JPEG-LS, predictors 2 to 7.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from rsna_kit.dicom.codestream import StreamFacts, bare_codestream
from rsna_kit.dicom.frame import JPEG2000_UIDS, JPEG_LOSSLESS_UIDS, EncodedFrame, check_stream
from rsna_kit.dicom.stored import stored_pixels
from rsna_kit.runtime.errors import DecodeError, MissingDependencyError
from rsna_kit.runtime.lazy import require

# The largest mammograms have 5928 x 4728 pixels, 56 MB each as uint16. Eight of them are 0.45 GB, twice that where DALI
# stretches, and every thread keeps nvJPEG2000's coefficients (4 bytes a pixel and scratch, estimated at 0.3 GB): about
# 2 GB of a T4's 16, beside the network. One picture already fills a GPU, so larger batches would only cost memory.
BATCH_SIZE = 8
THREADS = 4


def is_installed() -> bool:
    """Whether DALI is there; nothing is imported of it."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def gpu_count() -> int:
    """CUDA devices that this process may use; 0 without a driver. Asks the driver alone and prints nothing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    found = ctypes.c_int(0)
    # cuInit makes no context and takes no memory; unlike NVML it honours CUDA_VISIBLE_DEVICES.
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(found)) != 0:
        return 0
    return found.value


class DaliDecoder:
    """Decodes batches of frames from memory.

    One at a time: threads that share a decoder wait for each other. TensorFlow takes all memory of a GPU unless it is
    told to let it grow; on a GPU that both use, tell it so first.
    """

    def __init__(self, device: int | None, batch_size: int = BATCH_SIZE, threads: int = THREADS) -> None:
        """Start DALI.

        Args:
            device: number of the GPU; None decodes on the CPU, where DALI knows JPEG 2000 alone.
            batch_size: pictures that are decoded, and held on the device, together.
            threads: CPU threads of DALI's own; on a GPU they parse the streams.

        Raises:
            MissingDependencyError: nvidia.dali is not installed, or cannot use that GPU.
        """
        require("nvidia.dali", "dali")
        self.device, self.batch_size, self.threads = device, batch_size, threads
        self.name = "dali" if device is None else f"gpu{device}"  # in proofs, logs and failures
        self._lock = threading.Lock()
        try:
            self._pipeline: Any = self._build()
        except Exception as error:  # DALI raises RuntimeError for an old driver and for lack of memory alike
            raise MissingDependencyError(
                f"DALI cannot start on {'the CPU' if device is None else f'GPU {device}'}: {_reason(error)}. "
                "Look at the driver and at the free memory, or decode without DALI"
            ) from error

    def takes(self, frame: EncodedFrame, facts: StreamFacts | None) -> bool:
        """Whether `decode` will try this frame.

        Args:
            frame: from `read_frame`.
            facts: of its codestream, from `check_stream`.
        """
        # 8-bit JPEG read as ANY_DATA into uint16 ends the process (`double free`), so 8 bits stay out altogether.
        if facts is None or facts.components != 1 or facts.signed or facts.precision <= 8:
            return False
        if frame.transfer_syntax in JPEG2000_UIDS:
            # A grid that is shifted or thinned out is rare, and one damaged to steps of 0 ends the process.
            return facts.wavelet is not None and facts.wavelet.plain
        # nvJPEG knows the first predictor alone, and has no lossless decoder on the CPU.
        return self.device is not None and frame.transfer_syntax in JPEG_LOSSLESS_UIDS and facts.predictor == 1

    def decode(self, frames: Sequence[EncodedFrame]) -> list[np.ndarray | DecodeError]:
        """One answer per frame, in the given order; a bad frame costs its own answer only.

        Returns:
            For each frame uint16 (rows, columns), stored pixels exactly as `decode` gives them, or the DecodeError
            that says why there are none.
        """
        answers: dict[int, np.ndarray | DecodeError] = {}
        asked: list[tuple[int, StreamFacts]] = []
        for position, frame in enumerate(frames):
            try:
                facts = check_stream(frame)  # keeps most damage away from a decoder that runs in this process
            except DecodeError as error:
                answers[position] = error
                continue
            if facts is not None and self.takes(frame, facts):
                asked.append((position, facts))
            else:
                where = "the CPU" if self.device is None else "a GPU"
                answers[position] = DecodeError(f"{frame.where}: a kind of frame that DALI does not decode on {where}")
        with self._lock:
            for start in range(0, len(asked), self.batch_size):
                batch = asked[start : start + self.batch_size]
                given = self._decode_batch([(frames[position], facts) for position, facts in batch])
                answers.update(zip((position for position, _ in batch), given, strict=True))
        return [answers[position] for position in range(len(frames))]

    def _decode_batch(self, batch: list[tuple[EncodedFrame, StreamFacts]]) -> list[np.ndarray | DecodeError]:
        try:
            # DALI believes the facts in JP2 boxes, and a false width there corrupts its memory.
            arrays = self._run([bare_codestream(frame.codestream) for frame, _ in batch])
        except Exception as error:
            # DALI says that a sample failed and gives none of them, so each is tried alone.
            if len(batch) > 1:
                return [answer for one in batch for answer in self._decode_batch([one])]
            frame, _ = batch[0]
            return [DecodeError(f"{frame.where}: DALI could not decode it ({_reason(error)})")]
        return [_answer(array, frame, facts) for array, (frame, facts) in zip(arrays, batch, strict=True)]

    def _run(self, codestreams: list[bytes]) -> list[np.ndarray]:
        """DALI's own arrays, (rows, columns, channels), one per codestream.

        Fed, run and fetched in one synchronous step, so an answer belongs to its frame by position. Feeding from worker
        processes (`parallel=True`) would fork a process that holds a CUDA context.
        """
        pipeline = self._build() if self._pipeline is None else self._pipeline
        self._pipeline = None  # a pipeline that failed or was interrupted never works again; the next run builds one
        (output,) = pipeline.run(frames=[np.frombuffer(stream, np.uint8) for stream in codestreams])
        pictures = output.as_cpu()
        if len(pictures) != len(codestreams):
            raise RuntimeError(f"gave {len(pictures)} pictures for {len(codestreams)} streams")
        arrays = [np.array(picture) for picture in pictures]  # copied: the next run writes over DALI's buffers
        self._pipeline = pipeline
        return arrays

    def _build(self) -> Any:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        # Nothing runs ahead: a second batch in flight would double the memory and untie answers from frames.
        pipeline = Pipeline(
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=self.device,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        with pipeline:
            encoded = fn.external_source(name="frames", dtype=types.DALIDataType.UINT8, ndim=1)
            # `fn.decoders.image` has no `dtype` in DALI 2.1 and gives 8 bits. ANY_DATA: the only output type
            # of nvJPEG's lossless decoder. Orientation in EXIF is no part of DICOM: the stored rows stay as they are.
            # Threads that are tied to a core would compete with the other decoders' for it.
            pixels = fn.experimental.decoders.image(
                encoded,
                device="cpu" if self.device is None else "mixed",
                output_type=types.DALIImageType.ANY_DATA,
                dtype=types.DALIDataType.UINT16,
                adjust_orientation=False,
                affine=False,
            )
            pipeline.set_outputs(pixels)
        pipeline.build()
        return pipeline


def _answer(array: np.ndarray, frame: EncodedFrame, facts: StreamFacts) -> np.ndarray | DecodeError:
    """DALI's array as stored pixels, or why it cannot be that."""
    try:
        if array.shape[2:] == (1,):
            array = array[:, :, 0]
        if array.dtype != np.uint16 or array.shape != (frame.rows, frame.columns):
            expected = (frame.rows, frame.columns)
            raise ValueError(f"gave {array.dtype} of shape {array.shape}, expected uint16 of {expected}")
        # nvJPEG before 13.0.2 (no CUDA 12 release has the fix) gives zeros, and no error, for lossless streams of 9 to
        # 15 bits and for some marker orders. Blank images exist; `decode` says which of the two it is.
        if array.min() == array.max():
            raise ValueError(f"gave a constant picture of {array.flat[0]}, which its GPU decoder does by mistake")
        return stored_pixels(unstretch(array, facts.precision), frame, facts)
    except ValueError as error:
        return DecodeError(f"{frame.where}: DALI {error}")


def unstretch(pixels: np.ndarray, precision: int) -> np.ndarray:
    """Undo DALI's stretch to 16 bits where, and only where, it happened.

    For streams of less than 16 bits the mixed decoder multiplies by 65535 / (2**precision - 1), in float32, and rounds;
    the CPU decoder does not. The pixels tell: stretched ones lie on a grid and reach beyond 2**precision - 1, others do
    neither. The grid is at least two wide, so rounding back is exact for every value.

    Args:
        pixels: uint16 of any shape.
        precision: bits of the codestream.

    Returns:
        uint16 of the same shape, in [0, 2**precision - 1] for precisions below 16; unchanged ones are not copied.

    Raises:
        ValueError: neither or both are true, so that nobody can tell.

    Example:
        >>> unstretch(np.array([0, 16, 65535], np.uint16), 12).tolist()
        [0, 1, 4095]
    """
    if precision >= 16:
        return pixels
    top = (1 << precision) - 1
    present = np.zeros(1 << 16, bool)
    present[pixels] = True
    values = np.flatnonzero(present)
    originals = np.rint(values * (top / 65535)).astype(np.uint16)
    # Half for the rounding, and what float32 may add to it (16 bits of value, 24 of mantissa).
    on_grid = bool(np.all(np.abs(originals * (65535 / top) - values) <= 0.52))
    beyond = bool(values[-1] > top)
    if not beyond and not on_grid:
        return pixels
    if not (beyond and on_grid):
        raise ValueError(
            f"gave {values[0]} to {values[-1]} for a stream of {precision} bits, and it cannot be told whether they "
            "are stretched to 16 bits"
        )
    table = np.zeros(1 << 16, np.uint16)
    table[values] = originals
    return table[pixels]


def _reason(error: Exception) -> str:
    """One line of what DALI says, without its trace through the pipeline's definition."""
    said = str(error).rpartition("encountered:")[2].replace("Current pipeline object is no longer valid.", "")
    return " ".join(said.split()).strip(" :")[:400] or type(error).__name__
