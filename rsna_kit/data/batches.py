"""A prepared folder to batches: uint8 (B, h, w, 1), float32 label (B, 1), float32 weight (B,).

Order and augmentation are decided by numpy from (seed, epoch, position), so the same epoch gives the same batches
through `tf.data` and through its twin for a machine without TensorFlow; `training_stream` and `picture_stream`
take whichever suits Keras' backend.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from rsna_kit.config import Config
from rsna_kit.data.augment import build_augmentation
from rsna_kit.data.sampling import epoch_order
from rsna_kit.data.shards import Prepared, read_picture
from rsna_kit.runtime.errors import RsnaKitError, ShardError
from rsna_kit.runtime.hardware import cpu_count
from rsna_kit.runtime.lazy import require

CACHE_BYTES = 2 << 30  # decoded pictures are kept in memory when all of them fit in this
AHEAD = 2  # batches loaded before they are asked for
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


class Pictures:
    """The pictures of a prepared folder by image id; each is decoded once when all of them fit in memory.

    Args:
        prepared: the prepared folder.
        cache_bytes: keep decoded pictures when all of them together take at most this much.
    """

    def __init__(self, prepared: Prepared, cache_bytes: int = CACHE_BYTES) -> None:
        self._prepared = prepared
        self.shape = (prepared.image.height, prepared.image.width, 1)
        self._keep = len(prepared.index) * prepared.image.height * prepared.image.width <= cache_bytes
        self._kept: dict[str, np.ndarray] = {}
        self.failure: ShardError | None = None

    def __getitem__(self, image_id: str) -> np.ndarray:
        """uint8 (h, w); read-only when kept."""
        picture = self._kept.get(image_id)
        if picture is None:
            try:
                picture = read_picture(self._prepared, image_id)
            except ShardError as error:
                self.failure = error
                raise
            if self._keep:
                picture.setflags(write=False)
                self._kept[image_id] = picture
        return picture


class TrainingSet:
    """Labelled pictures: each epoch is an order of positions and an augmentation seed for each.

    Args:
        pictures: where the pictures come from.
        image_ids: N ids.
        labels: (N,) of 0 and 1.
        config: its data and train sections are used.
    """

    def __init__(self, pictures: Pictures, image_ids: Sequence[str], labels: np.ndarray, config: Config) -> None:
        self.pictures, self.image_ids = pictures, list(image_ids)
        self.labels = np.asarray(labels, np.float32)
        self.shape, self.batch_size = pictures.shape, config.train.batch_size
        self._share, self._seed = config.data.positive_share, config.train.seed
        self._augment = build_augmentation(config.data.augment)

    def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and seeds of an epoch, both int64 (steps * batch_size,)."""
        order = epoch_order(self.labels, self.batch_size, self._share, self._seed, epoch)
        seeds = np.random.default_rng([self._seed, epoch, 1]).integers(0, 2**31 - 1, len(order), np.int64)
        return order, seeds

    def load(self, position: int, seed: int) -> np.ndarray:
        """One augmented picture, uint8 (h, w, 1)."""
        return self._augment(self.pictures[self.image_ids[int(position)]], int(seed))[..., None]


def train_batches(training: TrainingSet, epoch: int) -> Any:
    """One epoch as a `tf.data.Dataset` with static shapes.

    Yields:
        uint8 (B, h, w, 1), float32 (B, 1), float32 (B,); at least one positive in each batch.
    """
    tensorflow = require("tensorflow", "train")
    order, seeds = training.plan(epoch)

    def labelled(picture: Any, label: Any) -> tuple[Any, Any, Any]:
        return picture, label[None], tensorflow.constant(1.0)

    pictures = _mapped(tensorflow, training.load, (order, seeds), training.shape)
    labels = tensorflow.data.Dataset.from_tensor_slices(training.labels[order])
    dataset = tensorflow.data.Dataset.zip((pictures, labels)).map(labelled)
    return dataset.batch(training.batch_size, drop_remainder=True).prefetch(AHEAD)


def eval_batches(pictures: Pictures, image_ids: Sequence[str], batch_size: int) -> Any:
    """All images once, in order, as a `tf.data.Dataset` of uint8 (up to B, h, w, 1)."""
    tensorflow = require("tensorflow", "train")
    ids = list(image_ids)

    def load(position: int) -> np.ndarray:
        return pictures[ids[position]][..., None]

    dataset = _mapped(tensorflow, load, (np.arange(len(ids)),), pictures.shape)
    return dataset.batch(batch_size, drop_remainder=False).prefetch(AHEAD)


def _mapped(tensorflow: Any, load: Callable[..., np.ndarray], columns: tuple[np.ndarray, ...], shape: Any) -> Any:
    """`load` over rows of `columns` in parallel threads, in order, with its static shape."""

    def traced(*row: Any) -> Any:
        picture = tensorflow.numpy_function(load, row, tensorflow.uint8)
        return tensorflow.ensure_shape(picture, shape)

    dataset = tensorflow.data.Dataset.from_tensor_slices(columns)
    return dataset.map(traced, num_parallel_calls=cpu_count(), deterministic=True)


def drain(dataset: Any, pictures: Pictures) -> Iterator[Any]:
    """Iterate over a dataset made here; a damaged shard comes out as the `ShardError` it was.

    TensorFlow wraps an error of a loading thread, and the interpreter may hang at exit when a traceback keeps the
    iterator alive: so the iterator is let go before anything is raised.
    """
    errors = require("tensorflow", "train").errors
    iterator, failure = iter(dataset), None
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except errors.OpError as error:
            failure = pictures.failure or RsnaKitError(f"loading a batch failed: {error.message}")
            break
        yield batch
    del iterator
    raise failure


def training_stream(training: TrainingSet, epoch: int) -> Iterator[Batch]:
    """The batches of one epoch, by the means of Keras' backend."""
    if _on_tensorflow():
        return drain(train_batches(training, epoch), training.pictures)
    return iterate(training, epoch)


def picture_stream(pictures: Pictures, image_ids: Sequence[str], batch_size: int) -> Iterator[Any]:
    """All images once, in order, by the means of Keras' backend."""
    if _on_tensorflow():
        return drain(eval_batches(pictures, image_ids, batch_size), pictures)
    return iterate_images(pictures, image_ids, batch_size)


def _on_tensorflow() -> bool:
    return bool(require("keras", "train").backend.backend() == "tensorflow")


def iterate(training: TrainingSet, epoch: int) -> Iterator[Batch]:
    """The batches of `train_batches` without TensorFlow."""
    order, seeds = training.plan(epoch)
    size = training.batch_size
    jobs = [(training.load, position, seed) for position, seed in zip(order, seeds, strict=True)]
    for number, images in enumerate(_stacked(jobs, size)):
        labels = training.labels[order[number * size : (number + 1) * size]]
        yield images, labels[:, None], np.ones(size, np.float32)


def iterate_images(pictures: Pictures, image_ids: Sequence[str], batch_size: int) -> Iterator[np.ndarray]:
    """The batches of `eval_batches` without TensorFlow."""
    jobs = [(lambda image_id: pictures[image_id][..., None], image_id) for image_id in image_ids]
    return _stacked(jobs, batch_size)


def _stacked(jobs: Sequence[tuple[Any, ...]], size: int) -> Iterator[np.ndarray]:
    """Results of `size` jobs at a time, stacked, in order; threads work two batches ahead."""
    with ThreadPoolExecutor(cpu_count(), thread_name_prefix="batches") as pool:
        waiting: deque[list[Future[np.ndarray]]] = deque()
        try:
            for start in range(0, len(jobs), size):
                waiting.append([pool.submit(*job) for job in jobs[start : start + size]])
                if len(waiting) > AHEAD:
                    yield np.stack([future.result() for future in waiting.popleft()])
            while waiting:
                yield np.stack([future.result() for future in waiting.popleft()])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
