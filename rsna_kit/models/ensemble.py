"""Members with weights → one scorer: pictures to probabilities, and to attention where a member asks for it.

Folds and models are averaged as probabilities, so that each may be as sure as it is. A picture and its mirror image
(upside down: the chest wall stays left) are averaged before that, in the network's raw outputs: the mean of two logits
is a logit again, and the mean of two attentions an attention, so one network with TTA is one network still.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy.special import expit

from rsna_kit.models.devices import (
    FLOAT16,
    FLOAT32,
    GPU_BATCH,
    OPENVINO,
    Run,
    Way,
    Worker,
    find_devices,
    has_tensor_cores,
)
from rsna_kit.models.members import Member
from rsna_kit.runtime.errors import BundleError, RsnaKitError, UsageError, one_line
from rsna_kit.runtime.lazy import require

Tag = TypeVar("Tag")
Free = queue.SimpleQueue[Any]  # workers with room for a batch; at last, the error of the one that failed last


class Part(NamedTuple):
    """Columns of image scores that make one breast score, and its weight among the parts.

    Image-level members commute with the mean over a breast's images, so all of them together are one part; each
    breast-level member has an attention of its own, so it is a part of its own.
    """

    weight: float
    score: str
    attention: str | None


class _Scorer(NamedTuple):
    """A member at work: its number, and that of its part."""

    member: Member
    number: int
    part: int


class Ensemble:
    """Loaded members that score batches, on every GPU of this machine or on its CPU.

    Args:
        members: bundles that share one image section, with weights.
        batch_size: rows of every batch that the CPU sees; short batches are padded, so that one shape is traced. A GPU
            begins with `GPU_BATCH`.
        tta: "flip" averages each picture with itself upside down; "none".
        runtime: who computes, "keras", or "openvino" on the CPU.
        devices: "auto" is every GPU, "one" the first.
        precision: "auto" lets GPUs with tensor cores compute in float16, "float32" does not.
        say: told what was proven, and which device is not used.

    On the first batch OpenVINO or float16 computes beside Keras in float32: a network whose scores differ by more than
    their `Way` allows, or which cannot be converted, stays with Keras in float32, on all devices alike.

    Attributes:
        parts: what the columns are and how they are weighted.
        columns: names of the columns that `score` gives: `score`, `attention` of the first part; those of the next end
            in `_1` and so on.
        batch_size: pictures of a batch that `stream` is best given.
        ahead: batches under way at once; one where the CPU alone computes.

    Raises:
        BundleError: a bundle that cannot be loaded.
        MissingDependencyError: OpenVINO is not installed; names the extra and the wheels dataset.
        UsageError: OpenVINO with another Keras backend than TensorFlow, which exports its networks.
    """

    def __init__(
        self,
        members: Sequence[Member],
        batch_size: int,
        tta: str = "none",
        runtime: str = "keras",
        devices: str = "auto",
        precision: str = "auto",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if runtime == "openvino":
            require("openvino", "runtimes")
            if (backend := require("keras", "train").backend.backend()) != "tensorflow":
                raise UsageError(
                    f"infer.runtime: got 'openvino' with Keras on {backend}; its networks are exported by TensorFlow "
                    "alone. Use --set infer.runtime=keras, or KERAS_BACKEND=tensorflow."
                )
        self._names = ["CPU:0"] if runtime == "openvino" else find_devices(say)[: 1 if devices == "one" else None]
        self._way = OPENVINO if runtime == "openvino" else FLOAT32
        if precision == "auto" and has_tensor_cores(self._names):
            self._way = FLOAT16
        self.ahead = 1 if self._names == ["CPU:0"] else 2 * len(self._names)
        on_gpus = self._names[0].startswith("GPU")
        self.batch_size = max(GPU_BATCH, batch_size) if on_gpus else batch_size
        self._flip, self._say = tta == "flip", say
        self._cpu = Worker("CPU:0", batch_size, say)  # where nothing else computes
        self._workers: list[Worker] = []  # from the first batch on
        self._ways: dict[int, Way] = {}  # by a member's number, once it is decided
        self._lock = threading.Lock()
        self._scorers: list[_Scorer] = []
        self.parts: list[Part] = []
        for order, member in enumerate(members):
            attentive = member.bundle.config.model.kind == "breast"
            shared = (n for n, part in enumerate(self.parts) if not attentive and part.attention is None)
            number = next(shared, len(self.parts))
            if number == len(self.parts):
                suffix = f"_{number}" if number else ""
                self.parts.append(Part(0.0, "score" + suffix, "attention" + suffix if attentive else None))
            part = self.parts[number]
            self.parts[number] = part._replace(weight=part.weight + member.weight)
            self._scorers.append(_Scorer(member, order, number))
            self._run(self._cpu, self._scorers[-1], FLOAT32)  # a bundle that is no good is said now
        self.columns = [name for part in self.parts for name in (part.score, part.attention) if name is not None]

    def score(self, images: np.ndarray) -> np.ndarray:
        """The scores of one batch, as `stream` gives them."""
        return next(iter(self.stream([(None, images)])))[1]

    def stream(self, batches: Iterable[tuple[Tag, np.ndarray]]) -> Generator[tuple[Tag, np.ndarray]]:
        """Weighted mean of the members' probabilities in each part, batch after batch, in the order of the batches.

        Every device takes the next batch when it has done one. What fails on one is computed by the others, and the
        device is used no more; the last one raises. A batch is drawn when a device has room for it. Empty it, or close
        it.

        Args:
            batches: anything that shall come back with the scores, and uint8 (N, h, w, 1).

        Yields:
            The same thing, and float64 (N, C), one column for each of `columns`: scores in [0, 1], attentions as
            logits. NaN in the columns of a part whose members have all been dropped.

        Raises:
            BundleError: a network's output is not finite; its bundle is named.
        """
        free: Free = queue.SimpleQueue()
        pool = ThreadPoolExecutor(self.ahead, thread_name_prefix="score")
        running: deque[tuple[Tag, Future[np.ndarray]]] = deque()
        opened = False
        try:
            for tag, images in batches:
                if len(images) and not opened:
                    self._open(images)
                    opened = True
                    for worker in self._workers * -(-self.ahead // len(self._workers)):
                        free.put(worker)
                running.append((tag, pool.submit(self._job, free, images, self._flip, tuple(self._scorers))))
                while len(running) >= self.ahead:
                    done, future = running.popleft()
                    yield done, future.result()
            for done, future in running:
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _job(self, free: Free, images: np.ndarray, flip: bool, scorers: tuple[_Scorer, ...]) -> np.ndarray:
        """Score one batch on the next free device, and on another where that fails."""
        if not len(images):
            return np.empty((0, len(self.columns)))
        while True:
            worker = free.get()
            if isinstance(worker, BaseException):
                free.put(worker)  # for the others who wait
                raise worker
            if worker.why_left:
                continue
            try:
                scores = self._score(worker, images, flip, scorers)
            except RsnaKitError:  # a network's fault
                free.put(worker)
                raise
            except Exception as error:  # whatever a framework or a driver says
                with self._lock:
                    if not worker.why_left:
                        worker.why_left = one_line(error)
                        self._say(f"{worker.name} is not used any more: {worker.why_left}")
                    if all(other.why_left for other in self._workers):
                        free.put(error)
                continue
            free.put(worker)
            return scores

    def _open(self, images: np.ndarray) -> None:
        """Find on the first pictures the devices that work, and decide on one of them how each member is computed."""
        self._workers, self._cpu.why_left = [worker for worker in self._workers if not worker.why_left], ""
        if self._workers:
            return
        for name in self._names:
            worker = self._cpu if self._names == ["CPU:0"] else Worker(name, self.batch_size, self._say)
            try:
                for scorer in self._scorers:
                    if scorer.number not in self._ways:
                        self._ways[scorer.number] = self._prove(worker, scorer, images)
                if worker is not self._cpu:  # traced here, one device after the other
                    worker.outputs([self._run(worker, one, self._ways[one.number]) for one in self._scorers], images)
                self._workers.append(worker)
            except Exception as error:
                if worker is self._cpu:
                    raise
                self._say(f"{name} cannot be used: {one_line(error)}")
        if not self._workers:
            self._workers, self._ways = [self._cpu], {scorer.number: FLOAT32 for scorer in self._scorers}
        for worker in self._workers:  # the figures are those of the work, not of tracing and proof
            worker.pictures, worker.busy_s = 0, 0.0
        self._say(f"scoring on {', '.join(f'{worker.name} ({worker.rows} at once)' for worker in self._workers)}")

    def _prove(self, worker: Worker, scorer: _Scorer, images: np.ndarray) -> Way:
        """The way to compute a member that was asked for, or float32 where it does not score as that does."""
        way, path = self._way, scorer.member.bundle.path
        if way is FLOAT32:
            return way
        (wanted,) = worker.outputs([self._run(worker, scorer, FLOAT32)], images)
        try:
            (got,) = worker.outputs([self._run(worker, scorer, way)], images)
        except Exception as error:  # whatever a converter raises: Keras scores all the same
            why = f"{type(error).__name__}: {one_line(error)}"
            self._say(f"{path}: {way.name} cannot take it, float32 scores ({why})")
            return FLOAT32
        good, figures = way.holds(wanted, got)
        verdict = "scores as float32 does" if good else "is not used, float32 scores"
        self._say(f"{path}: {way.name} {verdict}: {figures}")
        del worker.runs[scorer.number, (FLOAT32 if good else way).name]
        return way if good else FLOAT32

    def _run(self, worker: Worker, scorer: _Scorer, way: Way) -> Run:
        """What computes a member on a device, built when it is first asked for."""
        key = (scorer.number, way.name)
        with self._lock:
            if key not in worker.runs:
                with worker.scope():
                    worker.runs[key] = way.make(scorer.member.bundle, worker.rows)
            return worker.runs[key]

    def _score(self, worker: Worker, images: np.ndarray, flip: bool, scorers: tuple[_Scorer, ...]) -> np.ndarray:
        """The columns of one batch: float64 (N, C)."""
        ways = [self._ways[scorer.number] for scorer in scorers]
        runs = [self._run(worker, scorer, way) for scorer, way in zip(scorers, ways, strict=True)]
        outputs = worker.outputs(runs, images, flip)
        for scorer, way, output in zip(scorers, ways, outputs, strict=True):
            if np.isfinite(output).all():
                continue
            path = scorer.member.bundle.path
            if way is FLOAT32:
                raise BundleError(f"{path}: its network's output is not finite. Train again.")
            with self._lock:  # of two batches under way one says it
                if self._ways[scorer.number] is way:
                    self._ways[scorer.number] = FLOAT32
                    self._say(f"{path}: {way.name} gave what is not finite, float32 scores from here on")
            return self._score(worker, images, flip, scorers)
        means: list[np.ndarray] = []
        for number, part in enumerate(self.parts):
            mine = [(one.member.weight, out) for one, out in zip(scorers, outputs, strict=True) if one.part == number]
            total = sum(weight for weight, _ in mine)
            columns = [weight / total * np.c_[expit(out[:, 0]), out[:, 1:]] for weight, out in mine]
            empty = np.full((len(images), 1 if part.attention is None else 2), np.nan)
            means.append(np.sum(columns, axis=0) if columns else empty)
        return np.concatenate(means, axis=1)

    def lighten(self) -> str | None:
        """Give up the work that is missed least: first TTA, then the member of least weight (of equals, the last).

        Batches that are under way are scored with it still.

        Returns:
            What was given up, in words; None when there is only one member left and nothing to give up.
        """
        if self._flip:
            self._flip = False
            return "TTA"
        if len(self._scorers) == 1:
            return None
        least = min(scorer.member.weight for scorer in self._scorers)
        last = max(index for index, scorer in enumerate(self._scorers) if scorer.member.weight == least)
        return str(self._scorers.pop(last).member.bundle.path)

    def speed(self) -> dict[str, float]:
        """Pictures a second of each device, without the time in which it waited for pictures."""
        return {w.name: round(w.pictures / w.busy_s, 2) for w in self._workers if w.pictures}
