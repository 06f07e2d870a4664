#!/usr/bin/env python3
"""The input pipeline beside the model that it feeds: pictures a second of every recipe, in one run.

    python benchmarks/augment.py --out build/augment.json                    tables, some 15 minutes on two cores
    python benchmarks/augment.py --sizes 512x256 --model efficientnet_b0     another model, one size

Pictures are phantom mammograms at the competition's full matrices, prepared as `rsna-kit prepare` does (PNG in shards)
and read by the stream that training reads, nothing kept in memory. The model's figure is whole training steps: forward,
backward, update. How to read the tables: README.md.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from measure import cost
from prepare import parse_size
from report import machine

from rsna_kit.config import Config, with_overrides
from rsna_kit.data.augment import RECIPES
from rsna_kit.data.batches import Pictures, TrainingSet, training_stream
from rsna_kit.data.shards import Prepared, open_prepared
from rsna_kit.recipes.prepare import prepare
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_json
from rsna_kit.training.mixing import build_mixer
from rsna_lab.phantom.writer import write_competition

NAMES = ("none", "flip", *RECIPES)
MIXES = ("mixup", "cutmix")
PATIENTS, SEED = 5, 3  # of the phantom
STEPS = 1  # of a model in a round


@dataclass
class Measured:
    """One row: wall and CPU seconds for each picture, one number a round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, work: Callable[[], int]) -> None:
        """Time `work`, which says how many pictures it went through."""
        start = time.perf_counter()
        cpu, pictures = cost(work)
        self.wall.append((time.perf_counter() - start) / pictures)
        self.cpu.append(cpu / pictures)


def prepared_folder(files: Path, config: Config, events: Events) -> Prepared:
    """Shards of the phantom at one size, made once."""
    competition = files / "competition"
    write_competition(competition, PATIENTS, SEED, full_size=True, prevalence=0.3, test_patients=1, events=events)
    shards = files / f"{config.image.height}x{config.image.width}"
    prepare(competition, shards, config, events)
    return open_prepared(shards, config.image)


def read_epoch(prepared: Prepared, rows: pd.DataFrame, config: Config) -> int:
    """One epoch as training reads it."""
    training = TrainingSet(Pictures(prepared, config.data.augment, cache_bytes=0), rows, config)
    return sum(len(weights) for _, _, weights in training_stream(training, 1))


def mixing(mix: str, config: Config, batch: tuple[Any, ...]) -> Callable[[], int]:
    """Ten steps of a mixer, all of them mixed, results waited for."""
    mixer = build_mixer(with_overrides(config, [f"data.mix={mix}"]).data, SEED, share=1.0)
    assert mixer is not None

    def work() -> int:
        for step in range(10):
            np.asarray(mixer(*batch, step)[0])
        return 10 * len(batch[0])

    return work


def training_step(backbone: str, config: Config, batch: tuple[Any, ...]) -> Callable[[], int]:
    """Training steps of the network that the configuration builds, on one batch."""
    from rsna_kit.training.learner import build_learner
    from rsna_kit.training.steps import build_optimizer

    config = with_overrides(config, [f"model.backbone={backbone}", "model.weights=none"])
    learner = build_learner(config, config.image)
    learner.trained.compile(optimizer=build_optimizer(learner.trained, config.train), loss=learner.loss)
    images, targets, weights = batch

    def work() -> int:
        for _ in range(STEPS):
            learner.trained.train_on_batch(images, targets, sample_weight=weights)
        return STEPS * len(images)

    return work


def measure_size(size: tuple[int, int], options: argparse.Namespace, events: Events) -> dict[str, dict[str, Measured]]:
    """Every row of one table: "recipes", "mixes" and "models", a round through all of them at a time."""
    overrides = [f"image.height={size[0]}", f"image.width={size[1]}", f"train.batch_size={options.batch}"]
    config = with_overrides(Config(), [*overrides, "data.positive_share=0.25"])
    prepared = prepared_folder(options.files, config, events)
    rows = pd.concat([prepared.table] * -(-options.pictures // len(prepared.table)), ignore_index=True)
    training = TrainingSet(Pictures(prepared), rows, config)
    stream = training_stream(training, 1)
    batch = tuple(np.asarray(part) for part in next(stream))
    stream.close()  # type: ignore[attr-defined]

    def augmented(name: str) -> Config:
        return with_overrides(config, [f"data.augment={name}"])

    work: dict[str, dict[str, Callable[[], int]]] = {
        "recipes": {name: partial(read_epoch, prepared, rows, augmented(name)) for name in NAMES},
        "mixes": {mix: mixing(mix, config, batch) for mix in MIXES},
        "models": {backbone: training_step(backbone, config, batch) for backbone in options.model},
    }
    names = [(kind, name) for kind, rows_of_kind in work.items() for name in rows_of_kind]
    found = {kind: {name: Measured() for name in rows_of_kind} for kind, rows_of_kind in work.items()}
    with events.progress((1 + options.rounds) * len(names), "{}x{}".format(*size), "rows") as progress:
        for round_number, (kind, name) in itertools.product(range(1 + options.rounds), names):
            if round_number == 0:
                work[kind][name]()  # imports, tracing, the page cache
            else:
                found[kind][name].add(work[kind][name])
            progress.advance()
    gc.collect()
    return found


def table(size: str, found: dict[str, dict[str, Measured]]) -> Iterator[str]:
    """Markdown: a row for each recipe, what it costs, and how many times more CPU time each model needs."""
    models = found["models"]
    yield f"| {size} | pictures/s | CPU ms a picture | adds | pictures/s a core |" + "".join(
        f" x {m} |" for m in models
    )
    yield "|---|---|---|---|---|" + "---|" * len(models)
    plain = median(found["recipes"]["none"].cpu)
    for name, row in found["recipes"].items():
        cells = [
            name, f"{1 / median(row.wall):.1f}", f"{1000 * median(row.cpu):.1f}",
            f"{1000 * (median(row.cpu) - plain):.1f}", f"{1 / median(row.cpu):.0f}",
        ]  # fmt: skip
        for model in models.values():
            ratios = [theirs / ours for theirs, ours in zip(model.cpu, row.cpu, strict=True)]
            cells.append(f"{median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f})")
        yield f"| {' | '.join(cells)} |"
    for what, kind in (("mixing alone", "mixes"), ("training steps alone", "models")):
        for name, row in found[kind].items():
            cells = [f"{name}, {what}", f"{1 / median(row.wall):.2f}", f"{1000 * median(row.cpu):.1f}"]
            yield f"| {' | '.join(cells)} | | |{' |' * len(models)}"


def main() -> int:
    """Make the files, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--files", type=Path, default=Path("build/augment-files"), help="made once (0.2 GB), used again"
    )
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[(512, 256), (1536, 768)], metavar="HxW")
    parser.add_argument("--model", nargs="+", default=["efficientnet_lite0", "convnext_tiny"], metavar="BACKBONE")
    parser.add_argument("--pictures", type=int, default=96, help="least number in an epoch")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    events, load = Events(), os.getloadavg()[0]
    result: dict[str, Any] = {"machine": machine(), "batch": options.batch, "rounds": options.rounds, "sizes": {}}
    for size in options.sizes:
        label = "{}x{}".format(*size)
        found = measure_size(size, options, events)
        print(*table(label, found), "", sep="\n", flush=True)
        result["sizes"][label] = {k: {n: vars(row) for n, row in rows.items()} for k, rows in found.items()}
        if options.out:
            write_json(options.out, result)
    where = f"{result['machine']['cores']} cores of {result['machine']['cpu']}, batch {options.batch}"
    print(f"median of {options.rounds} rounds (lowest to highest); {where}")
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after: what others did on this machine is in it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
