"""CBIS-DDSM's films and the outlines of their masses → the mammography start: networks and an ensemble.json of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from rsna_kit.competition.folds import assign_folds, digest_patients
from rsna_kit.competition.paths import Competition, find_competition
from rsna_kit.competition.tables import read_test, read_train
from rsna_kit.config import InferConfig
from rsna_kit.dicom.frame import read_frame
from rsna_kit.dicom.pyramid import Pyramid
from rsna_kit.imaging.render import render_pyramid
from rsna_kit.recipes.blend import write_list
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import TableError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_csv, write_csv
from rsna_kit.runtime.hardware import cpu_count
from rsna_kit.scoring.breasts import to_breasts
from rsna_kit.scoring.calibration import calibrate
from rsna_kit.scoring.intervals import bootstrap
from rsna_kit.scoring.metrics import measure
from rsna_kit.scoring.threshold import choose_threshold, with_calls
from rsna_lab.analysis import patches
from rsna_lab.analysis.patches import Films, Lessons

TOLERANCE = 8  # pixels of the network's picture, half a cell


def make_start(where: Path, outlines: Path, out: Path, seeds: Sequence[int], events: Events) -> dict[str, Any]:
    """Train the start and judge it by patient-grouped folds.

    Args:
        where: competition folder; only its training part is looked at.
        outlines: folder of `<image_id>.png`, of the size of the wrapped picture, not 0 inside a mass.
        out: folder for `bundles/`, `ensemble.json` and `oof.csv`: the mean score of each breast by networks that did
            not see her (`fold` is that of the last seed). Networks of the same films and patients that are there are
            kept; those of other seeds go at the end.
        seeds: for each, the folds are dealt anew, and a network of each kind is trained for each fold.

    Returns:
        Out-of-fold metrics with intervals, and ROC-AUC of each seed and kind; for JSON.

    Raises:
        TableError: no outline for a picture, or one of another size.
    """
    from rsna_kit.training.export import set_threshold

    folds = range(patches.CONFIG.train.folds)
    runs = [(seed, kind) for kind in patches.KINDS for seed in seeds]
    names = [f"bundles/seed{seed}-{kind}{fold}" for seed, kind in runs for fold in folds]
    competition = find_competition(where)
    films = read_films(competition, "train", read_train(competition.table("train.csv")), outlines, events)
    lessons = Lessons(films, events)
    scores, alone = [], {}
    for seed, kind in runs:
        fold_of = assign_folds(films.table, len(folds), seed)
        images = np.empty(len(films.table))
        for fold in folds:
            held, bundle = np.flatnonzero(fold_of == fold), out / "bundles" / f"seed{seed}-{kind}{fold}"
            images[held] = lessons.give(kind, np.flatnonzero(fold_of != fold), held, seed, fold, bundle)
            auc = measure("roc_auc", films.table["cancer"].iloc[held], images[held])
            events.say(f"{bundle}: ROC-AUC of {len(held)} pictures {auc:.3f}")
        breasts = to_breasts(pd.DataFrame({"image_id": films.table["image_id"], "score": images}), films.table)
        auc = measure("roc_auc", breasts["cancer"], breasts["score"])
        alone[f"{kind}, seed {seed}"] = auc
        scores.append(breasts["score"].to_numpy())
        events.say(f"{kind}, seed {seed}: ROC-AUC of {len(breasts)} breasts {auc:.3f}, out of fold")
    last = films.table.assign(fold=fold_of).groupby("prediction_id")["fold"].first()
    breasts = breasts.assign(score=np.mean(scores, axis=0), fold=breasts["prediction_id"].map(last).to_numpy())
    write_csv(out / "oof.csv", breasts)
    threshold = choose_threshold(breasts["cancer"], breasts["score"])
    found = bootstrap(with_calls(breasts)[0], ("roc_auc", "pr_auc", "pf1_binary"))
    worth = {name: interval.as_dict() for name, interval in found.items()}
    how = {
        "data": "CBIS-DDSM masses, official training split (CC BY 3.0)",
        "films": len(films.table),
        "patients": digest_patients(films.table["patient_id"]),
        "out_of_fold": worth,
        "roc_auc_alone": alone,
        "epochs": {"of_patches": patches.PATCH_EPOCHS, "of_pictures": patches.KINDS, "variants": patches.VARIANTS},
    }
    calibration = calibrate(breasts["cancer"], breasts["score"], breasts["fold"], events.say)
    for name in names:
        set_threshold(out / name, threshold.value, "of the ensemble", calibration)
    write_list(out, dict.fromkeys(names, 1 / len(names)), "flip", threshold.value, how, calibration)
    for other in (out / "bundles").glob("*"):
        if f"bundles/{other.name}" not in names:
            shutil.rmtree(other)
    return {"ok": True, "out": str(out), "threshold": threshold.value, **how}


def judge_start(where: Path, outlines: Path, start: Path, out: Path, events: Events) -> dict[str, Any]:
    """Score a labelled test set with the start, and see how often its maps point at the masses.

    The pointing game (Zhang et al., Top-down neural attention by excitation backprop, 2018): a hit is a map whose peak
    lies in an outline, or at most `TOLERANCE` pixels of the network's picture beside it.

    Args:
        where: competition folder with test.csv, truth.csv and the images.
        outlines, start: as `make_start` takes and writes them.
        out: folder for what `infer` writes.

    Returns:
        `scores` as `rsna_kit.recipes.score` gives them, and `pointing`: of malignant films, how many there are, and the
        shares hit by the map, by the brightest spot (means of squares of a cell's size), and by a point of the breast
        drawn by chance; with and without tolerance. For JSON.
    """
    from rsna_kit.models.members import open_members
    from rsna_kit.recipes.infer import infer
    from rsna_kit.recipes.score import score
    from rsna_lab.analysis.explain import build_explainer, peak

    infer(where, out, [start], InferConfig(), events, Clock())
    members = open_members([start], events.say)
    scores = score([out / "scores.csv"], events, out, where / "truth.csv", members.threshold)
    competition = find_competition(where)
    truth = read_csv(where / "truth.csv", ["prediction_id"])[["prediction_id", "cancer"]]
    table = read_test(competition.table("test.csv")).merge(truth, on="prediction_id")
    films = read_films(competition, "test", table[table["cancer"] == 1], outlines, events)
    explain, _ = build_explainer(members.members)
    near = np.ones((2 * TOLERANCE + 1, 2 * TOLERANCE + 1), np.uint8)
    hits = []
    with events.progress(len(films.table), "maps") as progress:
        for picture, outline in zip(films.pictures, films.outlines, strict=True):
            inside, breast = outline > 127, picture > 0
            around = cv2.dilate(inside.astype(np.uint8), near) > 0
            maps = {
                "map": explain(picture[None, ..., None])[0],
                "brightest": cv2.blur(picture, (patches.STRIDE, patches.STRIDE)),
            }
            hit = {"chance": inside[breast].mean(), "chance_near": around[breast].mean()}
            for name, heat in maps.items():
                point = peak(heat, picture)
                hit |= {name: point is not None and inside[point], f"{name}_near": point is not None and around[point]}
            hits.append(hit)
            progress.advance()
    shares = pd.DataFrame(hits).astype(float).mean().to_dict()
    return {"ok": True, "scores": scores, "pointing": {"films": len(hits), "tolerance": TOLERANCE, **shares}}


def read_films(competition: Competition, split: str, table: pd.DataFrame, outlines: Path, events: Events) -> Films:
    """Pictures as networks see them, and outlines moved with them.

    Raises:
        TableError: as `make_start`.
    """
    image = patches.CONFIG.image

    def read(job: tuple[str, Path]) -> tuple[np.ndarray, np.ndarray]:
        image_id, path = job
        frame, found = read_frame(path, image_id), outlines / f"{image_id}.png"
        rendered, outline = render_pyramid(Pyramid(frame), image), cv2.imread(str(found), cv2.IMREAD_GRAYSCALE)
        if outline is None or outline.shape != (frame.rows, frame.columns):
            got = "no picture" if outline is None else f"{outline.shape[0]} x {outline.shape[1]} pixels"
            raise TableError(f"{found}: {got}, expected the outline of {image_id}, {frame.rows} x {frame.columns}")
        box = rendered.box
        rows, columns = box.fitted(image.height, image.width)
        part = (outline[box.top : box.bottom, box.left : box.right] > 0).astype(np.float32)
        small = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_LINEAR)
        placed, top = np.zeros((image.height, image.width), np.uint8), (image.height - rows) // 2
        placed[top : top + rows, :columns] = np.rint(255 * (small[:, ::-1] if box.flip else small))
        return rendered.image, placed

    jobs = competition.files(split, table)
    with ThreadPoolExecutor(cpu_count()) as pool, events.progress(len(jobs), "films") as progress:
        read_all = []
        for pair in pool.map(read, jobs):
            read_all.append(pair)
            progress.advance()
    pictures, masks = zip(*read_all, strict=True)
    return Films(table.reset_index(drop=True), np.stack(pictures), np.stack(masks))
