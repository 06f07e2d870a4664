"""Prepared shards → one bundle per fold, out-of-fold scores and one threshold. Resumes behind the last whole fold."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rsna_kit.competition.folds import assign_folds
from rsna_kit.config import Config, to_dict
from rsna_kit.runtime.clock import Clock, format_duration
from rsna_kit.runtime.errors import BundleError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import replacing, write_json
from rsna_kit.scoring.breasts import to_breasts
from rsna_kit.scoring.metrics import average_precision_score, pf1_score, roc_auc_score
from rsna_kit.scoring.threshold import apply_threshold, choose_threshold

if TYPE_CHECKING:
    from rsna_kit.data.shards import Prepared

_OOF_COLUMNS = ["image_id", "prediction_id", "patient_id", "laterality", "view", "cancer", "fold"]


def train(
    prepared_dir: Path, out: Path, config: Config, events: Events, clock: Clock, folds: Sequence[int] | None = None
) -> dict[str, Any]:
    """Train one network per fold.

    Args:
        prepared_dir: folder written by `prepare` with the same image section.
        out: folder for `bundles/fold<k>/`, `fold<k>/` (history, curves, validation scores), `oof.csv` and
            `threshold.json`. A fold that is done there with the same data and configuration is kept.
        config: all sections.
        clock: its limit is shared out evenly over the folds that are left.
        folds: only these folds; the threshold is chosen on the folds that are done.

    Returns:
        Out-of-fold pF1, ROC-AUC and PR-AUC per breast, the threshold, and paths; ready for JSON. `ok` is False
        when the clock stopped a fold before its last epoch.
    """
    from rsna_kit.data.shards import open_prepared
    from rsna_kit.models.bundle import set_threshold, write_bundle
    from rsna_kit.models.training import Trainer

    prepared = open_prepared(prepared_dir, config.image)
    table = prepared.table.assign(fold=assign_folds(prepared.table, config.train.folds, config.train.seed))
    chosen = sorted(set(folds)) if folds else list(range(config.train.folds))
    if not set(chosen) <= set(range(config.train.folds)):
        raise UsageError(f"--fold {chosen}: expected numbers from 0 to {config.train.folds - 1} (train.folds)")
    events.say(
        f"train: {len(table)} images of {table['patient_id'].nunique()} patients, "
        f"{int(table['cancer'].sum())} with cancer; folds {', '.join(map(str, chosen))} of {config.train.folds}"
    )

    _remove_foreign(out, config, prepared, events)
    left = [fold for fold in chosen if _state(out, fold, config, prepared) != "done"]
    for fold in sorted(set(chosen) - set(left)):
        events.say(f"fold {fold}: kept from an earlier run")
    stopped, skipped, epoch_s = [], [], 0.0
    trainer = Trainer(prepared, config, events, lambda scores: _validate(scores, table), clock=clock) if left else None
    for position, fold in enumerate(left):
        assert trainer is not None
        if clock.remaining_s() < 1.5 * epoch_s:  # of the folds before: not even one epoch would fit
            events.say(f"fold {fold}: no time left for it")
            skipped.append(fold)
            continue
        share = Clock(clock.remaining_s() / (len(left) - position))
        result = trainer.train_fold(table, fold, out / f"fold{fold}", share)
        kept = result.history[result.best_epoch - 1]
        with replacing(out / f"fold{fold}" / "validation.csv") as temporary:
            result.scores.to_csv(temporary, index=False)
        epoch_s = 60 * result.minutes / len(result.history)
        metrics = {name: value for name, value in kept.items() if name.startswith("val_")}
        cv = {"epoch": result.best_epoch, "stopped": result.stopped, **metrics}
        write_bundle(out / "bundles" / f"fold{fold}", trainer.model, config, fold, None, cv, prepared.data_fingerprint)
        stopped += [fold] if result.stopped else []
        events.say(f"fold {fold}: done in {format_duration(result.minutes * 60)}, epoch {result.best_epoch} kept")

    done = [fold for fold in range(config.train.folds) if _state(out, fold, config, prepared)]
    scores = pd.concat([_validation_scores(out, fold) for fold in done])
    oof = table.loc[table["fold"].isin(done), _OOF_COLUMNS].merge(scores, on="image_id", validate="1:1")
    with replacing(out / "oof.csv") as temporary:
        oof.to_csv(temporary, index=False)
    breasts = to_breasts(oof, oof)
    threshold = choose_threshold(breasts["cancer"], breasts["score"])
    how = {"rule": "middle of the plateau of the out-of-fold F1 curve", "folds": done, **dataclasses.asdict(threshold)}
    for fold in done:
        set_threshold(out / "bundles" / f"fold{fold}", threshold.value, how)
    write_json(out / "threshold.json", how)
    write_json(out / "config.json", to_dict(config))
    return {
        "ok": not stopped and not skipped,
        "bundles": str(out / "bundles"),
        "oof": str(out / "oof.csv"),
        "folds": done,
        "stopped_by_clock": stopped,
        "skipped": skipped,
        "breasts": len(breasts),
        "positives": int(breasts["cancer"].sum()),
        "roc_auc": roc_auc_score(breasts["cancer"], breasts["score"]),
        "pr_auc": average_precision_score(breasts["cancer"], breasts["score"]),
        "pf1_binary": pf1_score(breasts["cancer"], apply_threshold(breasts, threshold.value)["cancer"]),
        "threshold": threshold.value,
        "minutes": round(clock.elapsed_s() / 60, 2),
    }


def _validate(scores: pd.DataFrame, table: pd.DataFrame) -> dict[str, float]:
    """Validation metrics per breast of the scored images."""
    breasts = to_breasts(scores, table[table["image_id"].isin(scores["image_id"])])
    labels, values = breasts["cancer"], breasts["score"]
    return {"roc_auc": roc_auc_score(labels, values), "pr_auc": average_precision_score(labels, values),
            "pf1": pf1_score(labels, values)}  # fmt: skip


def _state(out: Path, fold: int, config: Config, prepared: Prepared) -> str:
    """`done`, `stopped` (by the clock: usable, but trained again by the next run), or nothing.

    A bundle counts when it is whole and of the same data and configuration.
    """
    from rsna_kit.models.bundle import open_bundle

    if not (out / f"fold{fold}" / "validation.csv").is_file():
        return ""
    try:
        bundle = open_bundle(out / "bundles" / f"fold{fold}")
    except BundleError:
        return ""
    # What concerns inference, and how shards are cut and saved, does not concern the weights.
    data = dataclasses.replace(config.data, save=bundle.config.data.save, shard_images=bundle.config.data.shard_images)
    same = bundle.config == dataclasses.replace(config, data=data, infer=bundle.config.infer)
    if bundle.metadata["data_fingerprint"] != prepared.data_fingerprint or not same:
        return ""
    return "stopped" if bundle.metadata["cv"].get("stopped") else "done"


def _remove_foreign(out: Path, config: Config, prepared: Prepared, events: Events) -> None:
    """Bundles of another configuration or of other data would be scored beside the new ones: remove them."""
    for folder in sorted((out / "bundles").glob("fold*")):
        number = folder.name.removeprefix("fold")
        if not number.isdigit() or int(number) >= config.train.folds or not _state(out, int(number), config, prepared):
            events.say(f"{folder}: of another configuration or unfinished, removed")
            shutil.rmtree(folder)


def _validation_scores(out: Path, fold: int) -> pd.DataFrame:
    return pd.read_csv(out / f"fold{fold}" / "validation.csv", dtype={"image_id": str}, float_precision="round_trip")
