#!/usr/bin/env python3
"""From DICOM file to the uint8 image of a model: CPU time of rsna_kit and of its peers, in turn, on the same files.

    pip install -c constraints.txt -e . -r benchmarks/requirements.txt
    python benchmarks/prepare.py --out build/benchmark.json     some 20 minutes on two cores
    python benchmarks/prepare.py --soak 2000                    memory over 2,000 images, some 5 minutes

RSNA_KIT_REALDATA=FOLDER adds the mammograms in it as rows of their own. What is measured how: README.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import measure
import memory
import report
from contenders import CONTENDERS, REFERENCE, Size
from samples import Sample, generated_samples, mix, real_samples

from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_json

MAIN_SIZE = (1536, 768)  # of what is measured at one size only: memory and threads


def parse_size(text: str) -> Size:
    """`1536x768` → (1536, 768)."""
    height, _, width = text.partition("x")
    return int(height), int(width)


def run(samples: list[Sample], sizes: list[Size], rounds: int, events: Events) -> dict[str, Any]:
    """Every measurement but the soak, ready for JSON."""
    contenders = [contender for contender in CONTENDERS if not contender.missing]
    generated = [sample for sample in samples if sample.kind is not None]
    middle = next(sample for sample in generated if sample.label == "4096x3328 .70 12 bit")
    result: dict[str, Any] = {
        "machine": report.machine(),
        "contenders": {contender.name: contender.what for contender in contenders},
        "rounds": rounds,
        "samples": {s.label: {"files": [p.name for p in s.files], "megabytes": s.megabytes} for s in samples},
        "mix": [(name, share, kind.label) for name, share, kind in mix()],
        "sizes": {},
    }
    able, result["failures"] = measure.warm_up(samples, contenders, sizes[0], events)
    for size in sizes:
        seconds, levels = measure.in_turn(samples, able, size, rounds, events)
        result["sizes"]["{}x{}".format(*size)] = {
            "seconds": seconds,
            "mix": report.of_mix(seconds),
            "levels": levels,
            "after_decoding_s": measure.after_decoding(middle, size, 3 * rounds),
        }
    with events.progress(len(generated), "memory", "kinds") as progress:
        result["memory"] = {}
        for sample in generated:
            result["memory"][sample.label] = memory.watch(list(sample.files), MAIN_SIZE, workers=1, count=4)
            progress.advance()
    stand_ins = {kind.label for _, _, kind in mix()}
    files = [path for sample in generated if sample.label in stand_ins for path in sample.files]
    result["threads"] = measure.two_threads(2 * files, MAIN_SIZE, max(rounds, 5))
    result["bars"] = report.bars(result)
    return result


def soak(samples: list[Sample], count: int) -> dict[str, Any]:
    """Memory of one process with two threads that reads all kinds over and over."""
    files = [path for sample in samples for path in sample.files]
    watched = memory.watch(files, MAIN_SIZE, workers=2, count=count)
    return {"machine": report.machine(), "count": count, **watched, "bars": [report.flat_bar(watched, count)]}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--files", type=Path, default=Path("build/benchmark-files"), help="made once (0.2 GB), used again"
    )
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[(1536, 768), (1024, 512)], metavar="HxW")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--soak", type=int, metavar="COUNT", help="only: memory of one process over COUNT images")
    options = parser.parse_args()

    events = Events()
    if options.soak:
        result = soak(generated_samples(options.files, events), options.soak)
        print(*map(report.verdict, result["bars"]), sep="\n")
    else:
        absent = [contender for contender in CONTENDERS if contender.missing]
        for contender in absent:
            print(f"{contender.name} is left out: {', '.join(contender.missing)} not installed (requirements.txt)")
        if any(contender.name == REFERENCE for contender in absent):
            return 1  # nothing to compare with
        samples = [*generated_samples(options.files, events), *real_samples()]
        result = run(samples, options.sizes, options.rounds, events)
        print(*report.lines(result), sep="\n")
    if options.out:
        write_json(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
