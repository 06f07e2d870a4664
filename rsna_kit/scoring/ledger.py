"""Image scores that survive a kill: kept in memory, saved whole, taken up again by the same run.

Files in the run's folder: `image_scores.csv` (image_id, score), `failures.csv` (image_id, stage, reason)
and `run.json`, whose `identity` names the bundles and the test table. Another identity is another run and
starts from nothing. Both tables are replaced in one step each. Only scores are taken up again: an image that
failed is tried once more, because the file or the missing decoder may be there by now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import BundleError
from rsna_kit.runtime.files import read_json, replacing, write_json

FAILURE_COLUMNS = ["image_id", "stage", "reason"]


class ScoreLedger:
    """Scores and failures of one inference run.

    Args:
        out: folder of the run.
        identity: what the scores depend on; a saved run of another identity is ignored.
    """

    def __init__(self, out: Path, identity: Mapping[str, object]) -> None:
        self._out = out
        self._scores_path, self._failures_path = out / "image_scores.csv", out / "failures.csv"
        self.scores: dict[str, float] = {}
        self.failures: dict[str, dict[str, str]] = {}
        run_path = out / "run.json"
        if run_path.is_file() and read_json(run_path) == identity:
            self._load()
        else:
            for path in (self._scores_path, self._failures_path):
                path.unlink(missing_ok=True)
            write_json(run_path, identity)

    def _load(self) -> None:
        if self._scores_path.is_file():
            table = pd.read_csv(self._scores_path, dtype={"image_id": str}, float_precision="round_trip")
            self.scores = dict(zip(table["image_id"], table["score"], strict=True))

    def done(self, image_id: str) -> bool:
        """Whether this image was scored or has failed."""
        return image_id in self.scores or image_id in self.failures

    def add(self, image_ids: Sequence[str], scores: np.ndarray) -> None:
        """Record scores, float (N,) in [0, 1].

        Raises:
            BundleError: a score is NaN or outside [0, 1], so the weights are of no use.
        """
        if not ((scores >= 0) & (scores <= 1)).all():
            raise BundleError(
                f"scores of {', '.join(image_ids[:3])}, …: got {np.min(scores)} to {np.max(scores)}, expected numbers "
                "in [0, 1]. The weights of a bundle are not finite: train again."
            )
        self.scores.update(zip(image_ids, (float(score) for score in scores), strict=True))

    def fail(self, failure: dict[str, str]) -> None:
        """Record a row with the keys image_id, stage, reason."""
        self.failures[failure["image_id"]] = failure

    def save(self, order: Iterable[str]) -> None:
        """Write both files, rows in the given order of image ids."""
        order = list(order)
        failed = pd.DataFrame([self.failures[i] for i in order if i in self.failures], columns=FAILURE_COLUMNS)
        scored = [(i, self.scores[i]) for i in order if i in self.scores]
        with replacing(self._failures_path) as temporary:
            failed.to_csv(temporary, index=False)
        with replacing(self._scores_path) as temporary:
            pd.DataFrame(scored, columns=["image_id", "score"]).to_csv(temporary, index=False)
