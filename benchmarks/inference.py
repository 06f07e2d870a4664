#!/usr/bin/env python3
"""Images a second of a network under Keras and OpenVINO on this machine's CPU: models, sizes, batch sizes.

    python benchmarks/inference.py                                    # everything; an hour on two free cores
    python benchmarks/inference.py --models efficientnet_lite0 --sizes 256x128 --batches 1 8 --rounds 5

Both take turns in one run on the same pictures; a figure is the median of the rounds. Images/s is wall time,
which other work on the machine spoils; CPU time, of all threads, hardly changes, so the factors are of that. Every
runtime's outputs are compared with Keras' first. Weights are random: speed does not depend on them (`infer` compares
both with trained ones on its first batch).

The last table projects folds of one network over the hidden test: forward passes alone, in core-hours, since decoding
runs beside them and is measured by `prepare.py`. It is a projection from the figures above it, not a measurement, and
it says nothing of a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from rsna_kit.config import Config, with_overrides
from rsna_kit.models.ensemble import Run, compile_openvino, score_difference
from rsna_kit.models.network import build_network
from rsna_kit.runtime.errors import MissingDependencyError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_json
from rsna_kit.runtime.hardware import cpu_count, versions

MODELS = ("efficientnet_lite0", "efficientnetv2_b0", "convnext_tiny")
RUNTIMES = ("keras", "openvino")
SIZES = ("256x128", "512x256", "1536x768")
BATCHES = (1, 8)
PROJECTED = ("convnext_tiny", "1536x768")
FOLDS, HIDDEN_TEST = 4, 32_000
_MOST_PIXELS = 2 * 1536 * 768  # of one batch: more would only show how the machine swaps


class Case(NamedTuple):
    """What is measured."""

    model: str
    size: str
    batch: int


def measure(case: Case, runtimes: Sequence[str], rounds: int, events: Events) -> list[dict[str, Any]]:
    """One row for each runtime: images a second in every round, CPU seconds an image, difference from Keras."""
    height, width = map(int, case.size.split("x"))
    settings = [f"image.height={height}", f"image.width={width}", f"model.backbone={case.model}", "model.weights=none"]
    config = with_overrides(Config(), settings)
    network = build_network(config, config.image)
    pictures = np.random.default_rng(0).integers(0, 256, (case.batch, height, width, 1), np.uint8)
    wanted = np.asarray(network.predict_on_batch(pictures))
    runs: dict[str, Run] = {}
    rows: dict[str, dict[str, Any]] = {}
    for runtime in runtimes:
        begun = time.perf_counter()
        try:
            runs[runtime] = network.predict_on_batch if runtime == "keras" else compile_openvino(network, case.batch)
        except MissingDependencyError as error:
            events.say(f"{runtime} is left out: {error}")
            continue
        made = time.perf_counter() - begun
        difference = score_difference(wanted, np.asarray(runs[runtime](pictures)))
        rows[runtime] = {**case._asdict(), "runtime": runtime, "seconds_to_convert": made, "difference": difference,
                         "images_per_s": [], "cpu_s": []}  # fmt: skip
    for _ in range(rounds):
        for runtime, run in runs.items():
            cpu, begun = time.process_time(), time.perf_counter()
            run(pictures)
            rows[runtime]["images_per_s"].append(case.batch / (time.perf_counter() - begun))
            rows[runtime]["cpu_s"].append((time.process_time() - cpu) / case.batch)
    return list(rows.values())


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: a line for each case, a column for each runtime; in brackets how many times less CPU than Keras."""
    runtimes = list(dict.fromkeys(row["runtime"] for row in rows))
    head = ["model", "size", "batch", *(f"{name}: images/s, CPU ms an image" for name in runtimes), "most different"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for case in dict.fromkeys(Case(row["model"], row["size"], row["batch"]) for row in rows):
        mine = {row["runtime"]: row for row in rows if Case(row["model"], row["size"], row["batch"]) == case}
        cells = []
        for name in runtimes:
            if name not in mine:
                cells.append("-")
                continue
            cells.append(f"{median(mine[name]['images_per_s']):.3g}, {1000 * median(mine[name]['cpu_s']):.3g}")
            if name != "keras" and "keras" in mine:
                pairs = zip(mine["keras"]["cpu_s"], mine[name]["cpu_s"], strict=True)
                cells[-1] += f" ({median(keras / other for keras, other in pairs):.1f}x)"
        largest = max(row["difference"] for row in mine.values())
        lines.append(f"| {case.model} | {case.size} | {case.batch} | {' | '.join(cells)} | {largest:.0e} |")
    return lines


def projection(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: what FOLDS folds over the hidden test cost, from CPU seconds an image, at the best batch size."""
    found = [row for row in rows if (row["model"], row["size"]) == PROJECTED]
    if not found:
        return [f"No projection: {' at '.join(PROJECTED)} was not measured."]
    lines = [
        f"{FOLDS} folds of {' at '.join(PROJECTED)} over {HIDDEN_TEST:,} images, forward passes alone; a Kaggle CPU "
        "session has 4 cores and 9 hours, so 36 core-hours of its own, slower cores. A T4 is unmeasured.",
        "",
        "| runtime | batch | CPU s / image | core-hours | with flip TTA |",
        "|---|---|---|---|---|",
    ]
    for runtime in dict.fromkeys(row["runtime"] for row in found):
        best = min((row for row in found if row["runtime"] == runtime), key=lambda row: median(row["cpu_s"]))
        seconds = median(best["cpu_s"])
        hours = FOLDS * HIDDEN_TEST * seconds / 3600
        lines.append(f"| {runtime} | {best['batch']} | {seconds:.2f} | {hours:.0f} | {2 * hours:.0f} |")
    return lines


def main() -> None:
    """Measure, print Markdown, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="height x width, such as 512x256")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES, choices=RUNTIMES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("build/inference.json"))
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    events = Events(stream=sys.stderr)
    rows: list[dict[str, Any]] = []
    for model in options.models:
        for size in options.sizes:
            for batch in options.batches:
                height, width = map(int, size.split("x"))
                if batch * height * width > _MOST_PIXELS:
                    events.say(f"{model} {size} in batches of {batch}: left out, too much memory for a small machine")
                    continue
                events.say(f"{model} {size} in batches of {batch}")
                rows += measure(Case(model, size, batch), options.runtimes, options.rounds, events)
                keras.backend.clear_session()
                about = {"platform": platform.platform(terse=True), "cpus": cpu_count(), "packages": versions(),
                         "load": os.getloadavg(), "rounds": options.rounds}  # fmt: skip
                write_json(options.out, json.loads(json.dumps({"about": about, "rows": rows})))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{cpu_count()} cores, load {load}, {options.rounds} rounds in turn; in brackets: less CPU time than Keras.\n"
    )
    print("\n".join([*table(rows), "", *projection(rows)]))


if __name__ == "__main__":
    main()
