"""Pictures → feature maps, computed once: what a head learns from while the trunk is frozen.

The trunk costs some fifty times what the head costs. Frozen, it gives the same map for the same picture in every
epoch and every fold, so the maps are computed once and kept as float16 (three decimal digits, far finer than the
noise of dropout). Of the augmentations only the flip can be kept too, as a second map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rsna_kit.config import Config
from rsna_kit.data.augment import flips
from rsna_kit.data.batches import Batch, Pictures, TrainingSet
from rsna_kit.runtime.clock import Clock, format_duration
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.events import Events

CACHE_BYTES = 4 << 30


class FeatureMaps:
    """The feature maps of all pictures, and of their mirror images where the recipe flips.

    Args:
        trunk: keras.Model, uint8 (B, h, w, 1) to float (B, h', w', c).
        pictures: where the pictures come from.
        image_ids: all pictures that will be asked for.
        config: its data, infer and train sections are used.
        events: shows progress.
        clock: the time that is left.

    Raises:
        RsnaKitError: the maps would take longer than that.
    """

    def __init__(
        self, trunk: Any, pictures: Pictures, image_ids: Sequence[str], config: Config, events: Events, clock: Clock
    ) -> None:
        self._row = {image_id: row for row, image_id in enumerate(image_ids)}
        self._flip = config.data.augment == "flip"
        shape = tuple(trunk.output.shape[1:])
        self._maps = np.empty((1 + self._flip, len(image_ids), *shape), np.float16)
        size = config.infer.batch_size
        padded = np.zeros((size, *pictures.shape), np.uint8)
        begun = clock.elapsed_s()
        with events.progress(self._maps.shape[0] * len(image_ids), "features") as progress:
            for mirrored, maps in enumerate(self._maps):
                for start in range(0, len(image_ids), size):
                    part = image_ids[start : start + size]
                    for row, image_id in enumerate(part):
                        picture = pictures[image_id]
                        padded[row] = (picture[::-1] if mirrored else picture)[..., None]
                    maps[start : start + size] = np.asarray(trunk.predict_on_batch(padded))[: len(part)]
                    progress.advance(len(part))
                    needed = (clock.elapsed_s() - begun) / progress.done * (progress.total - progress.done)
                    if needed > clock.remaining_s():
                        raise RsnaKitError(
                            f"the maps of {len(image_ids)} pictures need {format_duration(needed)} more, the time "
                            f"limit leaves {format_duration(max(clock.remaining_s(), 0))}. Give more time or a smaller "
                            "image section."
                        )

    @staticmethod
    def fit(trunk: Any, count: int, config: Config) -> bool:
        """Whether `count` pictures' maps fit in memory and the recipe changes pictures only by flips."""
        if config.data.augment not in ("flip", "none"):
            return False
        size = int(np.prod(trunk.output.shape[1:])) * 2 * count * (1 + (config.data.augment == "flip"))
        return size <= CACHE_BYTES

    def training_stream(self, training: TrainingSet, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `first_step` on.

        Yields:
            float32 (B, h', w', c) or, of breasts, (B, V, h', w', c) where the map of a missing view is all 0; float32
            targets (B, K); float32 weights (B,).
        """
        order, seeds = training.plan(epoch)
        for start in range(first_step * training.batch_size, len(order), training.batch_size):
            part = slice(start, start + training.batch_size)
            pairs = zip(order[part], seeds[part], strict=True)
            maps = np.stack([self._example(training, position, seed) for position, seed in pairs])
            yield maps, training.targets[order[part]], np.ones(len(maps), np.float32)

    def _example(self, training: TrainingSet, position: int, seed: int) -> np.ndarray:
        """What `training.load` would give, as maps."""
        views = training.views(position, seed)
        mirrored = [int(self._flip and flips(own)) for _, own in views]
        maps = self._maps[mirrored, [self._row[image_id] for image_id, _ in views]].astype(np.float32)
        missing = [(0, training.view_count - len(views))] + [(0, 0)] * (maps.ndim - 1)
        return np.pad(maps, missing) if training.view_count else maps[0]

    def stream(self, image_ids: Sequence[str], batch_size: int) -> Iterator[np.ndarray]:
        """The maps of these pictures once, in order: float32 (up to B, h', w', c)."""
        for start in range(0, len(image_ids), batch_size):
            rows = [self._row[image_id] for image_id in image_ids[start : start + batch_size]]
            yield self._maps[0, rows].astype(np.float32)
