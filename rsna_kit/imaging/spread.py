"""Many DICOM files to many images on other processes or machines: joblib's backends, one call.

Threads of one process are enough for one machine (`stream`). Processes help where a library holds the interpreter lock;
a Dask cluster goes past one machine: its workers need rsna_kit installed and see the files under the same paths.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.trust import TRUST_ALL, Trust
from rsna_kit.imaging.outcome import Outcome
from rsna_kit.imaging.stream import ImageStream
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.hardware import cpu_count
from rsna_kit.runtime.lazy import require

BACKENDS = ("threads", "processes", "dask")
_ROUND = 16  # tasks of a worker whose images may wait: 150 MB at 1536 x 768
_CHUNK = 8  # files of one task: long enough to be worth sending, short enough to spread evenly


def spread_images(
    files: Iterable[tuple[str, Path]], image: ImageConfig, backend: str, workers: int = 0, trust: Trust = TRUST_ALL,
    scheduler: str | None = None,
) -> Generator[Outcome]:  # fmt: skip
    """Yield one `Outcome` per `(image_id, path)`, in the given order: the same as `ImageStream` gives.

    Args:
        files: image ids and their DICOM files.
        image: the image section of the configuration.
        backend: "threads", "processes" (joblib's loky) or "dask".
        workers: how many at once, 0 for one per core; with Dask, for as many as the cluster has.
        trust: decoders that are switched off.
        scheduler: address of a Dask scheduler; a cluster on this machine unless given.

    Raises:
        UsageError: an unknown backend, or a scheduler without Dask.
        MissingDependencyError: Dask is asked for and not installed.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")
    if scheduler is not None and backend != "dask":
        raise UsageError(f"scheduler {scheduler}: only of use with the backend dask, got {backend}")
    import joblib

    with ExitStack() as stack:
        name = {"threads": "threading", "processes": "loky", "dask": "dask"}[backend]
        if backend == "dask":
            workers = _connect(stack, scheduler, workers)
        with joblib.parallel_config(backend=name, n_jobs=workers or cpu_count()):
            parallel = stack.enter_context(joblib.Parallel(return_as="generator", pre_dispatch="all", batch_size=1))
        tasks = (joblib.delayed(_read)(chunk, image, trust) for chunk in _chunks(files))
        # joblib goes on with the next task when one is done, not when its result is taken: rounds bound the memory.
        while some := list(islice(tasks, _ROUND * (workers or cpu_count()))):
            results = parallel(some)
            try:
                for outcomes in results:
                    yield from outcomes
            finally:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # joblib warns that tasks are dropped: that is what is asked for
                    results.close()


def _connect(stack: ExitStack, scheduler: str | None, workers: int) -> int:
    """A Dask client for as long as the images come; returns how many tasks it can run at once."""
    distributed: Any = require("distributed", "cluster")
    if scheduler is None:
        cluster = stack.enter_context(
            distributed.LocalCluster(n_workers=workers or cpu_count(), threads_per_worker=1, dashboard_address=None)
        )
        client = stack.enter_context(distributed.Client(cluster))
    else:
        client = stack.enter_context(distributed.Client(scheduler))
    return workers or max(1, sum(client.ncores().values()))


def _chunks(files: Iterable[tuple[str, Path]]) -> Iterator[list[tuple[str, Path]]]:
    iterator = iter(files)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _read(files: list[tuple[str, Path]], image: ImageConfig, trust: Trust) -> list[Outcome]:
    """One task, run by a worker: with a queue of its own, so that a file on which a decoder hangs costs that file."""
    with ImageStream(files, image, workers=1, trust=trust) as stream:
        return list(stream)
