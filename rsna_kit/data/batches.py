"""A prepared folder → batches: uint8 (B, h, w, 1) or (B, V, h, w, 1), float32 targets (B, K), float32 weights (B,).

An example is one picture or, for a breast-level model, the V views of one breast. Order, views and augmentation are
decided by numpy from (seed, epoch, position); threads load ahead, and which of them is faster changes nothing.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np
import pandas as pd

from rsna_kit.config import Config
from rsna_kit.data.augment import build_augmentation
from rsna_kit.data.sampling import epoch_order, positives_per_batch
from rsna_kit.data.shards import Prepared, read_picture
from rsna_kit.data.targets import target_names, target_values, without_idle
from rsna_kit.runtime.hardware import cpu_count

CACHE_BYTES = 2 << 30  # decoded pictures are kept in memory when all of them fit in this
AHEAD = 2  # batches loaded before they are asked for
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


class Pictures:
    """The pictures of a prepared folder by image id; each is decoded once when all of them fit in memory.

    Args:
        prepared: the prepared folder.
        augment: what training does to them, `data.augment`.
        cache_bytes: keep decoded pictures when all of them together take at most this much.

    Raises:
        UsageError: an unknown recipe.
    """

    def __init__(self, prepared: Prepared, augment: str = "none", cache_bytes: int = CACHE_BYTES) -> None:
        self._prepared, self._augment = prepared, build_augmentation(augment)
        self._keep = len(prepared.index) * prepared.image.height * prepared.image.width <= cache_bytes
        self._kept: dict[str, np.ndarray] = {}

    def __getitem__(self, image_id: str) -> np.ndarray:
        """As it is: uint8 (h, w, 1), read-only when kept."""
        picture = self._kept.get(image_id)
        if picture is None:
            picture = read_picture(self._prepared, image_id)[..., None]
            if self._keep:
                picture.setflags(write=False)
                self._kept[image_id] = picture
        return picture

    def augmented(self, image_id: str, seed: int) -> np.ndarray:
        """As training sees it: uint8 (h, w, 1), decided by the seed."""
        return self._augment(self[image_id][..., 0], seed)[..., None]


class Examples(Protocol):
    """What `Pictures` gives, by image id: pictures, or what was made of them."""

    def __getitem__(self, image_id: str) -> np.ndarray:
        """As it is."""

    def augmented(self, image_id: str, seed: int) -> np.ndarray:
        """As training sees it."""


class TrainingSet:
    """What a kind of model learns from: examples with their targets; an epoch is an order of them and a seed for each.

    An example is one row; for kind "breast" one prediction_id, in the order in which they first appear, with the
    largest of its rows' targets (a breast has cancer when any picture says so); for kind "cvae" a row without cancer.

    `examples` are the ids of each one's pictures, `targets` float32 (N, K) in [0, 1] with NaN for missing, cancer
    first, `weights` float32 (N,) what each counts in the loss. `view_count` is the V of a breast, or 0 where an example
    is a picture. `steps` batches are an epoch. `log_odds` are the odds of cancer in what a batch teaches (its share of
    cancers, and their weight in the loss), `odds_shift` is how much that is above the odds among the examples that are
    in a fold (those of `train --extra` are in none); both natural logarithms, both 0 where there is no cancer to learn.
    `notes` are lines that say which targets were left out.

    Args:
        pictures: where the pictures come from.
        rows: rows of the training table: image_id, cancer, prediction_id for a breast-level model, the columns of
            `train.targets`, and where there are extra ones fold, -1 for them, and weight.
        config: its data, model and train sections are used.

    Raises:
        UsageError: unknown targets, or a batch too small to hold both classes.
        TableError: a target's column is absent or holds a strange cell.
        RsnaKitError: only one class, or for a CVAE no row without cancer.
    """

    def __init__(self, pictures: Examples, rows: pd.DataFrame, config: Config) -> None:
        if config.model.kind == "cvae":
            rows = rows[rows["cancer"] != 1]
        values = target_values(rows, config.train.targets)
        self.pictures, self.view_count = pictures, 0
        self.examples = [(image_id,) for image_id in rows["image_id"]]
        if config.model.kind == "breast":
            breasts = rows["prediction_id"].to_numpy()
            self.examples = [tuple(ids) for _, ids in rows["image_id"].groupby(breasts, sort=False)]
            values = pd.DataFrame(values).groupby(breasts, sort=False).max().to_numpy(np.float32)
            rows = rows.drop_duplicates("prediction_id")
            self.view_count = min(config.model.views, max(map(len, self.examples), default=1))
        self.targets, self.notes = without_idle(values, target_names(config.train.targets))
        self.weights = rows.get("weight", pd.Series(1.0, rows.index)).to_numpy(np.float32)
        self.batch_size, self._data, self._seed = config.train.batch_size, config.data, config.train.seed
        self._per_batch, self.log_odds, self.odds_shift = 0, 0.0, 0.0
        if config.model.kind != "cvae":
            labels, data = self.targets[:, 0], config.data
            self._per_batch = positives_per_batch(labels, self.batch_size, data.positive_share, data.negatives)
            heavier = config.train.cancer_weight * self.weights[labels == 1].mean() / self.weights[labels != 1].mean()
            self.log_odds = _log_odds(self._per_batch / self.batch_size) + math.log(heavier)
            own = labels[rows["fold"].to_numpy() >= 0] if "fold" in rows else labels
            self.odds_shift = self.log_odds - _log_odds(float(np.mean(own)))
        self.steps = len(self.plan(0)[0]) // self.batch_size

    def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and seeds of an epoch, both int64 (steps * batch_size,)."""
        labels, negatives = self.targets[:, 0], self._data.negatives
        order = epoch_order(labels, self.batch_size, self._per_batch, self._seed, epoch, negatives)
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
        """One augmented example, (h, w, 1) or (V, h, w, 1); a view that the breast does not have is all 0."""
        pictures = [self.pictures.augmented(name, own) for name, own in self.views(position, seed)]
        if not self.view_count:
            return pictures[0]
        missing = [np.zeros_like(pictures[0])] * (self.view_count - len(pictures))
        return np.stack([*pictures, *missing])


def training_stream(training: TrainingSet, epoch: int, first_step: int = 0) -> Iterator[Batch]:
    """The batches of one epoch from `first_step` on; those before are not loaded.

    Yields:
        uint8 (B, h, w, 1) or (B, V, h, w, 1), float32 (B, K), float32 (B,); at least one cancer in each batch, unless
        the model is a CVAE.

    Raises:
        ShardError: a damaged shard.
    """
    size = training.batch_size
    order, seeds = (values[first_step * size :] for values in training.plan(epoch))
    jobs = (partial(training.load, position, seed) for position, seed in zip(order, seeds, strict=True))
    for start, examples in zip(range(0, len(order), size), _stacked(jobs, size), strict=True):
        chosen = order[start : start + size]
        yield examples, training.targets[chosen], training.weights[chosen]


def picture_stream(pictures: Examples, image_ids: Iterable[str], batch_size: int) -> Iterator[np.ndarray]:
    """All images once, in order, as they are: uint8 (up to B, h, w, 1).

    Raises:
        ShardError: a damaged shard.
    """
    return _stacked((partial(pictures.__getitem__, image_id) for image_id in image_ids), batch_size)


def _stacked(jobs: Iterable[Callable[[], np.ndarray]], size: int) -> Iterator[np.ndarray]:
    """Results of `size` jobs at a time, stacked, in order; threads work `AHEAD` batches ahead."""
    left = iter(jobs)
    with ThreadPoolExecutor(cpu_count(), thread_name_prefix="batches") as pool:
        waiting: deque[list[Future[np.ndarray]]] = deque()
        try:
            while batch := list(itertools.islice(left, size)):
                waiting.append([pool.submit(job) for job in batch])
                if len(waiting) > AHEAD:
                    yield np.stack([future.result() for future in waiting.popleft()])
            while waiting:
                yield np.stack([future.result() for future in waiting.popleft()])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _seeds(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 2**31 - 1, count, np.int64)


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))
