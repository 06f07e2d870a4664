"""A little data and the mammography start → the start taught further, and blended with itself as other folds choose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit.competition.folds import assign_folds, known_patients
from rsna_kit.config import Config, with_overrides
from rsna_kit.data.batches import Pictures, picture_stream
from rsna_kit.data.shards import open_prepared
from rsna_kit.models.ensemble import Ensemble
from rsna_kit.models.members import LIST, common_image, find_mammography, open_list
from rsna_kit.recipes.blend import blend
from rsna_kit.recipes.train import train
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import UsageError, listed
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_bytes, write_csv


def tune(where: Path, out: Path, seeds: Sequence[int], config: Config, events: Events) -> dict[str, Any]:
    """Score prepared mammograms by the start as it is, by what it learns from the others, and by both together.

    The head learns for a few epochs in small steps (preset `mammography`). What that is worth beside the start is
    weighed on folds that are not scored (`rsna_kit.recipes.blend`); where it is worth nothing, the start alone is kept.

    Args:
        where: folder written by `prepare` with the image section of the preset.
        out: folder; for each seed `seed<N>/start`, `seed<N>/tuned` and `seed<N>/blend`, which `infer` takes.
        seeds: each deals the folds anew.
        config: of the training.

    Returns:
        For each seed ROC-AUC out of fold of `start`, `tuned`, their `plain mean` and `weighted` mean (each fold by
        the weights that the others choose), and which of them was `kept`; the `mean` of each over the seeds. For JSON.

    Raises:
        UsageError: another image section than the start's, or patients that the start has seen.
    """
    home = find_mammography()
    prepared, members = open_prepared(where, config.image), open_list(home)
    bundles = [member.bundle for member in members.members]
    if (image := common_image(bundles)) != config.image:
        raise UsageError(f"{where}: pictures of {config.image}, expected those of the start, {image}. Prepare them so.")
    patients = prepared.table["patient_id"]
    if seen := {one for bundle in bundles for one in known_patients(bundle.metadata["trained_on"], patients)}:
        raise UsageError(f"{where}: the start has seen {listed(sorted(seen), most=3)}: scores would be too good")
    ensemble = Ensemble(members.members, config.infer.batch_size, members.tta, say=events.say)
    stream, scores = picture_stream(Pictures(prepared), prepared.table["image_id"], config.infer.batch_size), []
    with events.progress(len(prepared.table), "start") as progress:
        for _, columns in ensemble.stream((None, batch) for batch in stream):
            scores.append(columns[:, 0])
            progress.advance(len(columns))
    found: dict[str, dict[str, Any]] = {}
    for seed in seeds:
        folder, dealt = out / f"seed{seed}", with_overrides(config, [f"train.seed={seed}"])
        models = [folder / "start", folder / "tuned"]
        _link(home, models[0])
        fold_of = assign_folds(prepared.table, config.train.folds, seed, config.train.hold_out)
        write_csv(models[0] / "oof.csv", prepared.table.assign(fold=fold_of, score=np.concatenate(scores)))
        train(where, models[1], dealt, events, Clock(), weights=[home])
        made = blend(folder / "blend", models, config.infer, events)
        worth = {name: metrics["roc_auc"]["value"] for name, metrics in made["out_of_fold"].items()}
        found[str(seed)] = worth | {"kept": made["kept"]}
    names = [name for name in next(iter(found.values())) if name != "kept"]
    means = {name: float(np.mean([one[name] for one in found.values()])) for name in names}
    return {"ok": True, "roc_auc": found, "mean": means}


def _link(home: Path, folder: Path) -> None:
    """A run whose networks are those of the start."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bundles").unlink(missing_ok=True)
    (folder / "bundles").symlink_to((home / "bundles").resolve(), target_is_directory=True)
    write_bytes(folder / LIST, (home / LIST).read_bytes())
