"""Several bundles as one scorer: the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rsna_kit.config import ImageConfig, image_fingerprint
from rsna_kit.models.bundle import Bundle, load_model
from rsna_kit.runtime.errors import BundleError


def common_image(bundles: Sequence[Bundle]) -> ImageConfig:
    """The image section that all bundles share.

    Raises:
        BundleError: two bundles were trained on different images; both are named.
    """
    first = bundles[0]
    for bundle in bundles[1:]:
        if image_fingerprint(bundle.config.image) != image_fingerprint(first.config.image):
            raise BundleError(
                f"{bundle.path} was trained on {bundle.config.image}, {first.path} on {first.config.image}: "
                "bundles scored together must share one image section. Run infer once for each and average."
            )
    return first.config.image


class Ensemble:
    """Loaded models that score batches of one fixed size.

    Args:
        bundles: opened bundles that share one image section.
        batch_size: rows of every batch the models see; short batches are padded, so that each model is
            traced once.
    """

    def __init__(self, bundles: Sequence[Bundle], batch_size: int) -> None:
        self._models = [load_model(bundle) for bundle in bundles]
        self._batch_size = batch_size

    def score(self, images: np.ndarray) -> np.ndarray:
        """Mean probability over the bundles.

        Args:
            images: uint8 (N, h, w, 1), N at most `batch_size`.

        Returns:
            float64 (N,) in [0, 1].
        """
        padded = np.zeros((self._batch_size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        logits = [np.asarray(model.predict_on_batch(padded), np.float64).reshape(-1) for model in self._models]
        return np.mean([1.0 / (1.0 + np.exp(-logit)) for logit in logits], axis=0)[: len(images)]
