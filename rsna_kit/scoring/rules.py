"""Labelled scores → a rule that calls breasts, and what its choice loses on breasts that did not choose it.

A rule is fitted on labels and scores and gives a `Cut`: a function from new scores, without labels, to the score from
which a breast is called. Two rules look at the new scores.

    plateau       the middle of the plateau of the F1 curve (`rsna_kit.scoring.threshold`)
    argmax        the score with the highest F1
    quantile      calls the share of breasts that the plateau called: survives a score scale that shifts
    expected_f1   the set of breasts with the highest expected F1 under calibrated scores

The expected F1 of calling k breasts is taken as 2 * (sum of their probabilities) / (k + sum of all probabilities), the
ratio of the expectations. The best k are those of highest probability, and the last one called has at least half of
the F1 that is reached (Ye, Chai, Lee and Chieu, Optimizing F-measure, 2012; Lipton, Elkan and Naryanaswamy, Optimal
thresholding of classifiers to maximize F1, 2014). With thousands of breasts the ratio and the expectation agree.
Scores are calibrated on the breasts that the rule is fitted on, by beta calibration from 30 cancers on: in simulations
it gained on the plateau so with every shape of the scores, by Platt's or isotonic calibration not with every one
(scripts/threshold-rules rules).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.scoring.calibration import KEPT, at_prevalence, fit
from rsna_kit.scoring.metrics import f1_at, f1_curve
from rsna_kit.scoring.threshold import choose_threshold

Cut = Callable[[np.ndarray], float]
Rule = Callable[[np.ndarray, np.ndarray], Cut]


def plateau(labels: np.ndarray, scores: np.ndarray) -> Cut:
    """The middle of the plateau."""
    value = choose_threshold(labels, scores).value
    return lambda new: value


def argmax(labels: np.ndarray, scores: np.ndarray) -> Cut:
    """The score with the highest F1, the lowest of equals."""
    _need_cancer(labels)
    thresholds, f1 = f1_curve(labels, scores)
    value = float(thresholds[np.argmax(f1)])
    return lambda new: value


def quantile(labels: np.ndarray, scores: np.ndarray) -> Cut:
    """Call the share of the new breasts that the plateau called; of equal scores all or none, and at least one breast.

    Example:
        >>> cut = quantile(np.array([0, 0, 0, 1]), np.array([0.1, 0.2, 0.3, 0.8]))
        >>> cut(np.array([0.01, 0.02, 0.03, 0.04]))
        0.04
    """
    share = float(np.mean(scores >= choose_threshold(labels, scores).value))

    def cut(new: np.ndarray) -> float:
        values, called = _from_the_top(new, np.ones(len(new)))
        return float(values[np.argmin(np.abs(called - share * len(new)))])

    return cut


def expected_f1_by(method: str) -> Rule:
    """Call the set of the new breasts with the highest expected F1, the smallest of equals.

    Args:
        method: of `rsna_kit.scoring.calibration.fit`, which makes the scores probabilities.
    """

    def rule(labels: np.ndarray, scores: np.ndarray) -> Cut:
        _need_cancer(labels)
        calibration = fit(method, labels, scores)
        return lambda new: float(new[best_set(calibration.apply(new))].min())

    return rule


expected_f1 = expected_f1_by(KEPT)
RULES: Mapping[str, Rule] = {"plateau": plateau, "argmax": argmax, "quantile": quantile, "expected_f1": expected_f1}


def best_set(probabilities: np.ndarray) -> np.ndarray:
    """Which breasts to call for the highest expected F1: bool (N,), True for at least one.

    Args:
        probabilities: float (N,), calibrated and independent. Where all are 0 the most probable are called.

    Example:
        >>> best_set(np.array([0.02, 0.5, 0.3, 0.01])).tolist()
        [False, True, True, False]
    """
    values, hits = _from_the_top(probabilities, probabilities)
    _, called = _from_the_top(probabilities, np.ones(len(probabilities)))
    # Inside a run of equal probabilities the ratio rises or falls all along, so its ends are all that is looked at.
    f1 = 2 * hits / (called + hits[0])
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    return np.asarray(probabilities >= values[best])


def call(
    rule: Rule, labels: np.ndarray, scores: np.ndarray, new: np.ndarray,
    sites: np.ndarray | None = None, new_sites: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Fit a rule and call new breasts.

    Args:
        rule: one of RULES, or any other.
        labels, scores: 0/1 and float of shape (N,), which the rule is fitted on.
        new: scores of shape (M,) of the breasts to call.
        sites, new_sites: (N,) and (M,). Given, every site has a cut of its own, fitted on its own breasts. A site that
            is new, or has but one class to fit on, takes the cut of all.

    Returns:
        int8 (M,), 1 for a breast that is called.

    Example:
        >>> labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9])
        >>> call(plateau, labels, scores, np.array([0.3, 0.4])).tolist()
        [0, 1]
    """
    cuts = np.full(len(new), rule(labels, scores)(new))
    if sites is not None and new_sites is not None:
        for site in np.unique(new_sites):
            here, there = sites == site, new_sites == site
            if 0 < labels[here].sum() < here.sum():
                cuts[there] = rule(labels[here], scores[here])(new[there])
    return (new >= cuts).astype(np.int8)


@dataclass(frozen=True)
class Nested:
    """`f1` of calls by cuts that other folds chose, `chosen` of the cut that all folds chose, judged on themselves.

    `loss` is the difference: what the second number is too good. `thresholds` are the cuts, by fold.
    """

    f1: float
    chosen: float
    loss: float
    thresholds: dict[int, float]


def nested(labels: ArrayLike, scores: ArrayLike, folds: ArrayLike, rule: Rule) -> Nested:
    """Choose on the other folds, call on this one: what a rule reaches on breasts that did not choose it.

    Args:
        labels: 0/1 of shape (N,).
        scores: out-of-fold scores of shape (N,).
        folds: int of shape (N,), at least two; patients are whole in them.
        rule: one of RULES, or any other.

    Raises:
        TableError: a single fold, or other folds without cancer.
    """
    truth, values, fold_of = np.asarray(labels), np.asarray(scores, dtype=np.float64), np.asarray(folds)
    names = np.unique(fold_of)
    if len(names) < 2:
        raise TableError("nested check: got a single fold, expected at least two")
    called, thresholds = np.zeros(len(values)), {}
    for fold in names:
        held = fold_of == fold
        threshold = rule(truth[~held], values[~held])(values[held])
        called[held], thresholds[int(fold)] = values[held] >= threshold, threshold
    f1, chosen = f1_at(truth, called, 0.5), f1_at(truth, values, rule(truth, values)(values))
    return Nested(f1, chosen, chosen - f1, thresholds)


def halves(
    breasts: pd.DataFrame, splits: int = 200, seed: int = 0, rules: Mapping[str, Rule] = RULES,
    sites: ArrayLike | None = None, level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """Chosen on one half of the patients, applied to the other, many times over.

    Both halves have the same number of patients with cancer, give or take one. The splits share their patients, so the
    intervals say how much a split matters, not how far other patients would move the means.

    Args:
        breasts: `patient_id`, `cancer` (0/1), `score` in [0, 1].
        splits: how many random halves.
        seed: the same seed gives the same halves.
        rules: name → rule; the first is what the others are compared with.
        sites: of each breast; then every rule is also tried with a cut for each site.
        level: of the intervals between percentiles over the splits.

    Returns:
        One row a rule: `rule`, `f1` on the other half, `loss` (the highest F1 of all thresholds on that half, minus
        `f1`) and `gain` (`f1` minus that of the first rule), each with `_low` and `_high`.

    Raises:
        TableError: fewer than two patients with cancer, or without.
    """
    labels, scores = breasts["cancer"].to_numpy(), breasts["score"].to_numpy(np.float64)
    site_of = None if sites is None else np.asarray(sites)
    found: dict[str, list[float]] = {}
    best = []
    for first in _halves(breasts["patient_id"], labels, splits, seed):
        other = ~first
        best.append(f1_curve(labels[other], scores[other])[1].max())
        for name, rule in rules.items():
            given = (rule, labels[first], scores[first], scores[other])
            found.setdefault(name, []).append(f1_at(labels[other], call(*given), 0.5))
            if site_of is not None:
                by_site = call(*given, site_of[first], site_of[other])
                found.setdefault(f"{name} by site", []).append(f1_at(labels[other], by_site, 0.5))
    reference = np.array(next(iter(found.values())))
    ends = [(1 - level) / 2, (1 + level) / 2]
    rows = []
    for name, values in found.items():
        row: dict[str, object] = {"rule": name}
        f1 = np.array(values)
        for column, numbers in (("f1", f1), ("loss", np.array(best) - f1), ("gain", f1 - reference)):
            low, high = np.quantile(numbers, ends)
            row |= {column: float(numbers.mean()), f"{column}_low": float(low), f"{column}_high": float(high)}
        rows.append(row)
    return pd.DataFrame(rows)


def site_thresholds(
    labels: ArrayLike, scores: ArrayLike, sites: ArrayLike, patients: ArrayLike,
    resamples: int = 200, seed: int = 0, level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """The plateau's threshold at every site, and how far other patients would move it.

    Args:
        labels, scores, sites, patients: of shape (N,).
        resamples: draws of the patients of a site, with replacement; those without cancer do not count.

    Returns:
        A row for each site, and the first one, `all`, for all breasts: `site`, `breasts`, `cancers`, `threshold`,
        `low`, `high`. NaN where a site has no cancer.
    """
    frame = pd.DataFrame({"cancer": labels, "score": scores, "site": sites, "patient": patients})
    rng, rows = np.random.default_rng(seed), []
    for site, group in [("all", frame), *frame.groupby("site")]:
        truth, values = group["cancer"].to_numpy(), group["score"].to_numpy(np.float64)
        owner, names = pd.factorize(group["patient"])
        drawn = []
        for _ in range(resamples):
            times = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))[owner]
            if (truth * times).any():
                drawn.append(choose_threshold(np.repeat(truth, times), np.repeat(values, times)).value)
        ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if drawn else (np.nan, np.nan)
        value = choose_threshold(truth, values).value if truth.any() else np.nan
        rows.append((site, len(group), int(truth.sum()), value, *ends))
    return pd.DataFrame(rows, columns=["site", "breasts", "cancers", "threshold", "low", "high"])


def prevalence_table(
    probabilities: ArrayLike, scores: ArrayLike, threshold: float,
    prevalences: Iterable[float] = (0.0204, 0.0217, 0.0230, 0.0243, 0.0256),
) -> pd.DataFrame:  # fmt: skip
    """What to expect where the share of cancers is another, everything else being equal.

    Counts are expectations under the calibrated probabilities: breasts are weighted so that cancers and healthy
    breasts each look as they did, and their shares are those asked for.

    Args:
        probabilities: float (N,), calibrated.
        scores: float (N,), what `threshold` cuts.
        threshold: that is in use.
        prevalences: shares of cancers.

    Returns:
        One row a prevalence: `prevalence`, `f1` (at `threshold`), `best_threshold`, `best_f1`, `called` (share of all
        breasts, at the best one) and `pf1` of submitting the corrected probabilities themselves.
    """
    known, values = np.asarray(probabilities, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    fitted, rows = float(known.mean()), []
    for prevalence in prevalences:
        here = at_prevalence(known, fitted, prevalence)
        weights = known * (prevalence / fitted) + (1 - known) * ((1 - prevalence) / (1 - fitted))
        cuts, hits = _from_the_top(values, weights * here)
        _, called = _from_the_top(values, weights)
        f1 = 2 * hits / (called + hits[0])
        best, at = int(np.argmax(f1)), int(np.searchsorted(cuts, threshold))
        pf1 = float((weights * here**2).sum() / hits[0])
        kept = float(f1[at]) if at < len(f1) else 0.0
        rows.append((prevalence, kept, float(cuts[best]), float(f1[best]), float(called[best] / called[0]), pf1))
    return pd.DataFrame(rows, columns=["prevalence", "f1", "best_threshold", "best_f1", "called", "pf1"])


def _from_the_top(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, ascending, and the sum of the weights at or above each."""
    distinct, places = np.unique(values, return_inverse=True)
    return distinct, np.cumsum(np.bincount(places, weights)[::-1])[::-1]


def _halves(patients: pd.Series, labels: np.ndarray, splits: int, seed: int) -> Iterator[np.ndarray]:
    """Bool (N,): whether a breast is in the first half; patients are whole."""
    if splits < 1:
        raise UsageError(f"splits: got {splits}, expected at least 1")
    owner, names = pd.factorize(patients)
    ill = np.zeros(len(names), bool)
    ill[owner[labels == 1]] = True
    strata = [np.flatnonzero(ill), np.flatnonzero(~ill)]
    if min(map(len, strata)) < 2:
        raise TableError(
            f"halves: got {len(strata[0])} patients with cancer and {len(strata[1])} without, expected two of each"
        )
    rng = np.random.default_rng(seed)
    for _ in range(splits):
        first = np.zeros(len(names), bool)
        for members in strata:
            size = (len(members) + rng.integers(0, 2)) // 2  # an odd one goes to either half
            first[rng.choice(members, size, replace=False)] = True
        yield first[owner]


def _need_cancer(labels: np.ndarray) -> None:
    if not (np.asarray(labels) == 1).any():
        raise TableError("threshold: got no breast with cancer, expected at least one. Choose on more patients.")
