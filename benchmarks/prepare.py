#!/usr/bin/env python3
"""From DICOM file to the uint8 image of a model: CPU time of rsna_kit and of its peers, in turn, on the same files.

    pip install -c constraints.txt -e . -r benchmarks/requirements.txt
    python benchmarks/prepare.py --out build/benchmark.json     some 20 minutes on two cores

What is measured how: README.md.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import cv2
from contenders import CONTENDERS, REFERENCE, Contender, Size
from samples import Kind, generate, mix

from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_json
from rsna_kit.runtime.hardware import describe

OURS, MIX = "rsna_kit", "the competition's mix"
HIDDEN_TEST = 32_000  # files, about

# CPU seconds per image, one number a round: [kind's label][contender's name].
Seconds = dict[str, dict[str, list[float]]]
Files = dict[Kind, list[Path]]


def cpu_seconds() -> float:
    """User and system time of this process, its threads and the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def in_turn(files: Files, contenders: list[Contender], size: Size, rounds: int, events: Events) -> Seconds:
    """Every file through every contender in turn, once unmeasured (imports, the page cache) and `rounds` times."""
    cv2.setNumThreads(1)  # as the kit's stream does; nobody pays for waking threads
    seconds: Seconds = {kind.label: {contender.name: [] for contender in contenders} for kind in files}
    with events.progress((rounds + 1) * len(files), "{}x{}".format(*size), "rows") as progress:
        for number in range(rounds + 1):
            for kind, paths in files.items():
                spent = dict.fromkeys(seconds[kind.label], 0.0)
                for path in paths:
                    for contender in contenders:
                        began = cpu_seconds()
                        contender.read(path, size)
                        spent[contender.name] += (cpu_seconds() - began) / len(paths)
                for name, total in spent.items():
                    seconds[kind.label][name] += [total] * (number > 0)
                progress.advance()
    parts = [(share, seconds[kind.label]) for _, share, kind in mix()]
    of_mix = {
        name: [sum(share * row[name][number] for share, row in parts) for number in range(rounds)]
        for name in (contender.name for contender in contenders)
    }
    return {MIX: of_mix, **seconds}


def table(seconds: Seconds, size: str) -> Iterator[str]:
    """Rows of files, columns of contenders, at most 100 characters wide."""
    others = [name for name in seconds[MIX] if name != REFERENCE]
    yield f"CPU ms per image at {size}, median of the rounds; x: times less than the reference"
    yield "".join([f"{'':26}{REFERENCE:>10}", *(f"{name:>11}" for name in others), f"{'from to':>9}"])
    for label, row in seconds.items():
        ratios = {name: [a / b for a, b in zip(row[REFERENCE], row[name], strict=True)] for name in others}
        line = f"{label:26}{1000 * median(row[REFERENCE]):10.0f}"
        line += "".join(f"{1000 * median(row[name]):5.0f}{median(ratios[name]):5.1f}x" for name in others)
        yield line + f"{min(ratios[OURS]):5.1f}{max(ratios[OURS]):4.1f}"
    hours = {name: HIDDEN_TEST * median(seconds[MIX][name]) / 3600 for name in (OURS, REFERENCE)}
    yield f"{HIDDEN_TEST} files: {hours[OURS]:.2f} core-hours (reference {hours[REFERENCE]:.2f})"


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, default=Path("build/benchmark-files"), help="made once (0.2 GB)")
    parser.add_argument("--sizes", nargs="+", default=["1536x768", "1024x512"], metavar="HxW")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    missing = {contender.name: contender.missing for contender in CONTENDERS if contender.missing}
    for name, modules in missing.items():
        print(f"{name} is left out: {', '.join(modules)} not installed (requirements.txt)")
    if REFERENCE in missing:
        return 1  # nothing to compare with
    events, contenders = Events(), [contender for contender in CONTENDERS if contender.name not in missing]
    result: dict[str, Any] = {"machine": describe(), "rounds": options.rounds, "sizes": {}}
    print(*(f"{contender.name:10} {contender.what}" for contender in contenders), sep="\n")
    files = generate(options.files, events)
    for size in options.sizes:
        height, width = map(int, size.split("x"))
        seconds = in_turn(files, contenders, (height, width), options.rounds, events)
        result["sizes"][size] = seconds
        print("", *table(seconds, size), sep="\n")
    print("\nThe mix: machine and matrix, share of the competition's images, measured as")
    print(*(f"  {name:14}{share:7.2%}  {kind.label}" for name, share, kind in mix()), sep="\n")
    if options.out:
        write_json(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
