"""Pictures → feature maps, computed once: what a head learns from while the trunk is frozen.

The trunk costs some fifty times what the head costs. Frozen, it gives the same map for the same picture in every
epoch and every fold, so the maps are computed once and kept as float16 (three decimal digits), where they fit into
`CACHE_BYTES`. Of the augmentations only the flip can be kept too, as a second map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from rsna_kit.config import Config
from rsna_kit.data.augment import flips
from rsna_kit.data.batches import Pictures, picture_stream
from rsna_kit.runtime.clock import Clock, format_duration
from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.events import Events

CACHE_BYTES = 4 << 30


def fits(shape: Sequence[int], count: int, augment: str) -> bool:
    """Whether `count` maps of a shape fit in memory, and the recipe changes pictures by flips at most."""
    return augment in ("flip", "none") and 2 * math.prod(shape) * count * (1 + (augment == "flip")) <= CACHE_BYTES


class FeatureMaps:
    """The feature maps of all pictures, and of their mirror images where the recipe flips; in the place of `Pictures`.

    Args:
        trunk: pictures uint8 (up to B, h, w, 1) to their maps float (up to B, h', w', c).
        shape: (h', w', c).
        pictures: where the pictures come from.
        image_ids: all pictures that will be asked for.
        config: its data and infer sections are used.
        events: shows progress.
        clock: the time that is left.

    Raises:
        RsnaKitError: the maps would take longer than that.
    """

    def __init__(
        self,
        trunk: Callable[[np.ndarray], np.ndarray],
        shape: Sequence[int],
        pictures: Pictures,
        image_ids: Sequence[str],
        config: Config,
        events: Events,
        clock: Clock,
    ) -> None:
        self._row = {image_id: row for row, image_id in enumerate(image_ids)}
        self._flip = config.data.augment == "flip"
        self._maps = np.empty((1 + self._flip, len(image_ids), *shape), np.float16)
        begun, done, total = clock.elapsed_s(), 0, len(image_ids)
        with events.progress(total, "features") as progress:
            for batch in picture_stream(pictures, image_ids, config.infer.batch_size):
                rows = slice(done, done + len(batch))
                for mirrored in range(1 + self._flip):
                    self._maps[mirrored, rows] = trunk(batch[:, ::-1] if mirrored else batch)
                done += len(batch)
                progress.advance(len(batch))
                needed = (clock.elapsed_s() - begun) / done * (total - done)
                if needed > clock.remaining_s():
                    raise RsnaKitError(
                        f"the maps of {total} pictures need {format_duration(needed)} more, the time limit leaves "
                        f"{format_duration(max(clock.remaining_s(), 0))}. Give more time or a smaller image section."
                    )

    def __getitem__(self, image_id: str) -> np.ndarray:
        """The map of a picture as it is: float32 (h', w', c)."""
        return self._maps[0, self._row[image_id]].astype(np.float32)

    def augmented(self, image_id: str, seed: int) -> np.ndarray:
        """The map of a picture as training sees it."""
        return self._maps[int(self._flip and flips(seed)), self._row[image_id]].astype(np.float32)
