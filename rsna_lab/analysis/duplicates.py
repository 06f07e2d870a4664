"""Prepared pictures → the pairs of different patients that show the same film.

A film that is there twice, under two patient ids, puts the same picture into training and validation however well
patients are kept whole. Two steps find it among tens of thousands of pictures:

1. A `sketch`: 24 x 24 numbers of the local contrast inside the breast, the outline taken away. Every sketch is
   compared with every other one by matrix products, as it is and mirrored, upside down and turned by 180 degrees.
   54,706 sketches are 126 MB, turned ones as much again, and the products need 64 MB, however many pictures there are.
2. Pairs with similar sketches are looked at again at 128 x 128: one picture is laid over the other by the affine map
   that maximises their correlation (Evangelidis and Psarakis, Parametric image alignment using enhanced correlation
   coefficient maximization, 2008), and the correlation of what they share decides.

Both steps look at the box that holds the middle 96 % of the brightness along rows and columns, so that neither a shift,
nor the padding, nor a slightly different crop counts. Two exposures of one woman are not the same film: another
pressure, another angle; their pairs stay below the limit, and a patient with two ids is found only where a film is
there twice. The limits were chosen on CBIS-DDSM (1,592 films), mini-MIAS (322) and DDSM (66): pictures of different
patients, and two views or both breasts of one, agree by 0.67 at most; a film that was re-encoded, brightened, shifted,
scaled by 3 % or turned by 2 degrees agrees with itself by 0.90 and more in all but a few cases in a thousand. Sketches
bring 99 % of such pairs that far (97 % of those turned by 2 degrees), where air is dark as in a prepared picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import pandas as pd

from rsna_kit.runtime.events import Events
from rsna_kit.runtime.hardware import cpu_count
from rsna_kit.runtime.threads import in_daemons

SIMILAR = 0.65  # correlation of two sketches from which a pair is looked at again
SAME = 0.85  # correlation at 128 x 128 from which a pair is the same film
MOST_CANDIDATES = 20_000  # that are looked at again, twenty or so a second on two cores
TURNS: dict[str, tuple[int, int]] = {  # steps along rows and columns that turn a picture
    "as it is": (1, 1),
    "mirrored": (1, -1),
    "upside down": (-1, 1),
    "turned by 180 degrees": (-1, -1),
}
_SKETCH, _CLOSER = 24, 128
_AIR = 20  # grey level; air is 0 in a prepared picture, a re-encoded one has noise in it
_CELLS = 16_000_000  # correlations held at once


def sketch(picture: np.ndarray) -> np.ndarray:
    """What tells a film from others, small: local contrast inside the breast.

    Args:
        picture: uint8 (h, w), air dark.

    Returns:
        float32 (24, 24), mean 0 and length 1 over the breast, 0 outside; all 0 where there is no breast or no contrast.
    """
    contrast, breast = _local_contrast(picture, _SKETCH, fine=0, coarse=2)
    inside = contrast[breast]
    if not _says_something(inside):
        return np.zeros_like(contrast)
    contrast[breast] = inside - inside.mean()
    return contrast / np.linalg.norm(contrast)


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two pictures after one was laid over the other by an affine map.

    Args:
        first, second: uint8 (h, w), of the same film turned the same way.

    Returns:
        -1 to 1; 0 where no map was found or they share less than a third of the breast.
    """
    (one, inside), (two, there) = (_local_contrast(picture, _CLOSER, fine=1, coarse=5) for picture in (first, second))
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-4)
    try:
        _, affine = cv2.findTransformECC(one, two, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, stop)
    except cv2.error:  # it did not converge
        return 0.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    laid, seen = (
        cv2.warpAffine(part, affine, one.shape[::-1], flags=flags) for part in (two, there.astype(np.float32))
    )
    shared = inside & (seen > 0.5)
    enough = 3 * shared.sum() >= max(inside.sum(), there.sum())
    if not (enough and _says_something(one[shared]) and _says_something(laid[shared])):
        return 0.0
    return float(np.corrcoef(one[shared], laid[shared])[0, 1])


def turned(picture: np.ndarray, turn: str) -> np.ndarray:
    """The picture turned as one of TURNS says."""
    down, right = TURNS[turn]
    return np.ascontiguousarray(picture[::down, ::right])


def candidates(sketches: np.ndarray, groups: Sequence[str], events: Events) -> pd.DataFrame:
    """Pairs of different groups with similar sketches.

    Args:
        sketches: float32 (N, 24, 24).
        groups: of shape (N,); pairs inside a group are passed over.
        events: progress.

    Returns:
        `first`, `second` (positions, first < second), `turn` (of TURNS, how the second lies to the first),
        `similarity`; one row a pair, the most similar first.
    """
    codes = pd.factorize(np.asarray(groups))[0]
    flat = np.ascontiguousarray(sketches.reshape(len(sketches), -1))
    rows = max(1, _CELLS // max(1, len(flat)))
    starts, found = range(0, len(flat), rows), []
    with events.progress(len(starts) * len(TURNS), "every pair", "blocks") as progress:
        for turn in TURNS:
            others = np.stack([turned(one, turn) for one in sketches]).reshape(flat.shape)
            for start in starts:
                block = flat[start : start + rows] @ others[start:].T
                first, second = np.nonzero(block >= SIMILAR)
                keep = (second > first) & (codes[start + first] != codes[start + second])
                first, second = first[keep], second[keep]
                where = {"first": start + first, "second": start + second, "turn": turn}
                found.append(pd.DataFrame({**where, "similarity": block[first, second]}))
                progress.advance()
    pairs = pd.concat(found).sort_values("similarity", ascending=False, kind="stable")
    return pairs.drop_duplicates(["first", "second"]).reset_index(drop=True)


def find_duplicates(
    read: Callable[[str], np.ndarray], image_ids: Sequence[str], patients: Sequence[str], events: Events
) -> pd.DataFrame:
    """Pairs of pictures of different patients that may show the same film.

    Args:
        read: image id → uint8 (h, w); called from several threads, once for each picture and once more for each
            picture of a similar pair.
        image_ids, patients: of shape (N,).
        events: progress.

    Returns:
        `first`, `second` (image ids), `turn`, `similarity` (of the sketches), `agreement` and `same` (bool, agreement
        of at least SAME): every pair with similar sketches, the best agreement first.
    """
    ids = list(image_ids)
    sketches = np.zeros((len(ids), _SKETCH, _SKETCH), np.float32)
    with events.progress(len(ids), "sketches") as progress:
        for number, made in in_daemons(lambda image_id: sketch(read(image_id)), ids, cpu_count()):
            sketches[number] = made
            progress.advance()
    pairs = candidates(sketches, patients, events)
    if len(pairs) > MOST_CANDIDATES:
        events.say(f"{len(pairs)} pairs have similar sketches: the {MOST_CANDIDATES} most similar are looked at")
        pairs = pairs.head(MOST_CANDIDATES)
    agreements = np.zeros(len(pairs))
    with events.progress(len(pairs), "a closer look", "pairs") as progress:
        for number, value in in_daemons(lambda pair: _look(read, ids, pair), _rows(pairs), cpu_count()):
            agreements[number] = value
            progress.advance()
    named = pairs.assign(first=[ids[n] for n in pairs["first"]], second=[ids[n] for n in pairs["second"]])
    named = named.assign(agreement=agreements, same=agreements >= SAME)
    return named.sort_values("agreement", ascending=False, kind="stable").reset_index(drop=True)


def _rows(pairs: pd.DataFrame) -> Iterator[tuple[int, int, str]]:
    return zip(pairs["first"], pairs["second"], pairs["turn"], strict=True)


def _look(read: Callable[[str], np.ndarray], ids: Sequence[str], pair: tuple[int, int, str]) -> float:
    first, second, turn = pair
    return agreement(read(ids[first]), turned(read(ids[second]), turn))


def _says_something(contrast: np.ndarray) -> bool:
    """Whether there is more than rounding; a breast's spread is near 1."""
    return bool(contrast.size and contrast.std() > 0.05)


def _local_contrast(picture: np.ndarray, side: int, fine: float, coarse: float) -> tuple[np.ndarray, np.ndarray]:
    """The box of the breast at `side` x `side`: contrast between two scales over its local spread, and the breast.

    Means are taken inside the breast only, so its outline, which many breasts share, leaves no trace.
    """
    small = cv2.resize(_box(picture), (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    kernel = np.ones((3 if side == _SKETCH else 5,) * 2, np.uint8)
    breast = cv2.erode((small > _AIR / 2).astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    weight = breast.astype(np.float32)

    def mean(values: np.ndarray, sigma: float) -> np.ndarray:
        if not sigma:
            return values
        over = [
            cv2.GaussianBlur(part, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT) for part in (values * weight, weight)
        ]
        return over[0] / (over[1] + 1e-3)

    difference = (mean(small, fine) - mean(small, coarse)) * weight
    spread = np.sqrt(mean(difference**2, coarse)) + 3  # grey levels: where there is only noise there is no contrast
    return difference / spread * weight, breast > 0


def _box(picture: np.ndarray) -> np.ndarray:
    """At most 256 rows and columns, cut to the middle 96 % of the brightness along both."""
    scale = 256 / max(picture.shape)
    if scale < 1:
        size = [max(1, round(side * scale)) for side in picture.shape[::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    bright = np.maximum(picture.astype(np.float64) - _AIR, 0)
    if not bright.any():
        return picture
    ends = []
    for axis in (1, 0):
        share = np.cumsum(bright.sum(axis=axis)) / bright.sum()
        first = int(np.searchsorted(share, 0.02))
        ends.append(slice(first, max(first + 2, int(np.searchsorted(share, 0.98)) + 1)))
    return picture[ends[0], ends[1]]
