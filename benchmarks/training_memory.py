"""Memory of a process that trains: resident MB after every epoch, for thousands of steps, checkpoints included.

    python benchmarks/training_memory.py --steps 3000

A small network on toy pictures, so that steps are many and what each leaves behind would show; few pictures make many
epochs. Prints JSON: resident MB after epochs, and the growth over the second half, by least squares.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np
import pandas as pd
from toy_learner import toy_learner
from toy_pictures import write_toys

from rsna_kit.config import with_overrides
from rsna_kit.presets import preset
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.events import Events
from rsna_kit.training import fit

SETTINGS = [
    "image.height=64", "image.width=32", "train.batch_size=8", "train.learning_rate=1e-3", "infer.batch_size=16",
    "model.weights=none", "model.trunk=train", "data.augment=light", "train.ema=0.99", "data.mix=both",
]  # fmt: skip


def resident_mb() -> float:
    """Of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--pictures", type=int, default=160, help="a multiple of 10")
    steps, pictures = (options := parser.parse_args()).steps, options.pictures
    fit.build_learner = toy_learner
    found: list[float] = []

    def evaluate(scores: pd.DataFrame) -> dict[str, float]:
        found.append(round(resident_mb(), 1))
        return {}

    with tempfile.TemporaryDirectory() as folder:
        per_epoch = -(-pictures * 4 // 10 // 6)  # half are trained on, four fifths of them healthy, 6 in a batch
        epochs = -(-steps // per_epoch)
        config = with_overrides(preset("smoke"), [*SETTINGS, f"train.epochs={epochs}"])
        prepared = write_toys(Path(folder) / "toys", config.image, pictures)
        table = prepared.table.assign(fold=np.arange(pictures) % 2)
        training = fit.Trainer(prepared, config, Events(stream=io.StringIO()), evaluate)
        training.train_fold(table, 0, Path(folder) / "fold0", Clock())
    half = np.array(found[len(found) // 2 :])
    growth = float(np.polyfit(np.arange(len(half)), half, 1)[0])
    print(json.dumps({
        "epochs": epochs, "steps": epochs * per_epoch, "resident_mb": found[:: max(len(found) // 20, 1)],
        "growth_mb_per_epoch": round(growth, 3), "growth_mb_per_1000_steps": round(growth / per_epoch * 1000, 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
