"""Trained models → one weighted ensemble, chosen on out-of-fold scores alone, as a folder that `infer` takes."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rsna_kit.config import InferConfig
from rsna_kit.recipes.score import read_breasts, short_names
from rsna_kit.runtime.errors import BundleError, TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_bytes, write_csv, write_json
from rsna_kit.scoring.blend import (
    OBJECTIVES,
    blend_out_of_fold,
    choose_weights,
)  # fmt: skip
from rsna_kit.scoring.calibration import calibrate
from rsna_kit.scoring.comparison import compare, in_common, markdown
from rsna_kit.scoring.threshold import choose_threshold, with_calls

if TYPE_CHECKING:
    from rsna_kit.models.bundle import Bundle

WEIGHTINGS = ("auto", "chosen", "mean")
MEAN, WEIGHTED = "plain mean", "weighted"
_LIST = "ensemble.json"  # as `rsna_kit.models.members.LIST`, which imports no Keras but lies among what does
_TAKEN = {MEAN, WEIGHTED, "prediction_id", "patient_id", "cancer", "fold", "score", "called"}  # are no models' names


def blend(
    out: Path,
    models: Sequence[Path],
    settings: InferConfig,
    events: Events,
    metric: str = "roc_auc",
    weighting: str = "auto",
) -> dict[str, Any]:
    """Blend models and say what it brings.

    Args:
        out: folder for `ensemble.json`, copies of the bundles, and `oof.csv` with the blend's out-of-fold score of each
            breast. A blend that is there is replaced.
        models: two or more folders written by `train` on the same patients and folds.
        settings: its `tta` is written into the list.
        metric: what weights are chosen for, one of `rsna_kit.scoring.blend.OBJECTIVES`.
        weighting: "mean" gives all models the same weight; "chosen" takes the weights that are best out of fold; "auto"
            takes those only where they beat the plain mean on folds that did not choose them.

    Returns:
        Weights, threshold, calibration and `out_of_fold`: each model, the plain mean and the weighted mean (each fold
        weighted by what the other folds chose) compared with the plain mean as `rsna_kit.scoring.comparison.compare`
        does. Ready for JSON.

    Raises:
        UsageError: fewer than two models, the same one twice, or an `out` that holds something else.
        TableError: out-of-fold scores that are missing, or of other breasts, labels or folds.
        BundleError: a fold without its bundle, bundles of different image sections, or two with the same weights.
    """
    _check_request(out, models, metric, weighting)
    from rsna_kit.models.members import common_image, write_list

    names = {name.replace("/", "-"): folder for name, folder in zip(short_names(models), models, strict=True)}
    if len(names) < len(models) or names.keys() & _TAKEN:
        raise UsageError(f"--model: the names {', '.join(names)} clash with each other or with a column. Rename one.")
    breasts = _read_models(names)
    folds = sorted(breasts["fold"].unique().tolist())
    bundles = {name: _bundles(folder, folds) for name, folder in names.items()}
    together = [bundle for by_fold in bundles.values() for bundle in by_fold.values()]
    common_image(together)
    _check_different(together)
    labels, scores = breasts["cancer"].to_numpy(), breasts[list(names)].to_numpy(np.float64)
    events.say(
        f"blend: {len(names)} models, {len(breasts)} breasts of {breasts['patient_id'].nunique()} patients, "
        f"{int(labels.sum())} with cancer, out of fold"
    )

    weighted = blend_out_of_fold(labels, scores, breasts["fold"].to_numpy(), metric)
    columns = {name: breasts[name].to_numpy() for name in names} | {MEAN: scores.mean(axis=1), WEIGHTED: weighted}
    columns = {name: np.clip(column, 0, 1) for name, column in columns.items()}  # a mean of ones can round to more
    compared = compare({name: with_calls(breasts.assign(score=s))[0] for name, s in columns.items()}, MEAN)
    events.say("\n" + markdown(compared, MEAN))

    better = OBJECTIVES[metric](labels, columns[WEIGHTED]) > OBJECTIVES[metric](labels, columns[MEAN])
    kept = WEIGHTED if weighting == "chosen" or (weighting == "auto" and better) else MEAN
    chosen = choose_weights(labels, scores, metric) if kept == WEIGHTED else np.full(len(names), 1 / len(names))
    weights = dict(zip(names, chosen.tolist(), strict=True))
    breasts["score"] = columns[kept]
    threshold = choose_threshold(labels, breasts["score"])
    shown = ", ".join(f"{weight:.2f} x {name}" for name, weight in weights.items())
    events.say(f"kept: {kept}: {shown}; threshold {threshold.value:.4f}")
    calibration = calibrate(labels, breasts["score"], breasts["fold"], events.say)

    by_bundle = _copy(out, bundles, weights)
    write_csv(out / "oof.csv", breasts)
    result = {
        "models": {name: str(folder) for name, folder in names.items()},
        "weights": weights,
        "weighting": {"asked": weighting, "kept": kept, "metric": metric},
        "threshold": {"rule": "middle of the plateau of the out-of-fold F1 curve", **dataclasses.asdict(threshold)},
        "out_of_fold": compared,
    }
    write_list(out, by_bundle, settings.tta, threshold.value, result, calibration)
    return {
        "ok": True,
        "ensemble": str(out / "ensemble.json"),
        "oof": str(out / "oof.csv"),
        "tta": settings.tta,
        "calibration": calibration,
        **result,
    }


def _check_request(out: Path, models: Sequence[Path], metric: str, weighting: str) -> None:
    if len(models) < 2 or len({folder.resolve() for folder in models}) < len(models):
        given = ", ".join(map(str, models)) or "none"
        raise UsageError(f"--model: got {given}, expected two or more different folders written by train")
    if metric not in OBJECTIVES:
        raise UsageError(f"--metric: got {metric!r}, expected one of {', '.join(OBJECTIVES)}")
    if weighting not in WEIGHTINGS:
        raise UsageError(f"--weights: got {weighting!r}, expected one of {', '.join(WEIGHTINGS)}")
    if (out / "bundles").exists() and not (out / _LIST).is_file():
        raise UsageError(f"{out} holds bundles that blend did not write, expected a new folder or an earlier blend")


def _check_different(bundles: Sequence[Bundle]) -> None:
    """Refuse a model beside its copy: `infer` scores each bundle once, so the weights would not be those chosen."""
    seen: dict[str, Path] = {}
    for bundle in bundles:
        digest = bundle.metadata["sha256"]["model.weights.h5"]
        if digest in seen:
            raise BundleError(f"{bundle.path} and {seen[digest]} hold the same weights. Give each model once.")
        seen[digest] = bundle.path


def _read_models(names: Mapping[str, Path]) -> pd.DataFrame:
    """`prediction_id, patient_id, cancer, fold` of the breasts, and a column of scores named as each model."""
    tables = {name: read_breasts(folder)[1] for name, folder in names.items()}
    for name, table in tables.items():
        if "fold" not in table.columns:
            raise TableError(f"{names[name] / 'oof.csv'}: no column fold. Give folders written by train")
    cut = in_common(tables, alike=["fold"])
    for name, table in tables.items():
        if len(table) > len(cut[name]):
            raise TableError(
                f"model {name}: {len(table) - len(cut[name])} of its breasts are not in all models. Blend models that "
                "were trained on the same prepared patients, with the same train.folds and seed. Nothing was blended."
            )
    first = next(iter(cut.values()))[["prediction_id", "patient_id", "cancer", "fold"]]
    return first.assign(**{name: table["score"].to_numpy() for name, table in cut.items()})


def _bundles(folder: Path, folds: Sequence[int]) -> dict[int, Bundle]:
    """The bundle of each fold that has scores."""
    from rsna_kit.models.bundle import open_bundle

    found = {fold: open_bundle(folder / "bundles" / f"fold{fold}") for fold in folds}
    for fold, bundle in found.items():
        if bundle.metadata["fold"] != fold:
            raise BundleError(f"{bundle.path} is of fold {bundle.metadata['fold']}, its place is that of fold {fold}")
    return found


def _copy(out: Path, bundles: Mapping[str, Mapping[int, Bundle]], weights: Mapping[str, float]) -> dict[str, float]:
    """Copy the bundles that have a weight; returns the weight of each copy.

    Until the list is written anew it says nothing, so a run that is killed here leaves no list that half fits.
    """
    write_json(out / _LIST, {})
    shutil.rmtree(out / "bundles", ignore_errors=True)
    by_bundle = {}
    for name, folds in bundles.items():
        for fold, bundle in folds.items():
            if weights[name] > 0:
                copy = f"bundles/{name}-fold{fold}"
                for file in (*bundle.metadata["sha256"], "metadata.json"):
                    write_bytes(out / copy / file, (bundle.path / file).read_bytes())
                by_bundle[copy] = weights[name] / len(folds)
    return by_bundle
