"""Out-of-fold calls → the public and private boards they would get: how far the two may lie apart by chance alone.

The hidden test is drawn anew a thousand times: patients with and without cancer from those that were scored, with
replacement, each with cancer with the probability that gives the hidden prevalence. Some are the public board, the rest
the private one, and every model is scored on both by the F1 of its calls, which is what pF1 gives a 0/1 submission.
New machines, another mix of sites, or a threshold that was chosen on the very scores that are drawn from are not in it.

The sizes are the competition's: "roughly 8,000 patients" are hidden, and 5,415 women were on the private board (Chen et
al., Radiology, August 2025). Whether the boards were split by patient is not known; it is assumed. The prevalence is
that of the training table.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import TableError

PRIVATE_PATIENTS, PUBLIC_PATIENTS = 5415, 8000 - 5415
PREVALENCE = 0.0207


def boards(models: Mapping[str, pd.DataFrame], draws: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """F1 of every model on drawn boards; each draw has the same patients for all of them.

    Args:
        models: name → the same breasts, row by row: `patient_id`, `cancer` and `called` (0/1).
        draws: of the hidden test.
        seed: the same seed gives the same boards.

    Returns:
        `public` and `private`, each float64 (draws, models).

    Raises:
        TableError: no patient with cancer, or none without.
    """
    first = next(iter(models.values()))
    columns = {"breasts": np.ones(len(first)), "cancers": first["cancer"].to_numpy()}
    for number, breasts in enumerate(models.values()):
        columns |= {f"called {number}": breasts["called"].to_numpy()}
        columns |= {f"found {number}": (breasts["called"] * breasts["cancer"]).to_numpy()}
    patients = pd.DataFrame(columns).groupby(first["patient_id"].to_numpy()).sum()
    # Most patients are alike: no cancer and no call. Drawing kinds of patients is the same draw, and takes a moment.
    kinds, counts = np.unique(patients.to_numpy(), axis=0, return_counts=True)
    ill = kinds[:, 1] > 0
    if not ill.any() or ill.all():
        raise TableError("shake-up: got only patients with cancer or only without, expected both")
    chances = np.where(ill, counts / counts[ill].sum(), counts / counts[~ill].sum())
    (breasts_ill, cancers), (breasts_well, _) = (chances[of] @ kinds[of, :2] for of in (ill, ~ill))
    # prevalence = share * cancers / (share * breasts_ill + (1 - share) * breasts_well), solved for the share
    share = PREVALENCE * breasts_well / (cancers - PREVALENCE * (breasts_ill - breasts_well))
    chances = np.where(ill, share, 1 - share) * chances
    rng, found = np.random.default_rng(seed), {}
    for board, size in (("public", PUBLIC_PATIENTS), ("private", PRIVATE_PATIENTS)):
        totals = rng.multinomial(size, chances, size=draws) @ kinds
        found[board] = 2 * totals[:, 3::2] / np.maximum(totals[:, 2::2] + totals[:, 1:2], 1)
    return found
