#!/usr/bin/env python3
"""What reduced decoding of JPEG 2000 does to pictures: image.decode=reduced beside exact, on the same files.

    python benchmarks/reduction.py --out build/reduction.json     about 10 minutes on two cores, 0.3 GB of files once

Files: phantom mammograms with malignant microcalcifications at the three .90 matrices of the competition, four women
and two views each, and the same exposures without the calcifications. RSNA_KIT_REALDATA=FOLDER adds the X-rays below it
that have 1000 rows or more, encoded again as the competition's files are. How to read the table: README.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import pydicom
from samples import DETECTORS, HABITS, VIEWS, Detector

from rsna_kit.config import ImageConfig
from rsna_kit.dicom.decode import decode
from rsna_kit.dicom.frame import EncodedFrame, read_frame
from rsna_kit.dicom.pyramid import Pyramid
from rsna_kit.imaging import render
from rsna_kit.runtime.errors import ImageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_json
from rsna_lab.phantom import writer
from rsna_lab.phantom.acquisition import acquire
from rsna_lab.phantom.anatomy import build_breasts
from rsna_lab.phantom.dicom_file import JPEG2000, DicomFacts, write_dicom
from rsna_lab.phantom.machines import BY_ID
from rsna_lab.phantom.population import plan_patients

TARGETS = ((1024, 512), (1456, 728), (1536, 768), (2048, 1024))
WOMEN = 4  # of each matrix
BITS = {2776: 12, 4096: 12, 5355: 16}  # of the competition's .90 machine with so many rows
LEAST_ROWS = 1000  # of a real picture
MODALITIES = ("MG", "DX", "CR", "RG")
WAYS = ("reduced", "linear", "area")


class Recorder(Pyramid):
    """A pyramid that remembers how often the picture was halved for the image; the thumbnail does not count."""

    halved_for_image = 0

    def halved(self, times: int, area: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """As the pyramid does."""
        if area is not None:
            self.halved_for_image = times
        return super().halved(times, area)


def read(frame: EncodedFrame, image: ImageConfig) -> tuple[np.ndarray, int]:
    """`read_image` of a frame, and how often it was halved."""
    pyramid = Recorder(frame)
    return render.render_pyramid(pyramid, image).image, pyramid.halved_for_image


def with_resize(interpolation: int, pixels: np.ndarray, frame: EncodedFrame, image: ImageConfig) -> np.ndarray:
    """The exact image, but for one step: the last resize is a single `cv2.resize`."""

    def resized(crop: np.ndarray, size: tuple[int, int], halved: bool) -> np.ndarray:
        grows = crop.shape[0] < size[1] or crop.shape[1] < size[0]
        return cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR if grows else interpolation)

    with patch.object(render, "_resized", resized):
        return render.render(pixels, frame, image).image


def distance(image: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """MAD (of 255), PSNR (dB) and SSIM where `exact` is not air."""
    breast = exact > 0
    error = np.abs(image.astype(np.float64) - exact)[breast]
    square = float(np.mean(error**2))
    psnr = 10 * np.log10(255**2 / square) if square else 99.0
    return {"mad": float(error.mean()), "psnr": float(psnr), "ssim": float(ssim_map(image, exact)[breast].mean())}


def ssim_map(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """SSIM at every pixel of two uint8 images; Wang, Bovik, Sheikh and Simoncelli 2004, doi 10.1109/TIP.2003.819861.

    Equation 13 with their constants (K1 = 0.01, K2 = 0.03, L = 255) and their window (11x11 Gaussian, sigma 1.5).
    """
    mean = partial(cv2.GaussianBlur, ksize=(11, 11), sigmaX=1.5)
    x, y = one.astype(np.float64), other.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    return (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))


def kept(signal: np.ndarray, exact: np.ndarray) -> float:
    """Contrast of the calcifications as a share of what the exact image shows of it.

    A signal is the image with them less the image without, in grey levels. It is projected on that of the exact image:
    what is there at the right place, in the right shape; blur and displacement lower it, noise does not.
    """
    return float((signal * exact).sum() / (exact * exact).sum())


@dataclass(frozen=True)
class Case:
    """One phantom exposure: a woman, a view, and whether her cluster of microcalcifications is there."""

    detector: Detector
    woman: int
    view: str
    cluster: bool

    def path(self, folder: Path) -> Path:
        """Where it lies."""
        name = f"{self.detector.rows}-{self.woman}-{self.view}{'' if self.cluster else '-without'}"
        return folder / f"v{writer.VERSION}" / f"{name}.dcm"


def expose(case: Case, folder: Path) -> None:
    """Write one exposure unless it is there; both of a pair have the same chance and the same header."""
    path = case.path(folder)
    if path.exists():
        return
    cv2.setNumThreads(1)
    detector, habits = case.detector, BY_ID[HABITS[BITS[case.detector.rows]]]
    size = (detector.rows, detector.columns, detector.pitch)
    machine = replace(habits, sizes=(size,), noise=habits.noise * detector.noise)
    plan = plan_patients(np.random.default_rng([case.woman, detector.rows]), 1, 0, (machine,), set())[0]
    ill = replace(plan.breasts["L"], cancer=1, sign="calcifications", biopsy=1)
    plan = replace(plan, implant=0, breasts={**plan.breasts, "L": ill})
    breast = build_breasts(plan, np.random.default_rng([case.woman, 1]))["L"]
    image = next(image for image in plan.images if (image.laterality, image.view) == ("L", case.view))

    def shot(there: bool) -> tuple[np.ndarray, DicomFacts]:
        findings = tuple(finding for finding in breast.findings if there or finding.kind != "cluster")
        chance = np.random.default_rng([case.woman, 2, VIEWS.index(case.view)])
        return acquire(plan, image, replace(breast, findings=findings), machine, chance, full_size=True)

    pixels, facts = shot(True)  # windows that follow the content must not follow the calcifications
    write_dicom(path, pixels if case.cluster else shot(False)[0], facts)


def in_processes(jobs: int) -> ProcessPoolExecutor:
    """Processes for the phantom; spawned, because a fork of a process with threads can hang."""
    workers = min(jobs, len(os.sched_getaffinity(0)))
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def phantom_cases(folder: Path, events: Events) -> list[Case]:
    """The exposures with a cluster; their files and those of their twins are written."""
    cases = [Case(d, woman, view, True) for d in DETECTORS for woman in range(1, WOMEN + 1) for view in VIEWS]
    every = [replace(case, cluster=there) for case in cases for there in (True, False)]
    left = [case for case in every if not case.path(folder).exists()]
    with events.progress(len(left), "files", "files") as progress, in_processes(max(len(left), 1)) as pool:
        for _ in pool.map(expose, left, [folder] * len(left)):
            progress.advance()
    return cases


def real_files(folder: Path, events: Events) -> list[Path]:
    """Real X-rays of at least `LEAST_ROWS` rows, one of each matrix, as lossless JPEG 2000 in `folder`."""
    root, found = os.environ.get("RSNA_KIT_REALDATA"), {}
    for path in sorted(Path(root).rglob("*.dcm")) if root else []:
        try:
            frame = read_frame(path)
            modality = pydicom.dcmread(path, specific_tags=["Modality"], force=True).get("Modality", "")
            matrix = (frame.rows, frame.columns)
            if modality not in MODALITIES or frame.rows < LEAST_ROWS or frame.modality_lut or matrix in found:
                continue
            pixels = decode(frame)
            render.render(pixels, frame, ImageConfig())
        except ImageError as error:
            events.say(f"left out: {str(error).splitlines()[0]}")
            continue
        windows = tuple(((c - frame.intercept) / frame.slope, width / frame.slope) for c, width in frame.windows)
        facts = DicomFacts(
            patient_id="real",
            image_id=path.stem,
            laterality="L",
            transfer_syntax=JPEG2000,
            windows=windows,
            bits_stored=frame.bits_stored,
            photometric=frame.photometric,
            voi_function=frame.voi_function,
            padding=None,
        )
        found[matrix] = folder / "real" / f"{path.stem}.dcm"
        write_dicom(found[matrix], pixels, facts)
    return list(found.values())


class File:
    """A file whose pixels are decoded once for all targets."""

    def __init__(self, path: Path) -> None:
        self.frame = read_frame(path)
        self.pixels = decode(self.frame)

    def images(self, target: tuple[int, int]) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
        """The exact image, those of `WAYS`, and how often the reduced one was halved."""
        height, width = target
        reduced, halvings = read(self.frame, ImageConfig(height=height, width=width))
        settings = ImageConfig(height=height, width=width, decode="exact")
        exact = render.render(self.pixels, self.frame, settings).image
        resizes = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
        others = {way: with_resize(how, self.pixels, self.frame, settings) for way, how in resizes.items()}
        return exact, {"reduced": reduced, **others}, halvings


def measure(group: str, file: File, twin: File | None, target: tuple[int, int]) -> dict[str, Any]:
    """One file at one target: reduction, distances of every way from exact, contrast kept when there is a twin."""
    exact, pictures, halvings = file.images(target)
    row: dict[str, Any] = {
        "group": group,
        "file": file.frame.image_id,
        "target": "{}x{}".format(*target),
        "reduction": halvings,
        "identical": bool(np.array_equal(pictures["reduced"], exact)),
    }
    row |= {way: distance(pictures[way], exact) for way in WAYS}
    if twin is not None:
        exact_without, without, _ = twin.images(target)
        signal = exact.astype(np.float64) - exact_without
        for way in WAYS:
            row[way]["kept"] = kept(pictures[way].astype(np.float64) - without[way], signal)
    return row


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Means by matrix, target and reduction; files that were not reduced are counted, not averaged."""
    yield f"{'':36}{'reduced':>28}{'INTER_LINEAR':>28}{'AREA':>6}"
    titles = f"{'MAD':>6}{'PSNR':>6}{'SSIM':>8}{'kept':>8}"
    yield f"{'file':<18}{'target':<10}{'r':>2}{'n':>4}  {titles}{titles}{'MAD':>6}"
    for group, target, halvings in dict.fromkeys((row["group"], row["target"], row["reduction"]) for row in rows):
        part = [row for row in rows if (row["group"], row["target"], row["reduction"]) == (group, target, halvings)]
        line = f"{group:<18.17}{target:<10}{halvings:>2}{len(part):>4}  "
        if not halvings:
            yield f"{line}no reduction: {sum(row['identical'] for row in part)} are byte for byte the exact image"
            continue
        for way in WAYS[:2]:
            mad, psnr, ssim = (np.mean([row[way][name] for row in part]) for name in ("mad", "psnr", "ssim"))
            share = f"{np.mean([row[way]['kept'] for row in part]):8.3f}" if "kept" in part[0][way] else f"{'':8}"
            line += f"{mad:6.2f}{psnr:6.1f}{ssim:8.4f}{share}"
        yield f"{line}{np.mean([row['area']['mad'] for row in part]):6.2f}"


def main() -> int:
    """Make the files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, default=Path("build/reduction-files"), help="made once, used again")
    parser.add_argument(
        "--out", type=Path, default=Path("build/reduction.json"), help="every row of the table, as JSON"
    )
    options = parser.parse_args()
    events = Events()
    cases, real = phantom_cases(options.files, events), real_files(options.files, events)
    files: list[tuple[str, Path, Path | None]] = [(path.stem, path, None) for path in real]
    for case in cases:
        twin = replace(case, cluster=False).path(options.files)
        files.append((f"{case.detector.rows}x{case.detector.columns}", case.path(options.files), twin))
    rows = []
    with events.progress(len(TARGETS) * len(files), "measure", "pictures") as progress:
        for group, path, other in files:
            file, without = File(path), File(other) if other else None
            for target in TARGETS:
                rows.append(measure(group, file, without, target))
                progress.advance()
    print(*table(sorted(rows, key=lambda row: row["target"].zfill(9))), sep="\n")
    write_json(options.out, {"targets": TARGETS, "women": WOMEN, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
