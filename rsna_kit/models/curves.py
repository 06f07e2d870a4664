"""A training history to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsna_kit.runtime.files import replacing
from rsna_kit.runtime.lazy import require


def draw_curves(history: Sequence[dict[str, Any]], best_epoch: int, path: Path) -> None:
    """Draw losses on the left and validation metrics on the right, the best epoch marked.

    Args:
        history: one row per epoch as `Trainer` writes it.
        best_epoch: number of the epoch whose weights were kept.
        path: a PNG file.
    """
    figure = require("matplotlib.figure", "train").Figure(figsize=(9, 3.5), layout="constrained")
    epochs = [row["epoch"] for row in history]
    losses, metrics = figure.subplots(1, 2)
    for axes, names in ((losses, ("loss", "val_loss")), (metrics, metric_names(history))):
        for name in names:
            values = [float("nan") if row[name] is None else row[name] for row in history]
            axes.plot(epochs, values, marker="o", markersize=3, label=name)
        axes.axvline(best_epoch, color="0.6", linestyle=":", label="kept")
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    losses.set_title("loss")
    metrics.set_title("validation")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def metric_names(history: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the validation metrics in a history, in their order."""
    return [name for name in history[0] if name.startswith("val_") and name != "val_loss"]
