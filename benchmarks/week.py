"""The arithmetic of a week of Kaggle's free GPU hours, as a table for docs/kaggle.md: python benchmarks/week.py

Multiplications are counted from the built networks; what a T4 does of them a second is a guess (see
rsna_lab/kaggle/push/expected.py), so every preset stands there at half of it, once and twice.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rsna_kit.config import preset
from rsna_lab.kaggle.push.expected import WEEK_H, expect, parts_of

COLUMNS = (
    *("preset", "parts", "GMAC a picture", "guess times", "pictures/s, training", "pictures/s, scoring"),
    *("hours an epoch and fold", "epochs of all folds in 30 h", "hours of the preset's epochs", "scoring run, h"),
)


def main() -> None:
    """Print the table."""
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in ("kaggle", "winner"):
        config = preset(name)
        parts = len(parts_of({"PRESET": name, "PART": ""}, Path("nowhere")))
        for factor in (0.5, 1.0, 2.0):
            hours = expect(config, factor=factor)
            epochs = int(WEEK_H / hours.folds / hours.epoch_h)
            cells = [name, parts, f"{hours.macs / 1e9:.0f}", f"{factor:g}", f"{hours.train_rate:.1f}"]
            cells += [f"{hours.score_rate:.0f}", f"{hours.epoch_h:.2f}", epochs]
            cells += [f"{hours.train_h:.0f} ({hours.epochs} epochs)", f"{hours.scoring_h:.1f}"]
            print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
