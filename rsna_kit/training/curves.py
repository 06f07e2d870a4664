"""The curves of a training: losses, validation metrics and learning rate by epoch, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsna_kit.runtime.files import write_bytes
from rsna_kit.runtime.lazy import require


def draw_curves(history: Sequence[dict[str, Any]], best_epoch: int, path: Path) -> None:
    """Draw losses, validation metrics and the learning rate over the epochs, the best epoch marked.

    Args:
        history: one row per epoch as `Trainer` writes it; None where a number was not finite.
        best_epoch: number of the epoch whose weights were kept.
        path: a PNG file.
    """
    figure = require("matplotlib.figure", "train").Figure(figsize=(15, 3.5), layout="constrained")
    metrics = [name for name in history[0] if name.startswith("val_") and name != "val_loss"]
    panels = {"loss": ["loss"], "val_loss": ["val_loss"], "validation": metrics, "learning rate": ["learning_rate"]}
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name in names:
            values = [float("nan") if row[name] is None else row[name] for row in history]
            axes.plot([row["epoch"] for row in history], values, marker="o", markersize=3, label=name)
        axes.axvline(best_epoch, color="0.6", linestyle=":", label="kept")
        axes.set_xlabel("epoch")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    write_bytes(path, drawn.getbuffer())
