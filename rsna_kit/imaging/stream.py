"""Many DICOM files to many images: one queue that every worker draws from, results in the order asked for.

CPU threads take a file at a time. Decoding and resizing release the interpreter lock, so threads use every core and
pixels need no copying between processes. A device (a GPU behind `dicom.dali`) takes a batch of what it can decode; what
it cannot, or fails on, goes back to the threads, which also render what it decoded: the image is the same whoever
decodes.

Memory is bounded: at most `ahead` files are begun and not yet handed out. So is time: a file on which a thread is stuck
for `patience_s` becomes a failure, and another thread takes its place; a device that is stuck is left behind.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.decode import TRUST_ALL, Trust
from rsna_kit.dicom.decoders import Device
from rsna_kit.dicom.frame import EncodedFrame, check_stream, read_frame
from rsna_kit.dicom.pyramid import Pyramid
from rsna_kit.imaging.render import Rendered, read_image, render_pyramid
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import DecodeError, ImageError, one_line
from rsna_kit.runtime.hardware import cpu_count

PATIENCE_S = 150.0  # two decoders that hang in processes of their own, each asked twice for 30 s
_THREAD = "decode"  # name of the CPU threads; devices have their own
_MOST_FAILURES = 32
_CLOSE_S = 15.0  # the slowest file takes 2 s
_LOOK_EVERY_S = 1.0  # how often a waiting consumer looks for stuck threads
_LOOK_FILES = 256  # how often it looks whether late devices are needed
_WAITS = 0.2  # share of the consumer's time that it waits for images, above which they are


@dataclass(frozen=True)
class Outcome:
    """What became of one file: exactly one of `rendered` and `error` is set; `worker` says who decoded it."""

    image_id: str
    rendered: Rendered | None = None
    error: ImageError | None = None
    worker: str = "cpu"

    def failure(self) -> dict[str, str]:
        """The row for failures.csv: image_id, stage, reason."""
        assert self.error is not None
        return {"image_id": self.image_id, "stage": self.error.stage, "reason": str(self.error)}


@dataclass
class _Task:
    """One file on its way. `frame` and `pixels` are set when a device has read or decoded it."""

    number: int
    image_id: str
    path: Path
    frame: EncodedFrame | None = None
    pixels: np.ndarray | None = None
    worker: str = "cpu"


class ImageStream(Iterator[Outcome], AbstractContextManager["ImageStream"]):
    """Yields one `Outcome` per `(image_id, path)`, in the given order.

    A file that cannot be used becomes an outcome with an error, whatever went wrong with it. `close` drops what has not
    started; use as a context manager, or close it.

    Args:
        files: image ids and their DICOM files; drawn from as they are needed.
        image: the image section of the configuration.
        workers: decoding threads, 0 for one per core.
        trust: decoders that are switched off.
        devices: decoders of batches that work beside the threads.
        late: devices begin when the consumer waits for images more than a fifth of its time.
        taken: images that the consumer takes together; so many more are decoded ahead.
        ahead: files begun and not yet handed out, at most; enough for every worker unless given.
        patience_s: seconds after which a thread counts as stuck on its file.
        clock: when its time is over, nothing more is waited for, except for the first file.

    Attributes:
        notes: when late devices began, and what devices said when they gave up; empty when all is well.
        coarser: further halvings of JPEG 2000, read as each file is begun: a consumer short of time raises it.
        counts: images by the worker that decoded them.
        waited_s: how long the consumer waited for images; much of the time means that decoding is what takes long.
    """

    def __init__(
        self,
        files: Iterable[tuple[str, Path]],
        image: ImageConfig,
        workers: int = 0,
        trust: Trust = TRUST_ALL,
        devices: Sequence[Device] = (),
        late: bool = False,
        taken: int = 0,
        ahead: int | None = None,
        patience_s: float = PATIENCE_S,
        clock: Clock | None = None,
    ) -> None:
        self.coarser, self.waited_s = 0, 0.0
        self.counts, self.notes = Counter[str](), list[str]()
        self._files = enumerate(iter(files))
        self._image, self._trust, self._patience_s, self._clock = image, trust, patience_s, clock or Clock()
        workers = workers or cpu_count()
        self._ahead = ahead or 4 * workers + sum(2 * device.batch_size for device in devices) + taken
        self._changed = threading.Condition()
        self._handed: deque[_Task] = deque()  # what devices read or decoded, for the threads to finish
        self._results: dict[int, Outcome] = {}
        self._begun, self._next, self._ended, self._exhausted = 0, 0, False, False
        self._failure: Exception | None = None  # of the iterable of files
        self._feeding: set[threading.Thread] = set()  # devices' threads; one that is left behind is in it no more
        self._running, self._threads = dict[threading.Thread, tuple[list[_Task], float]](), list[threading.Thread]()
        cv2.setNumThreads(1)  # threads over images; OpenCV's own would compete with them
        self._late, self._looked = tuple(devices) if late else (), (time.monotonic(), 0.0)
        with self._changed:  # no thread looks at `_feeding` before all devices are in it
            for device in () if late else devices:
                self._feeding.add(self._start(self._feed, device.name, device))
            for _ in range(workers):
                self._start(self._work, _THREAD)

    def _start(self, target: Callable[..., None], name: str, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Begin nothing more, drop what is being decoded, and wait for every thread that is not stuck.

        One that returns from a decoder while the interpreter ends would abort the process.
        """
        with self._changed:
            self._ended = True
            self._handed.clear()
            self._results.clear()
            self._changed.notify_all()
        until = Clock(_CLOSE_S)
        for thread in self._threads:
            thread.join(max(0.0, until.remaining_s()))

    def __next__(self) -> Outcome:
        began = time.monotonic()
        with self._changed:
            while self._next not in self._results:
                if self._ended or (self._exhausted and self._next >= self._begun):
                    self._ended = True
                    self._changed.notify_all()
                    raise self._failure or StopIteration
                self._changed.wait(min(_LOOK_EVERY_S, max(self._clock.remaining_s(), 0.05)))
                self._give_up_on_stuck()
                if self._next and self._clock.remaining_s() <= 0:  # one file at least, so that a run that resumes ends
                    self._ended = True
            outcome = self._results.pop(self._next)
            self._next += 1
            self._changed.notify_all()
        self.waited_s += time.monotonic() - began
        self.counts[outcome.worker] += 1
        if self._late and self._next % _LOOK_FILES == 0:
            self._begin_late()
        return outcome

    def _begin_late(self) -> None:
        """Let devices begin when the consumer has waited for much of the time since the last look."""
        (since, waited_s), self._looked = self._looked, (time.monotonic(), self.waited_s)
        share = (self.waited_s - waited_s) / max(self._looked[0] - since, 1e-9)
        with self._changed:
            for device in self._late if share > _WAITS and not self._exhausted else ():
                self.notes.append(f"{device.name} decodes, too, from file {self._next} on: {share:.0%} was waiting")
                self._feeding.add(self._start(self._feed, device.name, device))
                self._late = ()

    def _give_up_on_stuck(self) -> None:
        """Turn files that hold a thread for too long into failures. Called with the lock held."""
        now = time.monotonic()
        for thread, (tasks, since) in list(self._running.items()):
            if now - since <= self._patience_s:
                continue
            del self._running[thread]
            self._threads.remove(thread)
            if thread.name != _THREAD:
                self._leave(thread, f"nothing came within {self._patience_s:g} s", tasks)
                continue
            for task in tasks:
                text = f"image {task.image_id} ({task.path}): nothing came within {self._patience_s:g} s: a decoder "
                error = DecodeError(f"{text}hangs, or the disk. Exclude the image")
                self._results[task.number] = Outcome(task.image_id, error=error)
            self._start(self._work, _THREAD)

    def _leave(self, thread: threading.Thread, why: str, tasks: Sequence[_Task] = ()) -> None:
        """Go on without a device, once; the threads do its work. Called with the lock held."""
        if thread in self._feeding:
            self._feeding.discard(thread)
            self.notes += [f"{thread.name} is not used any more: {why}"] * bool(why)
            self._handed.extend(tasks)
            self._changed.notify_all()

    def _draw(self) -> _Task | None:
        """The next file of the queue, None when there is none or enough is begun. Called with the lock held."""
        if self._exhausted or self._begun - self._next >= self._ahead:
            return None
        try:
            number, (image_id, path) = next(self._files)
        except Exception as error:
            self._failure = None if isinstance(error, StopIteration) else error
            self._exhausted = True
            self._changed.notify_all()
            return None
        self._begun = number + 1
        return _Task(number, image_id, path)

    def _work(self) -> None:
        """One CPU thread: first what devices handed over, then the queue."""
        thread = threading.current_thread()
        while True:
            with self._changed:
                task = None
                while not self._ended and task is None:
                    task = self._handed.popleft() if self._handed else self._draw()
                    if task is None:
                        if self._exhausted and not self._feeding:
                            return
                        self._changed.wait()
                if task is None:
                    return
                self._running[thread] = ([task], time.monotonic())
                self._changed.notify_all()
            outcome = self._read(task)
            with self._changed:
                if self._running.pop(thread, None) is None:
                    return  # given up on: another thread has this one's place
                if not self._ended:
                    self._results[task.number] = outcome
                self._changed.notify_all()

    def _read(self, task: _Task) -> Outcome:
        """Whatever is left to do for one file."""
        try:
            if task.frame is None:
                rendered = read_image(task.path, task.image_id, self._image, self._trust, self.coarser)
            else:
                pyramid = Pyramid(task.frame, self._trust, task.pixels)
                rendered = render_pyramid(pyramid, self._image, self.coarser)
            return Outcome(task.image_id, rendered=rendered, worker=task.worker)
        except ImageError as error:
            return Outcome(task.image_id, error=error, worker=task.worker)
        except Exception as error:  # a bug met by one file must not cost the other 32,000
            text = f"image {task.image_id} ({task.path}): unexpected {type(error).__name__}: {one_line(error)}"
            return Outcome(task.image_id, error=ImageError(text), worker=task.worker)

    def _feed(self, device: Device) -> None:
        """One device: batches of what it takes; everything goes to the threads afterwards."""
        thread, failed, why = threading.current_thread(), 0, ""  # failed in a row: a lost context fails on everything
        while not why and (batch := self._gather(device)):
            try:
                given = device.decode([task.frame for task in batch if task.frame is not None])
                answers = list(zip(batch, given, strict=True))
            except Exception as error:  # whatever a device's library raises
                answers, why = [], f"{type(error).__name__}: {one_line(error)}"
            with self._changed:
                if thread not in self._feeding:
                    return  # left behind
                self._running.pop(thread, None)
                for task, answer in answers:
                    if isinstance(answer, np.ndarray):
                        task.pixels, task.worker, failed = answer, device.name, 0
                    else:
                        failed += 1
                        why = f"failed on {failed} files in a row, lastly {answer}" if failed >= _MOST_FAILURES else ""
                self._handed.extend(batch)
                self._changed.notify_all()
        with self._changed:
            self._leave(thread, why)

    def _gather(self, device: Device) -> list[_Task]:
        """The next files that a device takes, read; the others go to the threads. Empty at the end."""
        thread, batch = threading.current_thread(), list[_Task]()
        while len(batch) < device.batch_size:
            with self._changed:
                task = None
                while task is None:
                    if not self._ended and len(self._handed) < 2 * device.batch_size:  # else the threads are behind
                        task = self._draw()
                    if task is None:
                        if batch or self._ended or self._exhausted:
                            return batch
                        self._running.pop(thread, None)  # who waits for others is not stuck
                        self._changed.wait()
                batch.append(task)  # before anything can go wrong with it
                self._running[thread] = (batch, time.monotonic())
            belongs = self._belongs(task, device)
            with self._changed:
                if thread not in self._feeding:
                    return []  # left behind
                if not belongs:
                    batch.remove(task)
                    self._handed.append(task)
                    self._changed.notify_all()
        return batch

    def _belongs(self, task: _Task, device: Device) -> bool:
        """Read a task's file and say whether a device may decode it."""
        try:
            task.frame = read_frame(task.path, task.image_id)
            facts = check_stream(task.frame)
            return device.takes(task.frame, facts) and self._trust.allows(device.name, task.frame, facts)
        except Exception:  # the thread that meets it says what is wrong
            task.frame = None
            return False
