"""Labels, scores and weights of breasts → the counts and sums that every metric is read off.

Sort once, group ties, count positives and negatives at or above every distinct score. With weights of shape (R, G)
it counts R weighted copies of the table at once, which is what makes the bootstrap of
`rsna_kit.scoring.uncertainty` fast.

Most scores of a screening table are never needed. Between the scores of two neighbouring positives the number of
positives called stays the same, so a run of scores that only negatives have is one horizontal piece of the ROC
curve: its two ends tell all. `Ranking(..., thresholds=[...])` keeps the scores of positives, the next distinct score
above each, the lowest score, and the thresholds that are asked for. What is kept has the same counts, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rsna_kit.runtime.errors import TableError, UsageError


@dataclass(frozen=True)
class Counts:
    """What every metric needs, for one table or, with a leading axis, for R weighted copies of it.

    `thresholds` (T,) are distinct scores, ascending. `tp` and `fp` (…, T), float64, count positives and negatives
    with score >= threshold, so their first column counts all.
    """

    ranking: Ranking
    weights: np.ndarray
    thresholds: np.ndarray
    tp: np.ndarray
    fp: np.ndarray

    @property
    def positives(self) -> np.ndarray:
        """Positives in all, of shape (…)."""
        return self.tp[..., 0]

    @property
    def negatives(self) -> np.ndarray:
        """Negatives in all, of shape (…)."""
        return self.fp[..., 0]

    def at(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """`(tp, fp)` of calling positive what scores at least `threshold`.

        Raises:
            UsageError: the ranking did not keep this threshold.
        """
        column = self.ranking.column(threshold)
        if column == len(self.thresholds):
            return np.zeros_like(self.positives), np.zeros_like(self.negatives)
        return self.tp[..., column], self.fp[..., column]

    def total(self, value: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Sum over all breasts of `value(labels, scores)`, a number for each breast, of shape (…)."""
        # Not a matrix product: its last bits depend on how many copies are counted together.
        return (self.weights * self.ranking.by_group(value)).sum(axis=-1)


class Ranking:
    """A table sorted by score once, ready to be counted with any weights.

    Args:
        y_true: 0/1 of shape (N,).
        y_score: finite, of shape (N,).
        groups: int of shape (N,), 0 … G-1: which weight a row has. None: every row has its own, so G = N.
        thresholds: None keeps every distinct score; a list keeps what the curves need and these thresholds.

    Raises:
        TableError: labels or scores that are none.
    """

    def __init__(
        self,
        y_true: ArrayLike,
        y_score: ArrayLike,
        groups: np.ndarray | None = None,
        thresholds: Iterable[float] | None = None,
    ) -> None:
        self.labels, self.scores = _checked(y_true, y_score)
        self.groups = np.arange(len(self.labels)) if groups is None else groups
        self.size = int(self.groups.max()) + 1
        order = np.argsort(self.scores, kind="stable")
        ascending, positive = self.scores[order], self.labels[order] == 1
        starts = np.flatnonzero(np.r_[True, ascending[1:] > ascending[:-1]])
        self._distinct = ascending[starts]
        self._kept = np.arange(len(starts)) if thresholds is None else self._needed(positive, starts, thresholds)
        starts = starts[self._kept]
        self._positives = _FromTheTop(self.groups[order], positive, starts)
        self._negatives = _FromTheTop(self.groups[order], ~positive, starts)

    def counts(self, weights: ArrayLike | None = None) -> Counts:
        """Count with `weights` of shape (G,) or (R, G); None counts each row once."""
        weights = np.ones(self.size) if weights is None else np.asarray(weights, dtype=np.float64)
        thresholds = self._distinct[self._kept]
        return Counts(self, weights, thresholds, tp=self._positives(weights), fp=self._negatives(weights))

    def column(self, threshold: float) -> int:
        """Which kept threshold counts the calls `score >= threshold`; their number when no score is that high."""
        score = int(np.searchsorted(self._distinct, threshold, side="left"))
        column = int(np.searchsorted(self._kept, score, side="left"))
        if score < len(self._distinct) and score not in self._kept[column : column + 1]:
            raise UsageError(f"threshold {threshold:g} was not kept: name it in Ranking(..., thresholds=[…])")
        return column

    def by_group(self, value: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """The sum of `value(labels, scores)` over the rows of each group, of shape (G,)."""
        return np.bincount(self.groups, weights=value(self.labels, self.scores), minlength=self.size)

    def _needed(self, positive: np.ndarray, starts: np.ndarray, thresholds: Iterable[float]) -> np.ndarray:
        """Indices among the distinct scores: lowest, those of positives, the next above each, those asked for."""
        with_positives = np.add.reduceat(positive, starts, dtype=np.int64) > 0
        keep = with_positives | np.r_[True, with_positives[:-1]]
        asked = np.searchsorted(self._distinct, list(thresholds), side="left")
        keep[asked[asked < len(keep)]] = True
        return np.flatnonzero(keep)


class _FromTheTop:
    """Sums the weights of one class from each of a list of starts up to the highest score."""

    def __init__(self, groups: np.ndarray, members: np.ndarray, starts: np.ndarray) -> None:
        """`groups` (N,) and `members` (N,), bool: of the rows by ascending score; `starts` (T,): rows, ascending."""
        places = np.flatnonzero(members)
        self._groups = groups[places]
        firsts = np.searchsorted(places, starts)  # of each start, the first member at or above
        self._cuts, self._columns = np.unique(firsts, return_inverse=True)
        self._cuts = self._cuts[self._cuts < len(places)]

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        if not self._cuts.size:
            return np.zeros((*weights.shape[:-1], len(self._columns)))
        pieces = np.add.reduceat(np.take(weights, self._groups, axis=-1), self._cuts, axis=-1)
        return with_zero(np.cumsum(pieces[..., ::-1], axis=-1)[..., ::-1])[..., self._columns]


def with_zero(counts: np.ndarray) -> np.ndarray:
    """Append the point above the highest score, where nothing is called."""
    return np.concatenate([counts, np.zeros((*counts.shape[:-1], 1))], axis=-1)


def _checked(y_true: ArrayLike, y_score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 of shape (N,), or a TableError."""
    labels, scores = np.asarray(y_true, dtype=np.float64), np.asarray(y_score, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise TableError(f"labels and scores: got shapes {labels.shape} and {scores.shape}, expected (N,) twice")
    if not labels.size:
        raise TableError("labels and scores: got none, expected at least one breast")
    if not np.isin(labels, (0, 1)).all():
        wrong = labels[~np.isin(labels, (0, 1))]
        raise TableError(f"labels: got {wrong[0]:g} ({wrong.size} such values), expected 0 or 1")
    if not np.isfinite(scores).all():
        raise TableError(f"scores: got {np.sum(~np.isfinite(scores))} NaN or infinite values, expected finite numbers")
    return labels, scores
