"""Many DICOM files to many images on the workers of a Dask cluster: past one machine.

Threads of one process are enough for one machine (`stream`). The workers need rsna_kit installed and see the files
under the same paths.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.decode import TRUST_ALL, Trust
from rsna_kit.imaging.stream import ImageStream, Outcome
from rsna_kit.runtime.hardware import cpu_count
from rsna_kit.runtime.lazy import require

_ROUND = 16  # tasks of a worker whose images may wait: 150 MB at 1536 x 768
_CHUNK = 8  # files of one task: long enough to be worth sending, short enough to spread evenly


def spread_images(
    files: Iterable[tuple[str, Path]],
    image: ImageConfig,
    workers: int = 0,
    trust: Trust = TRUST_ALL,
    scheduler: str | None = None,
) -> Generator[Outcome]:
    """Yield one `Outcome` per `(image_id, path)`, in the given order: the same as `ImageStream` gives.

    Args:
        files: image ids and their DICOM files.
        image: the image section of the configuration.
        workers: how many at once, 0 for as many as the cluster has.
        trust: decoders that are switched off.
        scheduler: address of a Dask scheduler; a cluster on this machine, one worker per core, unless given.

    Raises:
        MissingDependencyError: Dask is not installed.
    """
    distributed: Any = require("distributed", "cluster")
    with ExitStack() as stack:
        if scheduler is None:
            count = workers or cpu_count()
            cluster = distributed.LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None)
            client = stack.enter_context(distributed.Client(stack.enter_context(cluster)))
        else:
            client = stack.enter_context(distributed.Client(scheduler))
        workers = workers or max(1, sum(client.ncores().values()))
        source = iter(files)
        chunks = iter(lambda: list(islice(source, _CHUNK)), [])
        # All that is submitted is computed, whether or not it is taken: rounds bound the memory.
        while some := list(islice(chunks, _ROUND * workers)):
            futures = client.map(_read, some, image=image, trust=trust, pure=False)
            try:
                for future in futures:
                    yield from future.result()
                    future.release()
            finally:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    client.cancel(futures)


def _read(files: list[tuple[str, Path]], image: ImageConfig, trust: Trust) -> list[Outcome]:
    """One task, run by a worker: with a queue of its own, so that a file on which a decoder hangs costs that file."""
    with ImageStream(files, image, workers=1, trust=trust) as stream:
        return list(stream)
