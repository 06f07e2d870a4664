"""Trained models → one weighted ensemble, chosen on out-of-fold scores alone, as a folder that `infer` takes."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rsna_kit import __version__
from rsna_kit.config import InferConfig
from rsna_kit.recipes.score import read_breasts, short_names
from rsna_kit.runtime.errors import BundleError, TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import sha256_file, write_bytes, write_csv, write_json
from rsna_kit.runtime.hardware import commit
from rsna_kit.scoring.blend import blend_out_of_fold, choose_weights
from rsna_kit.scoring.calibration import calibrate
from rsna_kit.scoring.intervals import bootstrap, shown
from rsna_kit.scoring.threshold import choose_threshold, with_calls

if TYPE_CHECKING:
    from rsna_kit.models.bundle import Bundle
    from rsna_kit.models.members import Members

MEAN, WEIGHTED = "plain mean", "weighted"
_METRICS = ("roc_auc", "pr_auc", "pf1_binary")
_FACTS = ["prediction_id", "patient_id", "cancer", "fold"]
_TAKEN = {MEAN, WEIGHTED, *_FACTS, "score", "called"}  # are no models' names


def blend(out: Path, models: Sequence[Path], settings: InferConfig, events: Events) -> dict[str, Any]:
    """Blend models and say what it brings.

    The weights that rank best out of fold are kept where they beat the plain mean and each model alone on folds that
    did not choose them; else the best of those.

    Args:
        out: folder for `ensemble.json`, copies of the bundles, and `oof.csv` with the blend's out-of-fold score of each
            breast. A blend that is there is replaced.
        models: two or more folders written by `train` or `blend` on the same patients and folds. Where one's list asks
            for TTA, all do.
        settings: its `tta` is written into the list.

    Returns:
        Weights, threshold, calibration and `out_of_fold`: metrics with intervals of each model, the plain mean and the
        weighted mean (each fold weighted by what the other folds chose); `gain`: what the latter has more in ROC-AUC
        than the plain mean, on the same resamples. Ready for JSON.

    Raises:
        UsageError: fewer than two models, the same one twice, or an `out` that holds something else.
        TableError: out-of-fold scores that are missing, or of other breasts, labels or folds.
        BundleError: a fold without its bundle, bundles of different image sections, or two with the same weights.
    """
    from rsna_kit.models.members import LIST, common_image

    if len(models) < 2 or len({folder.resolve() for folder in models}) < len(models):
        given = ", ".join(map(str, models)) or "none"
        raise UsageError(f"--model: got {given}, expected two or more different folders written by train or blend")
    if (out / "bundles").exists() and not (out / LIST).is_file():
        raise UsageError(f"{out} holds bundles that blend did not write, expected a new folder or an earlier blend")
    names = {name.replace("/", "-"): folder for name, folder in zip(short_names(models), models, strict=True)}
    if len(names) < len(models) or names.keys() & _TAKEN:
        raise UsageError(f"--model: the names {', '.join(names)} clash with each other or with a column. Rename one.")
    breasts = _read_models(names)
    folds = sorted(breasts["fold"].unique().tolist())
    members = {name: _members(folder, folds) for name, folder in names.items()}
    together = [member.bundle for several in members.values() for member in several.members]
    tta = "flip" if "flip" in (settings.tta, *(several.tta for several in members.values())) else "none"
    common_image(together)
    _check_different(together)
    labels, scores = breasts["cancer"].to_numpy(), breasts[list(names)].to_numpy(np.float64)
    events.say(
        f"blend: {len(names)} models, {len(breasts)} breasts of {breasts['patient_id'].nunique()} patients, "
        f"{int(labels.sum())} with cancer, out of fold"
    )
    columns = {name: breasts[name].to_numpy() for name in names} | {MEAN: scores.mean(axis=1)}
    columns[WEIGHTED] = blend_out_of_fold(labels, scores, breasts["fold"].to_numpy())
    columns = {name: np.clip(column, 0, 1) for name, column in columns.items()}  # a mean of ones can round to more
    judged = {name: with_calls(breasts.assign(score=column))[0] for name, column in columns.items()}
    worth = {name: {m: i.as_dict() for m, i in bootstrap(table, _METRICS).items()} for name, table in judged.items()}
    for name, found in worth.items():
        events.say(f"  {name}: " + ", ".join(f"{metric} {shown(interval)}" for metric, interval in found.items()))
    gain = bootstrap(judged[WEIGHTED], ["roc_auc"], against=judged[MEAN])["roc_auc"]
    kept = max((MEAN, WEIGHTED, *names), key=lambda name: worth[name]["roc_auc"]["value"] or 0)  # the first of equals
    equal = np.array([1 / len(names) if kept == MEAN else float(name == kept) for name in names])
    chosen = choose_weights(labels, scores) if kept == WEIGHTED else equal
    weights = dict(zip(names, chosen.tolist(), strict=True))
    breasts["score"] = columns[kept]
    threshold = choose_threshold(labels, breasts["score"])
    parts = ", ".join(f"{weight:.2f} x {name}" for name, weight in weights.items())
    events.say(f"kept: {kept} ({shown(gain.as_dict(), '+')} in ROC-AUC): {parts}; threshold {threshold.value:.4f}")
    calibration = calibrate(labels, breasts["score"], breasts["fold"], events.say)
    by_bundle = _copy(out, members, weights)
    write_csv(out / "oof.csv", breasts)
    result = {
        "models": {name: str(folder) for name, folder in names.items()},
        "weights": weights,
        "kept": kept,
        "threshold": {"rule": "middle of the plateau of the out-of-fold F1 curve", **dataclasses.asdict(threshold)},
        "out_of_fold": worth,
        "gain": gain.as_dict(),
    }
    write_list(out, by_bundle, tta, threshold.value, result, calibration)
    paths = {"ensemble": str(out / LIST), "oof": str(out / "oof.csv")}
    return {"ok": True, **paths, "tta": tta, "calibration": calibration, **result}


def _read_models(names: Mapping[str, Path]) -> pd.DataFrame:
    """`prediction_id, patient_id, cancer, fold` of the breasts, and a column of scores named as each model."""
    table: pd.DataFrame | None = None
    for name, folder in names.items():
        breasts = read_breasts(folder)[1]
        if "fold" not in breasts.columns:
            raise TableError(f"{folder / 'oof.csv'}: no column fold. Give folders written by train or blend")
        breasts = breasts.rename(columns={"score": name})
        first = breasts if table is None else table
        merged = first[_FACTS].merge(breasts[_FACTS], how="outer", indicator="in", sort=False)
        if differ := int((merged["in"] != "both").sum()):
            raise TableError(
                f"model {name}: {differ} rows of its breasts, their patients, labels or folds are not those of the "
                f"first model (first: {merged.loc[merged['in'] != 'both', 'prediction_id'].iloc[0]}). Blend models "
                "that were trained on the same prepared patients, with the same train.folds and seed. Nothing was "
                "blended."
            )
        table = breasts if table is None else table.merge(breasts[["prediction_id", name]], validate="1:1")
    assert table is not None  # there are two models at least
    return table[[*_FACTS, *names]]


def _check_different(bundles: Sequence[Bundle]) -> None:
    """Refuse a model beside its copy: `infer` scores each bundle once, so the weights would not be those chosen."""
    seen: dict[str, Path] = {}
    for bundle in bundles:
        digest = bundle.metadata["sha256"]["model.weights.h5"]
        if digest in seen:
            raise BundleError(f"{bundle.path} and {seen[digest]} hold the same weights. Give each model once.")
        seen[digest] = bundle.path


def _members(folder: Path, folds: Sequence[int]) -> Members:
    """Who makes a model's scores: those that its list names, or the bundle of each fold that has scores."""
    from rsna_kit.models.bundle import open_bundle
    from rsna_kit.models.members import LIST, Member, Members, open_list

    if (folder / LIST).is_file():
        return open_list(folder)
    found = [Member(open_bundle(folder / "bundles" / f"fold{fold}"), 1 / len(folds)) for fold in folds]
    for fold, member in zip(folds, found, strict=True):
        if (said := member.bundle.metadata["fold"]) != fold:
            raise BundleError(f"{member.bundle.path} is of fold {said}, its place is that of fold {fold}")
    return Members(tuple(found), 0.5)


def _copy(out: Path, members: Mapping[str, Members], weights: Mapping[str, float]) -> dict[str, float]:
    """Copy the bundles that have a weight; returns the weight of each copy.

    Until the list is written anew it says nothing, so a run that is killed here leaves no list that half fits.
    """
    from rsna_kit.models.members import LIST

    write_json(out / LIST, {})
    shutil.rmtree(out / "bundles", ignore_errors=True)
    by_bundle = {}
    for name, several in members.items():
        for member in several.members if weights[name] > 0 else ():
            bundle = member.bundle
            copy = f"bundles/{name}-{bundle.path.name}"
            if copy in by_bundle:
                raise BundleError(f"{name}: two of its bundles are in folders called {bundle.path.name}. Rename one.")
            for file in (*bundle.metadata["sha256"], "metadata.json"):
                write_bytes(out / copy / file, (bundle.path / file).read_bytes())
            by_bundle[copy] = weights[name] * member.weight
    return by_bundle


def write_list(
    folder: Path,
    weights: Mapping[str, float],
    tta: str,
    threshold: float,
    how: Mapping[str, Any],
    calibration: Mapping[str, Any] | None = None,
) -> None:
    """Write `folder/ensemble.json`, whole or not at all.

    Args:
        folder: where the bundles are.
        weights: folder of a bundle, relative and with forward slashes → its weight, more than 0 and at most 1.
        tta: as `infer.tta`.
        threshold: score of a breast from which it is called positive, in [0, 1].
        how: how weights and threshold were chosen and what they scored, JSON-ready.
        calibration: of the weighted scores, JSON-ready; None for none.
    """
    from rsna_kit.models.bundle import METADATA
    from rsna_kit.models.members import FORMAT_VERSION, LIST

    members = [
        {"bundle": name, "weight": weight, "sha256": {METADATA: sha256_file(folder / name / METADATA)}}
        for name, weight in weights.items()
    ]
    content = {
        "format_version": FORMAT_VERSION,
        "rsna_kit": __version__,
        "commit": commit(),
        "members": members,
        "tta": tta,
        "threshold": threshold,
        "calibration": calibration,
        "how": dict(how),
    }
    write_json(folder / LIST, content)
