"""A gray picture, air dark → where the breast is: a mask, a box, and which side the chest wall is on.

Works on a reduced picture of at most 320 pixels: the noise of single pixels is gone there, and every length below
is a share of that picture, so the pixel size of the detector or scanner does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_WORK_SIZE = 320  # longer side of the picture the mask is computed on
_STRICT = 0.2  # share of the way from air to tissue that is surely not air
_ABOVE = 0.06  # how far above the air's noise the breast begins, as a share of the same way
_DARKER, _FILLED_SHARE = 0.15, 0.03  # pixels this far below the air's peak, on the same way, are not air
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
    level, strict = _levels(smooth)
    bright = (smooth > level).astype(np.uint8)
    reach = max(1, round(_REACH * max(work.shape)))
    core = _largest(_opened(bright, reach))
    breast = _filled(_largest(np.minimum(bright, cv2.dilate(core, _disc(reach)))))
    # Measured without the median filter, which swallows printed digits; noise does not reach the strict level. Right
    # beside the breast that level is a corner or a fold of the breast itself.
    odd = (work > strict) & (cv2.dilate(breast, _disc(2)) == 0)
    foreign = cv2.dilate(odd.astype(np.uint8), _disc(1)) * (1 - breast)
    if factor < 1:
        breast, foreign = (
            cv2.resize(part, (columns, rows), interpolation=cv2.INTER_NEAREST) for part in (breast, foreign)
        )
    return Segmented(breast > 0, foreign > 0)


def breast_mask(gray: np.ndarray) -> np.ndarray:
    """Pixels of the breast: bool (h, w), all False when nothing stands out from the air.

    Args:
        gray: uint8 (h, w), air dark.
    """
    return segment(gray).breast


def find_breast(gray: np.ndarray, margin: float = 0.0) -> Box | None:
    """The box of the breast in `gray`'s coordinates, None without a breast; `margin` as in `box_of`."""
    return box_of(breast_mask(gray), margin)


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
    """The gray levels above which is breast, and above which surely is no air; from this picture's own air.

    Film fog, scatter and detector noise raise the air of one picture to levels that are skin in another, so a
    constant would either cut skin or swallow fog. Air is measured twice: its peak in the histogram, then what
    nearly all of it stays below once a first, strict mask and its surroundings are left out.

    Where much is darker than the peak, the peak is fat and the breast fills the frame: everything is breast.
    """
    if smooth.min() == smooth.max():
        return 255.0, 255.0
    # Square roots, so that the parting falls between air and tissue and not between tissue and an implant.
    rooted = np.sqrt(smooth * np.float32(255)).astype(np.uint8)
    parting = cv2.threshold(rooted, 0, 255, cv2.THRESH_OTSU)[0] ** 2 / 255
    air = int(np.argmax(np.bincount(smooth.ravel(), minlength=256)[: int(parting) + 1]))
    span = max(float(np.median(smooth[smooth > parting])) - air, 1.0)
    strict = air + _STRICT * span
    # Exact 0 is what pads a film to a square, or air that was cleaned: neither says how noisy the air is.
    if np.count_nonzero((smooth > 0) & (smooth < air - _DARKER * span)) > _FILLED_SHARE * smooth.size:
        return -1.0, strict
    around = cv2.dilate((smooth > strict).astype(np.uint8), _disc(max(1, round(0.025 * max(smooth.shape)))))
    noisy = smooth[(around == 0) & (smooth > 0)]
    floor = float(np.percentile(noisy, 95)) if noisy.size >= 0.001 * smooth.size else air
    return max(air, floor) + _ABOVE * span, strict


def _opened(mask: np.ndarray, radius: int) -> np.ndarray:
    """Morphological opening that counts the outside of the picture as air: tape along an edge is thin, too."""
    shrunk = cv2.erode(mask, _disc(radius), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return cv2.dilate(shrunk, _disc(radius))


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
