"""Findings drawn into an attenuation map: masses, calcifications, nodes, vessels.

Masses replace the tissue they lie in, so their contrast is (coefficient of the mass - coefficient of what was
there) x chord: plain in fat, nearly nothing in dense tissue, as in life. Coefficients at 20 keV as in
`projection`; a calcification has 0.9 per mm, between calcium oxalate and hydroxyapatite. Everything is
averaged over the area of a sample, so specks below the sampling distance fade by the share of the area they fill.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from rsna_lab.phantom.anatomy import MU_FAT, MU_GLAND, Breast, Finding

_MU_CANCER = 0.0844
_MU_CYST = 0.0785
_MU_CALCIUM = 0.9
_OVERSAMPLING = 4

Place = tuple[float, float]  # (row, column) in samples


def distort(share: np.ndarray, place: Place, finding: Finding, pitch: float) -> None:
    """Architectural distortion: tissue within twice the lesion's diameter is drawn towards it, in place."""
    reach = 2.0 * finding.size_mm / pitch
    window = _window(share.shape, place, reach)
    if window is None:
        return
    rows, columns = window
    dy, dx = _offsets(window, place)
    radius = np.sqrt(dy * dy + dx * dx) / reach
    # A tissue point seen at distance r lay at r * (1 + pull): pulled in most near the lesion, not at all at `reach`.
    pull = 0.55 * np.square(np.clip(1 - radius, 0, 1))
    map_y = (np.float32(place[0]) + dy * (1 + pull)).astype(np.float32)
    map_x = (np.float32(place[1]) + dx * (1 + pull)).astype(np.float32)
    share[rows, columns] = cv2.remap(share, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def draw(excess: np.ndarray, place: Place, finding: Finding, pitch: float, share: np.ndarray) -> None:
    """Add `finding` to `excess` in place; what falls outside the map is lost, as outside the detector."""
    rng = np.random.default_rng(finding.seed)
    if finding.kind == "cancer":
        _add_mass(excess, place, finding, pitch, share, rng)
        _add_spicules(excess, place, finding, pitch, rng)
    elif finding.kind in ("round", "node"):
        _add_mass(excess, place, finding, pitch, share, rng)
    elif finding.kind == "cluster":
        for offset, axes, angle in _cluster(rng, finding.size_mm):
            _add_speck(excess, place, offset, axes, angle, pitch)
    else:
        for offset, axes, angle in _coarse(rng, finding.size_mm):
            _add_speck(excess, place, offset, axes, angle, pitch)


def _window(shape: tuple[int, ...], place: Place, reach: float) -> tuple[slice, slice] | None:
    """The part of the map within `reach` samples of `place`, or None when there is none."""
    slices = []
    for centre, size in zip(place, shape, strict=True):
        low, high = max(int(centre - reach), 0), min(int(centre + reach) + 2, size)
        if high - low < 2:
            return None
        slices.append(slice(low, high))
    return slices[0], slices[1]


def _offsets(window: tuple[slice, slice], place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 1) and columns (1, m) of `window` counted from `place`, float32."""
    rows, columns = window
    dy = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(place[0])
    dx = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] - np.float32(place[1])
    return dy, dx


def _add_mass(
    excess: np.ndarray, place: Place, finding: Finding, pitch: float, share: np.ndarray, rng: np.random.Generator
) -> None:
    radius = 0.5 * finding.size_mm / pitch
    flat, turn = rng.uniform(0.7, 1.0), rng.uniform(0, np.pi)
    rough, phase = rng.normal(0, 1, 7), rng.uniform(0, 2 * np.pi, 7)
    window = _window(excess.shape, place, 1.8 * radius)
    if window is None:
        return
    rows, columns = window
    dy, dx = _offsets(window, place)
    u = dx * math.cos(turn) + dy * math.sin(turn)
    v = (dy * math.cos(turn) - dx * math.sin(turn)) / flat
    angle = np.arctan2(v, u)
    outline = np.ones_like(angle)
    malignant = finding.kind == "cancer"
    for k in range(7):  # lobulation k+2: large and irregular for a cancer, hardly any for a benign mass
        outline += (0.10 if malignant else 0.02) * rough[k] / math.sqrt(k + 1) * np.cos((k + 2) * angle + phase[k])
    distance = np.hypot(u, v) / (radius * np.clip(outline, 0.5, 1.5))
    # Chord of an ellipsoid; a cancer's margin is ill defined, a benign one ends within a fifth of a millimetre.
    chord = np.sqrt(np.clip(1 - distance * distance, 0, 1)) * finding.size_mm * flat
    if malignant:
        soft = max(0.07 * finding.size_mm / pitch, 0.3)
        chord = cv2.GaussianBlur(chord, (0, 0), soft)
        coefficient = _MU_CANCER
    else:
        coefficient = _MU_CYST
    if finding.kind == "node":  # fatty hilum: the middle of a lymph node is as lucent as fat
        chord *= np.clip(distance * 1.5, 0.15, 1)
    before = MU_FAT + (MU_GLAND - MU_FAT) * share[rows, columns]
    excess[rows, columns] += np.float32(finding.strength) * chord * (coefficient - before)


def _add_spicules(excess: np.ndarray, place: Place, finding: Finding, pitch: float, rng: np.random.Generator) -> None:
    """Radiating fibrous bands, 0.4-1.2 mm wide at the mass and tapering, up to one and a half diameters long."""
    count = int(rng.integers(12, 28))
    reach = 2.1 * finding.size_mm / pitch
    window = _window(excess.shape, place, reach)
    if window is None:
        return
    rows, columns = window
    distance = np.hypot(*_offsets(window, place)) * np.float32(pitch)
    canvas = np.zeros_like(distance)
    start = 0.35 * finding.size_mm
    for _ in range(count):
        angle, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.25)
        length = finding.size_mm * rng.uniform(0.45, 1.5)
        width, depth = rng.uniform(0.4, 1.2), rng.uniform(0.8, 2.4)  # mm across, mm along the ray
        along = np.linspace(0, 1, 12)
        radius = (start + length * along) / pitch
        theta = angle + bend * along
        y = place[0] - rows.start + radius * np.sin(theta)
        x = place[1] - columns.start + radius * np.cos(theta)
        line = _line(canvas.shape, np.stack([x, y], axis=1), max(width / pitch, 0.15))
        fade = np.clip(1 - (distance - start) / length, 0, 1)
        canvas += line * fade * np.float32(depth * (MU_GLAND - MU_FAT))
    excess[rows, columns] += np.float32(finding.strength) * canvas


def _line(shape: tuple[int, ...], points: np.ndarray, width: float) -> np.ndarray:
    """Coverage of an antialiased polyline, float32 (rows, columns) in [0, 1]; `points` are (n, 2) x, y in samples.

    Lines thinner than a sample are drawn one sample wide and fainter by the same factor.
    """
    canvas = np.zeros(shape, np.uint8)
    fixed = np.round(points * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [fixed], False, 255, max(round(width), 1), cv2.LINE_AA, 4)
    return canvas.astype(np.float32) * np.float32(min(width / max(round(width), 1), 1.3) / 255)


Speck = tuple[tuple[float, float], tuple[float, float], float]  # offset (row, column), axes, angle; mm and radians


def _cluster(rng: np.random.Generator, extent: float) -> list[Speck]:
    """Pleomorphic microcalcifications: 5-30 specks of 0.2-0.6 mm, irregular, half of them elongated."""
    specks = []
    for _ in range(int(rng.integers(5, 31))):
        offset = tuple(float(v) for v in rng.normal(0, 0.27 * extent, 2))
        size = float(np.clip(rng.lognormal(math.log(0.34), 0.3), 0.2, 0.6))
        longer = float(rng.uniform(1.0, 2.6)) if rng.random() < 0.5 else 1.0
        specks.append(((offset[0], offset[1]), (size, min(size * longer, 1.2)), float(rng.uniform(0, np.pi))))
    return specks


def _coarse(rng: np.random.Generator, extent: float) -> list[Speck]:
    """Benign calcifications: one to four, round, 0.8-2.5 mm, further apart than a cluster's."""
    specks = []
    for _ in range(int(rng.integers(1, 5))):
        offset = rng.normal(0, extent, 2)
        size = float(rng.uniform(0.8, 2.5))
        specks.append(((float(offset[0]), float(offset[1])), (size, size * float(rng.uniform(1, 1.25))), 0.0))
    return specks


def _add_speck(
    excess: np.ndarray, place: Place, offset: tuple[float, float], axes: tuple[float, float], angle: float, pitch: float
) -> None:
    """An ellipsoid of calcium: path averaged over the area of each sample."""
    centre = (place[0] + offset[0] / pitch, place[1] + offset[1] / pitch)
    reach = 0.5 * max(axes) / pitch + 1.5
    window = _window(excess.shape, centre, reach)
    if window is None:
        return
    rows, columns = window
    n = _OVERSAMPLING
    fine = (np.arange(n, dtype=np.float32) + 0.5) / n - 0.5
    y = (np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + fine).ravel() - np.float32(centre[0])
    x = (np.arange(columns.start, columns.stop, dtype=np.float32)[:, None] + fine).ravel() - np.float32(centre[1])
    y, x = y[:, None] * pitch, x[None, :] * pitch
    u = (x * math.cos(angle) + y * math.sin(angle)) / (0.5 * axes[1])
    v = (y * math.cos(angle) - x * math.sin(angle)) / (0.5 * axes[0])
    path = np.sqrt(np.clip(1 - u * u - v * v, 0, 1)) * min(axes)
    mean = path.reshape(rows.stop - rows.start, n, columns.stop - columns.start, n).mean(axis=(1, 3))
    excess[rows, columns] += np.float32(_MU_CALCIUM) * mean


def draw_vessels(excess: np.ndarray, pitch: float, breast: Breast, rng: np.random.Generator, nipple_row: float) -> None:
    """Arteries and veins: curved ribbons of blood, 1.2-3.5 mm wide, calcified like tram tracks in some older women."""
    rows, columns = excess.shape
    canvas = np.zeros_like(excess)
    for _ in range(int(rng.integers(3, 7))):
        start_row = nipple_row + rng.normal(-10, 45) / pitch
        end_row = nipple_row + rng.normal(0, 16) / pitch
        end_column = (breast.depth * rng.uniform(0.55, 0.92)) / pitch
        t = np.linspace(0, 1, 40)
        y = start_row + (end_row - start_row) * t**1.4
        x = end_column * (0.02 + 0.98 * t)
        wobble = np.cumsum(rng.normal(0, 1, 40))
        y = y + (wobble - np.linspace(0, wobble[-1], 40)) * 1.3 / pitch
        width = rng.uniform(1.2, 3.5)
        points = np.stack([x, y], axis=1)
        canvas += _line((rows, columns), points, width / pitch) * np.float32(width * (MU_GLAND - MU_FAT))
        if breast.old_vessels and rng.random() < 0.5:
            _calcify(excess, points, width, pitch, rng)
    excess += cv2.GaussianBlur(canvas, (0, 0), max(0.35 / pitch, 0.4))


def _calcify(excess: np.ndarray, points: np.ndarray, width: float, pitch: float, rng: np.random.Generator) -> None:
    """Two broken parallel lines of calcium along a stretch of an artery."""
    first = int(rng.integers(5, 20))
    stretch = points[first : first + int(rng.integers(8, 18))]
    step = np.linspace(0, len(stretch) - 1, 60)
    x = np.interp(step, np.arange(len(stretch)), stretch[:, 0])
    y = np.interp(step, np.arange(len(stretch)), stretch[:, 1])
    for sign in (-0.5, 0.5):
        for k in np.flatnonzero(rng.random(60) < 0.55):
            offset = (sign * width + float(rng.normal(0, 0.1)), 0.0)
            size = float(rng.uniform(0.3, 0.7))
            _add_speck(excess, (float(y[k]), float(x[k])), offset, (size, 1.6 * size), 0.0, pitch)
