"""Out-of-fold calls → the public and private boards they would get: how far the two may lie apart by chance alone.

The hidden test is drawn anew a few thousand times: patients with and without cancer from those that were scored, with
replacement, each with cancer with the probability that gives the hidden prevalence. Some are the public board, the rest
the private one, and every model is scored on both by the F1 of its calls, which is what pF1 gives a 0/1 submission.

What the boards know nothing of, this does not either: new machines, another mix of sites, or a threshold and a model
that were chosen on the very scores that are drawn from (give it calls that other folds chose).

The sizes are the competition's: "roughly 8,000 patients" are hidden, and 5,415 women were on the private board (Chen et
al., Radiology, August 2025). Whether the boards were split by patient is not known; it is assumed. The prevalence is
that of the training table; probing of the public board put the hidden one between 2.04 and 2.56 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rsna_kit.runtime.errors import TableError, UsageError

HIDDEN_PATIENTS = 8000
PUBLIC_SHARE = 1 - 5415 / 8000
PREVALENCE = 0.0207


@dataclass(frozen=True)
class Boards:
    """F1 of every model (columns) on every drawn board (rows). `honest` is F1 on all breasts at the same prevalence.

    `public` and `private` have shape (draws, models); `honest` has a value for each model.
    """

    names: tuple[str, ...]
    public: np.ndarray
    private: np.ndarray
    honest: np.ndarray

    @property
    def fall(self) -> np.ndarray:
        """Private minus public, (draws, models)."""
        return self.private - self.public

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """A row for each model: `model`, `f1`; mean, `_sd`, `_low` and `_high` of `public`, `private` and `fall`."""
        columns: dict[str, Any] = {"model": self.names, "f1": self.honest}
        for name, values in (("public", self.public), ("private", self.private), ("fall", self.fall)):
            low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
            columns |= {name: values.mean(axis=0), f"{name}_sd": values.std(axis=0), f"{name}_low": low}
            columns |= {f"{name}_high": high}
        return pd.DataFrame(columns)

    def choice(self) -> dict[str, float]:
        """What it is worth to choose among the models by the public board, or by F1 on all breasts.

        Returns:
            `public_is_best`: the share of draws in which the best on public is the best on private, ties counted;
            `public_loss` and `honest_loss`: by how much the model chosen by the public board, or by `honest`, stays
            behind the best on private, on average.
        """
        best = self.private.max(axis=1)
        drawn = np.arange(len(best))
        public = self.private[drawn, self.public.argmax(axis=1)]
        return {
            "public_is_best": float(np.mean(public == best)),
            "public_loss": float(np.mean(best - public)),
            "honest_loss": float(np.mean(best - self.private[:, int(self.honest.argmax())])),
        }

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON: `models` (the table's rows) and, of several models, `choice`."""
        models = self.table().to_dict("records")
        return {"models": models} | ({"choice": self.choice()} if len(self.names) > 1 else {})


def simulate(
    breasts: pd.DataFrame,
    threshold: float,
    patients: int = HIDDEN_PATIENTS,
    public_share: float = PUBLIC_SHARE,
    prevalence: float = PREVALENCE,
    draws: int = 4000,
    seed: int = 0,
) -> Boards:
    """The boards of one model that calls a breast positive from `threshold`.

    Args:
        breasts: `patient_id`, `cancer` (0/1), `score`; with and without cancer.
        threshold: of the score.
        patients, public_share, prevalence, draws, seed: as in `simulate_calls`.

    Example:
        >>> breasts = pd.DataFrame({"patient_id": list("abcd"), "cancer": [1, 1, 0, 0], "score": [0.9, 0.1, 0.2, 0.3]})
        >>> boards = simulate(breasts, 0.5, draws=500)
        >>> round(float(boards.honest[0]), 3), round(float(boards.private.mean()), 2)
        (0.667, 0.67)
    """
    calls = {"model": (breasts["score"] >= threshold).to_numpy()}
    return simulate_calls(
        breasts["cancer"], calls, breasts["patient_id"], patients, public_share, prevalence, draws, seed
    )


def simulate_calls(
    y_true: ArrayLike,
    calls: Mapping[str, ArrayLike],
    groups: ArrayLike,
    patients: int = HIDDEN_PATIENTS,
    public_share: float = PUBLIC_SHARE,
    prevalence: float = PREVALENCE,
    draws: int = 4000,
    seed: int = 0,
) -> Boards:
    """The boards of several models; each draw has the same patients for all of them.

    Args:
        y_true: 0/1 of shape (N,).
        calls: name → 0/1 of shape (N,).
        groups: patient ids of shape (N,).
        patients: hidden ones.
        public_share: of them on the public board.
        prevalence: share of the hidden breasts that have cancer.
        draws: of the hidden test.
        seed: the same seed gives the same boards.

    Raises:
        UsageError: sizes or shares that cannot be.
        TableError: no patient with cancer, or none without; calls that are not 0 or 1; a prevalence that no mix of
            these patients has.
    """
    public = round(patients * public_share)
    if draws < 1 or not 0 < public < patients or not 0 < prevalence < 1:
        raise UsageError(
            f"shake-up: got {patients} patients, {public} of them public, prevalence {prevalence}, {draws} draws;"
            " expected at least one patient on each board, a prevalence between 0 and 1 and at least one draw"
        )
    facts, counts = _kinds_of_patients(y_true, calls, groups)
    chances = _chances(facts, counts, prevalence)
    rng = np.random.default_rng(seed)
    boards = [_f1(rng.multinomial(size, chances, size=draws) @ facts) for size in (public, patients - public)]
    return Boards(tuple(calls), boards[0], boards[1], _f1(chances[None] @ facts)[0])


def _kinds_of_patients(
    y_true: ArrayLike, calls: Mapping[str, ArrayLike], groups: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """The different patients there are, and how many of each.

    Of the tens of thousands of patients most are alike: no cancer and no call. Drawing kinds instead of patients is the
    same draw, and takes a moment.

    Returns:
        int64 (K, 2 + 2 M): breasts, cancers, and for each model true and false positives; int64 (K,).
    """
    labels = np.asarray(y_true)
    columns = {"breasts": np.ones(len(labels), np.int64), "cancers": labels}
    for name, called in calls.items():
        values = np.asarray(called).astype(np.float64)
        if values.shape != labels.shape or not np.isin(values, (0, 1)).all():
            raise TableError(f"shake-up: the calls of {name} are not 0 or 1 for each of the {len(labels)} breasts")
        columns |= {f"{name} hit": values * labels, f"{name} false": values * (1 - labels)}
    frame = pd.DataFrame(columns).groupby(np.asarray(groups).astype(str)).sum()
    return np.unique(frame.to_numpy(np.int64), axis=0, return_counts=True)


def _chances(facts: np.ndarray, counts: np.ndarray, prevalence: float) -> np.ndarray:
    """The probability of each kind of patient that gives the prevalence among breasts, float64 (K,), sum 1."""
    ill = facts[:, 1] > 0
    if not ill.any() or ill.all():
        raise TableError("shake-up: got only patients with cancer or only without, expected both")
    shares = np.where(ill, counts / counts[ill].sum(), counts / counts[~ill].sum())
    (breasts_ill, cancers), (breasts_well, _) = (shares[of] @ facts[of, :2] for of in (ill, ~ill))
    # prevalence = share * cancers / (share * breasts_ill + (1 - share) * breasts_well), solved for the share
    share = prevalence * breasts_well / (cancers - prevalence * (breasts_ill - breasts_well))
    if not 0 < share < 1:
        raise TableError(f"shake-up: no mix of these patients has {prevalence:.2%} of their breasts with cancer")
    return np.where(ill, share, 1 - share) * shares


def _f1(totals: np.ndarray) -> np.ndarray:
    """F1 (R, M) of totals (R, 2 + 2 M); 0 on a board without a cancer, as the competition's pF1."""
    cancers, hits, false = totals[:, 1:2], totals[:, 2::2], totals[:, 3::2]
    return np.where(cancers > 0, 2 * hits / np.maximum(hits + false + cancers, 1e-300), 0.0)
