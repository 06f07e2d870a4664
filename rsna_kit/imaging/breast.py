"""A gray picture, air dark → where the breast is: a mask, a box, and which side the chest wall is on.

Works on a reduced picture of at most 320 pixels: the noise of single pixels is gone there, and every length below
is a share of that picture, so the pixel size of the detector or scanner does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_WORK_SIZE = 320  # longer side of the picture the mask is computed on
_LIT, _FOG = 0.95, 64  # a film on black is lit in this share of its rectangle, unlike a breast, and its air is dark
_BRIGHTEST = 204  # what is brighter may be an implant, metal or a label, and says nothing about tissue
_FREQUENT = 0.6  # air is the darkest level with this share of the pixels of the most frequent one: that may be fat
_QUIET, _CROWDED = 0.25, 0.6  # growth of the area as a level's distance from air is halved: below tissue; in it
_BEGINS = 0.155  # where the breast begins on the way from air to tissue
_STRICT = 1.3  # as far again above the air as the breast begins is surely no air
_DARKER, _FILLED_SHARE = 0.15, 0.03  # with this share of pixels so far below it, on the same way, air is no air
_REACH = 0.025  # what is thinner than twice this share of the longer side (tape, labels, film edges) is no breast
_UPPER, _BAND = 0.65, 0.25  # the part of the box that tells the chest wall: its upper rows, its outer columns


@dataclass(frozen=True)
class Box:
    """Half-open rectangle `[top:bottom, left:right]`; `flip`: the chest wall lies on the right."""

    top: int
    left: int
    bottom: int
    right: int
    flip: bool

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that the box takes in an image of `height` x `width`: as large as it fits, aspect kept."""
        scale = min(height / self.height, width / self.width)
        return max(1, min(height, round(self.height * scale))), max(1, min(width, round(self.width * scale)))

    def scaled(self, factor: int, rows: int, columns: int) -> Box:
        """The box in the full picture of `rows` x `columns`, of which this was found on every `factor`-th pixel.

        Rows and columns left over behind the last whole block belong to a box that reaches that far.

        Example:
            >>> Box(1, 0, 4, 3, False).scaled(2, rows=9, columns=20)
            Box(top=2, left=0, bottom=9, right=6, flip=False)
        """
        bottom, right = self.bottom * factor, self.right * factor
        return Box(
            top=self.top * factor,
            left=self.left * factor,
            bottom=rows if rows - bottom < factor else bottom,
            right=columns if columns - right < factor else right,
            flip=self.flip,
        )


@dataclass(frozen=True)
class Segmented:
    """What is what in a gray picture; both bool (h, w).

    Attributes:
        breast: the breast with pectoral muscle and skin, one piece without holes; empty when there is none.
        foreign: what is as bright but no breast: markers, labels, tape, film edges.
    """

    breast: np.ndarray
    foreign: np.ndarray


def segment(gray: np.ndarray) -> Segmented:
    """Tell breast, foreign bright things and air apart.

    Args:
        gray: uint8 (h, w), air dark.
    """
    rows, columns = gray.shape
    factor = min(1.0, _WORK_SIZE / max(rows, columns))
    work = gray
    if factor < 1:
        size = (max(1, round(columns * factor)), max(1, round(rows * factor)))
        work = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    smooth = cv2.medianBlur(work, 5) if min(work.shape) >= 5 else work
    film = _film(smooth)
    breast, foreign = np.zeros_like(work), np.zeros_like(work)
    breast[film], foreign[film] = _parts(work[film], smooth[film], max(1, round(_REACH * max(work.shape))))
    if factor < 1:
        breast, foreign = (cv2.resize(255 * part, (columns, rows)) > 127 for part in (breast, foreign))
    return Segmented(breast > 0, foreign > 0)


def _film(smooth: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of a film, with its air, that lies on black; otherwise all of them."""
    box = box_of(smooth > 0)
    if box is None:
        return np.s_[:, :]
    film = np.s_[box.top : box.bottom, box.left : box.right]
    inside = smooth[film]
    lit, dark = np.count_nonzero(inside), np.count_nonzero(inside < _FOG)
    return film if lit > _LIT * inside.size and dark > 2 * (1 - _LIT) * inside.size else np.s_[:, :]


def _parts(work: np.ndarray, smooth: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Breast and foreign things, both uint8 of 0 and 1; `reach` in pixels."""
    level, strict = _levels(smooth)
    bright = (smooth > level).astype(np.uint8)
    # The outside counts as air: tape along an edge is thin, too.
    shrunk = cv2.erode(bright, _disc(reach), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    core = _largest(cv2.dilate(shrunk, _disc(reach)))
    kept = cv2.dilate(core, _disc(reach))
    # So are the ends of the breast along the chest wall, but they taper off, and tape goes on to the corner.
    count, pieces = cv2.connectedComponents(bright * (1 - core), connectivity=4)
    ends = np.zeros(count, dtype=bool)
    for edge in (0, -1):
        ends[pieces[:, edge]] = core[:, edge].any()
    ends[0] = False
    ends[pieces[[0, -1]]] = False
    kept[ends[pieces]] = 1
    breast = _filled(_largest(np.minimum(bright, kept)))
    # Measured without the median filter, which swallows printed digits; noise does not reach the strict level. Right
    # beside the breast that level is a corner or a fold of the breast itself.
    odd = (work > strict) & (cv2.dilate(breast, _disc(2)) == 0)
    return breast, cv2.dilate(odd.astype(np.uint8), _disc(1)) * (1 - breast)


def keep_weight(parts: Segmented) -> np.ndarray:
    """How much of each pixel belongs in the image: 1 on the breast and a rim of dim skin around it, 0 in the air.

    The rim (2 % of the breast's longer side, half of it a ramp) is there because skin fades below any threshold.
    Foreign things get 0 even inside it.

    Returns:
        float32 (h, w) in [0, 1].
    """
    box = box_of(parts.breast)
    rim = 1 if box is None else max(1, round(0.01 * max(box.height, box.width)))
    mask = parts.breast.astype(np.uint8)
    # 1 up to `rim` from the breast, then falling to 0 at three times that distance.
    wide = cv2.dilate(mask, _disc(2 * rim)).astype(np.float32)
    weight = cv2.blur(wide, (2 * rim + 1, 2 * rim + 1), borderType=cv2.BORDER_REPLICATE)
    weight[parts.foreign] = 0
    weight[parts.breast] = 1
    return weight


def _levels(smooth: np.ndarray) -> tuple[float, float]:
    """The gray levels above which is breast, and above which surely is no air; from this picture's own air and tissue.

    Film fog, scatter and detector noise raise the air of one picture to levels that are skin in another, so a
    constant would either cut skin or swallow fog. What tells them apart is the area above a level, as the level's
    distance from the air is halved: in the air it grows much, between air and tissue little, and in tissue much again.
    Tissue begins at the first level of that second growth, implants left out: they are nothing to measure skin by.

    Where much is darker than the most frequent levels, these are fat and the breast fills the frame: all is breast.
    """
    if smooth.min() == smooth.max():
        return 255.0, 255.0
    counts = np.bincount(smooth.ravel(), minlength=256)[:_BRIGHTEST]
    air = int(np.argmax(counts >= _FREQUENT * counts.max()))
    tissue = smooth[cv2.dilate((smooth >= _BRIGHTEST).astype(np.uint8), _disc(2)) == 0]
    below = np.concatenate([[0], np.cumsum(np.bincount(tissue, minlength=256))])
    # A third of the air's own level: fog is uneven in proportion to how strong it is.
    first = max(2.0, air / 3)
    way = np.geomspace(first, max(_BRIGHTEST - air, 2 * first), 120)
    near, far = (tissue.size - np.interp(air + way * share + 0.5, np.arange(257), below) for share in (0.5, 1))
    growth = (near - far) / np.maximum(far, 1)
    quiet = int(np.argmax(growth <= _QUIET))
    crowded = growth[quiet:] > _CROWDED
    span = way[quiet + int(np.argmax(crowded))] if crowded.any() else way[-1]
    if np.count_nonzero(smooth < air - _DARKER * span) > _FILLED_SHARE * smooth.size:
        return -1.0, 255.0
    level = max(float(way[quiet]), _BEGINS * float(span))
    return air + level, air + _STRICT * level


def _disc(radius: int) -> np.ndarray:
    """A round structuring element."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest piece of a mask."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count < 2:
        return mask
    return (labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)


def _filled(mask: np.ndarray) -> np.ndarray:
    """A mask with its holes filled."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(mask)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return filled


def box_of(mask: np.ndarray, margin: float = 0.0) -> Box | None:
    """The box around a mask, None when it is empty.

    Rows and columns with less than 1 % of the mask's extent do not count: scratches and film edges of a pixel or two
    hang on the breast in real films.

    Args:
        margin: added on every side, as a share of the box's longer side.
    """
    across, down = np.count_nonzero(mask, axis=1), np.count_nonzero(mask, axis=0)
    if not across.any():
        return None
    rows, columns = np.flatnonzero(across > 0.01 * across.max()), np.flatnonzero(down > 0.01 * down.max())
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    flip = _wall_on_right(mask[top:bottom, left:right])
    extra = round(margin * max(bottom - top, right - left))
    return Box(
        max(0, top - extra),
        max(0, left - extra),
        min(mask.shape[0], bottom + extra),
        min(mask.shape[1], right + extra),
        flip,
    )


def _wall_on_right(mask: np.ndarray) -> bool:
    """Whether the breast leans on the right edge of its box.

    The outermost columns are tall at the chest wall and short at the nipple. Only the upper part is asked: below the
    breast the wall side is hollow in oblique views, while above it belly and armpit fill that side.
    """
    rows, columns = mask.shape
    upper, band = mask[: max(1, round(_UPPER * rows))], max(1, round(_BAND * columns))
    return bool(np.count_nonzero(upper[:, -band:]) > np.count_nonzero(upper[:, :band]))
