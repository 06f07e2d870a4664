#!/usr/bin/env python3
"""Training on a prepared folder: pictures a second of the input pipeline, of steps and of validation, and memory.

    python benchmarks/training.py PREPARED                                 what `auto` comes to on this machine
    python benchmarks/training.py PREPARED --backbone convnext_small --precision float32 mixed_float16 \\
        --devices one auto --results docs/results.csv                      a row for each, and of results.csv

A row for each network, precision and choice of devices. The input pipeline (shards decoded and augmented, no network)
is measured by itself for every recipe of augmentation that is asked for. What is measured is what `train.hours` plans
with: `rsna_kit.training.budget.first_steps`. Weights are random, labels those of the folder.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit.config import preset, with_overrides
from rsna_kit.data.batches import Pictures, TrainingSet, training_stream
from rsna_kit.data.shards import Prepared, open_prepared
from rsna_kit.runtime.errors import DeviceMemoryError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.hardware import commit, cpu_count, gpus
from rsna_kit.runtime.lazy import settle
from rsna_lab.recipes.compare import append_results

MEASURED = {"step": "step_pictures_per_s", "validation": "validation_pictures_per_s"}


def pipeline(prepared: Prepared, recipe: str, batch: int, seconds: float) -> tuple[float, float]:
    """Reading, decoding and augmenting, nothing kept: pictures a second, and CPU milliseconds for one."""
    config = with_overrides(preset("default"), [f"data.augment={recipe}", f"train.batch_size={batch}"])
    training = TrainingSet(Pictures(prepared, recipe, cache_bytes=0), prepared.table, config)
    count, began, used = 0, time.monotonic(), time.process_time()
    for epoch in itertools.count(1):
        for images, _, _ in training_stream(training, epoch):
            count += len(images)
            if time.monotonic() - began > seconds:
                return count / (time.monotonic() - began), 1000 * (time.process_time() - used) / count
    raise AssertionError


def peak_gib() -> float | None:
    """Most memory of a GPU that TensorFlow's tensors took since it was asked last; None without one."""
    import tensorflow

    devices = [device.name.removeprefix("/device:") for device in tensorflow.config.list_logical_devices("GPU")]
    peaks = [tensorflow.config.experimental.get_memory_info(device)["peak"] for device in devices]
    for device in devices:
        tensorflow.config.experimental.reset_memory_stats(device)
    return max(peaks) / 2**30 if peaks else None


def measured(prepared: Prepared, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each combination that fits into memory."""
    from rsna_kit.training.budget import first_steps
    from rsna_kit.training.fit import Trainer

    table, quiet = prepared.table.assign(fold=np.arange(len(prepared.table)) % 4), Events(stream=sys.stderr)
    for backbone, precision, devices in itertools.product(options.backbone, options.precision, options.devices):
        settings = [f"model.backbone={backbone}", f"train.precision={precision}", f"train.devices={devices}"]
        settings += [f"train.batch_size={options.batch}", f"infer.batch_size={options.batch}", "model.weights=none"]
        trainer = None
        with tempfile.TemporaryDirectory() as out:
            try:
                trainer = Trainer(prepared, with_overrides(preset("default"), settings), quiet)
                pace = first_steps(trainer, table, 0, Path(out), options.seconds / 0.03, quiet)
            except DeviceMemoryError as error:
                print(f"{backbone}, {precision}, {devices}: {error}", file=sys.stderr)
                continue
            finally:
                precision_used = trainer.config.train.precision if trainer else precision
                count = trainer._replicas.count if trainer else 1
                del trainer
                gc.collect()
        yield {
            "network": backbone,
            "precision": precision_used,
            "devices": count,
            "step": options.batch / pace.step_s,
            "validation": 1 / pace.picture_s,
            "memory": peak_gib(),
        }


def result_rows(row: dict[str, Any], where: str, size: str, command: str) -> Iterator[dict[str, Any]]:
    """A row of docs/results.csv for steps and for validation."""
    what = f"{row['network']}, {size}, {row['precision']}, {row['devices']} device(s): speed of training"
    fixed = {"date": str(date.today()), "commit": (commit() or "")[:7], "what": what, "hardware": where}
    for key, metric in MEASURED.items():
        yield fixed | {"data": "random weights", "metric": metric, "value": f"{row[key]:.4g}", "command": command}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, help="folder written by rsna-kit prepare; its size is measured")
    parser.add_argument("--backbone", nargs="*", default=["efficientnet_lite0"])
    parser.add_argument("--precision", nargs="*", default=["auto"])
    parser.add_argument("--devices", nargs="*", default=["auto"])
    parser.add_argument("--augment", nargs="*", default=["none", "light", "winner"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20, help="each measurement takes at least this")
    parser.add_argument("--results", type=Path, help="CSV file with the columns of docs/results.csv")
    options = parser.parse_args()
    settle()
    prepared = open_prepared(options.prepared)
    size = f"{prepared.image.height}x{prepared.image.width}"
    where = " + ".join(gpus()) or f"{cpu_count()} CPU cores, no GPU"
    print(f"{where}; {size}, batch {options.batch}\n")
    print(f"| input pipeline, {cpu_count()} cores | pictures a second | CPU ms a picture |\n|---|---|---|")
    for recipe in options.augment:
        rate, used = pipeline(prepared, recipe, options.batch, options.seconds)
        print(f"| {recipe} | {rate:.1f} | {used:.1f} |", flush=True)
    heads = ["network", "precision", "devices", "training, pictures a second", "validation", "GPU memory, GiB"]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for row in measured(prepared, options):
        memory = "" if row["memory"] is None else f"{row['memory']:.1f}"
        cells = [
            row["network"],
            row["precision"],
            row["devices"],
            f"{row['step']:.2f}",
            f"{row['validation']:.2f}",
            memory,
        ]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        if options.results:
            append_results(
                options.results,
                list(result_rows(row, where, size, " ".join(["benchmarks/training.py", *sys.argv[1:]]))),
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
