#!/usr/bin/env python3
"""What reduced decoding of JPEG 2000 does to a score: the same bundles on the same test files, decoded in three ways.

    python benchmarks/reduction_score.py --out build/score-phantom             about 25 minutes on two cores

Networks are trained on reduced images, as by default. The test set is then scored `reduced`, `exact` and `coarser`
(one halving more, which the kit takes when time runs out, and which tells whether a loss would be seen); differences
to exact get an interval by resampling patients. Nothing is chosen by the scores. Files: the competition's three .90
machines at half their rows and columns; images of 512x256 are to them as 1024x512 to whole ones.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import pandas as pd
from reduction import in_processes, read

from rsna_kit.config import Config, ImageConfig, preset, with_overrides
from rsna_kit.dicom.frame import read_frame
from rsna_kit.imaging import render, stream
from rsna_kit.recipes.infer import infer
from rsna_kit.recipes.prepare import prepare
from rsna_kit.recipes.train import train
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import replacing, write_json
from rsna_kit.runtime.hardware import cpu_count
from rsna_kit.scoring.intervals import bootstrap
from rsna_lab.phantom.acquisition import acquire
from rsna_lab.phantom.anatomy import build_breasts
from rsna_lab.phantom.dicom_file import JPEG2000, write_dicom
from rsna_lab.phantom.machines import BY_ID, MACHINES
from rsna_lab.phantom.population import PatientPlan, plan_patients
from rsna_lab.phantom.tables import image_rows, write_test, write_train, write_truth

PATIENTS, TEST_PATIENTS, PREVALENCE, SEED = 150, 170, 0.4, 90  # 0.4 of breasts with cancer, as reader studies enrich
SHRINK, RESAMPLES = 2, 2000
MEASURED = ("roc_auc", "pr_auc", "pf1", "pf1_binary")
OTHERS = ("reduced", "coarser")  # each is compared with exact
WAYS = ("reduced", "exact", "coarser")


def write_phantom(folder: Path, events: Events) -> None:
    """A competition of JPEG 2000 machines only, at half their rows and columns; `signs.csv` says what cancers show."""
    machines = tuple(machine for machine in MACHINES if machine.syntax == JPEG2000)
    taken: set[int] = set()
    parts = [
        (folder / name, plan_patients(np.random.default_rng([SEED, part]), patients, PREVALENCE, machines, taken))
        for part, (name, patients) in enumerate((("train_images", PATIENTS), ("hidden/test_images", TEST_PATIENTS)))
    ]
    women = [(plan, images) for images, plans in parts for plan in plans]
    with events.progress(len(women), "phantom", "patients") as progress, in_processes(len(women)) as pool:
        for _ in pool.map(expose, women, chunksize=4):
            progress.advance()
    rows, hidden = (image_rows(plans) for _, plans in parts)
    write_train(rows, folder / "train.csv")
    write_test(hidden, folder / "hidden")
    write_truth(hidden, folder / "hidden" / "truth.csv")
    signs = {(plan.patient_id, side): plan.breasts[side].sign for _, plans in parts for plan in plans for side in "LR"}
    hidden["sign"] = [signs[pair] for pair in zip(hidden["patient_id"], hidden["laterality"], strict=True)]
    with replacing(folder / "signs.csv") as temporary:
        hidden.drop_duplicates("prediction_id")[["prediction_id", "sign"]].to_csv(temporary, index=False)


def expose(woman: tuple[PatientPlan, Path]) -> None:
    """Write the files of a patient that are not there, in a folder of hers below the given one."""
    cv2.setNumThreads(1)
    plan, folder = woman
    machine = BY_ID[plan.machine_id]
    sizes = tuple((rows // SHRINK, columns // SHRINK, pitch * SHRINK) for rows, columns, pitch in machine.sizes)
    machine = replace(machine, noise=machine.noise / SHRINK, sizes=sizes)
    breasts = build_breasts(plan, np.random.default_rng([SEED, int(plan.patient_id)]))
    for image in plan.images:
        path = folder / plan.patient_id / f"{image.image_id}.dcm"
        if not path.exists():
            chance = np.random.default_rng([SEED, int(image.image_id)])
            write_dicom(path, *acquire(plan, image, breasts[image.laterality], machine, chance, full_size=True))


def score(folder: Path, config: Config, events: Events) -> tuple[pd.DataFrame, float]:
    """Train on reduced images, score the test set in every way.

    Returns:
        The images of the test set with one column of scores a way, `reduction`, `cancer` and ids; the threshold.
    """
    competition, clock = folder / "competition", Clock()
    prepare(competition, folder / "prepared", config, events)
    train(folder / "prepared", folder / "model", config, events, clock)
    hidden, bundles = competition / "hidden", [folder / "model" / "bundles"]
    settings = (config.infer, events, clock, config.decode)
    images = pd.read_csv(hidden / "test.csv", dtype={"image_id": str, "patient_id": str})
    for way in WAYS:
        with patch.object(stream, "read_image", coarser if way == "coarser" else render.read_image):
            done = infer(hidden, folder / way, bundles, *settings, exact=way == "exact")
        scores = pd.read_csv(folder / way / "image_scores.csv", dtype={"image_id": str})
        images[way] = images["image_id"].map(scores.set_index("image_id")["score"])
    names = images["patient_id"] + "/" + images["image_id"] + ".dcm"
    paths = [hidden / "test_images" / name for name in names]
    with events.progress(len(paths), "reductions") as progress, ThreadPoolExecutor(cpu_count()) as pool:
        found = []
        for reduction in pool.map(lambda path: read(read_frame(path), config.image)[1], paths):
            found.append(reduction)
            progress.advance()
    truth = pd.read_csv(hidden / "truth.csv").set_index("prediction_id")["cancer"]
    return images.assign(reduction=found, cancer=images["prediction_id"].map(truth)), float(done["threshold"])


def coarser(path: Path, image_id: str, image: ImageConfig, trust: Any, further: int) -> render.Rendered:
    """`read_image` with one halving more."""
    return render.read_image(path, image_id, image, trust, further + 1)


def compare(images: pd.DataFrame, threshold: float, signs: pd.Series) -> dict[str, Any]:
    """Scores of every way and their differences to exact, for all breasts and for parts of them."""
    how = {"patient_id": "first", "cancer": "max", "reduction": "min", **dict.fromkeys(WAYS, "mean")}
    breasts = images.groupby("prediction_id", sort=False).agg(how)
    cut = breasts[breasts["reduction"] > 0]
    parts = {"all breasts": breasts, "breasts with every image reduced": cut}
    sign = signs.reindex(cut.index)
    for kind in ("calcifications", "mass+calcifications", "mass"):
        parts[f"{kind} against negatives, every image reduced"] = cut[(sign == kind) | (cut["cancer"] == 0)]
    changed = images[images["reduction"] > 0]
    return {
        "threshold": threshold,
        "images": len(images),
        "images_by_reduction": {str(k): int(n) for k, n in images["reduction"].value_counts().sort_index().items()},
        "identical_where_not_reduced": bool((images["reduced"] == images["exact"])[images["reduction"] == 0].all()),
        "image_scores": {
            way: {
                "mean_absolute_difference": float((changed[way] - changed["exact"]).abs().mean()),
                "mean_difference": float((changed[way] - changed["exact"]).mean()),
                "spearman": float(changed[way].rank().corr(changed["exact"].rank())),
                "other_side_of_threshold": int(((breasts[way] >= threshold) != (breasts["exact"] >= threshold)).sum()),
            }
            for way in OTHERS
        },
        "parts": {
            name: {
                "breasts": len(part),
                "cancers": int(part["cancer"].sum()),
                "patients": part["patient_id"].nunique(),
                "metrics": compared(part, threshold),
            }
            for name, part in parts.items()
            if part["cancer"].nunique() == 2
        },
    }


def compared(breasts: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Each metric in each way, and its differences to exact; the same resamples of patients for all."""
    columns = {way: breasts.assign(score=breasts[way], called=(breasts[way] >= threshold).astype(int)) for way in WAYS}
    found = {way: bootstrap(column, MEASURED, RESAMPLES, SEED) for way, column in columns.items()}
    for way in WAYS:
        if way != "exact":
            found[f"{way} - exact"] = bootstrap(columns[way], MEASURED, RESAMPLES, SEED, columns["exact"])
    return {name: {what: intervals[name].as_dict() for what, intervals in found.items()} for name in MEASURED}


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What people read."""
    yield f"test images by reduction: {result['images_by_reduction']}"
    for way, found in result["image_scores"].items():
        yield (
            f"{way}: scores of reduced images differ by {found['mean_absolute_difference']:.4f} on average, "
            f"Spearman {found['spearman']:.4f}; {found['other_side_of_threshold']} breasts change sides"
        )
    for name, part in result["parts"].items():
        yield f"\n{name}: {part['breasts']} breasts, {part['cancers']} with cancer, {part['patients']} patients"
        heads = "".join(f"{way} - exact".rjust(27) for way in OTHERS)
        yield f"  {'':12}{'reduced':>8}{'exact':>8}{heads}"
        for metric, values in part["metrics"].items():
            line = f"  {metric:<12}{values['reduced']['value']:8.4f}{values['exact']['value']:8.4f}"
            for way in OTHERS:
                found = values[f"{way} - exact"]
                line += f"   {found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
            yield line + ("  LOSS" if values["reduced - exact"]["high"] < 0 else "")


def result_rows(result: dict[str, Any], what: str, minutes: float) -> pd.DataFrame:
    """Rows for docs/results.csv: the score of both ways and the differences, for every part."""
    rows = []
    for name, part in result["parts"].items():
        data = f"phantom .90 at half size; {name} ({part['breasts']} breasts, {part['cancers']} with cancer)"
        for metric in ("roc_auc", "pr_auc", "pf1"):
            for way in ("reduced", "exact", "reduced - exact", "coarser - exact"):
                row = {"date": datetime.date.today().isoformat(), "commit": "pending", "what": f"{what}; {way}"}
                row |= {"data": data, "metric": metric}
                row |= {key: f"{number:.4f}" for key, number in part["metrics"][metric][way].items()}
                row |= {"hardware": f"{cpu_count()} cores", "minutes": f"{minutes:.1f}"}
                rows.append({**row, "command": "benchmarks/reduction_score.py"})
    return pd.DataFrame(rows)


def main() -> int:
    """Write files, train, score three times, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything; the same command resumes")
    options = parser.parse_args()
    events, clock, competition = Events(), Clock(), options.out / "competition"
    config = with_overrides(preset("smoke"), ["data.save=none"])
    write_phantom(competition, events)
    signs = pd.read_csv(competition / "signs.csv", keep_default_na=False).set_index("prediction_id")["sign"]
    images, threshold = score(options.out, config, events)
    result = compare(images, threshold, signs)
    images.to_csv(options.out / "images.csv", index=False)
    write_json(options.out / "result.json", result)
    print(*lines(result), sep="\n")
    what = f"EfficientNet-Lite0 frozen at 1/16 + conv head; {config.image.height}x{config.image.width}; mean of 2 folds"
    rows = result_rows(result, what, clock.elapsed_s() / 60)
    rows.to_csv(options.out / "results.csv", index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
