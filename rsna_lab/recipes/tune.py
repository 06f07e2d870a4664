"""A little data and the mammography start → the start taught further, blended with itself: never much worse than it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit.competition.folds import assign_folds
from rsna_kit.config import InferConfig, preset, with_overrides
from rsna_kit.data.batches import Pictures, picture_stream
from rsna_kit.data.shards import open_prepared
from rsna_kit.models.ensemble import Ensemble
from rsna_kit.models.members import find_mammography, open_list
from rsna_kit.recipes.blend import blend
from rsna_kit.recipes.train import train
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_csv


def fine_tune(where: Path, out: Path, seeds: Sequence[int], overrides: Sequence[str], events: Events) -> dict[str, Any]:
    """Score prepared mammograms by the start as it is, by what it learns from the others, and by both together.

    The head learns for a few epochs in small steps (preset `mammography`). What that is worth beside the start is
    weighed on folds that are not scored (`rsna_kit.recipes.blend`): where nothing was learned the start's score stays.

    Args:
        where: folder written by `prepare` with the image section of the preset.
        out: folder; for each seed `seed<N>/start`, `seed<N>/tuned` and `seed<N>/blend`, which `infer` takes.
        seeds: each deals the folds anew.
        overrides: `section.key=value`, as `rsna-kit train` takes them.

    Returns:
        ROC-AUC out of fold of `start`, `tuned` and `blend` for each seed, and their means; for JSON.
    """
    config, home = with_overrides(preset("mammography"), overrides), find_mammography()
    prepared, members = open_prepared(where, config.image), open_list(home)
    ensemble = Ensemble(members.members, config.infer.batch_size, members.tta, say=events.say)
    stream, scores = picture_stream(Pictures(prepared), prepared.table["image_id"], config.infer.batch_size), []
    with events.progress(len(prepared.table), "start") as progress:
        for _, columns in ensemble.stream((None, batch) for batch in stream):
            scores.append(columns[:, 0])
            progress.advance(len(columns))
    found: dict[str, dict[str, float]] = {}
    for seed in seeds:
        folder, dealt = out / f"seed{seed}", with_overrides(config, [f"train.seed={seed}"])
        shutil.rmtree(folder / "start", ignore_errors=True)
        shutil.copytree(home, folder / "start")
        fold_of = assign_folds(prepared.table, config.train.folds, seed, config.train.hold_out)
        write_csv(folder / "start/oof.csv", prepared.table.assign(fold=fold_of, score=np.concatenate(scores)))
        train(where, folder / "tuned", dealt, events, Clock(), weights=[home])
        models = [folder / "start", folder / "tuned"]
        worth = blend(folder / "blend", models, InferConfig(tta=members.tta), events)["out_of_fold"]
        found[str(seed)] = {name: metrics["roc_auc"]["value"] for name, metrics in worth.items()}
    means = {name: float(np.mean([one[name] for one in found.values()])) for name in next(iter(found.values()))}
    return {"ok": True, "roc_auc": found, "mean": means}
