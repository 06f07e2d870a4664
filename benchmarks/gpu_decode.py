#!/usr/bin/env python3
"""Does DALI on this GPU give the pixels the CPU gives, and how fast?

    python benchmarks/gpu_decode.py DICOM_FOLDER [--rounds 5] [--out result.json]

Every DICOM file below the folder is decoded by the CPU ladder and by DALI's mixed decoder from memory, one transfer
syntax at a time. Equality is pixel for pixel. Where it fails, the factor between the two is looked for: DALI stretches
a JPEG 2000 stream of less than 16 bit to the full range, and old nvJPEG gives zeros for lossless JPEG of 9 to 15 bit.
Speed is the median over rounds of images per second with everything in memory: the ladder on one thread, the ladder
on all cores, DALI in batches, and DALI as the 2023 winner ran it (batch 1, pictures written as 8-bit PNG).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rsna_kit.dicom.codestream import read_facts
from rsna_kit.dicom.decode import decode
from rsna_kit.dicom.frame import EncodedFrame, read_frame
from rsna_kit.runtime.errors import ImageError
from rsna_kit.runtime.hardware import cpu_count, versions

JPEG2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")


class Dali:
    """DALI's mixed decoder as a function from codestreams to arrays; rebuilt after an error.

    `batch` codestreams are decoded at once; results stay on the GPU unless `fetch`.
    """

    def __init__(self, batch: int, threads: int) -> None:
        self.batch, self.threads = batch, threads
        self._pipeline: Any = None

    def _build(self) -> Any:
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def(batch_size=self.batch, num_threads=self.threads, device_id=0, prefetch_queue_depth=1)
        def pipeline() -> Any:
            streams = fn.external_source(name="streams", dtype=types.UINT8, ndim=1)
            return fn.decoders.image(streams, device="mixed", output_type=types.ANY_DATA, dtype=types.UINT16)

        built = pipeline()
        built.build()
        return built

    def decode(self, streams: list[bytes], fetch: bool = True) -> list[np.ndarray]:
        """uint16 (rows, columns) for each codestream, in order."""
        decoded: list[np.ndarray] = []
        for start in range(0, len(streams), self.batch):
            part = streams[start : start + self.batch]
            if self._pipeline is None:
                self._pipeline = self._build()
            try:
                self._pipeline.feed_input("streams", [np.frombuffer(stream, np.uint8) for stream in part])
                (output,) = self._pipeline.run()
                if fetch:
                    host = output.as_cpu()
                    decoded += [np.array(host.at(index))[..., 0] for index in range(len(part))]
            except RuntimeError:
                self._pipeline = None  # a pipeline cannot be used after an exception
                raise
        return decoded


def compare(frames: list[EncodedFrame]) -> list[dict[str, Any]]:
    """One row a file: does DALI agree with the CPU ladder?"""
    dali = Dali(batch=1, threads=2)
    rows = []
    for frame in frames:
        facts = read_facts(frame.codestream, frame.transfer_syntax in JPEG2000)
        row: dict[str, Any] = {
            "file": frame.image_id, "syntax": frame.transfer_syntax, "bits_stored": frame.bits_stored,
            "stream_precision": facts.precision, "shape": [frame.rows, frame.columns],
        }  # fmt: skip
        try:
            expected = decode(frame)
        except ImageError as error:
            row["verdict"] = f"the CPU cannot decode it: {error}"[:160]
            rows.append(row)
            continue
        try:
            (got,) = dali.decode([frame.codestream])
        except RuntimeError as error:
            row["verdict"] = f"DALI fails: {' '.join(str(error).split())[:160]}"
            rows.append(row)
            continue
        row["verdict"] = _verdict(expected, got)
        rows.append(row)
    return rows


def _verdict(expected: np.ndarray, got: np.ndarray) -> str:
    if got.shape != expected.shape:
        return f"shape {got.shape}"
    if np.array_equal(got, expected):
        return "equal"
    if not got.any():
        return "all zeros"
    there = expected > 0
    factors = got[there].astype(float) / expected[there]
    factor = float(np.median(factors))
    difference = np.abs(got - np.rint(expected * factor))
    return f"differs: median factor {factor:.4f}, then at most {difference.max():.0f} apart"


def images_per_second(run: Callable[[], None], count: int, rounds: int) -> float:
    """Median over rounds, after one round that is not counted."""
    run()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return count / statistics.median(seconds)


def speed(frames: list[EncodedFrame], rounds: int) -> dict[str, Any]:
    """Images per second of one group of frames, all methods in turn."""
    streams = [frame.codestream for frame in frames]
    count, threads = len(frames), cpu_count()
    result: dict[str, Any] = {"images": count, "megapixels": round(sum(f.rows * f.columns for f in frames) / 1e6, 1)}

    def one_thread() -> None:
        for frame in frames:
            decode(frame)

    def all_threads() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, frames))

    def winner_2023() -> None:
        single = singles
        with tempfile.TemporaryDirectory() as folder:
            for index, stream in enumerate(streams):
                (pixels,) = single.decode([stream])
                picture = (pixels.astype(np.float32) * (255 / max(int(pixels.max()), 1))).astype(np.uint8)
                cv2.imwrite(f"{folder}/{index}.png", picture)

    singles = Dali(batch=1, threads=2)
    result["cpu_1_thread"] = images_per_second(one_thread, count, rounds)
    result[f"cpu_{threads}_threads"] = images_per_second(all_threads, count, rounds)
    result["dali_2023_style"] = images_per_second(winner_2023, count, rounds)
    for batch in (1, 4, 16):
        dali = Dali(batch=min(batch, count), threads=min(threads, 8))
        run = lambda dali=dali: dali.decode(streams, fetch=False)  # noqa: E731
        result[f"dali_batch_{batch}"] = images_per_second(run, count, rounds)
        fetched = lambda dali=dali: dali.decode(streams)  # noqa: E731
        result[f"dali_batch_{batch}_fetched"] = images_per_second(fetched, count, rounds)
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in result.items()}


def main() -> None:
    """Compare, time, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=16, help="files timed in each group (default 16)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    frames = []
    for path in sorted(options.folder.rglob("*.dcm")):
        try:
            frame = read_frame(path, path.stem)
        except ImageError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        if frame.transfer_syntax in (*JPEG2000, *LOSSLESS):
            frames.append(frame)
    gpu = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                         capture_output=True, text=True)  # fmt: skip
    rows = compare(frames)
    groups = defaultdict(list)
    for frame, row in zip(frames, rows, strict=True):
        if row["verdict"] == "equal":
            groups[f"{frame.transfer_syntax} {frame.rows}x{frame.columns}"].append(frame)
    result = {
        "gpu": gpu.stdout.strip(), "cpus": cpu_count(), "versions": versions(),
        "files": rows, "equal": sum(row["verdict"] == "equal" for row in rows),
        "images_per_second": {
            name: speed(group[: options.most], options.rounds) for name, group in groups.items() if len(group) >= 4
        },
    }  # fmt: skip
    for row in rows:
        print(f"{row['file'][:44]:<44} {row['syntax'][-3:]} {row['stream_precision']:>2} bit  {row['verdict']}")
    print(json.dumps({key: value for key, value in result.items() if key != "files"}, indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
