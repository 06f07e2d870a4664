"""Trained models → one weighted ensemble, chosen on out-of-fold scores alone, as a folder that `infer` takes."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rsna_kit.competition.folds import check_folds
from rsna_kit.config import InferConfig
from rsna_kit.runtime.errors import BundleError, TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_csv, write_bytes, write_csv, write_json
from rsna_kit.scoring.blend import (
    OBJECTIVES,
    choose_weights,
    join_models,
    logit_mean,
    nested,
    nested_votes,
    rank_mean,
)  # fmt: skip
from rsna_kit.scoring.calibration import calibrate
from rsna_kit.scoring.contrast import contrast
from rsna_kit.scoring.threshold import choose_threshold

if TYPE_CHECKING:
    from rsna_kit.models.bundle import Bundle

WEIGHTINGS = ("auto", "chosen", "mean")
MEAN, WEIGHTED, RANKS, LOGITS, VOTES = "plain mean", "weighted", "rank mean", "logit mean", "voting"
_BLENDS = (MEAN, WEIGHTED, RANKS, LOGITS, VOTES)
_LIST = "ensemble.json"  # as `rsna_kit.models.members.LIST`, which imports no Keras but lies among what does
_OOF = ("image_id", "prediction_id", "patient_id", "cancer", "fold", "score")


def blend(
    out: Path, models: Sequence[Path], settings: InferConfig, events: Events, metric: str = "roc_auc",
    weighting: str = "auto",
) -> dict[str, Any]:  # fmt: skip
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
        Weights, threshold, calibration and, for each model, the plain mean, the weighted mean (nested: each fold
        weighted by what the other folds chose), rank mean, logit mean and voting (by a majority, each model by a
        threshold that the other folds chose), ROC-AUC, PR-AUC and F1 at its own threshold with intervals by patient,
        and the paired differences to the plain mean. The last three are for comparison: `infer` takes weighted means.
        Ready for JSON.

    Raises:
        UsageError: fewer than two models, the same one twice, or an `out` that holds something else.
        TableError: out-of-fold scores that are missing, or of other breasts, labels or folds.
        BundleError: a fold without its bundle, bundles of different image sections, or two with the same weights.
    """
    _check_request(out, models, metric, weighting)
    from rsna_kit.models.members import common_image, write_list

    names = _names(models)
    tables = {name: _read_oof(folder) for name, folder in names.items()}
    bundles = {name: _bundles(folder, tables[name]) for name, folder in names.items()}
    together = [bundle for folds in bundles.values() for bundle in folds.values()]
    common_image(together)
    _check_different(together)
    breasts = join_models(tables)
    events.say(
        f"blend: {len(names)} models, {len(breasts)} breasts of {breasts['patient_id'].nunique()} patients, "
        f"{int(breasts['cancer'].sum())} with cancer, out of fold"
    )

    labels, scores = breasts["cancer"].to_numpy(), breasts[list(names)].to_numpy(np.float64)
    mean = np.full(len(names), 1 / len(names))
    weighted, by_fold = nested(labels, scores, breasts["fold"].to_numpy(), metric)
    shares = nested_votes(labels, scores, breasts["fold"].to_numpy())
    columns = {name: breasts[name].to_numpy() for name in names} | {
        MEAN: scores @ mean, WEIGHTED: weighted, RANKS: rank_mean(scores), LOGITS: logit_mean(scores), VOTES: shares,
    }  # fmt: skip
    compared = contrast(labels, columns, breasts["patient_id"], MEAN, calls={VOTES: (shares > 0.5).astype(float)})
    table = {name: {key: interval.as_dict() for key, interval in row.items()} for name, row in compared.items()}
    _tell(table, events)

    better = OBJECTIVES[metric](labels, weighted) > OBJECTIVES[metric](labels, columns[MEAN])
    kept = WEIGHTED if weighting == "chosen" or (weighting == "auto" and better) else MEAN
    weights = choose_weights(labels, scores, metric) if kept == WEIGHTED else mean
    breasts["score"] = np.clip(columns[kept], 0, 1)
    threshold = choose_threshold(labels, breasts["score"])
    shown = ", ".join(f"{weight:.2f} x {name}" for name, weight in zip(names, weights, strict=True))
    events.say(f"kept: {kept}: {shown}; threshold {threshold.value:.4f}")
    calibration = calibrate(labels, breasts["score"], breasts["fold"], events.say)

    by_bundle = _copy(out, bundles, dict(zip(names, weights.tolist(), strict=True)))
    write_csv(out / "oof.csv", breasts)
    result = {
        "models": {name: str(folder) for name, folder in names.items()},
        "weights": dict(zip(names, weights.tolist(), strict=True)),
        "weighting": {"asked": weighting, "kept": kept, "metric": metric},
        "weights_by_fold": {str(fold): dict(zip(names, row.tolist(), strict=True)) for fold, row in by_fold.items()},
        "threshold": {"rule": "middle of the plateau of the out-of-fold F1 curve", **dataclasses.asdict(threshold)},
        "out_of_fold": table,
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


def _names(models: Sequence[Path]) -> dict[str, Path]:
    """A short name for each folder: its own, or with a number where two are called alike."""
    names = [folder.resolve().name for folder in models]
    found: dict[str, Path] = {}
    for number, (name, folder) in enumerate(zip(names, models, strict=True), 1):
        unique = name if names.count(name) == 1 and name not in {*_OOF, *_BLENDS} else f"{name}-{number}"
        while unique in found or (unique != name and unique in names):
            unique += "-"  # another folder is called so
        found[unique] = folder
    return found


def _read_oof(folder: Path) -> pd.DataFrame:
    path = folder / "oof.csv"
    try:
        table: pd.DataFrame = read_csv(path, ("image_id", "prediction_id", "patient_id"))
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file. Give folders written by train, which has to have ended") from error
    except ValueError as error:
        raise TableError(f"{path}: not a table ({error}). Run train again") from error
    missing = [name for name in _OOF if name not in table.columns]
    if missing or table.empty or table[list(_OOF)].isna().any(axis=None):
        what = f"no column {', '.join(missing)}" if missing else "empty cells or no row"
        raise TableError(f"{path}: {what}, expected {', '.join(_OOF)} of each image. Run train again")
    check_folds(table, table["fold"], str(path))
    return table


def _bundles(folder: Path, table: pd.DataFrame) -> dict[int, Bundle]:
    """The bundle of each fold that has scores."""
    from rsna_kit.models.bundle import open_bundle

    found = {fold: open_bundle(folder / "bundles" / f"fold{fold}") for fold in sorted(table["fold"].unique().tolist())}
    for fold, bundle in found.items():
        if bundle.metadata["fold"] != fold:
            raise BundleError(f"{bundle.path} is of fold {bundle.metadata['fold']}, its place is that of fold {fold}")
    return found


def _tell(table: Mapping[str, Mapping[str, Mapping[str, float | None]]], events: Events) -> None:
    wide = max(map(len, table))
    heads = ("ROC-AUC", "minus the mean", "PR-AUC", "F1 at its threshold", "minus the mean")
    widths = (21, 24, 21, 21, 24)
    lines = [("", heads)]
    for name, row in table.items():
        roc_auc, pr_auc, f1 = (_cell(row[key]) for key in ("roc_auc", "pr_auc", "pf1_binary"))
        gains = [_cell(row.get(f"{key} - {MEAN}"), signed=True) for key in ("roc_auc", "pf1_binary")]
        lines.append((name, (roc_auc, gains[0], pr_auc, f1, gains[1])))
    for name, cells in lines:
        padded = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        events.say(f"{name:<{wide}}  {padded}".rstrip())


def _cell(interval: Mapping[str, float | None] | None, signed: bool = False) -> str:
    if interval is None or interval["value"] is None:
        return ""
    sign = "+" if signed else ""
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    around = "" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{value:{sign}.3f}{around}"


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
