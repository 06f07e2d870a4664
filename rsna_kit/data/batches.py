"""A prepared folder → batches: uint8 (B, h, w, 1) or (B, V, h, w, 1), float32 targets (B, K), float32 weights (B,).

An example is one picture or, for a breast-level model, the V views of one breast. Order, views and augmentation are
decided by numpy from (seed, epoch, position), so the same epoch gives the same batches through `tf.data` and through
its twin for a machine without TensorFlow; `training_stream` and `picture_stream` take whichever suits Keras' backend.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.config import Config
from rsna_kit.data.augment import build_augmentation
from rsna_kit.data.sampling import epoch_order, plain_order, positives_per_batch
from rsna_kit.data.shards import Prepared, read_picture
from rsna_kit.data.targets import target_names, target_values, without_idle
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
    """Examples with their targets: each epoch is an order of positions and a seed for each.

    `labels` float32 (N,) is the first column of `targets` float32 (N, K). `shape` is that of one example, uint8;
    `view_count` is its V, or 0 where an example is a picture.
    `steps` is the number of batches in an epoch. `log_odds` are the odds of cancer in what a batch teaches (its share
    of cancers, and their weight in the loss), `odds_shift` is how much that is above the odds among the examples;
    both natural logarithms, both 0 where there is no cancer to learn. `notes` says what was left out.

    Args:
        pictures: where the pictures come from.
        examples: for each of N examples the ids of its pictures: one, or all views of a breast.
        targets: float32 (N, K) of 0, 1 and NaN for missing; column 0 is cancer.
        config: its data, model and train sections are used.
        notes: lines that the caller wants said.

    Raises:
        UsageError: a batch too small to hold both classes.
        RsnaKitError: only one class, or for a CVAE no example at all.
    """

    def __init__(
        self,
        pictures: Pictures,
        examples: Sequence[Sequence[str]],
        targets: np.ndarray,
        config: Config,
        notes: Sequence[str] = (),
    ) -> None:
        self.pictures, self.examples, self.notes = pictures, list(examples), tuple(notes)
        self.targets = np.asarray(targets, np.float32)
        self.labels = self.targets[:, 0]
        self.batch_size, self._data, self._seed = config.train.batch_size, config.data, config.train.seed
        self.view_count, self.shape = 0, tuple(pictures.shape)
        if config.model.kind == "breast":
            self.view_count = min(config.model.views, max(map(len, self.examples), default=1))
            self.shape = (self.view_count, *pictures.shape)
        self._augment = build_augmentation(config.data.augment)
        self._plain = config.model.kind == "cvae"
        self.log_odds, self.odds_shift = (0.0, 0.0) if self._plain else self._odds(config.train.cancer_weight)
        self.steps = len(self.plan(0)[0]) // self.batch_size

    def _odds(self, cancer_weight: float) -> tuple[float, float]:
        data = self._data
        drawn = positives_per_batch(self.labels, self.batch_size, data.positive_share, data.negatives) / self.batch_size
        learned = _log_odds(drawn) + math.log(cancer_weight)
        return learned, learned - _log_odds(float(np.mean(self.labels)))

    def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and seeds of an epoch, both int64 (steps * batch_size,)."""
        size, data = self.batch_size, self._data
        if self._plain:
            order = plain_order(len(self.examples), size, self._seed, epoch, data.negatives)
        else:
            order = epoch_order(self.labels, size, data.positive_share, self._seed, epoch, data.negatives)
        return order, _seeds(np.random.default_rng([self._seed, epoch, 1]), len(order))

    def views(self, position: int, seed: int) -> list[tuple[str, int]]:
        """The pictures of an example and the seed that each is augmented with.

        Of a breast at most `model.views` views, in an order that the seed decides.
        """
        image_ids = self.examples[int(position)]
        if not self.view_count:
            return [(image_ids[0], int(seed))]
        rng = np.random.default_rng(int(seed))
        chosen = rng.permutation(len(image_ids))[: self.view_count]
        return [(image_ids[number], int(own)) for number, own in zip(chosen, _seeds(rng, len(chosen)), strict=True)]

    def load(self, position: int, seed: int) -> np.ndarray:
        """One augmented example, uint8 (h, w, 1) or (V, h, w, 1); a view that the breast does not have is all 0."""
        pictures = [self._augment(self.pictures[name], own)[..., None] for name, own in self.views(position, seed)]
        if not self.view_count:
            return pictures[0]
        example = np.zeros(self.shape, np.uint8)
        example[: len(pictures)] = pictures
        return example


def make_training_set(pictures: Pictures, rows: pd.DataFrame, config: Config) -> TrainingSet:
    """The examples that a kind of model learns from.

    Args:
        pictures: where the pictures come from.
        rows: rows of the training table: image_id, cancer, prediction_id for a breast-level model, and the columns of
            `train.targets`.
        config: its data, model and train sections are used.

    Returns:
        One example for each row; for kind "breast" one for each prediction_id, in the order in which they first appear,
        with the largest of its rows' targets (a breast has cancer when any picture says so); for kind "cvae" only
        rows without cancer.

    Raises:
        UsageError: unknown targets, or a batch too small to hold both classes.
        TableError: a target's column is absent or holds a strange cell.
        RsnaKitError: only one class, or for a CVAE no row without cancer.
    """
    if config.model.kind == "cvae":
        rows = rows[rows["cancer"] != 1]
    values = target_values(rows, config.train.targets)
    examples = [(image_id,) for image_id in rows["image_id"]]
    if config.model.kind == "breast":
        breasts = rows["prediction_id"].to_numpy()
        examples = [tuple(ids) for _, ids in rows["image_id"].groupby(breasts, sort=False)]
        values = pd.DataFrame(values).groupby(breasts, sort=False).max().to_numpy(np.float32)
    values, notes = without_idle(values, target_names(config.train.targets))
    return TrainingSet(pictures, examples, values, config, notes)


def train_batches(training: TrainingSet, epoch: int, first_step: int = 0) -> Any:
    """One epoch from `first_step` on as a `tf.data.Dataset` with static shapes.

    Yields:
        uint8 (B, h, w, 1) or (B, V, h, w, 1), float32 (B, K), float32 (B,); at least one cancer in each batch, unless
        the model is a CVAE.
    """
    tensorflow = require("tensorflow", "train")
    order, seeds = _from_step(training, epoch, first_step)

    def weighted(example: Any, targets: Any) -> tuple[Any, Any, Any]:
        return example, targets, tensorflow.constant(1.0)

    examples = _mapped(tensorflow, training.load, (order, seeds), training.shape)
    targets = tensorflow.data.Dataset.from_tensor_slices(training.targets[order])
    dataset = tensorflow.data.Dataset.zip((examples, targets)).map(weighted)
    return dataset.batch(training.batch_size, drop_remainder=True).prefetch(AHEAD)


def _from_step(training: TrainingSet, epoch: int, first_step: int) -> tuple[np.ndarray, np.ndarray]:
    order, seeds = training.plan(epoch)
    return order[first_step * training.batch_size :], seeds[first_step * training.batch_size :]


def _seeds(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 2**31 - 1, count, np.int64)


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))


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


def training_stream(training: TrainingSet, epoch: int, first_step: int = 0) -> Iterator[Batch]:
    """The batches of one epoch from `first_step` on, by the means of Keras' backend; those before are not loaded."""
    if _on_tensorflow():
        return drain(train_batches(training, epoch, first_step), training.pictures)
    return iterate(training, epoch, first_step)


def picture_stream(pictures: Pictures, image_ids: Sequence[str], batch_size: int) -> Iterator[Any]:
    """All images once, in order, by the means of Keras' backend."""
    if _on_tensorflow():
        return drain(eval_batches(pictures, image_ids, batch_size), pictures)
    return iterate_images(pictures, image_ids, batch_size)


def _on_tensorflow() -> bool:
    return bool(require("keras", "train").backend.backend() == "tensorflow")


def iterate(training: TrainingSet, epoch: int, first_step: int = 0) -> Iterator[Batch]:
    """The batches of `train_batches` without TensorFlow."""
    order, seeds = _from_step(training, epoch, first_step)
    size = training.batch_size
    jobs = [(training.load, position, seed) for position, seed in zip(order, seeds, strict=True)]
    for number, examples in enumerate(_stacked(jobs, size)):
        yield examples, training.targets[order[number * size : (number + 1) * size]], np.ones(size, np.float32)


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
