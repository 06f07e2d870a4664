"""Resident memory of a process of its own that reads images. Prints JSON.

python memory.py HEIGHT WIDTH WORKERS COUNT FILE …     COUNT images, the files over and over
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Any

EVERY = 100


def watch(files: list[Path], size: tuple[int, int], workers: int, count: int) -> dict[str, Any]:
    """What a fresh process with `workers` threads needs for `count` images, in MB (10^6 bytes).

    Returns:
        "base" after the imports, "peak", and "every", the resident size after each `EVERY` images.
    """
    command = [sys.executable, __file__, *map(str, (*size, workers, count, *files))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def slope(every: list[float]) -> float:
    """Growth in MB per 1,000 images by least squares, the first quarter, in which pools fill, left out."""
    import numpy as np

    late = np.array(every[len(every) // 4 :])
    return float(np.polyfit(np.arange(len(late)) * EVERY / 1000, late, 1)[0])


def _megabytes(key: str) -> float:
    """VmRSS or VmHWM (peak) of this process. Not ru_maxrss: a child inherits that from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) * 1024 / 1e6


def main() -> None:
    """The process that is watched."""
    from rsna_kit.config import ImageConfig
    from rsna_kit.imaging.stream import ImageStream

    height, width, workers, count = map(int, sys.argv[1:5])
    base, every = _megabytes("VmRSS"), []
    files = islice(cycle(sys.argv[5:]), count)
    image = ImageConfig(height=height, width=width)
    with ImageStream(((path, Path(path)) for path in files), image, workers) as images:
        for number, outcome in enumerate(images, start=1):
            if outcome.error is not None:
                raise outcome.error
            if number % EVERY == 0:
                every.append(round(_megabytes("VmRSS"), 1))
                print(f"{number} images, {every[-1]:.0f} MB", file=sys.stderr, flush=True)
    print(json.dumps({"base": base, "peak": _megabytes("VmHWM"), "every": every}))


if __name__ == "__main__":
    main()
