"""The train section → what moves the weights: optimiser, learning rate of each step, moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from rsna_kit.config import TrainConfig
from rsna_kit.runtime.lazy import require

MOMENTUM = 0.9  # of SGD, in Nesterov's form


def build_optimizer(trained: Any, train: TrainConfig, replicas: int = 1) -> Any:
    """The optimiser of the train section, built for a model's trainable variables.

    `adamw`: Adam with decoupled weight decay (Loshchilov and Hutter, Decoupled weight decay regularization, 2019).
    `sgd`: Nesterov momentum 0.9 with the same decay. `adam`: Kingma and Ba, 2015, which knows no decay:
    `weight_decay` is not used. Nothing with fewer than two dimensions decays: biases, scales and shifts of
    normalisation, LayerScale, the exponent of a pooling.

    Args:
        trained: keras.Model.
        train: `optimizer`, `learning_rate`, `weight_decay`, `clip_norm` and `precision` are used.
        replicas: how many devices share a batch. Keras clips the gradient of each before they are summed, so each may
            be `clip_norm / replicas` long: the sum is never longer than `clip_norm`.

    Returns:
        keras.optimizers.Optimizer; with mixed_float16 it scales the loss.
    """
    optimizers = require("keras", "train").optimizers
    clip = {"global_clipnorm": train.clip_norm / replicas} if train.clip_norm else {}
    if train.optimizer == "adamw":
        optimizer = optimizers.AdamW(train.learning_rate, weight_decay=train.weight_decay, **clip)
    elif train.optimizer == "adam":
        optimizer = optimizers.Adam(train.learning_rate, **clip)
    else:
        decay = train.weight_decay or None
        optimizer = optimizers.SGD(train.learning_rate, momentum=MOMENTUM, nesterov=True, weight_decay=decay, **clip)
    flat = [variable for variable in trained.trainable_variables if len(variable.shape) < 2]
    optimizer.exclude_from_weight_decay(var_list=flat)
    if train.precision == "mixed_float16":
        optimizer = _loss_scale()(optimizer)
    optimizer.build(trained.trainable_variables)
    return optimizer


@cache
def _loss_scale() -> Any:
    """Keras' LossScaleOptimizer, which asks only the first replica whether a step's gradients are finite.

    An overflow on another replica would be added to the weights (Keras 3.13). This one asks all of them.
    """
    keras = require("keras", "train")
    if keras.backend.backend() != "tensorflow":  # replicas are TensorFlow's
        return keras.optimizers.LossScaleOptimizer
    tensorflow = require("tensorflow", "train")

    class LossScale(keras.optimizers.LossScaleOptimizer):  # type: ignore[name-defined]
        """Skips a step that is not finite on any replica."""

        def _tf_apply(self, grads: Any, trainable_variables: Any = None) -> None:
            def across(strategy: Any, grads: Any, variables: Any) -> None:
                each = strategy.extended.call_for_each_replica
                finite = strategy.experimental_local_results(each(self.check_finite, args=(grads,)))
                keras.ops.cond(
                    tensorflow.reduce_all(tensorflow.stack(finite)),
                    lambda: each(self._stateful_handle_finite_grads, args=(grads, variables)),
                    self._stateful_handle_non_finite_grads,
                )

            replica = tensorflow.distribute.get_replica_context()
            if replica is None or replica.num_replicas_in_sync == 1:
                super()._tf_apply(grads, trainable_variables)
            else:
                replica.merge_call(across, args=(grads, trainable_variables))

    return LossScale


def learning_rate_at(step: int, total: int, peak: float, warmup_share: float) -> float:
    """Linear warm-up to `peak`, then a cosine that would reach 0 at step `total` (Loshchilov and Hutter, SGDR, 2017).

    Example:
        >>> [round(learning_rate_at(step, 10, 1.0, 0.2), 3) for step in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.038]
    """
    warmup = round(warmup_share * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


class WeightAverage:
    """Exponential moving average of a model's weights (Polyak and Juditsky, 1992), for validation and for keeping.

    The moving statistics of batch normalisation are averaged beside the weights, as in the reference EfficientNet
    (github.com/tensorflow/tpu, `get_ema_vars`): statistics of today's weights do not fit the average of yesterday's.
    In the first steps the momentum is (1 + n) / (10 + n) where that is less (`tf.train.ExponentialMovingAverage`),
    so the random start is forgotten soon.

    Args:
        model: keras.Model; all its floating-point weights are averaged, seeds and metrics are not.
        momentum: of the average, in [0, 1).
    """

    def __init__(self, model: Any, momentum: float) -> None:
        self._momentum, self._variables = momentum, [w for w in model.weights if "float" in str(w.dtype)]
        self._averages: list[Any] = []
        self.start()

    def start(self) -> None:
        """Begin at the weights as they are."""
        self.load([np.array(variable) for variable in self._variables])

    def load(self, averages: Sequence[np.ndarray]) -> None:
        """Go on from averages that `arrays` gave."""
        convert = require("keras", "train").ops.convert_to_tensor
        self._averages = [convert(np.array(average)) for average in averages]

    def arrays(self) -> list[np.ndarray]:
        """The averages, in the order of the model's weights."""
        return [np.asarray(average) for average in self._averages]

    def update(self, step: int) -> None:
        """Move towards the weights; `step` counts from 0 at the start."""
        ops = require("keras", "train").ops
        share = 1 - min(self._momentum, (1 + step) / (10 + step))
        values = [ops.convert_to_tensor(variable) for variable in self._variables]
        self._averages = list(_blend()(self._averages, values, ops.convert_to_tensor(share, "float32")))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averages inside, its own weights again afterwards."""
        raw = [np.array(variable) for variable in self._variables]
        for variable, average in zip(self._variables, self.arrays(), strict=True):
            variable.assign(average)
        try:
            yield
        finally:
            for variable, value in zip(self._variables, raw, strict=True):
                variable.assign(value)


@cache
def _blend() -> Callable[..., list[Any]]:
    """`averages + share * (values - averages)` as one call: a weight that does not move stays what it is, exactly."""

    def blend(averages: list[Any], values: list[Any], share: Any) -> list[Any]:
        return [average + share * (value - average) for average, value in zip(averages, values, strict=True)]

    backend = require("keras", "train").backend.backend()
    if backend == "tensorflow":
        return require("tensorflow", "train").function(blend)
    if backend == "jax":
        return require("jax", "train").jit(blend)
    return blend
