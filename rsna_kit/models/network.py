"""A configuration → the network that travels in a bundle: one picture in, its logit out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rsna_kit.config import Config, ImageConfig
from rsna_kit.models.breast import build_view_network
from rsna_kit.models.classifier import build_classifier
from rsna_kit.models.cvae import build_cvae
from rsna_kit.runtime.lazy import require


def build_network(config: Config, image: ImageConfig) -> Any:
    """The network that travels in a bundle, with random weights.

    Args:
        config: its model and cvae sections are used.
        image: size of the input.

    Returns:
        keras.Model: uint8 (B, h, w, 1) to float32 (B, 1), a logit; for breast-level models (B, 2), logit and attention.
    """
    if config.model.kind == "cvae":
        return build_cvae(config.cvae, image).network
    if config.model.kind == "breast":
        return build_view_network(config.model, image)
    return build_classifier(config.model, image)


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Keras' global policy while a network is built: layers made inside compute so, their variables stay float32.

    Args:
        name: as `train.precision`.
    """
    keras = require("keras", "train")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
