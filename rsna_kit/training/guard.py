"""A fold's labels, a batch, a loss, a device's complaint → nothing, or an error that says where and what to do."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.config import Config
from rsna_kit.data.batches import TrainingSet
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.lazy import require

WINDOW = 10  # batches whose mean loss is compared
DIVERGED = 20.0  # times the mean of the first batches, or times 1 where that is less: no training recovers from there


def check_fold(table: pd.DataFrame, fold: int, kind: str) -> None:
    """Refuse a fold that cannot be trained or judged, before any time is spent on it.

    Args:
        table: columns cancer and fold.
        fold: number of the validation fold.
        kind: `model.kind`; a CVAE trains on healthy pictures alone.

    Raises:
        RsnaKitError: no validation rows, or rows of only one class in either part.
    """
    held = table["fold"] == fold
    if not held.any():
        raise RsnaKitError(f"fold {fold}: no validation images; folds are {sorted(table['fold'].unique())}")
    for part, labels in (("training", table.loc[~held, "cancer"]), ("validation", table.loc[held, "cancer"])):
        cancers = int(labels.sum())
        healthy_will_do = kind == "cvae" and part == "training" and cancers < len(labels)
        if cancers in (0, len(labels)) and not healthy_will_do:
            raise RsnaKitError(
                f"fold {fold}: {cancers} of {len(labels)} {part} images have cancer, expected both classes. "
                "Use more patients, fewer folds (train.folds) or another train.seed."
            )


def batch_ids(training: TrainingSet, epoch: int, step: int) -> list[str]:
    """Image ids of a batch; `step` counts from 0."""
    part = slice(step * training.batch_size, (step + 1) * training.batch_size)
    order, seeds = training.plan(epoch)
    pairs = zip(order[part], seeds[part], strict=True)
    return [image_id for position, seed in pairs for image_id, _ in training.views(position, seed)]


def says_nothing(images: Any) -> bool:
    """Whether every example of a batch is one constant, or all examples are the same: nothing can be learned from it.

    Args:
        images: pictures uint8 (B, h, w, 1), views (B, V, h, w, 1) or feature maps.
    """
    batch = np.asarray(images)
    flat = batch.reshape(len(batch), -1)
    if not (flat[:, ::97] == flat[:, :1]).all() and not (flat[:, ::97] == flat[:1, ::97]).all():
        return False  # a few pixels are enough to see that there is something
    return bool((flat == flat[:, :1]).all() or (flat == flat[:1]).all())


class LossGuard:
    """Sees the loss of every batch and knows when the training has gone wrong."""

    def __init__(self, first: Sequence[float] = ()) -> None:
        self.first = list(first)
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._before = (0, 0.0)  # batches of this epoch, and the sum of their losses

    def complaint(self, mean: float, count: int) -> str:
        """What is wrong, or an empty string.

        Args:
            mean: loss over the `count` batches of this epoch so far, as Keras reports it.
            count: at least 1.
        """
        if not math.isfinite(mean):
            return f"the loss is {mean}, expected a finite number"
        known, total = self._before if self._before[0] == count - 1 else (0, 0.0)
        loss = mean * count - total if known or count == 1 else mean
        self._before = (count, mean * count)
        if len(self.first) < WINDOW:
            self.first.append(loss)
            return ""
        self._recent.append(loss)
        limit = DIVERGED * max(1.0, sum(self.first) / WINDOW)
        recent = sum(self._recent) / len(self._recent)
        if len(self._recent) == WINDOW and recent > limit:
            return (f"the loss has grown to {recent:.4g}, mean of {WINDOW} batches; the first {WINDOW} had "
                    f"{sum(self.first) / WINDOW:.4g}")  # fmt: skip
        return ""


@contextmanager
def enough_memory(config: Config, network: Any, key: str, batch_size: int, note: str) -> Iterator[None]:
    """Turn a device's "out of memory" into an error that says what asked for it and what would fit.

    Args:
        config: all sections.
        network: the model of one picture; the outputs of its layers are what takes the memory.
        key: the configuration key of the batch size, `train.batch_size` or `infer.batch_size`.
        batch_size: its value.
        note: what was going on.

    Raises:
        RsnaKitError: in place of TensorFlow's ResourceExhaustedError and JAX's RESOURCE_EXHAUSTED.
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        image, half = config.image, config.train.precision != "float32"
        views = config.model.views if config.model.kind == "breast" and key == "train.batch_size" else 1
        each = picture_bytes(network, 2 if half else 4) * views
        there = device_bytes()
        fits = max(min(batch_size // 2, int(0.8 * there / each) if there else batch_size), 1)
        known = f" The device gave {there / 2**30:.1f} GiB." if there else ""
        smaller = f"Try --set {key}={fits} (about {fits * each / 2**30:.1f} GiB)"
        if batch_size == 1:
            smaller = "One does not fit: prepare smaller images (image.height, image.width) or take a smaller backbone"
        precision = "" if half else ", or --set train.precision=mixed_float16, which takes half of it"
        raise RsnaKitError(
            f"{note}: the device has too little memory for {key}={batch_size} pictures of {image.height}x{image.width} "
            f"with {config.model.backbone} in {config.train.precision}: the outputs of its layers alone take "
            f"{each / 2**30:.2f} GiB for each, {batch_size * each / 2**30:.1f} GiB for all.{known} "
            f"{smaller}{precision}."
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether TensorFlow or JAX says that a device's memory is used up."""
    text = str(error)
    return type(error).__name__ == "ResourceExhaustedError" or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text


def picture_bytes(network: Any, item: int) -> int:
    """What the outputs of all layers take for one picture: training keeps them for the backward pass.

    Args:
        network: a functional keras.Model.
        item: bytes of a number.
    """
    shapes = [layer.output.shape[1:] for layer in network.layers if hasattr(layer.output, "shape")]
    return item * sum(math.prod(size or 1 for size in shape) for shape in shapes)


def device_bytes() -> int | None:
    """Memory that the first accelerator gave (TensorFlow: the most so far; JAX: its limit), None without one."""
    if require("keras", "train").backend.backend() == "tensorflow":
        config = require("tensorflow", "train").config
        if not config.list_logical_devices("GPU"):
            return None
        return int(config.experimental.get_memory_info("GPU:0")["peak"]) or None
    if require("keras", "train").backend.backend() == "jax":
        return int((require("jax", "train").local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)) or None
    return None
