"""Seed → a whole synthetic competition on disk.

    OUT/train.csv  test.csv  sample_submission.csv       the competition as a competitor sees it
    OUT/train_images/<patient_id>/<image_id>.dcm
    OUT/test_images/10008/<image_id>.dcm                 one patient, as in the real visible test
    OUT/hidden/test.csv  sample_submission.csv  test_images/...   what the hidden run puts in the place of the above
    OUT/hidden/truth.csv                                 one row a breast: what the host knows
    OUT/phantom.json                                     options, written first, and counts, written last

The same arguments give the same bytes with any number of workers: every patient has a random generator of its own,
derived from (seed, part, number). A run that was cut off goes on where it stopped: files are whole or absent.

The phantom rehearses the plumbing and gives a model something honest to learn. It says nothing about how a model
does on women: nothing in it was fitted to a classifier, and no score on it belongs beside a score on mammograms.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit.runtime.errors import RsnaKitError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_json, write_json
from rsna_kit.runtime.hardware import cpu_count
from rsna_lab.phantom.acquisition import acquire
from rsna_lab.phantom.anatomy import build_breasts
from rsna_lab.phantom.dicom_file import write_dicom
from rsna_lab.phantom.machines import BY_ID, HIDDEN_MACHINE, MACHINES
from rsna_lab.phantom.population import PatientPlan, plan_patients, plan_visible_test
from rsna_lab.phantom.tables import counts, image_rows, write_test, write_train, write_truth

VERSION = 1  # raised whenever the same arguments give other bytes
PREVALENCE = 0.15  # share of breasts with cancer; the real train.csv has 492 of 23,826 = 0.0207
HIDDEN_SHARE = 0.4  # hidden test patients per training patient
_DONE = "phantom.json"
_PARTS = ("train", "visible", "hidden")  # their place is part of every patient's seed


@dataclasses.dataclass(frozen=True)
class _Job:
    """One patient to expose: all a worker process needs."""

    plan: PatientPlan
    images: Path
    seed: tuple[int, int, int]  # seed, part, number of the patient
    full_size: bool


def write_competition(
    out: Path,
    patients: int,
    seed: int,
    *,
    full_size: bool = False,
    prevalence: float = PREVALENCE,
    workers: int = 0,
    events: Events | None = None,
) -> dict[str, Any]:
    """Write a competition-shaped folder and return what `phantom.json` says.

    Args:
        out: new or empty folder, or one that the same call has begun or finished.
        patients: training patients, at least 1; some 4.6 images each. The hidden test has 0.4 of that, at least 2.
        seed: any integer from 0.
        full_size: the real matrix sizes (5-26 million pixels an image); otherwise a quarter of the rows and columns.
        prevalence: share of breasts with cancer. The default is enriched, because a few hundred patients at the real
            0.0207 hold too few cancers to learn from; `--prevalence 0.0207` gives the real one.
        workers: processes, 0 for one per core. They are spawned: a script that calls this with more than one needs
            the usual `if __name__ == "__main__":`.
        events: where progress goes.

    Raises:
        UsageError: an argument out of range.
        RsnaKitError: `out` holds another phantom or anything else.
    """
    if not (1 <= patients <= 20_000 and seed >= 0):
        raise UsageError(f"phantom: got {patients} patients, seed {seed}, expected 1 to 20000, and at least 0")
    if not 0 <= prevalence <= 0.5:
        raise UsageError(f"phantom: prevalence: got {prevalence}, expected a share of breasts between 0 and 0.5")
    options = {
        "version": VERSION,
        "patients": patients,
        "seed": seed,
        "prevalence": prevalence,
        "full_size": full_size,
    }
    done = _claim(out, options)
    if done is not None:
        return done
    events = events or Events()
    plans = _plan(patients, max(round(HIDDEN_SHARE * patients), 2), seed, prevalence)
    folders = (out / "train_images", out / "test_images", out / "hidden" / "test_images")
    jobs = [
        _Job(plan, folder, (seed, part, plan.index), full_size)
        for part, (group, folder) in enumerate(zip(plans, folders, strict=True))
        for plan in group
    ]
    with events.progress(sum(len(job.plan.images) for job in jobs), "phantom") as progress:
        for written in _expose_all(jobs, workers or cpu_count()):
            progress.advance(written)
    train, visible, secret = (image_rows(group) for group in plans)
    write_train(train, out / "train.csv")
    write_test(visible, out)
    write_test(secret, out / "hidden")
    write_truth(secret, out / "hidden" / "truth.csv")
    summary = {**options, "train": counts(train), "test": counts(visible), "hidden": counts(secret)}
    write_json(out / _DONE, summary)
    return summary


def _claim(out: Path, options: dict[str, Any]) -> dict[str, Any] | None:
    """The summary when `out` is finished; None when it is ours to write; an error when it is something else."""
    if out.exists() and not out.is_dir():
        raise RsnaKitError(f"phantom: {out} is a file, expected a folder")
    if (out / _DONE).is_file():
        found: dict[str, Any] = read_json(out / _DONE)
        different = [
            f"{key}: {found.get(key)!r} there, {value!r} asked"
            for key, value in options.items()
            if found.get(key) != value
        ]
        if different:
            raise RsnaKitError(
                f"phantom: {out} holds another phantom ({'; '.join(different)}). Choose another folder or remove it."
            )
        return found if "train" in found else None
    if out.is_dir() and any(out.iterdir()):
        some = ", ".join(sorted(path.name for path in out.iterdir())[:4])
        raise RsnaKitError(f"phantom: {out} is not empty ({some}). Choose another folder; nothing was changed.")
    write_json(out / _DONE, options)
    return None


def _plan(patients: int, hidden: int, seed: int, prevalence: float) -> tuple[list[PatientPlan], ...]:
    """Training, visible and hidden patients; all ids differ."""
    taken = {10_008}
    train, visible, secret = (np.random.default_rng([seed, part]) for part in range(len(_PARTS)))
    return (
        plan_patients(train, patients, prevalence, MACHINES, taken),
        [plan_visible_test(visible, taken)],
        plan_patients(secret, hidden, prevalence, (HIDDEN_MACHINE, *MACHINES), taken),
    )


def _expose_all(jobs: list[_Job], workers: int) -> Iterator[int]:
    """Write every patient's files; yields the number of images of each patient as it is done."""
    if workers == 1 or len(jobs) == 1:
        yield from map(_expose_patient, jobs)
        return
    # "spawn": a forked child of a process that already runs threads (OpenCV, TensorFlow) can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_one_thread) as pool:
        yield from pool.map(_expose_patient, jobs, chunksize=2)


def _one_thread() -> None:
    """Processes share the cores already; OpenCV's threads would only fight over them."""
    import cv2

    cv2.setNumThreads(1)


def _expose_patient(job: _Job) -> int:
    """Write one patient's files, unless they are all there."""
    plan, machine = job.plan, BY_ID[job.plan.machine_id]
    folder = job.images / plan.patient_id
    missing = [image for image in plan.images if not (folder / f"{image.image_id}.dcm").exists()]
    if missing:
        breasts = build_breasts(plan, np.random.default_rng([*job.seed, 0]))
    for image in missing:
        rng = np.random.default_rng([*job.seed, 1, int(image.image_id)])
        pixels, facts = acquire(plan, image, breasts[image.laterality], machine, rng, job.full_size)
        write_dicom(folder / f"{image.image_id}.dcm", pixels, facts)
    return len(plan.images)
