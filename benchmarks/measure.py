"""Clocks: CPU seconds in turn, the steps after decoding, two threads against one."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import cv2
import numpy as np
from contenders import Contender, Size
from samples import Sample

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.decode import decode
from rsna_kit.dicom.frame import read_frame
from rsna_kit.imaging.render import render
from rsna_kit.imaging.stream import ImageStream
from rsna_kit.runtime.events import Events

# Seconds per image, one number a round: [sample's label][contender's name].
Seconds = dict[str, dict[str, list[float]]]


def cpu_seconds() -> float:
    """User and system time of this process, its threads and the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def cost(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call, and what it returned."""
    start = cpu_seconds()
    value = work()
    return cpu_seconds() - start, value


def warm_up(
    samples: list[Sample], contenders: list[Contender], size: Size, events: Events
) -> tuple[dict[str, list[Contender]], list[str]]:
    """Everything once, untimed: imports, the page cache, pools of memory.

    Returns:
        by label the contenders that can read all its files, and what the others said. Only a real file may fail:
        one made here that a contender cannot read is a defect, and raises.
    """
    cv2.setNumThreads(1)  # as the kit's stream does; nobody pays for waking threads
    able: dict[str, list[Contender]] = {sample.label: [] for sample in samples}
    failures = []
    with events.progress(len(samples), "warm-up", "rows") as progress:
        for sample in samples:
            for contender in contenders:
                try:
                    for path in sample.files:
                        contender.read(path, size)
                    able[sample.label].append(contender)
                except Exception as error:
                    if sample.kind is not None:
                        raise
                    failures.append(f"{sample.label}: {contender.name} failed: {' '.join(str(error).split())[:200]}")
            progress.advance()
    return able, failures


def in_turn(
    samples: list[Sample], able: dict[str, list[Contender]], size: Size, rounds: int, events: Events
) -> tuple[Seconds, dict[str, float]]:
    """Every file through every contender in turn, `rounds` times.

    Returns:
        the seconds, and by label how far the images of "rsna_kit" and "exact" differ where the latter is not black:
        mean of pixels and files, in levels of 255.
    """
    seconds: Seconds = {s.label: {contender.name: [] for contender in able[s.label]} for s in samples}
    levels = {}
    with events.progress(rounds * len(samples), f"{size[0]}x{size[1]}", "rows") as progress:
        for _ in range(rounds):
            for sample in samples:
                spent = {contender.name: 0.0 for contender in able[sample.label]}
                differences = []
                for path in sample.files:
                    images = {}
                    for contender in able[sample.label]:
                        used, images[contender.name] = cost(partial(contender.read, path, size))
                        spent[contender.name] += used / len(sample.files)
                    if {"exact", "rsna_kit"} <= set(images):
                        differences.append(_difference(images["exact"], images["rsna_kit"]))
                for name, total in spent.items():
                    seconds[sample.label][name].append(total)
                if differences:
                    levels[sample.label] = mean(differences)
                progress.advance()
    return seconds, levels


def _difference(exact: np.ndarray, fast: np.ndarray) -> float:
    return float(np.abs(fast.astype(np.int16) - exact)[exact > 0].mean())


def after_decoding(sample: Sample, size: Size, rounds: int) -> float:
    """CPU seconds of `render` on pixels that lie decoded in memory: mean of files, median of rounds."""
    image = ImageConfig(height=size[0], width=size[1])
    total = 0.0
    for path in sample.files:
        frame = read_frame(path)
        pixels = decode(frame)
        work = partial(render, pixels, frame, image)
        work()
        total += median(cost(work)[0] for _ in range(rounds))
    return total / len(sample.files)


def two_threads(files: list[Path], size: Size, rounds: int) -> dict[str, Any]:
    """Wall time of `ImageStream` on two cores with one thread and with two, in turn.

    Returns:
        the ratio of both with its range; `busy`, the number of cores that two threads really got: on a shared machine
        less than 2, whatever the code does; `cpu`, their CPU time as a multiple of that of one thread.
    """
    image = ImageConfig(height=size[0], width=size[1])
    walls: dict[int, list[float]] = {1: [], 2: []}
    used: dict[int, list[float]] = {1: [], 2: []}
    with _two_cores() as cores:
        load = os.getloadavg()[0]
        for _ in range(rounds):
            for workers in walls:
                start = time.perf_counter()
                used[workers].append(cost(partial(_stream, files, image, workers))[0])
                walls[workers].append(time.perf_counter() - start)
    ratios = [one / two for one, two in zip(walls[1], walls[2], strict=True)]
    busy = median(cpu / wall for cpu, wall in zip(used[2], walls[2], strict=True))
    return {
        "cores": cores, "files": len(files), "one_s": walls[1], "two_s": walls[2], "ratio": median(ratios),
        "lowest": min(ratios), "highest": max(ratios), "busy": busy, "cpu": median(used[2]) / median(used[1]),
        "load_before": load,
    }  # fmt: skip


def _stream(files: list[Path], image: ImageConfig, workers: int) -> None:
    with ImageStream([(path.stem, path) for path in files], image, workers) as outcomes:
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error


@contextmanager
def _two_cores() -> Iterator[int]:
    """This process on two of its cores, as many as there are."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    try:
        yield len(os.sched_getaffinity(0))
    finally:
        os.sched_setaffinity(0, before)
