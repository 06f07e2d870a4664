#!/usr/bin/env python3
"""What reduced decoding of JPEG 2000 does to a score: the same bundles on the same test files, decoded in three ways.

    python benchmarks/reduction_score.py phantom --out build/score-phantom             about 25 minutes on two cores
    python benchmarks/reduction_score.py films PICTURES LABELS.csv --out build/score-films                10 minutes
    python benchmarks/reduction_score.py films PICTURES LABELS.csv --enlarge 1 --out build/score-native    2 minutes

Networks are trained on reduced images, as by default. The test set is then scored `reduced`, `exact`, `coarser`
(one halving more, which the kit takes when time runs out), `equalised` (halved pictures sharpened until they have the
fine contrast of exact ones) and `mixed` (of each breast one image reduced, one exact: the worst that unequal sharpness
does), and differences to exact get an interval by resampling
patients. `coarser` tells whether a loss would be seen (films have no further halving). Nothing is chosen by the scores.

phantom: half the rows and columns of the competition's three .90 machines at 512x256, as 1024x512 is to whole ones.
films: CBIS-DDSM masses (256x256 pictures; PICTURES and LABELS as for scripts/real-mammograms), official split, four
times enlarged with noise of 2 of 255 levels, because no picture under 640 rows is ever reduced: THE FINEST DETAIL IS
SYNTHETIC. With --enlarge 1 it is real, the image is 96x48, and the kit's thumbnail is made four times smaller for it.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
from rsna_lab.phantom.dicom_file import JPEG2000, DicomFacts, write_dicom
from rsna_lab.phantom.machines import BY_ID, MACHINES
from rsna_lab.phantom.population import PatientPlan, plan_patients
from rsna_lab.phantom.tables import image_rows, write_test, write_train, write_truth
from rsna_lab.phantom.wrap import read_labels, read_picture

PATIENTS, TEST_PATIENTS, PREVALENCE, SEED = 150, 170, 0.4, 90  # 0.4 of breasts with cancer, as reader studies enrich
SHRINK, RESAMPLES = 2, 2000
MEASURED = ("roc_auc", "pr_auc", "pf1", "pf1_binary")
FILM_SIDE, FILM_BITS = 256, 12  # pixels; stored
FILM_SHARE, FILM_NOISE = 0.375, 2.0  # rows of the image among the film's, as 1536 of 4096; levels of 255
THUMBNAIL, RESIZED = render._THUMBNAIL, render._resized
SCORED = ("reduced", "exact", "coarser", "equalised")
WAYS = (*SCORED, "mixed")
OTHERS = tuple(way for way in WAYS if way != "exact")  # each is compared with exact
SHARPEN = 0.1  # of `equalised`: how much of a halved picture's finest detail is added to it


def write_phantom(folder: Path, events: Events) -> None:
    """A competition of JPEG 2000 machines only, at half their rows and columns; `signs.csv` says what cancers show."""
    machines = tuple(machine for machine in MACHINES if machine.syntax == JPEG2000)
    taken: set[int] = set()
    parts = [
        (folder / name, plan_patients(np.random.default_rng([SEED, part]), patients, PREVALENCE, machines, taken))
        for part, (name, patients) in enumerate((("train_images", PATIENTS), ("hidden/test_images", TEST_PATIENTS)))
    ]
    women = [(plan, images) for images, plans in parts for plan in plans]
    _write_all(expose, women, events, "phantom", "patients")
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


@dataclass(frozen=True)
class Film:
    """A picture, how often it is enlarged, and the file it becomes."""

    source: Path
    target: Path
    patient_id: str
    laterality: str
    enlarge: int
    number: int  # of its noise


def write_films(folder: Path, pictures: Path, labels: Path, enlarge: int, events: Events) -> None:
    """A competition of films, all of them lossless JPEG 2000."""
    table = read_labels(labels, "split")
    hidden = table["split"] == "test"
    folders = {"train": folder / "train_images", "test": folder / "hidden" / "test_images"}
    films = [
        Film(
            pictures / f"{row['image_id']}.png", folders[row["split"]] / row["patient_id"] / f"{row['image_id']}.dcm",
            row["patient_id"], row["laterality"], enlarge, number,
        )
        for number, row in enumerate(table.to_dict("records"))
    ]  # fmt: skip
    _write_all(wrap, films, events, "films", "films")
    write_train(table[~hidden], folder / "train.csv")
    write_test(table[hidden], folder / "hidden")
    write_truth(table[hidden], folder / "hidden" / "truth.csv")


def wrap(film: Film) -> None:
    """Write one film unless it is there. Air, which is 0 in these pictures, stays 0."""
    if film.target.exists():
        return
    cv2.setNumThreads(1)
    grey, bits = read_picture(film.source)
    level = (1 << FILM_BITS) / 255 / (1 << (bits - 8))
    values = cv2.resize(grey.astype(np.float32), None, fx=film.enlarge, fy=film.enlarge, interpolation=cv2.INTER_CUBIC)
    if film.enlarge > 1:
        grain = np.random.default_rng([SEED, film.number]).standard_normal(values.shape, np.float32)
        values = np.where(values > 0, values + FILM_NOISE * (1 << (bits - 8)) * grain, 0)
    top = (1 << FILM_BITS) - 1
    facts = DicomFacts(
        patient_id=film.patient_id, image_id=film.target.stem, laterality=film.laterality, transfer_syntax=JPEG2000,
        bits_stored=FILM_BITS, windows=((top / 2 + 0.5, top + 1.0),), voi_function="LINEAR", padding=None,
    )  # fmt: skip
    write_dicom(film.target, np.clip(np.rint(values * level), 0, top).astype(np.uint16), facts)


def _write_all(write: Callable[[Any], None], jobs: list[Any], events: Events, label: str, unit: str) -> None:
    with events.progress(len(jobs), label, unit) as progress, in_processes(len(jobs)) as pool:
        for _ in pool.map(write, jobs, chunksize=4):
            progress.advance()


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
    for way in SCORED:
        with (
            patch.object(stream, "read_image", coarser if way == "coarser" else render.read_image),
            patch.object(render, "_resized", equalised if way == "equalised" else RESIZED),
        ):
            done = infer(hidden, folder / way, bundles, *settings, exact=way == "exact")
        scores = pd.read_csv(folder / way / "image_scores.csv", dtype={"image_id": str})
        images[way] = images["image_id"].map(scores.set_index("image_id")["score"])
    other = images.groupby("prediction_id").cumcount() % 2 == 1
    images["mixed"] = images["exact"].where(other, images["reduced"])
    names = images["patient_id"] + "/" + images["image_id"] + ".dcm"
    paths = [hidden / "test_images" / name for name in names]
    with events.progress(len(paths), "reductions") as progress, ThreadPoolExecutor(cpu_count()) as pool:
        found = []
        for reduction in pool.map(lambda path: read(read_frame(path), config.image)[1], paths):
            found.append(reduction)
            progress.advance()
    truth = pd.read_csv(hidden / "truth.csv").set_index("prediction_id")["cancer"]
    return images.assign(reduction=found, cancer=images["prediction_id"].map(truth)), float(done["threshold"])


def equalised(crop: np.ndarray, size: tuple[int, int], halved: bool = False) -> np.ndarray:
    """The crop at `size`; where a wavelet halved it, its finest detail is raised to what an exact picture shows."""
    small = RESIZED(crop, size, halved)
    if not halved:
        return small
    return cv2.addWeighted(small, 1 + SHARPEN, cv2.GaussianBlur(small, (0, 0), 1.0), -SHARPEN, 0)


def coarser(path: Path, image_id: str, image: ImageConfig, trust: Any, further: int) -> render.Rendered:
    """`read_image` with one halving more."""
    return render.read_image(path, image_id, image, trust, further + 1)


def compare(images: pd.DataFrame, threshold: float, signs: pd.Series | None) -> dict[str, Any]:
    """Scores of every way and their differences to exact, for all breasts and for parts of them."""
    how = {"patient_id": "first", "cancer": "max", "reduction": "min", **dict.fromkeys(WAYS, "mean")}
    breasts = images.groupby("prediction_id", sort=False).agg(how)
    cut = breasts[breasts["reduction"] > 0]
    parts = {"all breasts": breasts, "breasts with every image reduced": cut}
    if signs is not None:
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
                "breasts": len(part), "cancers": int(part["cancer"].sum()), "patients": part["patient_id"].nunique(),
                "metrics": compared(part, threshold),
            }
            for name, part in parts.items() if part["cancer"].nunique() == 2
        },
    }  # fmt: skip


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


def result_rows(result: dict[str, Any], what: str, data: str, minutes: float, command: str) -> pd.DataFrame:
    """Rows for docs/results.csv: the score of both ways and the difference, for every part."""
    rows = [
        {
            "date": datetime.date.today().isoformat(), "commit": "pending", "what": f"{what}; {way}",
            "data": f"{data}; {name} ({part['breasts']} breasts, {part['cancers']} with cancer)", "metric": metric,
            **{key: f"{number:.4f}" for key, number in part["metrics"][metric][way].items()},
            "hardware": f"{cpu_count()} cores", "minutes": f"{minutes:.1f}", "command": command,
        }
        for name, part in result["parts"].items()
        for metric in ("roc_auc", "pr_auc", "pf1")
        for way in ("reduced", "exact", "reduced - exact", "coarser - exact", "equalised - exact", "mixed - exact")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def main() -> int:
    """Write files, train, score three times, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=("phantom", "films"))
    parser.add_argument("pictures", type=Path, nargs="?", help="films: folder of <image_id>.png")
    parser.add_argument("labels", type=Path, nargs="?", help="films: image_id, patient_id, laterality, cancer, split")
    parser.add_argument("--enlarge", type=int, default=4, choices=(1, 2, 4), help="films: how often (default 4)")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything; the same command resumes")
    options = parser.parse_args()
    events, clock, signs, competition = Events(), Clock(), None, options.out / "competition"
    config = with_overrides(preset("smoke"), ["data.save=none"])
    if options.source == "phantom":
        write_phantom(competition, events)
        signs = pd.read_csv(competition / "signs.csv", keep_default_na=False).set_index("prediction_id")["sign"]
        images, threshold = score(options.out, config, events)
        data, command = "phantom .90 at half size", "phantom"
    else:
        if options.pictures is None or options.labels is None:
            parser.error("films needs PICTURES and LABELS.csv")
        write_films(competition, options.pictures, options.labels, options.enlarge, events)
        height = int(FILM_SHARE * FILM_SIDE * options.enlarge)
        config = with_overrides(config, [f"image.height={height}", f"image.width={height // 2}"])
        with patch.object(render, "_THUMBNAIL", min(THUMBNAIL, THUMBNAIL // 4 * options.enlarge)):
            images, threshold = score(options.out, config, events)
        data, command = f"CBIS-DDSM test x{options.enlarge}", f"films img labels.csv --enlarge {options.enlarge}"
    result = compare(images, threshold, signs)
    images.to_csv(options.out / "images.csv", index=False)
    write_json(options.out / "result.json", result)
    print(*lines(result), sep="\n")
    what = f"EfficientNet-Lite0 frozen at 1/16 + conv head; {config.image.height}x{config.image.width}; mean of 2 folds"
    rows = result_rows(result, what, data, clock.elapsed_s() / 60, f"benchmarks/reduction_score.py {command}")
    rows.to_csv(options.out / "results.csv", index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
