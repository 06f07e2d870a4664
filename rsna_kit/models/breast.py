"""A network for one view → the same network for all views of a breast, pooled into one logit.

Each view gives a logit and an attention, and the breast's logit is their sum weighted by the softmax of the attention
over the views that are there. That is attention-based multiple-instance learning (Ilse, Tomczak and Welling, Attention-
based deep multiple instance learning, 2018) with a linear classifier: the logit of the weighted mean of features is the
weighted mean of logits. So views can be scored one by one, and `rsna_kit.scoring.breasts.to_breasts` gives from those
scores what was trained, for any number of views. With the attention 0 everywhere it is the mean of logits.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from rsna_kit.config import ImageConfig, ModelConfig
from rsna_kit.models.classifier import build_classifier
from rsna_kit.runtime.lazy import require

_NEVER = -1e9  # attention of a missing view: its softmax is 0, and where every view is missing nothing is divided by 0


def build_view_network(model: ModelConfig, image: ImageConfig) -> Any:
    """The network that scores one view of a breast; it is what a bundle holds.

    Returns:
        keras.Model: uint8 (B, h, w, 1) to float32 (B, 2), logit and attention. With `view_pool="mean"` the attention
        is 0 and nothing is learned for it.
    """
    keras = require("keras", "train")
    if model.view_pool == "attention":
        return build_classifier(model, image, extra=1)
    network = build_classifier(model, image)
    even = keras.ops.zeros_like(network.output)
    columns = keras.layers.Concatenate(name="columns", dtype="float32")([network.output, even])
    return keras.Model(network.input, columns, name=network.name)


def over_views(scorer: Any) -> Any:
    """One network for all views of a breast.

    Args:
        scorer: keras.Model, (B, *shape) to float (B, 2 + K): logit, attention, logits of K further targets.

    Returns:
        keras.Model that shares its weights: (B, V, *shape) of any V to float32 (B, 1 + K), the breast's logits. A view
        that is all 0 is missing, a breast's first view never is. Where all are missing, they count alike.
    """
    keras = require("keras", "train")
    views = keras.Input((None, *scorer.input.shape[1:]), dtype=scorer.input.dtype, name="views")
    return keras.Model(views, _over_views_layer()(scorer, name="over_views")(views), name="breast")


def pool_views(columns: Any, present: Any) -> Any:
    """Logits of breasts from those of their views.

    Args:
        columns: float (B, V, 2 + K): logit, attention, further logits.
        present: bool (B, V); a missing view has no influence and gets no gradient.

    Returns:
        float (B, 1 + K): each logit weighted by the softmax of the attention over the views that are there.
    """
    ops = require("keras", "train").ops
    attention = ops.where(present, columns[..., 1], _NEVER)
    # Not ops.softmax, which warns where there is one view.
    share = ops.exp(attention - ops.logsumexp(attention, axis=1, keepdims=True))[..., None]
    logits = ops.concatenate([columns[..., :1], columns[..., 2:]], axis=-1)
    return ops.sum(share * logits, axis=1)


@cache
def _over_views_layer() -> Any:
    """The layer's class; Keras is not there when this module is imported."""
    keras = require("keras", "train")
    ops = keras.ops

    class OverViews(keras.layers.Layer):  # type: ignore[name-defined]
        """Runs `scorer` on every view and pools."""

        def __init__(self, scorer: Any, **options: Any) -> None:
            super().__init__(dtype="float32", **options)
            self.scorer = scorer

        def call(self, views: Any, training: bool | None = None) -> Any:
            flat = ops.reshape(views, (-1, ops.shape(views)[1], math.prod(views.shape[2:])))
            present = ops.any(ops.not_equal(flat, 0), axis=2)
            # Black pictures would drag the statistics of batch normalisation: the first view stands in for a missing
            # one, and has no influence there.
            filled = ops.where(present[..., None], flat, flat[:, :1])
            columns = self.scorer(ops.reshape(filled, (-1, *views.shape[2:])), training=training)
            return pool_views(ops.reshape(columns, (-1, ops.shape(views)[1], columns.shape[-1])), present)

        def compute_output_shape(self, shape: Any) -> Any:
            return shape[0], self.scorer.output.shape[-1] - 1

    return OverViews
