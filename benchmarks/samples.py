"""The files that are measured: phantom mammograms at the real matrix sizes.

A generated kind is the MLO of one woman, and her CC as well when the kind stands for a part of the competition's mix.
Both syntaxes hold the same pixels. Which woman stands at which detector, and how noisy its pixels are, was chosen so
that coded sizes are those of real files (README.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsna_kit.runtime.events import Events
from rsna_lab.phantom import writer
from rsna_lab.phantom.acquisition import acquire
from rsna_lab.phantom.anatomy import build_breasts
from rsna_lab.phantom.dicom_file import JPEG2000, JPEG_LOSSLESS, write_dicom
from rsna_lab.phantom.machines import BY_ID, MACHINES, Machine
from rsna_lab.phantom.population import plan_patients

VIEWS = ("MLO", "CC")
SYNTAXES = {".70": JPEG_LOSSLESS, ".90": JPEG2000}
HABITS = {12: "48", 14: "700", 16: "29"}  # bits stored → the machine whose tones, windows and photometric are taken
NOISY_AIR = (8.0, 3.0)  # mean and deviation in stored values: the bad case, in which air costs bits as tissue does


@dataclass(frozen=True)
class Detector:
    """A matrix size, who stands at it, and its noise as a multiple of the machine's in the phantom."""

    rows: int
    columns: int
    pitch: float  # mm
    woman: int  # seed
    noise: float


DETECTORS = (
    Detector(2776, 2082, 0.083, woman=11, noise=3.0),
    Detector(4096, 3328, 0.070, woman=19, noise=2.0),
    Detector(5355, 4915, 0.050, woman=3, noise=1 / 6),
)


@dataclass(frozen=True)
class Kind:
    """What the files of one row of the tables have in common."""

    detector: Detector
    syntax: str  # key of SYNTAXES
    bits: int  # stored
    noisy: bool  # air is noise, not one value

    @property
    def label(self) -> str:
        """How tables call it."""
        air = " noisy" if self.noisy else ""
        return f"{self.detector.rows}x{self.detector.columns} {self.syntax} {self.bits} bit{air}"

    def path(self, folder: Path, view: str) -> Path:
        """Where its file of `view` lies."""
        return folder / f"{self.label.replace(' ', '-').replace('.', '')}-{view}.dcm"


KINDS = tuple(
    Kind(detector, syntax, bits, noisy)
    for detector in DETECTORS
    for syntax in SYNTAXES
    for bits, noisy in ((12, False), (12, True), (14, False), (16, False))
)


def generate(folder: Path, events: Events) -> dict[Kind, list[Path]]:
    """The files of every kind, written below `folder` unless they are there; the same bytes on every machine.

    Files lie in a subfolder named by what they depend on, so that files of another recipe are never measured.
    """
    recipe = repr((KINDS, VIEWS, HABITS, NOISY_AIR, writer.VERSION))
    folder = folder / hashlib.sha256(recipe.encode()).hexdigest()[:12]
    in_mix = {kind for _, _, kind in mix()}
    found: dict[Kind, list[Path]] = {}
    with events.progress(len(KINDS), "files", "kinds") as progress:
        for kind in KINDS:
            for view in VIEWS if kind in in_mix else VIEWS[:1]:
                found.setdefault(kind, []).append(kind.path(folder, view))
                if not found[kind][-1].exists():
                    _expose(kind, view, folder)
            progress.advance()
    return found


def _expose(kind: Kind, view: str, folder: Path) -> None:
    detector, habits = kind.detector, BY_ID[HABITS[kind.bits]]
    air, air_noise = NOISY_AIR if kind.noisy else (habits.air, habits.air_noise)
    machine = dataclasses.replace(
        habits,
        sizes=((detector.rows, detector.columns, detector.pitch),),
        syntax=SYNTAXES[kind.syntax],
        noise=habits.noise * detector.noise,
        air=air,
        air_noise=air_noise,
    )
    plan = plan_patients(np.random.default_rng(detector.woman), 1, 0, (machine,), set())[0]
    breast = build_breasts(plan, np.random.default_rng([detector.woman, 1]))["L"]
    image = next(image for image in plan.images if (image.laterality, image.view) == ("L", view))
    chance = np.random.default_rng([detector.woman, 2, VIEWS.index(view)])
    pixels, facts = acquire(plan, image, breast, machine, chance, full_size=True)
    write_dicom(kind.path(folder, view), pixels, facts)


def mix() -> list[tuple[str, float, Kind]]:
    """What the competition's files are made of: machine and matrix, share of all images, the kind that stands for it.

    Shares are the counts of its train.csv; a machine with several matrices uses each equally often. The kind has the
    machine's syntax, bits and air, and the number of pixels nearest to its own by ratio.
    """
    whole = sum(machine.share for machine in MACHINES)
    return [
        (f"{machine.machine_id} {rows}x{columns}", machine.share / whole / len(machine.sizes), _nearest(machine, k))
        for machine in MACHINES
        for k, (rows, columns, _) in enumerate(machine.sizes)
    ]


def _nearest(machine: Machine, size: int) -> Kind:
    rows, columns, _ = machine.sizes[size]
    alike = [
        kind
        for kind in KINDS
        if (SYNTAXES[kind.syntax], kind.bits, kind.noisy)
        == (machine.syntax, machine.bits_stored, machine.air_noise > 0)
    ]
    return min(alike, key=lambda kind: abs(math.log(kind.detector.rows * kind.detector.columns / (rows * columns))))
