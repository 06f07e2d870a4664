"""A compiled model and a batch → one training step or one prediction, on one device or shared by all of them.

Sharing is TensorFlow's MirroredStrategy: every device holds the weights, takes its part of the batch, and gradients are
summed. Keras' `train_on_batch` would give each device the whole batch, so the parts are cut here. Batch normalisation
sees the part of its device, as it does with every data-parallel trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np

from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.lazy import require


class Replicas:
    """The devices that train together.

    Args:
        devices: `train.devices`: `"one"`, or `"all"` GPUs of this machine (where it has none, all logical CPU devices,
            which is one unless TensorFlow was told to split it).
        batch_size: of the training batches; every device takes the same share.
        events: told once what is used where `"all"` was asked for.

    Raises:
        UsageError: the batch size is no multiple of the number of devices.
    """

    def __init__(self, devices: str, batch_size: int, events: Events) -> None:
        self._strategy: Any = None
        self.count = 1
        if devices != "all":
            return
        backend = require("keras", "train").backend.backend()
        if backend != "tensorflow":
            events.say(f"train.devices=all: needs Keras' TensorFlow backend, this is {backend}; one device trains")
            return
        tensorflow = require("tensorflow", "train")
        names = [d.name for d in tensorflow.config.list_logical_devices("GPU")]
        names = names or [d.name for d in tensorflow.config.list_logical_devices("CPU")]
        if len(names) < 2:
            events.say(f"train.devices=all: this machine has one device, {names[0].removeprefix('/device:')}")
            return
        if batch_size % len(names):
            raise UsageError(f"train.batch_size: got {batch_size}, expected a multiple of {len(names)}, the number of "
                             "devices that share it (train.devices=all)")  # fmt: skip
        self._strategy, self.count = _strategy(tuple(names)), len(names)
        events.say(f"{self.count} devices, each takes {batch_size // self.count} of a batch of {batch_size}")

    def scope(self) -> AbstractContextManager[Any]:
        """Models and optimisers are made inside."""
        return nullcontext() if self._strategy is None else self._strategy.scope()

    def train_step(self, model: Any, images: Any, targets: Any, weights: Any) -> float:
        """One step of a compiled model; the mean loss since `model.reset_metrics()`."""
        if self._strategy is None:
            logs = model.train_on_batch(images, targets, sample_weight=weights, return_dict=True)
        else:
            model.make_train_function()
            logs = model.train_function(iter([tuple(map(self._share, (images, targets, weights)))]))
        return float(logs["loss"])

    def predict(self, model: Any, stream: Iterator[Any], batch_size: int) -> np.ndarray:
        """Outputs float64 (N, C) of all batches of `stream`; the last one is padded, so that one shape is traced."""
        size = -(-batch_size // self.count) * self.count
        outputs = []
        for inputs in stream:
            batch = np.asarray(inputs)
            padded = np.zeros((size, *batch.shape[1:]), batch.dtype)
            padded[: len(batch)] = batch
            if self._strategy is None:
                predicted = model.predict_on_batch(padded)
            else:
                model.make_predict_function()
                predicted = model.predict_function([(self._share(padded),)])
            outputs.append(np.asarray(predicted, np.float64)[: len(batch)])
        return np.concatenate(outputs)

    def _share(self, values: Any) -> Any:
        """The rows of each device."""
        tensorflow = require("tensorflow", "train")
        part = len(values) // self.count

        def rows(context: Any) -> Any:
            first = context.replica_id_in_sync_group * part
            return tensorflow.convert_to_tensor(values[first : first + part])

        return self._strategy.experimental_distribute_values_from_function(rows)


@cache
def _strategy(names: tuple[str, ...]) -> Any:
    """One for a process: the collective operations of a second one would be taken for those of the first."""
    return require("tensorflow", "train").distribute.MirroredStrategy(list(names))
