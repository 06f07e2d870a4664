"""A compiled model and a batch → one training step or one prediction, on one device or shared by all of them.

Sharing is TensorFlow's MirroredStrategy (with JAX, Keras' DataParallel): every device holds the weights, takes its part
of the batch, and gradients are summed. Keras' `train_on_batch` would give each device the whole batch, so the parts are
cut here. Batch normalisation sees the part that is computed at once, as it does with every data-parallel trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from rsna_kit.config import Config, TrainConfig
from rsna_kit.models.devices import find_devices, has_tensor_cores
from rsna_kit.runtime.errors import DeviceMemoryError, UsageError, out_of_memory
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.lazy import require

MOMENTUM = 0.9  # of SGD, in Nesterov's form
WARMUP_SHARE = 0.1  # of all steps


def build_schedule(peak: float, total: int) -> Callable[[int], float]:
    """Learning rate of each step, counted from 0: linear warm-up to `peak`, then a cosine that reaches 0 at `total`.

    Loshchilov and Hutter, SGDR, 2017, as Keras computes it.
    """
    warmup = max(round(WARMUP_SHARE * total) - 1, 0)  # steps before the one at `peak`; the first is not 0
    target = {"warmup_target": peak, "warmup_steps": warmup} if warmup else {}
    device, cosine = require("keras", "train").device, require("keras", "train").optimizers.schedules.CosineDecay
    schedule = cosine(peak / (warmup + 1), total - warmup, **target)

    def rate(step: int) -> float:
        with device("cpu:0"):  # a GPU would first have to finish the steps it was given
            return float(schedule(step))

    return rate


def build_optimizer(trained: Any, train: TrainConfig, replicas: int = 1) -> Any:
    """The optimiser of the train section, built for a model's trainable variables.

    `adamw`: Adam with decoupled weight decay (Loshchilov and Hutter, Decoupled weight decay regularization, 2019).
    `sgd`: Nesterov momentum 0.9 with the same decay. `adam`: Kingma and Ba, 2015, which knows no decay:
    `weight_decay` is not used. Nothing with fewer than two dimensions decays: biases, scales and shifts of
    normalisation, LayerScale, the exponent of a pooling.

    Args:
        trained: keras.Model.
        train: `optimizer`, `learning_rate`, `weight_decay`, `clip_norm`, `ema` and `precision` are used.
        replicas: how many devices share a batch. Keras clips the gradient of each before they are summed, so each may
            be `clip_norm / replicas` long: the sum is never longer than `clip_norm`.

    Returns:
        keras.optimizers.Optimizer; with mixed_float16 it scales the loss. With `ema` it averages the trainable weights,
        from the first step on, without those that are not trained (moving statistics).
    """
    optimizers = require("keras", "train").optimizers
    options: dict[str, Any] = {"global_clipnorm": train.clip_norm / replicas} if train.clip_norm else {}
    if train.ema:
        options |= {"use_ema": True, "ema_momentum": train.ema}
    if train.optimizer == "adamw":
        optimizer = optimizers.AdamW(train.learning_rate, weight_decay=train.weight_decay, **options)
    elif train.optimizer == "adam":
        optimizer = optimizers.Adam(train.learning_rate, **options)
    else:
        options |= {"momentum": MOMENTUM, "nesterov": True, "weight_decay": train.weight_decay or None}
        optimizer = optimizers.SGD(train.learning_rate, **options)
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


def settle_precision(config: Config, say: Callable[[str], None]) -> Config:
    """`train.precision=auto` as what it comes to on this machine.

    That is mixed_float16 where TensorFlow has GPUs and all of them have tensor cores (compute capability 7.0), else
    float32; for a CVAE always float32, whose likelihood was never tried with less. `say` is told of broken GPUs.
    """
    if config.train.precision != "auto":
        return config
    half = config.model.kind != "cvae" and has_tensor_cores(find_devices(say))
    return replace(config, train=replace(config.train, precision="mixed_float16" if half else "float32"))


class Replicas:
    """The devices that work together; `count` of them.

    `train.devices` is `"one"`, or `"auto"`: all GPUs of this machine, or where it has none all logical CPU devices,
    which is one unless the framework was told to split it. With JAX all its devices share a batch by
    `keras.distribution.DataParallel`, which was never measured on more than simulated ones.

    Args:
        config: its train section; the others are named when memory is too small.
        events: told what is used.

    Raises:
        UsageError: a batch that cannot be cut into `train.accumulate` parts.
    """

    def __init__(self, config: Config, events: Events) -> None:
        keras = require("keras", "train")
        train, self._backend = config.train, keras.backend.backend()
        if train.batch_size % train.accumulate or (train.accumulate > 1 and self._backend != "tensorflow"):
            raise UsageError(
                f"train.accumulate: got {train.accumulate}, expected what divides train.batch_size="
                f"{train.batch_size}, and Keras' TensorFlow backend, not {self._backend}"
            )
        self._config, self.count, self._strategy = config, 1, None
        self._functions: dict[int, Any] = {}
        self._stage = 0
        names, part = ["one"], train.batch_size // train.accumulate
        if train.devices == "auto":
            jax = self._backend == "jax"
            names = list(keras.distribution.list_devices()) if jax else find_devices(events.say)
        while part % len(names):
            names.pop()
        if len(names) < 2:
            return
        self.count = len(names)
        if self._backend == "jax":
            keras.distribution.set_distribution(keras.distribution.DataParallel(devices=names))
        else:
            self._strategy = _strategy(tuple(names))
        events.say(f"{self.count} devices, each takes {part // self.count} of a batch of {part}")

    def scope(self) -> AbstractContextManager[Any]:
        """Models and optimisers are made inside."""
        return nullcontext() if self._strategy is None else self._strategy.scope()

    def train_step(self, model: Any, images: Any, targets: Any, weights: Any) -> Any:
        """One step of a compiled model; the mean loss of the batch, a number that a GPU may still be computing.

        Raises:
            DeviceMemoryError: the device has too little memory.
        """
        model.reset_metrics()
        with self._enough_memory("train.batch_size", images):
            if self._backend != "tensorflow":
                return model.train_on_batch(images, targets, sample_weight=weights, return_dict=True)["loss"]
            parts = self._config.train.accumulate
            for number in range(parts):
                part = slice(number * len(images) // parts, (number + 1) * len(images) // parts)
                batch = tuple(self._share(values[part]) for values in (images, targets, weights))
                logs = self._function(model, number)(iter([batch]))
            return logs["loss"]

    def _function(self, model: Any, number: int) -> Any:
        """Keras' function for a part of a batch; the last part's moves the weights by the mean of all gradients.

        Keras' own accumulation stands inside the optimiser: under MirroredStrategy it cannot be traced, it averages
        weights (EMA) at every part, and an overflow of float16 shifts it against the batches. Summed before the
        optimiser, a batch in parts is one step to it.
        """
        parts = self._config.train.accumulate
        if parts == 1:
            model.make_train_function()
            return model.train_function
        if not self._functions:
            model.optimizer.apply_gradients = self._gathering(model)
        self._stage = 2 if number == parts - 1 else min(number, 1)
        if self._stage not in self._functions:
            model.make_train_function(force=True)
            self._functions[self._stage] = model.train_function
        return self._functions[self._stage]

    def _gathering(self, model: Any) -> Callable[[Any], None]:
        """What stands in the place of the optimiser's `apply_gradients`; `_stage` decides when a function is traced."""
        tensorflow, parts = require("tensorflow", "train"), self._config.train.accumulate
        own = {"synchronization": tensorflow.VariableSynchronization.ON_READ}  # each device sums its own
        own["aggregation"] = tensorflow.VariableAggregation.SUM
        with self.scope():
            zeros = [tensorflow.zeros(kept.shape, kept.dtype) for kept in model.trainable_variables]
            sums = [tensorflow.Variable(value, trainable=False, **own) for value in zeros]
        apply = model.optimizer.apply_gradients

        def gather(pairs: Any) -> None:
            gradients, variables = zip(*pairs, strict=True)
            if self._stage == 2:
                means = [
                    new if new is None else (kept + new) / parts for kept, new in zip(sums, gradients, strict=True)
                ]
                apply(zip(means, variables, strict=True))
                return
            for kept, new in zip(sums, gradients, strict=True):
                if new is not None:
                    (kept.assign_add if self._stage else kept.assign)(new)

        return gather

    def predict(self, model: Any, batch: np.ndarray) -> np.ndarray:
        """Outputs of up to `infer.batch_size` examples; the batch is padded, so that one shape is traced.

        Raises:
            DeviceMemoryError: the device has too little memory.
        """
        size = -(-self._config.infer.batch_size // self.count) * self.count
        padded = np.zeros((size, *batch.shape[1:]), batch.dtype)
        padded[: len(batch)] = batch
        with self._enough_memory("infer.batch_size", batch):
            if self._strategy is None:  # JAX shares by itself
                predicted = model.predict_on_batch(padded)
            else:
                model.make_predict_function()
                predicted = model.predict_function([(self._share(padded),)])
            return np.asarray(predicted)[: len(batch)]

    def _share(self, values: Any) -> Any:
        """The rows of each device."""
        if self._strategy is None:
            return values
        tensorflow = require("tensorflow", "train")
        part = len(values) // self.count

        def rows(context: Any) -> Any:
            first = context.replica_id_in_sync_group * part
            return tensorflow.convert_to_tensor(values[first : first + part])

        return self._strategy.experimental_distribute_values_from_function(rows)

    @contextmanager
    def _enough_memory(self, key: str, batch: Any) -> Iterator[None]:
        """Turn a device's "out of memory" into an error that says what asked for it and what to try."""
        try:
            yield
        except Exception as error:
            if not out_of_memory(error):
                raise
            size, model, precision = len(batch), self._config.model, self._config.train.precision
            parts = self._config.train.accumulate if key == "train.batch_size" else 1
            smaller = f"Try --set {key}={size // 2}"
            if parts < size and key == "train.batch_size":
                smaller += f", or the same batch in parts, --set train.accumulate={2 * parts}"
            if size < 2:
                smaller = "Prepare smaller images (image.height, image.width) or take a smaller backbone"
            half = ", or --set train.precision=mixed_float16, which takes half of it" if precision == "float32" else ""
            raise DeviceMemoryError(
                f"the device has too little memory for {key}={size}: {model.backbone} in {precision}, a batch "
                f"{tuple(batch.shape)}. {smaller}{half}."
            ) from error


@cache
def _strategy(names: tuple[str, ...]) -> Any:
    """One for a process: the collective operations of a second one would be taken for those of the first."""
    return require("tensorflow", "train").distribute.MirroredStrategy(list(names))


def read_values(variables: Sequence[Any]) -> list[np.ndarray]:
    """Copies of the values of Keras variables."""
    return [np.array(variable) for variable in variables]


def assign_values(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    """Put the values back, in the same order."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
