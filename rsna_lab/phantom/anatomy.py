"""The woman and her breasts in millimetres: one 3-D description per breast, the same for every view of it.

Axes of a breast, in mm: `depth` from the chest wall (0) to the nipple, `out` from medial (-) to lateral (+),
`up` from inferior (-) to superior (+); the nipple axis is out = up = 0. A view turns about the nipple axis: its
angle says how much of `out` and of `up` becomes the image's vertical direction.

    CC   out only           (lateral at the top of the image)
    MLO  out and up equally (upper outer quadrant and axilla at the top)
    ML   up only            (also LM)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rsna_lab.phantom.population import PatientPlan

MU_FAT, MU_GLAND = 0.0456, 0.0802  # linear attenuation per mm at 20 keV, see `projection`
# Angle of the image's vertical direction between `up` (0) and `out` (90), degrees.
VIEW_ANGLES = {"CC": 90.0, "MLO": 45.0, "ML": 0.0, "LM": 0.0, "LMO": 45.0, "AT": 60.0}
OBLIQUE_VIEWS = ("MLO", "LMO", "ML", "LM", "AT")  # show the pectoral muscle at the top

# Fibroglandular tissue per density category A-D: number of lobes, their radius in mm, how filled they are, and how
# much of the breast's fat carries fine strands.
_DENSITY = {
    "A": (9, 11.0, 0.38, 0.55),
    "B": (14, 12.0, 0.58, 0.75),
    "C": (26, 14.0, 0.85, 0.9),
    "D": (40, 17.0, 1.3, 1.0),
}


@dataclass(frozen=True)
class Finding:
    """Something at one place of the breast.

    Kinds: `cancer` (irregular, spiculated), `cluster` (malignant calcifications), `round` (cyst or fibroadenoma),
    `coarse` (benign calcifications), `node` (lymph node), `vessel` calcifications are drawn with the vessels.
    """

    kind: str
    place: tuple[float, float, float]  # depth, out, up in mm
    size_mm: float  # diameter of a mass or node, extent of a cluster
    strength: float  # share of the full attenuation difference, 0 to 1
    seed: int  # its shape, the same in every view


@dataclass(frozen=True)
class Breast:
    """One breast; all lengths in mm."""

    density: str
    depth: float  # chest wall to nipple
    half_width: float  # at the chest wall, in CC
    thickness: float  # compressed
    skin: float
    axilla: float  # share of the depth that the axillary tail keeps at the top of an MLO
    pectoral: tuple[float, float, float]  # width at the top, lower end above the nipple, thickness
    nipple: float  # height over the skin
    lobes: np.ndarray  # float32 (n, 5): depth, out, up, radius, weight
    filling: float
    strands: float
    old_vessels: bool  # calcified arteries
    findings: tuple[Finding, ...]
    seed: int  # texture and vessels


def project(place: tuple[float, float, float], view: str) -> tuple[float, float]:
    """(millimetres above the nipple's row, millimetres from the chest wall) of a place in `view`."""
    depth, out, up = place
    angle = math.radians(VIEW_ANGLES[view])
    return out * math.sin(angle) + up * math.cos(angle), depth


def build_breasts(plan: PatientPlan, rng: np.random.Generator) -> dict[str, Breast]:
    """Both breasts of a patient: alike in size and tissue, as real pairs are, and each with its own findings."""
    depth = float(np.clip(rng.normal(92, 17), 55, 140))
    shared = {
        "depth": depth,
        "half_width": depth * float(np.clip(rng.normal(0.92, 0.09), 0.7, 1.15)),
        "thickness": float(np.clip(rng.normal(24 + 0.33 * depth, 8), 26, 85)),
        "axilla": float(rng.uniform(0.32, 0.55)),
        "nipple": float(rng.uniform(0.5, 4.5)),
    }
    muscle = (float(rng.uniform(30, 58)), float(rng.normal(12, 18)), float(rng.uniform(14, 26)))
    lobes = _lobes(rng, plan.density, depth)
    old_vessels = bool(rng.random() < 0.25 * max(plan.age - 52, 0) / 30)
    return {side: _breast(plan, side, rng, shared, muscle, lobes, old_vessels) for side in "LR"}


def _breast(
    plan: PatientPlan,
    side: str,
    rng: np.random.Generator,
    shared: dict[str, float],
    muscle: tuple[float, float, float],
    lobes: np.ndarray,
    old_vessels: bool,
) -> Breast:
    depth = shared["depth"] * float(rng.normal(1, 0.025))
    own = lobes.copy()
    own[:, :3] += rng.normal(0, 3.0, (len(own), 3))
    own[:, 3:] *= rng.normal(1, 0.08, (len(own), 2))
    _, _, filling, strands = _DENSITY[plan.density]
    return Breast(
        density=plan.density,
        depth=depth,
        half_width=shared["half_width"] * float(rng.normal(1, 0.025)),
        thickness=shared["thickness"] * float(rng.normal(1, 0.04)),
        skin=float(rng.uniform(1.2, 2.0)),
        axilla=shared["axilla"] * float(rng.normal(1, 0.05)),
        pectoral=(muscle[0] * float(rng.normal(1, 0.08)), muscle[1] + float(rng.normal(0, 5)), muscle[2]),
        nipple=shared["nipple"],
        lobes=own.astype(np.float32),
        filling=filling * float(rng.normal(1, 0.08)),
        strands=strands,
        old_vessels=old_vessels,
        findings=_findings(rng, plan.breasts[side].sign, depth, shared["half_width"]),
        seed=int(rng.integers(2**62)),
    )


def _lobes(rng: np.random.Generator, density: str, depth: float) -> np.ndarray:
    """Glandular lobes: a cone that opens from the nipple backwards, heavier in the upper outer quadrant."""
    count, radius, _, _ = _DENSITY[density]
    back = 1.0 - 0.72 * rng.beta(1.25, 1.45, count)  # share of the depth; 1 is the nipple
    spread = depth * (0.05 + 0.62 * (1.0 - back)) * (0.62 if density in "AB" else 0.85)
    angle = rng.uniform(0, 2 * np.pi, count)
    distance = spread * np.sqrt(rng.uniform(0, 1, count))
    shift = 0.12 * depth * (1.0 - back) / 0.7
    columns = [
        back * depth * 0.97,
        distance * np.cos(angle) + shift,
        distance * np.sin(angle) + shift,
        np.clip(rng.normal(radius, 0.3 * radius, count), 5, 30) * (depth / 92),
        rng.uniform(0.55, 1.2, count),
    ]
    return np.stack(columns, axis=1)


def _place(rng: np.random.Generator, depth: float, half_width: float) -> tuple[float, float, float]:
    """Somewhere a lesion is seen in both views: half of them in the upper outer quadrant, none at the skin."""
    back = float(rng.uniform(0.22, 0.85))
    limit = 0.62 * half_width * math.sqrt(1.0 - back**2)
    radius = limit * math.sqrt(float(rng.random()))
    # Upper outer quadrant 50 %, the rest spread evenly over the other three.
    quadrant = int(rng.choice(4, p=(0.5, 0.17, 0.17, 0.16)))
    angle = float(rng.uniform(0, np.pi / 2)) + quadrant * np.pi / 2
    return back * depth, radius * math.cos(angle), radius * math.sin(angle)


def _findings(rng: np.random.Generator, sign: str, depth: float, half_width: float) -> tuple[Finding, ...]:
    """Benign findings at the same rates in every breast, then what the cancer shows.

    Sizes: screen-detected invasive cancers are mostly 8-25 mm, clusters of malignant calcifications extend over
    5-20 mm. `strength` is the share of tumour cells and stroma in the lesion's volume; the rest is fat between them.
    """
    found = []
    for kind, mean, low, high in (("round", 0.22, 5, 16), ("coarse", 0.35, 1, 14), ("node", 0.10, 5, 10)):
        for _ in range(rng.poisson(mean)):
            size, strength = float(rng.uniform(low, high)), float(rng.uniform(0.55, 1.0))
            found.append(Finding(kind, _place(rng, depth, half_width), size, strength, int(rng.integers(2**62))))
    if sign:
        place, seed = _place(rng, depth, half_width), int(rng.integers(2**62))
        if "mass" in sign:
            size = float(np.clip(rng.lognormal(math.log(14), 0.32), 8, 25))
            found.append(Finding("cancer", place, size, float(rng.uniform(0.6, 1.0)), seed))
        if "calcifications" in sign:
            found.append(Finding("cluster", place, float(rng.uniform(5, 20)), 1.0, seed + 1))
    return tuple(found)
