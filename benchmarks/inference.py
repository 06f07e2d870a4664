#!/usr/bin/env python3
"""Pictures a second of a network on every device of this machine, in every way in which it may be scored.

    pip install -c constraints.txt -e '.[train,runtimes]'
    python benchmarks/inference.py                              # a table; on a machine with GPUs their rows, too
    python benchmarks/inference.py --results docs/results.csv   # and a row of it for each line

On a GPU: float32, float16, and both compiled by XLA (which `infer` does not use: this is where it would have to show
that it is the same and faster); all GPUs at once in float16. On the CPU: Keras and OpenVINO in float32. Weights are
random unless --bundle names some: speed does not depend on them, but what float16 does to scores does.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from rsna_kit.config import Config, with_overrides
from rsna_kit.models.bundle import Bundle, load_model, open_bundle
from rsna_kit.models.devices import (
    FLOAT16,
    FLOAT32,
    GPU_BATCH,
    OPENVINO,
    Run,
    Way,
    Worker,
    find_devices,
    score_difference,
)
from rsna_kit.models.network import build_network
from rsna_kit.runtime.errors import one_line
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.hardware import commit, cpu_count, gpus
from rsna_kit.training.export import write_bundle
from rsna_lab.analysis.macs import count_macs
from rsna_lab.recipes.compare import append_results

MODELS, SIZES = ("efficientnet_lite0", "efficientnetv2_s", "convnext_tiny"), ("512x256", "1536x768")
Row = dict[str, Any]


def compiled(way: Way) -> Way:
    """The same, compiled by XLA."""

    def make(bundle: Bundle, rows: int) -> Run:
        network = load_model(bundle, "mixed_float16" if way is FLOAT16 else "float32")
        network.jit_compile = True
        return lambda pictures: np.asarray(network.predict_on_batch(pictures))

    return way._replace(name=f"{way.name} XLA", make=make)


GPU_WAYS, CPU_WAYS = (FLOAT32, FLOAT16, compiled(FLOAT32), compiled(FLOAT16)), (FLOAT32, OPENVINO)


def turns(actions: Mapping[str, Callable[[], object]], pictures: int, rounds: int) -> dict[str, Row]:
    """Pictures a second and CPU milliseconds a picture of actions that take turns, one number a round."""
    figures: dict[str, Row] = {name: {"per_s": [], "cpu_ms": []} for name in actions}
    for _ in range(rounds):
        for name, act in actions.items():
            cpu, begun = time.process_time(), time.perf_counter()
            act()
            figures[name]["per_s"].append(pictures / (time.perf_counter() - begun))
            figures[name]["cpu_ms"].append(1000 * (time.process_time() - cpu) / pictures)
    return figures


def random_pictures(bundle: Bundle, rows: int) -> np.ndarray:
    """uint8 (rows, h, w, 1)."""
    size = (rows, bundle.config.image.height, bundle.config.image.width, 1)
    return np.random.default_rng(0).integers(0, 256, size, np.uint8)


def measure(bundle: Bundle, device: str, batch: int, rounds: int, events: Events) -> Iterator[Row]:
    """A row for each way on one device."""
    on_gpu = device.startswith("GPU")
    worker = Worker(device, max(batch, GPU_BATCH) if on_gpu else batch, events.say)
    pictures = random_pictures(bundle, worker.rows)
    actions: dict[str, Callable[[], object]] = {}
    answers: dict[str, np.ndarray] = {}
    for way in GPU_WAYS if on_gpu else CPU_WAYS:
        try:
            with worker.scope():
                run = way.make(bundle, worker.rows)
            (answers[way.name],) = worker.outputs([run], pictures)  # traced here
            actions[way.name] = partial(worker.outputs, [run], pictures)
        except Exception as error:  # one that is not installed, or that does not work, is a line
            events.say(f"{device}, {way.name} is left out: {one_line(error)}")
    for name, figures in turns(actions, len(pictures), rounds).items():
        apart = score_difference(answers[next(iter(answers))], answers[name])
        yield {"device": device, "way": name, "apart": f"{apart:.0e}", "rows": worker.rows} | figures


def together(bundle: Bundle, devices: Sequence[str], rounds: int, events: Events) -> Row:
    """All GPUs at once, each with a batch of its own, in float16."""
    pictures = random_pictures(bundle, GPU_BATCH)
    workers = [Worker(device, GPU_BATCH, events.say) for device in devices]
    runs: list[Run] = []
    for worker in workers:
        with worker.scope():
            runs.append(FLOAT16.make(bundle, worker.rows))
        worker.outputs(runs[-1:], pictures)
    with ThreadPoolExecutor(len(workers)) as pool:
        act = partial(pool.map, lambda worker, run: worker.outputs([run], pictures), workers, runs)
        figures = turns({FLOAT16.name: lambda: list(act())}, len(pictures) * len(workers), rounds)[FLOAT16.name]
    rows = min(worker.rows for worker in workers)
    return {"device": " + ".join(devices), "way": FLOAT16.name, "apart": "", "rows": rows} | figures


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown: a line for each network, size, device and way."""
    yield "| network | size | device | computes | at once | pictures/s (least to most) | GMAC/s | CPU ms | apart |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        per_s = median(row["per_s"])
        cells = [row["model"], row["size"], row["device"], row["way"], str(row["rows"])]
        cells += [f"{per_s:.3g} ({min(row['per_s']):.3g} to {max(row['per_s']):.3g})", f"{per_s * row['gmac']:.0f}"]
        cells += [f"{median(row['cpu_ms']):.0f}", row["apart"]]
        yield f"| {' | '.join(cells)} |"


def results(rows: Sequence[Row], hardware: str, data: str, rounds: int) -> list[Row]:
    """Rows for docs/results.csv."""
    command = "python benchmarks/inference.py " + shlex.join(sys.argv[1:])
    said = {"date": str(date.today()), "commit": (commit() or "")[:7], "hardware": hardware, "command": command.strip()}
    return [
        said
        | {"what": f"scoring {row['model']}; {row['size']}; {row['device']} {row['way']}, {row['rows']} at once"}
        | {"data": f"{data}, {rounds} rounds", "metric": "pictures_per_s", "value": round(median(row["per_s"]), 2)}
        | {"low": round(min(row["per_s"]), 2), "high": round(max(row["per_s"]), 2)}
        for row in rows
    ]


def bundles(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Bundle]]:
    """Networks under their names: the given bundles, or random ones of every model and size."""
    for path in options.bundle:
        bundle = open_bundle(path)
        yield bundle.config.model.backbone, bundle
    for model in options.models if not options.bundle else []:
        for size in options.sizes:
            height, width = size.split("x")
            keys = [f"image.height={height}", f"image.width={width}", f"model.backbone={model}", "model.weights=none"]
            config = with_overrides(Config(), keys)
            out = folder / f"{model}-{size}"
            write_bundle(out, build_network(config, config.image), config, 0, None, {}, "none")
            yield model, open_bundle(out)


def main() -> int:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="HxW")
    parser.add_argument(
        "--bundle", nargs="+", type=Path, default=[], help="trained networks in the place of random ones"
    )
    parser.add_argument("--batch", type=int, default=2, help=f"of the CPU; a GPU begins with {GPU_BATCH} (default 2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, help="CSV file in the columns of docs/results.csv, appended to")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    events, rows = Events(), list[Row]()
    import keras

    found = [name for name in find_devices(events.say) if name.startswith("GPU")]
    with tempfile.TemporaryDirectory(prefix="rsna-kit-") as folder:
        for model, bundle in bundles(options, Path(folder)):
            image = bundle.config.image
            about: Row = {"model": model, "size": f"{image.height}x{image.width}"}
            about |= {"gmac": count_macs(load_model(bundle)) / 1e9}
            events.say(f"{model} at {about['size']}, {about['gmac']:.1f} GMAC a picture")
            for device in [*found, "CPU:0"]:
                rows += [about | row for row in measure(bundle, device, options.batch, options.rounds, events)]
            if len(found) > 1:
                rows.append(about | together(bundle, found, options.rounds, events))
            keras.backend.clear_session()
    hardware = f"{cpu_count()} cores, {', '.join(gpus()) or 'no GPU'}"
    print(f"{hardware}, load {os.getloadavg()[0]:.1f}, median of {options.rounds} rounds", "", *table(rows), sep="\n")
    if options.results:
        weights = "trained weights" if options.bundle else "random weights"
        append_results(options.results, results(rows, hardware, f"random pictures, {weights}", options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
