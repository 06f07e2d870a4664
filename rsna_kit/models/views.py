"""A network for one view → the same network for all views of a breast, pooled into one logit.

Each view gives a logit and an attention, and the breast's logit is their sum weighted by the softmax of the attention
over the views that are there. That is attention-based multiple-instance learning (Ilse, Tomczak and Welling, Attention-
based deep multiple instance learning, 2018) with a linear classifier: the logit of the weighted mean of features is the
weighted mean of logits. So views can be scored one by one, and `rsna_kit.scoring.breasts.to_breasts` gives from those
scores what was trained, for any number of views. With the attention 0 everywhere it is the mean of logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from rsna_kit.runtime.errors import UsageError, did_you_mean
from rsna_kit.runtime.lazy import require

_NEVER = -1e9  # attention of a missing view: its softmax is 0, and where every view is missing nothing is divided by 0

# How the views of a breast are pooled: (logit (B, 1), the features that it is made of (B, c)) → attention float (B, 1).
# To add one, add its line; training, bundles and scoring know of nothing but the attention.
POOLINGS: Mapping[str, Callable[[Any, Any], Any]] = {
    "attention": lambda logit, features: _keras().layers.Dense(1, dtype="float32", name="attention")(features),
    "mean": lambda logit, features: _keras().ops.zeros_like(logit),
}


def check_pooling(name: str) -> None:
    """Refuse a pooling of views that there is not.

    Raises:
        UsageError: unknown name, with the nearest known one.
    """
    if name not in POOLINGS:
        raise UsageError(
            f"model.view_pool: got {name!r}, expected one of {', '.join(POOLINGS)}.{did_you_mean(name, POOLINGS)}"
        )


def with_attention(classifier: Any, pooling: str) -> Any:
    """The network that scores one view of a breast; it is what a bundle holds.

    Args:
        classifier: uint8 (B, h, w, 1) to float32 (B, 1), from a layer `logit`.
        pooling: one of `POOLINGS`.

    Returns:
        keras.Model: uint8 (B, h, w, 1) to float32 (B, 2), logit and attention.

    Raises:
        UsageError: an unknown pooling.
    """
    check_pooling(pooling)
    attention = POOLINGS[pooling](classifier.output, classifier.get_layer("logit").input)
    columns = _keras().layers.Concatenate(name="columns", dtype="float32")([classifier.output, attention])
    return _keras().Model(classifier.input, columns, name=classifier.name)


def over_views(scorer: Any) -> Any:
    """One network for all views of a breast.

    Args:
        scorer: keras.Model, (B, *shape) to float (B, 2 + K): logit, attention, logits of K further targets.

    Returns:
        keras.Model that shares its weights: (B, V, *shape) of any V to float32 (B, 1 + K), the breast's logits. A view
        that is all 0 is missing, a breast's first view never is. Where all are missing, they count alike.
    """
    keras = _keras()
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
    ops = _keras().ops
    attention = ops.where(present, columns[..., 1], _NEVER)
    # Not ops.softmax, which warns where there is one view.
    share = ops.exp(attention - ops.logsumexp(attention, axis=1, keepdims=True))[..., None]
    logits = ops.concatenate([columns[..., :1], columns[..., 2:]], axis=-1)
    return ops.sum(share * logits, axis=1)


@cache
def _over_views_layer() -> Any:
    """The layer's class; Keras is not there when this module is imported."""
    keras = _keras()
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


def _keras() -> Any:
    return require("keras", "train")
