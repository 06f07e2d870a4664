"""Pictures and an autoencoder → a PNG with a row for each: the picture, its reconstruction, its error map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.files import replacing
from rsna_kit.runtime.lazy import require

_INCHES = 2.6  # height of a row
_BRIGHTEST = 99.5  # percentile of all error maps that the brightest colour stands for: one pixel must not dim the rest


def draw_reconstructions(path: Path, pictures: np.ndarray, models: tuple[Any, Any], titles: Sequence[str]) -> None:
    """Draw each picture beside what the autoencoder makes of it; one colour scale for all error maps.

    Args:
        path: a PNG file, written whole or not at all.
        pictures: uint8 (N, h, w), N at least 1.
        models: reconstruction and error model, as `rsna_kit.models.cvae.picture_models` gives them.
        titles: N short texts, e.g. id and score.

    Raises:
        UsageError: pictures of another shape or type, or another number of titles.
    """
    if pictures.ndim != 3 or pictures.dtype != np.uint8 or len(pictures) == 0 or len(titles) != len(pictures):
        raise UsageError(
            f"reconstructions: got {pictures.dtype} {pictures.shape} with {len(titles)} titles, expected uint8 "
            "(N, h, w) with N titles, N at least 1"
        )
    drawn, errors = (
        np.concatenate([np.asarray(model.predict_on_batch(one[None, ..., None]))[..., 0] for one in pictures])
        for model in models
    )
    brightest = max(float(np.percentile(errors, _BRIGHTEST)), 1 / 255)
    width = _INCHES * 3 * pictures.shape[2] / pictures.shape[1] + 1
    figure = require("matplotlib.figure", "train").Figure(figsize=(max(width, 5), _INCHES * len(pictures)))
    figure.set_layout_engine("constrained")
    rows = figure.subplots(len(pictures), 3, squeeze=False)
    for axes, picture, reconstruction, error, title in zip(rows, pictures, drawn, errors, titles, strict=True):
        axes[0].imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes[1].imshow(reconstruction, cmap="gray", vmin=0, vmax=1)
        shown = axes[2].imshow(error, cmap="inferno", vmin=0, vmax=brightest)
        for axis, name in zip(axes, (title, "reconstruction", "error"), strict=True):
            axis.set_title(name, fontsize=8, loc="left")
            axis.set_axis_off()
    figure.colorbar(shown, ax=rows[:, 2].tolist(), label="share of the grey range")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def draw_extremes(
    path: Path, load: Callable[[str], np.ndarray], models: tuple[Any, Any], scores: pd.DataFrame, each: int = 3
) -> None:
    """Draw the pictures with the highest and the lowest scores, highest first.

    Args:
        path: a PNG file.
        load: image id → uint8 (h, w).
        models: as for `draw_reconstructions`.
        scores: columns image_id, score; a column cancer is shown where there is one.
        each: how many of either end; all pictures where there are not that many.
    """
    ordered = scores.sort_values(["score", "image_id"], ascending=[False, True])
    chosen = ordered if len(ordered) <= 2 * each else pd.concat([ordered.head(each), ordered.tail(each)])
    labels = chosen["cancer"].map({0: ", no cancer", 1: ", cancer"}) if "cancer" in chosen else [""] * len(chosen)
    rows = zip(chosen["image_id"], chosen["score"], labels, strict=True)
    titles = [f"{image_id}: {score:.3f}{label}" for image_id, score, label in rows]
    draw_reconstructions(path, np.stack([load(image_id) for image_id in chosen["image_id"]]), models, titles)
