"""One breast in one view → its attenuation map, chest wall on the left, float32 in units of natural logarithm.

The model is the path of one X-ray energy (20 keV) through a compressed breast with a rounded free edge: fat
everywhere, fibroglandular tissue, skin, muscle and findings instead of fat. Linear attenuation coefficients after
P. C. Johns and M. J. Yaffe, "X-ray characterisation of normal and neoplastic breast tissues", Phys. Med. Biol. 32,
1987: fat 0.456, fibroglandular tissue 0.802, infiltrating duct carcinoma 0.844 per cm. What matters is their order
and spacing: a cancer is nearly twice as opaque as fat and hardly more so than glandular tissue.

Steps: outline -> distance from the skin -> thickness -> glandular share (3-D lobes, the same for every view, filled
with a power-law texture that runs towards the nipple) -> strands, muscle, vessels -> findings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from rsna_lab.phantom import lesions, texture
from rsna_lab.phantom.anatomy import MU_FAT, MU_GLAND, OBLIQUE_VIEWS, VIEW_ANGLES, Breast, project


@dataclass(frozen=True)
class Frame:
    """Where the breast lies on the detector: grid, pitch and the nipple's row."""

    rows: int
    columns: int
    pitch: float  # mm
    nipple_row: float  # in samples


@dataclass(frozen=True)
class Shadow:
    """What the X-rays say, chest wall on the left.

    `excess`: attenuation above that of fat of the compressed thickness, float32 (rows, columns), >= 0 over tissue;
    `missing`: attenuation lacking where the breast is thinner than compressed, float32, >= 0;
    `mask`: the breast, bool; `edge`: depth of the skin line per row in mm, float32 (rows,).
    """

    excess: np.ndarray
    missing: np.ndarray
    mask: np.ndarray
    edge: np.ndarray


def cast_shadow(breast: Breast, view: str, frame: Frame, rng: np.random.Generator, implant: str = "") -> Shadow:
    """Project `breast`.

    Args:
        breast: its anatomy.
        view: one of `anatomy.VIEW_ANGLES`.
        frame: the detector's grid.
        rng: chance of this exposure only (positioning, folds); tissue comes from the breast's own seed.
        implant: "" without, "full" or "displaced" with an implant.
    """
    height = (frame.nipple_row - np.arange(frame.rows, dtype=np.float32)) * frame.pitch  # mm above the nipple
    edge = _skin_line(breast, view, height, rng)
    edge = np.minimum(edge, breast.depth + breast.nipple + 6)  # as wide as the textures are
    columns = min(frame.columns, int(edge.max() / frame.pitch) + 2)
    depth = (np.arange(columns, dtype=np.float32) + 0.5) * frame.pitch
    mask = depth[None, :] < edge[:, None]
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5) * np.float32(frame.pitch)
    thickness = _thickness(distance, breast.thickness)

    tissue = np.random.default_rng([breast.seed, sorted(VIEW_ANGLES).index(view)])
    grain, weave, mottle = _textures(tissue, mask.shape, frame, breast)
    share = _glandular_share(breast, view, height, depth, distance, grain, weave)
    if implant:
        share *= 0.6
    places = [(finding, project(finding.place, view)) for finding in breast.findings]
    for finding, (row_mm, depth_mm) in places:
        if finding.kind == "cancer":
            lesions.distort(share, _sample(frame, row_mm, depth_mm), finding, frame.pitch)
    excess = share * thickness * np.float32(MU_GLAND - MU_FAT)
    excess += _strands(breast, distance, mottle, weave)
    excess += _skin(distance, thickness, breast)
    if view in OBLIQUE_VIEWS:
        excess += _pectoral(breast, height, depth, edge, mottle)
    elif tissue.random() < 0.25:  # a CC that was pulled far enough shows a rim of muscle
        excess += _muscle_rim(tissue, height, depth)
    lesions.draw_vessels(excess, frame.pitch, breast, tissue, frame.nipple_row)
    for finding, (row_mm, depth_mm) in places:
        lesions.draw(excess, _sample(frame, row_mm, depth_mm), finding, frame.pitch, share)
    if implant:
        excess = _with_implant(excess, breast, height, depth, implant)
    missing = np.float32(MU_FAT) * (np.float32(breast.thickness) - thickness)
    return Shadow(np.where(mask, excess, 0), np.where(mask, missing, 0), mask, edge)


def _sample(frame: Frame, row_mm: float, depth_mm: float) -> tuple[float, float]:
    """(row, column) in samples of a place in the view."""
    return frame.nipple_row - row_mm / frame.pitch, depth_mm / frame.pitch


def _skin_line(breast: Breast, view: str, height: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Depth of the skin for every row, mm; 0 where there is no breast."""
    depth, width = breast.depth, breast.half_width
    below = np.clip(-height / (width * (0.92 if view in OBLIQUE_VIEWS else 1.0)), 0, 1)
    edge = depth * np.power(1 - np.power(below, 2.25), 1 / 2.05)
    if view in OBLIQUE_VIEWS:
        tail = breast.axilla
        slope = np.exp(-np.power(np.maximum(height, 0) / (0.80 * width), 1.9))
        upper = depth * (tail + (1 - tail) * slope)
        upper -= np.maximum(height - 0.8 * width, 0) * 0.10
        belly = rng.uniform(4, 16)  # skin below the breast's lower fold
        edge = np.maximum(edge, belly * texture.smoothstep(-height / width, 0.7, 1.25))
    else:
        above = np.clip(height / (width * rng.uniform(0.95, 1.08)), 0, 1)
        upper = depth * np.power(1 - np.power(above, 2.25), 1 / 2.05)
    edge = np.where(height > 0, upper, edge)
    phase = rng.uniform(0, 2 * np.pi, 3)
    for k, wavelength in enumerate((140.0, 75.0, 41.0)):
        edge += (edge > 8) * (0.9, 0.5, 0.25)[k] * np.sin(2 * np.pi * height / wavelength + phase[k])
    edge += breast.nipple * np.exp(-np.power(np.abs(height) / 6.0, 3)) + 1.0 * np.exp(-np.square(height / 15))
    return np.maximum(edge, 0).astype(np.float32)


def _thickness(distance: np.ndarray, full: float) -> np.ndarray:
    """Compressed thickness in mm: `full` inside, a half circle of that diameter at the free edge."""
    radius = 0.5 * full
    inner = np.minimum(distance, radius)
    return (2 * np.sqrt(inner * (2 * radius - inner))).astype(np.float32)


def _textures(
    rng: np.random.Generator, shape: tuple[int, ...], frame: Frame, breast: Breast
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three power-law fields, float32 `shape`: grain and mottle without direction, weave running towards the nipple.

    All are anchored at the nipple and drawn on a grid that positioning does not change, so that a repeated view
    shows the same tissue. Mottle is grain turned by 180 degrees: far enough from it everywhere to pass for another.
    """
    coarse = max(1.0, 0.26 / frame.pitch)  # finer detail carries no power worth its time
    pitch = frame.pitch * coarse
    widest = (breast.depth + breast.nipple + 8) / pitch
    # Whole periods of the transform: a field without a seam, so it can be rolled.
    size = cv2.getOptimalDFTSize(math.ceil(frame.rows / coarse)), cv2.getOptimalDFTSize(math.ceil(widest))
    nipple_row = frame.nipple_row / coarse
    field = texture.power_law_field(rng, size, pitch, 3.0)
    grain, mottle = (np.roll(f, round(nipple_row), axis=0) for f in (field, field[::-1, ::-1]))
    weave = texture.power_law_field(rng, size, pitch, 3.2, longest_mm=26)
    smooth, reach = max(round(15 / pitch), 1), np.float32(5.0 / pitch)
    bend = (texture.smoothed(grain, smooth) * reach, texture.smoothed(mottle, smooth) * reach)
    weave = texture.towards(weave, (nipple_row, (breast.depth + 30) / pitch), 1.8, bend)
    whole = (round(size[0] * coarse), round(size[1] * coarse))
    grain, weave, mottle = (texture.resized(f, whole)[: shape[0], : shape[1]] for f in (grain, weave, mottle))
    return grain, weave, mottle


def _glandular_share(
    breast: Breast,
    view: str,
    height: np.ndarray,
    depth: np.ndarray,
    distance: np.ndarray,
    grain: np.ndarray,
    weave: np.ndarray,
) -> np.ndarray:
    """Share of fibroglandular tissue along the ray, float32 in [0, 1].

    Over the whole breast it averages about 3, 7, 12 and 16 percent for densities A to D, one in each of the four
    grades of automated volumetry (borders about 4.5, 7.5 and 15.5 percent). Set by that, and by nothing else.
    """
    lobes = _lobes(breast, view, height, depth)
    filled = 1 - np.exp(-np.float32(breast.filling) * lobes)  # saturating sum of the lobes
    # The border of the gland is ragged and soft; inside, clumps and fat lobules follow a log-normal power-law field.
    share = texture.smoothstep(1.75 * filled - 0.80 + 0.34 * grain + 0.12 * weave, -0.55, 1.15)
    share *= np.minimum(0.25 * np.exp(0.30 * grain + 0.20 * weave) + 0.05 * texture.ridges(weave, 0.3), 1.0)
    share *= texture.smoothstep(filled, 0.01, 0.16)
    # A layer of fat under the skin, thinner behind the nipple.
    near_nipple = np.exp(-np.square(height / 16))[:, None].astype(np.float32)
    layer = 7.0 - 5.0 * near_nipple
    return share * np.clip((distance - 0.25 * layer) / layer, 0, 1).astype(np.float32)


def _lobes(breast: Breast, view: str, height: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Sum of the projected lobes, float32 (rows, columns), computed on every fifth sample: they are wide and smooth."""
    shape = len(height), len(depth)
    coarse = [np.linspace(axis[0], axis[-1], max(len(axis) // 5, 8), dtype=np.float32) for axis in (height, depth)]
    total = np.zeros((len(coarse[0]), len(coarse[1])), np.float32)
    for back, out, up, radius, weight in breast.lobes:
        row_mm, depth_mm = project((back, out, up), view)
        across = np.exp(-0.5 * np.square((coarse[0] - row_mm) / radius))
        along = np.exp(-0.5 * np.square((coarse[1] - depth_mm) / (1.15 * radius)))
        total += np.float32(weight) * across[:, None] * along[None, :]
    # Both grids begin and end at the same places: a linear map between their indices.
    rows, columns = (np.linspace(0, n - 1, size, dtype=np.float32) for n, size in zip(total.shape, shape, strict=True))
    map_x, map_y = np.meshgrid(columns, rows)
    return np.asarray(cv2.remap(total, map_x, map_y, cv2.INTER_LINEAR))


def _strands(breast: Breast, distance: np.ndarray, mottle: np.ndarray, weave: np.ndarray) -> np.ndarray:
    """Cooper's ligaments and fat lobules: fine curved lines and a faint mottle all over the breast."""
    lines = texture.ridges(weave + 0.5 * mottle, 0.13) + 0.6 * texture.ridges(mottle - 0.5 * weave, 0.10)
    lines *= np.clip(0.6 - 0.5 * mottle, 0.1, 1.5)
    inside = np.clip(distance / 9.0, 0, 1)
    lobules = 0.035 * mottle + 0.022 * weave + 0.05
    return (inside * (0.07 * breast.strands * lines + lobules)).astype(np.float32)


def _skin(distance: np.ndarray, thickness: np.ndarray, breast: Breast) -> np.ndarray:
    """Path through the skin, longest just inside the edge: the thin bright rim of a mammogram."""
    under = _thickness(np.maximum(distance - breast.skin, 0), max(breast.thickness - 2 * breast.skin, 8.0))
    path = np.clip(thickness - under, 0, None) - 2 * breast.skin * (distance > breast.skin)
    return (0.5 * (MU_GLAND - MU_FAT) * np.clip(path, 0, None)).astype(np.float32)


def _pectoral(
    breast: Breast, height: np.ndarray, depth: np.ndarray, edge: np.ndarray, mottle: np.ndarray
) -> np.ndarray:
    """The muscle: a triangle at the chest wall that narrows downwards, its border slightly convex, under fat."""
    width, low, thickness = breast.pectoral
    top = float(height.max())
    rise = np.clip((height - low) / max(top - low, 40.0), 0, 1.2)
    border = width * np.power(rise, 0.86)
    border += 0.02 * width * np.sin(height / 17.0) * (border > 1)
    under_skin = np.maximum(0.9 * edge - 3, 0.1)
    border = np.power(np.power(np.maximum(border, 0.1), -6.0) + np.power(under_skin, -6.0), -1 / 6)
    inside = (border[:, None] - depth[None, :]).astype(np.float32)
    body = texture.smoothstep(inside, -0.8, 2.6) * (0.62 + 0.38 * texture.smoothstep(inside, 0, 24))
    fibres = 1 + 0.045 * mottle
    return (MU_GLAND - MU_FAT) * np.float32(thickness) * body * fibres * (border[:, None] > 0.5)


def _muscle_rim(rng: np.random.Generator, height: np.ndarray, depth: np.ndarray) -> np.ndarray:
    centre, reach, half = rng.uniform(-15, 15), rng.uniform(3, 9), rng.uniform(18, 40)
    border = reach * np.exp(-np.square((height - centre) / half))
    return (0.45 * texture.smoothstep(border[:, None] - depth[None, :], -1.5, 2.5)).astype(np.float32)


def _with_implant(
    excess: np.ndarray, breast: Breast, height: np.ndarray, depth: np.ndarray, implant: str
) -> np.ndarray:
    """Silicone behind the gland: nearly opaque, sharp; pushed back to the chest wall in displaced views."""
    reach = breast.depth * (0.62 if implant == "full" else 0.22)
    half = breast.half_width * (0.68 if implant == "full" else 0.60)
    radius = np.square((height - 4.0) / half)[:, None] + np.square(depth / reach)[None, :]
    body = texture.smoothstep(1.0 - radius, 0.0, 0.035)
    return (excess * (1 - 0.92 * body) + body * (1.05 + 0.3 * np.sqrt(np.clip(1 - radius, 0, 1)))).astype(np.float32)
