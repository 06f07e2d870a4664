"""Many DICOM files to many images: decoding runs ahead in threads, results come in the order asked for.

Decoding and resizing release the interpreter lock, so threads scale and pixels need no copying between
processes. At most `ahead` results wait at any time, which bounds memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rsna_kit.config import ImageConfig
from rsna_kit.imaging.render import Rendered, read_image
from rsna_kit.runtime.errors import ImageError
from rsna_kit.runtime.hardware import cpu_count


@dataclass(frozen=True)
class Outcome:
    """What became of one file: exactly one of `rendered` and `error` is set."""

    image_id: str
    rendered: Rendered | None = None
    error: ImageError | None = None

    def failure(self) -> dict[str, str]:
        """The row for failures.csv: image_id, stage, reason."""
        assert self.error is not None
        return {"image_id": self.image_id, "stage": self.error.stage, "reason": str(self.error)}


def stream_images(
    files: Iterable[tuple[str, Path]], image: ImageConfig, workers: int = 0, ahead: int | None = None
) -> Generator[Outcome, None, None]:
    """Yield one `Outcome` per `(image_id, path)`, in the given order.

    Args:
        files: image ids and their DICOM files.
        image: the image section of the configuration.
        workers: decoding threads, 0 for one per core.
        ahead: results decoded in advance, four per worker unless given.

    A file that cannot be used becomes an outcome with an error, whatever went wrong with it.
    Closing the generator drops what has not started.
    """
    workers = workers or cpu_count()
    ahead = ahead or 4 * workers
    waiting: deque[Future[Outcome]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for image_id, path in files:
            waiting.append(pool.submit(_read, image_id, path, image))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(image_id: str, path: Path, image: ImageConfig) -> Outcome:
    try:
        return Outcome(image_id, rendered=read_image(path, image_id, image))
    except ImageError as error:
        return Outcome(image_id, error=error)
    except Exception as error:  # a bug met by one file must not cost the other 32,000
        return Outcome(image_id, error=ImageError(f"{path}: unexpected {type(error).__name__}: {error}"))
