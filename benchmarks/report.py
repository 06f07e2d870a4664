"""Measured seconds → tables, and bars that are met or not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import textwrap
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import memory
from contenders import REFERENCE
from measure import Seconds
from samples import KINDS, mix

import rsna_kit

OURS = "rsna_kit"
MIX = "the competition's mix"
HIDDEN_TEST = 32_000  # files, about
FLAT = 2.0  # MB every 1,000 images: 64 MB over the hidden test
SLOW_CORES, SLOWER = 4, 2.5  # a Kaggle CPU session, and how much slower its cores are than a fast server's
PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "pydicom",
    "imagecodecs",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-libjpeg",
    "python-gdcm",
    "dicomsdl",
)


class Ratio(NamedTuple):
    """How many times less than the reference: median, lowest and highest of the rounds."""

    middle: float
    lowest: float
    highest: float


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    found = {name: _version(name) for name in PACKAGES}
    return {
        "rsna_kit": rsna_kit.__version__,
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {k: v for k, v in found.items() if v},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def of_mix(seconds: Seconds) -> dict[str, list[float]]:
    """Seconds per image of the competition's mix: by contender, one number a round."""
    parts = [(share, seconds[kind.label]) for _, share, kind in mix()]
    rounds = range(len(parts[0][1][REFERENCE]))
    return {name: [sum(share * kind[name][k] for share, kind in parts) for k in rounds] for name in parts[0][1]}


def ratio(row: dict[str, list[float]], name: str) -> Ratio:
    """The reference's seconds divided by those of `name`, in the same round."""
    found = [theirs / ours for theirs, ours in zip(row[REFERENCE], row[name], strict=True)]
    return Ratio(median(found), min(found), max(found))


def table(result: dict[str, Any], size: str) -> Iterator[str]:
    """Rows of files, columns of contenders, at most 100 characters wide."""
    seconds: Seconds = {MIX: result["sizes"][size]["mix"], **result["sizes"][size]["seconds"]}
    others = [name for name in result["contenders"] if name != REFERENCE]
    yield f"CPU ms per image at {size}, median of {result['rounds']} rounds; x: times less than the reference"
    yield "".join([f"{'':26}{REFERENCE:>10}", *(f"{name:>11}" for name in others), f"{'from to':>9}"])
    for label, row in seconds.items():
        line = f"{label:26}" + (f"{1000 * median(row[REFERENCE]):10.0f}" if REFERENCE in row else f"{'-':>10}")
        for name in others:
            line += f"{1000 * median(row[name]):5.0f}{ratio(row, name).middle:5.1f}x" if name in row else f"{'-':>11}"
        if REFERENCE in row and OURS in row:
            line += f"{ratio(row, OURS).lowest:5.1f}{ratio(row, OURS).highest:4.1f}"
        yield line


def bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What is claimed, and the figure beside it. A bar over several kinds is met by the worst of them."""
    found: list[dict[str, Any]] = []

    def at_least(least: float, claim: str, figure: float, note: str = "") -> None:
        claim = f"{claim}: at least {least}x"
        found.append({"claim": claim, "figure": figure, "unit": "x", "met": figure >= least, "note": note})

    def at_most(most: float, unit: str, claim: str, figure: float, note: str = "") -> None:
        claim = f"{claim}: at most {most} {unit}"
        found.append({"claim": claim, "figure": figure, "unit": f" {unit}", "met": figure <= most, "note": note})

    if part := result["sizes"].get("1536x768"):
        at_least(5, ".70 at 1536x768, every kind", *_worst(part["seconds"], ".70", 0))
        at_least(4, ".90 at 1536x768, every kind of 4096 rows and more", *_worst(part["seconds"], ".90", 4096))
        at_least(4.5, "the mix at 1536x768", ratio(part["mix"], OURS).middle)
        at_most(1.7, "core-hours", f"{HIDDEN_TEST} files of the mix at 1536x768", core_hours(part["mix"][OURS]))
        at_most(15, "ms", "steps after decoding 4096x3328 pixels", 1000 * part["after_decoding_s"])
    if part := result["sizes"].get("1024x512"):
        at_least(6, "the mix at 1024x512", ratio(part["mix"], OURS).middle)
    peak, label = max((watched["peak"], label) for label, watched in result["memory"].items())
    note = f"{label}; {result['memory'][label]['base']:.0f} MB before the first image"
    at_most(300, "MB", "memory of a process with one worker", peak, note)
    two = result["threads"]
    note = (
        f"{two['lowest']:.2f} to {two['highest']:.2f}; two threads had {two['busy']:.2f} cores and used "
        f"{two['cpu']:.2f} times the CPU time of one; load {two['load_before']:.1f}"
    )
    at_least(1.7, "two threads on two cores against one, wall time", two["ratio"], note)
    return found


def flat_bar(watched: dict[str, Any], count: int) -> dict[str, Any]:
    """The same for the soak."""
    growth = memory.slope(watched["every"])
    claim = f"memory of a process over {count} images: at most {FLAT:.0f} MB more every 1,000"
    note = f"peak {watched['peak']:.0f} MB"
    return {"claim": claim, "figure": growth, "unit": " MB", "met": growth <= FLAT, "note": note}


def _worst(seconds: Seconds, syntax: str, rows: int) -> tuple[float, str]:
    """The lowest ratio of the kinds of `syntax` with `rows` rows or more, and a note: whose it is, and that of all."""
    labels = [kind.label for kind in KINDS if kind.syntax == syntax and kind.detector.rows >= rows]
    worst, label = min((ratio(seconds[label], OURS).middle, label) for label in labels)
    theirs, ours = (sum(median(seconds[label][name]) for label in labels) for name in (REFERENCE, OURS))
    return worst, f"{label}; all of them together {theirs / ours:.2f}x"


def core_hours(seconds: list[float]) -> float:
    """Of the hidden test."""
    return HIDDEN_TEST * median(seconds) / 3600


def lines(result: dict[str, Any]) -> Iterator[str]:
    """Everything that a person reads."""
    facts = result["machine"]
    yield "rsna_kit {rsna_kit} on {cpu}, {cores} cores, Python {python}, load {load}".format(**facts)
    yield from textwrap.wrap(", ".join(f"{name} {version}" for name, version in facts["packages"].items()), 100)
    yield from (f"{name:10} {what}" for name, what in result["contenders"].items())
    for size, part in result["sizes"].items():
        yield from ("", *table(result, size))
        levels, worst = part["levels"], max(part["levels"], key=part["levels"].__getitem__)
        mean = sum(share * levels[kind] for _, share, kind in result["mix"])
        yield f"rsna_kit and exact differ by {mean:.2f} of 255 levels (the mix), {levels[worst]:.2f} at most ({worst})"
    yield from ("", "The mix: machine and matrix, share of the competition's images, measured as")
    yield from (f"  {name:14}{share:7.2%}  {kind}" for name, share, kind in result["mix"])
    yield ""
    for size, part in result["sizes"].items():
        theirs, ours = core_hours(part["mix"][REFERENCE]), core_hours(part["mix"][OURS])
        slow = SLOWER / SLOW_CORES
        yield (
            f"{HIDDEN_TEST} files at {size}: {ours:.2f} core-hours (reference {theirs:.2f}); "
            f"on {SLOW_CORES} cores {SLOWER}x slower {60 * ours * slow:.0f} min ({60 * theirs * slow:.0f})"
        )
    yield from ("", *result["failures"], *map(verdict, result["bars"]))


def verdict(bar: dict[str, Any]) -> str:
    """Met or not met, the figure, and below it what it is about."""
    note = f"\n         {bar['note']}" if bar["note"] else ""
    return f"{'met    ' if bar['met'] else 'NOT MET'}  {bar['claim']}: {bar['figure']:.2f}{bar['unit']}{note}"
