"""The curves of a training: losses, validation metrics and learning rate by epoch, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsna_kit.runtime.files import write_bytes
from rsna_kit.runtime.lazy import require

_APART = 20  # losses that differ by more than this factor, as a CVAE's do, get an axis each


def draw_curves(history: Sequence[dict[str, Any]], best_epoch: int, path: Path) -> None:
    """Draw losses, validation metrics and the learning rate over the epochs, the best epoch marked.

    Args:
        history: one row per epoch as `Trainer` writes it; None where a number was not finite.
        best_epoch: number of the epoch whose weights were kept.
        path: a PNG file.
    """
    figure = require("matplotlib.figure", "train").Figure(figsize=(12, 3.5), layout="constrained")
    epochs = [row["epoch"] for row in history]
    losses, metrics, rates = figure.subplots(1, 3)
    apart = _largest(history, "loss") > _APART * _largest(history, "val_loss")
    second = losses.twinx() if apart else losses
    measured = [(metrics, name) for name in history[0] if name.startswith("val_") and name != "val_loss"]
    panels = [(losses, "loss"), (second, "val_loss"), (rates, "learning_rate")]
    for number, (axes, name) in enumerate([*panels, *measured]):
        values = [float("nan") if row[name] is None else row[name] for row in history]
        axes.plot(epochs, values, marker="o", markersize=3, label=name, color=f"C{number}")
    for axes, title in ((losses, "loss"), (metrics, "validation"), (rates, "learning rate at the end")):
        axes.axvline(best_epoch, color="0.6", linestyle=":", label="kept")
        axes.set_xlabel("epoch")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
    if apart:
        second.set_ylabel("val_loss", color="C1")
        losses.set_ylabel("loss", color="C0")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    write_bytes(path, drawn.getbuffer())


def _largest(history: Sequence[dict[str, Any]], name: str) -> float:
    return max((abs(row[name]) for row in history if row[name] is not None), default=0.0)
