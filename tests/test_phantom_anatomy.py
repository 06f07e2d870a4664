"""What the phantom's pictures must have in common with mammograms. No classifier is involved anywhere."""

from __future__ import annotations

import dataclasses
import itertools

import cv2
import numpy as np
import pytest

from rsna_lab.phantom import lesions
from rsna_lab.phantom.acquisition import acquire
from rsna_lab.phantom.anatomy import Breast, Finding, build_breasts, project
from rsna_lab.phantom.machines import BY_ID, MACHINES
from rsna_lab.phantom.population import PatientPlan, plan_patients
from rsna_lab.phantom.projection import MU_FAT, MU_GLAND, Frame, cast_shadow

FRAME = Frame(rows=520, columns=400, pitch=0.45, nipple_row=290.0)


@pytest.fixture(scope="module")
def plans() -> list[PatientPlan]:
    found = plan_patients(np.random.default_rng(3), 40, 0.3, MACHINES, set())
    return [plan for plan in found if not plan.implant]


@pytest.fixture(scope="module")
def breast(plans: list[PatientPlan]) -> Breast:
    """A breast of density B without findings."""
    plan = next(plan for plan in plans if plan.density == "B")
    return dataclasses.replace(build_breasts(plan, np.random.default_rng(5))["L"], findings=())


def spectral_slope(image: np.ndarray, mask: np.ndarray, pitch: float) -> float:
    """-d log(power) / d log(frequency) between 0.1 and 0.7 per mm, averaged over Hann-windowed squares in `mask`."""
    side = int(26 / pitch)
    window = np.hanning(side)[:, None] * np.hanning(side)[None, :]
    power = []
    for top in range(0, image.shape[0] - side, side // 2):
        for left in range(0, image.shape[1] - side, side // 2):
            part = (slice(top, top + side), slice(left, left + side))
            if mask[part].all():
                power.append(np.abs(np.fft.fft2((image[part] - image[part].mean()) * window)) ** 2)
    mean = np.mean(power, axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side, pitch), np.fft.fftfreq(side, pitch)))
    edges = np.geomspace(0.1, 0.7, 10)
    rings = [(frequency >= low) & (frequency < high) for low, high in itertools.pairwise(edges)]
    points = [(np.log(frequency[ring].mean()), np.log(mean[ring].mean())) for ring in rings if ring.any()]
    return -float(np.polyfit(*np.transpose(points), 1)[0])


def test_breast_texture_falls_as_in_mammograms(plans: list[PatientPlan]) -> None:
    """Burgess 2001: exponent about 3. The same measure gives 3.1 on a GE mammogram, 2.7-3.4 on mini-MIAS."""
    slopes, shares = [], []
    for plan in plans[:4]:
        breasts = build_breasts(plan, np.random.default_rng(1))
        pixels, _ = acquire(plan, plan.images[0], breasts["L"], BY_ID["21"], np.random.default_rng(2), False)
        mask = (pixels > 150).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
        mask = (labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])).astype(np.uint8)
        shares.append(mask.mean())
        inner = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=24) > 0  # 8 mm in from the skin
        slopes.append(spectral_slope(pixels.astype(float), inner, 4 * 0.083))
    assert 2.7 < np.mean(slopes) < 3.4
    assert 0.2 < np.mean(shares) < 0.5


def test_glandular_volume_grows_with_density_as_volumetry_has_it(plans: list[PatientPlan]) -> None:
    """Borders of the four grades: 4.5, 7.5 and 15.5 % of the volume; the mean of each category lies about there."""
    plan = plans[0]
    means = []
    for density in "ABCD":
        values = []
        for seed in range(4):
            rng = np.random.default_rng(seed)
            breast = build_breasts(dataclasses.replace(plan, density=density), rng)["R"]
            bare = dataclasses.replace(breast, findings=(), strands=0.0)
            shadow = cast_shadow(bare, "CC", FRAME, rng)
            tissue = shadow.missing < 0.3  # inside, away from the skin
            gland = shadow.excess[tissue & shadow.mask].mean() / (MU_GLAND - MU_FAT)
            values.append(gland / bare.thickness)
        means.append(float(np.mean(values)))
    assert means == sorted(means)
    assert means[0] < 0.09
    assert 0.13 < means[3] < 0.35


def test_the_skin_line_is_dark_outside_and_thin_at_the_edge(breast: Breast) -> None:
    shadow = cast_shadow(breast, "CC", FRAME, np.random.default_rng(0))
    row = round(FRAME.nipple_row) + 60
    columns = np.flatnonzero(shadow.mask[row])
    assert np.array_equal(columns, np.arange(len(columns)))
    missing = shadow.missing[row, columns]
    assert (np.diff(missing) >= -1e-3).all()  # thinner and thinner towards the skin
    assert missing[0] < 0.02
    assert missing[-1] > 0.5 * MU_FAT * breast.thickness


def test_only_oblique_views_show_the_pectoral_triangle(breast: Breast) -> None:
    corner = (slice(0, 60), slice(0, 25))
    oblique = cast_shadow(breast, "MLO", FRAME, np.random.default_rng(0))
    straight = cast_shadow(breast, "CC", FRAME, np.random.default_rng(0))
    assert oblique.mask[corner].all()
    assert oblique.excess[corner].mean() > 0.3
    assert not straight.mask[:20].any()


@pytest.mark.parametrize("view", ["CC", "MLO", "ML"])
def test_a_finding_is_where_the_projection_says(breast: Breast, view: str) -> None:
    finding = Finding("cancer", (45.0, 14.0, 6.0), 14.0, 1.0, seed=8)
    without, within = (
        cast_shadow(dataclasses.replace(breast, findings=found), view, FRAME, np.random.default_rng(0)).excess
        for found in ((), (finding,))
    )
    row_mm, depth_mm = project(finding.place, view)
    row, column = FRAME.nipple_row - row_mm / FRAME.pitch, depth_mm / FRAME.pitch
    change = np.maximum(within - without, 0)
    rows, columns = np.indices(change.shape)
    centre = (change * rows).sum() / change.sum(), (change * columns).sum() / change.sum()
    assert np.hypot(centre[0] - row, centre[1] - column) * FRAME.pitch < 5.0
    far = np.hypot(rows - row, columns - column) * FRAME.pitch > 2.2 * finding.size_mm
    assert np.array_equal(within[far], without[far])


def test_projection_literals() -> None:
    assert project((50.0, 10.0, 20.0), "CC") == (pytest.approx(10.0), 50.0)
    assert project((50.0, 10.0, 20.0), "ML") == (pytest.approx(20.0), 50.0)
    assert project((50.0, 10.0, 20.0), "MLO") == (pytest.approx(30 / np.sqrt(2)), 50.0)


def test_findings_outside_the_detector_are_lost_quietly() -> None:
    excess = np.zeros((20, 20), np.float32)
    for kind in ("cancer", "round", "node", "cluster", "coarse"):
        lesions.draw(excess, (-400.0, 900.0), Finding(kind, (0, 0, 0), 10.0, 1.0, 3), 0.3, excess)
    assert not excess.any()


def test_a_repeated_view_shows_the_same_tissue(breast: Breast) -> None:
    """Two exposures differ in position by some rows, not in anatomy."""
    moved = dataclasses.replace(FRAME, nipple_row=FRAME.nipple_row + 9)
    first = cast_shadow(breast, "CC", FRAME, np.random.default_rng(0)).excess
    second = cast_shadow(breast, "CC", moved, np.random.default_rng(1)).excess
    part = (slice(220, 360), slice(20, 130))
    shifted = np.roll(second, -9, axis=0)[part]
    assert np.corrcoef(first[part].ravel(), shifted.ravel())[0, 1] > 0.95


def test_the_chest_wall_is_left_for_left_breasts_and_seldom_the_other_way(plans: list[PatientPlan]) -> None:
    usual = 0
    for plan in plans[:10]:
        breasts = build_breasts(plan, np.random.default_rng(0))
        for side in "LR":
            image = next(image for image in plan.images if image.laterality == side)
            pixels, _ = acquire(plan, image, breasts[side], BY_ID["93"], np.random.default_rng(plan.index), False)
            wall_left = (pixels[:, :3] > 0).sum() > (pixels[:, -3:] > 0).sum()
            usual += wall_left == (side == "L")
    assert usual >= 18


def test_findings_follow_the_label_and_nothing_else_does() -> None:
    """A benign finding that only normal breasts had would give the label away; cancers have the documented sizes."""
    benign: dict[int, list[int]] = {0: [], 1: []}
    for plan in plan_patients(np.random.default_rng(7), 800, 0.3, MACHINES, set()):
        for side, breast in build_breasts(plan, np.random.default_rng([7, plan.index])).items():
            sizes = {finding.kind: finding.size_mm for finding in breast.findings}
            assert bool({"cancer", "cluster"} & set(sizes)) == bool(plan.breasts[side].cancer)
            assert 8 <= sizes.get("cancer", 8) <= 25
            assert 5 <= sizes.get("cluster", 5) <= 20
            kinds = [finding.kind for finding in breast.findings if finding.kind in ("round", "coarse", "node")]
            benign[plan.breasts[side].cancer].append(len(kinds))
    assert np.mean(benign[1]) == pytest.approx(np.mean(benign[0]), abs=0.08)
