"""Who is in the phantom: patients, breasts, images and what the tables say about them; no pixels.

The frequencies are those of the real train.csv (54,706 images, 11,913 patients, 23,826 breasts), except the
prevalence of cancer, which is the caller's. Cancer is drawn independently of site and machine. Rare facts
(implants, missing ages, rare machines, cancers) are dealt out as rounded quotas rather than by chance, so that a
phantom of a few patients still has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rsna_lab.phantom.machines import VISIBLE_TEST_MACHINE, Machine

# Images of a patient: 69 % have the four standard ones; mean 4.6.
_IMAGES = (4, 5, 6, 7, 8, 9, 10, 12, 14)
_IMAGES_P = (0.691, 0.139, 0.100, 0.030, 0.028, 0.005, 0.004, 0.002, 0.001)
_RARE_VIEWS = ("AT", "LM", "ML", "LMO")
_RARE_VIEW_P = (0.50, 0.26, 0.21, 0.03)  # 19, 10, 8 and 1 images of the real set
_DENSITY = ("A", "B", "C", "D")
_DENSITY_P = (0.105, 0.430, 0.413, 0.052)
# What a cancer shows. The rough mix of screen-detected cancers: most are masses, a quarter calcifications alone.
_SIGNS = ("mass", "calcifications", "mass+calcifications")
_SIGNS_P = (0.58, 0.25, 0.17)
_INVASIVE = {"mass": 0.88, "calcifications": 0.20, "mass+calcifications": 0.80}  # 71 % of cancers overall
_VISIBLE_PATIENT = "10008"


@dataclass(frozen=True)
class BreastPlan:
    """One breast: its label and what train.csv says about it. `sign` is empty without a cancer."""

    cancer: int
    sign: str
    biopsy: int
    invasive: int
    birads: int | None
    difficult: bool


@dataclass(frozen=True)
class ImagePlan:
    """One image; `displaced`: the implant is pushed back."""

    image_id: str
    laterality: str
    view: str
    displaced: bool = False


@dataclass(frozen=True)
class PatientPlan:
    """One patient. `age` and `density` are the truth; the `show_` flags say whether the table has them."""

    index: int
    patient_id: str
    machine_id: str
    site_id: int
    age: int
    show_age: bool
    density: str
    show_density: bool
    implant: int
    breasts: dict[str, BreastPlan]
    images: tuple[ImagePlan, ...]


def plan_patients(
    rng: np.random.Generator, patients: int, prevalence: float, machines: tuple[Machine, ...], taken: set[int]
) -> list[PatientPlan]:
    """Plan `patients` patients, sorted by patient id as text, as the real table is.

    Args:
        rng: the only source of chance.
        patients: at least 1.
        prevalence: share of breasts with cancer, in [0, 1]; rounded, and at least one (two from four patients on)
            unless it is 0.
        machines: dealt out by their shares; the first always gets a patient, each one when there are two per machine.
        taken: patient and image numbers already in use; the new ones are added.
    """
    dealt = _deal_machines(rng, machines, patients)
    sides_with_cancer = _deal_cancers(rng, patients, prevalence)
    implants = _some(rng, patients, 0.016, at_least=patients >= 8)
    numbers = sorted(_unused(rng, patients, 5, 65_536, taken), key=str)
    # Eight patients of site 1 have no age in the real table.
    site_1 = [i for i in range(patients) if dealt[i].site_id == 1]
    ageless = {site_1[int(rng.integers(len(site_1)))]} if patients >= 8 and site_1 else set()
    ageless |= {i for i in site_1 if rng.random() < 0.0014}
    plans = []
    for i in range(patients):
        plans.append(
            _patient(rng, i, str(numbers[i]), dealt[i], sides_with_cancer[i], (i in implants, i not in ageless), taken)
        )
    return plans


def plan_visible_test(rng: np.random.Generator, taken: set[int]) -> PatientPlan:
    """The one patient of the visible test set: 10008, site 2, machine 21, 81 years, four views, no cancer."""
    plan = _patient(rng, 0, _VISIBLE_PATIENT, VISIBLE_TEST_MACHINE, "", (False, True), taken, num_images=4)
    return PatientPlan(**{**plan.__dict__, "age": 81, "density": "B"})


def _deal_machines(rng: np.random.Generator, machines: tuple[Machine, ...], patients: int) -> list[Machine]:
    """Quotas by largest remainder, with a floor of one from two patients a machine on, in random order."""
    shares = np.array([machine.share for machine in machines])
    exact = shares / shares.sum() * patients
    quotas = np.floor(exact).astype(int)
    quotas[0] = max(quotas[0], 1)
    if patients >= 2 * len(machines):
        quotas = np.maximum(quotas, 1)
    order = np.argsort(-(exact - quotas), kind="stable")
    for k in range(max(patients - int(quotas.sum()), 0)):
        quotas[order[k % len(order)]] += 1
    while quotas.sum() > patients:
        quotas[int(np.argmax(quotas))] -= 1
    dealt = [machine for machine, quota in zip(machines, quotas, strict=True) for _ in range(quota)]
    return [dealt[i] for i in rng.permutation(patients)]


def _deal_cancers(rng: np.random.Generator, patients: int, prevalence: float) -> list[str]:
    """Per patient the sides with a cancer: "", "L", "R" or "LR"; about 1 % of the patients with cancer have two."""
    wanted = round(prevalence * 2 * patients)
    if prevalence > 0:
        wanted = max(wanted, 2 if patients >= 4 else 1)
    sides = [""] * patients
    order = rng.permutation(patients)
    first = [("L", "R")[int(bit)] for bit in rng.integers(0, 2, patients)]
    bilateral = max(round(0.0123 * wanted), wanted - patients)
    for k in range(wanted - bilateral):
        sides[order[k]] = first[k]
    for k in range(bilateral):
        sides[order[k]] = "LR"
    return sides


def _some(rng: np.random.Generator, total: int, share: float, at_least: bool) -> set[int]:
    count = max(round(share * total), int(at_least))
    return {int(i) for i in rng.choice(total, count, replace=False)}


def _unused(rng: np.random.Generator, count: int, low: int, high: int, taken: set[int]) -> list[int]:
    """`count` numbers in [low, high) not in `taken`, which gets them."""
    found: list[int] = []
    while len(found) < count:
        number = int(rng.integers(low, high))
        if number not in taken:
            taken.add(number)
            found.append(number)
    return found


def _patient(
    rng: np.random.Generator,
    index: int,
    patient_id: str,
    machine: Machine,
    cancer_sides: str,
    flags: tuple[bool, bool],
    taken: set[int],
    num_images: int = 0,
) -> PatientPlan:
    implant, show_age = flags
    # Mean 58.5, 26 to 89; women with cancer are about five years older.
    age = int(np.clip(round(rng.normal(63.5 if cancer_sides else 58.3, 10.0)), 26, 89))
    density = _density(rng, age)
    breasts = {side: _breast(rng, machine.site_id, side in cancer_sides) for side in "LR"}
    return PatientPlan(
        index=index,
        patient_id=patient_id,
        machine_id=machine.machine_id,
        site_id=machine.site_id,
        age=age,
        show_age=show_age,
        density=density,
        show_density=machine.site_id == 1 and rng.random() > 0.002,
        implant=int(implant),
        breasts=breasts,
        images=_images(rng, implant, taken, num_images),
    )


def _density(rng: np.random.Generator, age: int) -> str:
    """Density category; shares of train.csv, shifted a little towards dense in the young."""
    tilt = np.exp(-0.03 * (age - 58) * np.array([-1.5, -0.5, 0.5, 1.5]))
    weights = np.array(_DENSITY_P) * tilt
    return _DENSITY[int(rng.choice(4, p=weights / weights.sum()))]


def _breast(rng: np.random.Generator, site_id: int, cancer: bool) -> BreastPlan:
    """Columns that follow from the label: every cancer is biopsied and, at site 1, recalled (BIRADS 0)."""
    chance = rng.random(4)
    if cancer:
        sign = _SIGNS[int(np.searchsorted(np.cumsum(_SIGNS_P)[:-1], chance[0]))]
        return BreastPlan(1, sign, 1, int(chance[1] < _INVASIVE[sign]), 0 if site_id == 1 else None, False)
    birads = None
    if site_id == 1:  # 26 % recalled, 53 % normal, 8 % benign, 11 % missing
        birads = (0, 1, 2, None)[int(np.searchsorted((0.262, 0.805, 0.883), chance[0]))]
    biopsy = chance[1] < (0.10 if birads == 0 else 0.033 if site_id == 2 else 0.0)
    return BreastPlan(0, "", int(biopsy), 0, birads, birads == 0 or (site_id == 2 and chance[2] < 0.005))


def _images(rng: np.random.Generator, implant: bool, taken: set[int], num_images: int) -> tuple[ImagePlan, ...]:
    """CC and MLO of each breast, then repeats, rare views and, with an implant, displaced views."""
    views = [(side, view, False) for side in "LR" for view in ("CC", "MLO")]
    wanted = num_images or int(rng.choice(_IMAGES, p=_IMAGES_P))
    if implant and not num_images:
        views += [(side, view, True) for side in "LR" for view in ("CC", "MLO")]
    while len(views) < wanted:
        side = "LR"[int(rng.integers(2))]
        if rng.random() < 0.05:  # ten times as often as in reality, so that a small phantom has them
            views.append((side, _RARE_VIEWS[int(rng.choice(4, p=_RARE_VIEW_P))], False))
        else:
            views.append((side, ("CC", "MLO")[int(rng.random() < 0.6)], False))
    numbers = _unused(rng, len(views), 1_000_000, 2_147_483_647, taken)
    images = [ImagePlan(str(number), *view) for number, view in zip(numbers, views, strict=True)]
    return tuple(sorted(images, key=lambda image: (image.laterality, int(image.image_id))))
