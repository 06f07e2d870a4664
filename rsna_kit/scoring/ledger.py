"""Image scores that survive a kill: kept in memory, saved whole, taken up again by the same run.

Files in the run's folder: `image_scores.csv` (image_id and the columns of the run: score, and attention for
breast-level models; members that have an attention of their own add score_1, attention_1 and so on), `failures.csv`
(image_id, stage, reason), `given_up.json` (what the clock cost the scores so far) and `run.json`, whose `identity`
names the bundles, their weights and the test table. Another identity is another run and starts from nothing. Each file
is replaced in one step. Only scores are taken up again, with what was given up for them: an image that failed is tried
once more, because the file or the missing decoder may be there by now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.runtime.errors import BundleError
from rsna_kit.runtime.files import read_csv, read_json, write_csv, write_json

FAILURE_COLUMNS = ["image_id", "stage", "reason"]


class ScoreLedger:
    """Scores and failures of one inference run.

    Args:
        out: folder of the run.
        identity: what the scores depend on, JSON-ready; a saved run of another identity is ignored.
        columns: what is recorded for each image. Those that begin with `score` are in [0, 1], the others are
            attentions; NaN where the members of a column did not look at the image.

    Attributes:
        scores: image id → its row, floats in the order of `columns`.
        failures: image id → image_id, stage, reason.
        given_up: JSON-ready, what some of the scores were made without; saved and taken up again with them.
    """

    def __init__(self, out: Path, identity: Mapping[str, object], columns: Sequence[str] = ("score",)) -> None:
        self._scores_path, self._failures_path = out / "image_scores.csv", out / "failures.csv"
        self._given_up_path = out / "given_up.json"
        self.columns = list(columns)
        self.scores: dict[str, tuple[float, ...]] = {}
        self.failures: dict[str, dict[str, str]] = {}
        self.given_up: dict[str, Any] = {}
        run_path, run = out / "run.json", {**identity, "columns": self.columns}
        if run_path.is_file() and read_json(run_path) == run:
            self._load()
        else:
            for path in (self._scores_path, self._failures_path, self._given_up_path):
                path.unlink(missing_ok=True)
            write_json(run_path, run)

    def _load(self) -> None:
        if self._scores_path.is_file():
            table = read_csv(self._scores_path, ["image_id"])
            rows = table[self.columns].itertuples(index=False, name=None)
            self.scores = dict(zip(table["image_id"], rows, strict=True))
        if self._given_up_path.is_file():
            self.given_up = read_json(self._given_up_path)

    def done(self, image_id: str) -> bool:
        """Whether this image was scored or has failed."""
        return image_id in self.scores or image_id in self.failures

    def add(self, image_ids: Sequence[str], scores: np.ndarray) -> None:
        """Record rows of scores, float (N, C) in the order of `columns`.

        Raises:
            BundleError: a score is outside [0, 1], an attention is infinite, or a row has no score at all, so the
                weights are of no use.
        """
        is_score = np.array([name.startswith("score") for name in self.columns])
        values = scores[:, is_score]
        empty = np.isnan(values)
        if empty.all(axis=1).any() or not ((values >= 0) & (values <= 1) | empty).all() or np.isinf(scores).any():
            raise BundleError(
                f"scores of {', '.join(image_ids[:3])}, …: got {np.min(scores)} to {np.max(scores)}, expected numbers "
                "in [0, 1]. The weights of a bundle are not finite: train again."
            )
        rows = (tuple(float(value) for value in row) for row in scores)
        self.scores.update(zip(image_ids, rows, strict=True))

    def fail(self, failure: dict[str, str]) -> None:
        """Record a row with the keys image_id, stage, reason."""
        self.failures[failure["image_id"]] = failure

    def table(self, order: Iterable[str]) -> pd.DataFrame:
        """`image_id` and the columns of the images that are scored, in the given order of image ids."""
        scored = [(image_id, *self.scores[image_id]) for image_id in order if image_id in self.scores]
        types = {"image_id": str, **dict.fromkeys(self.columns, np.float64)}
        return pd.DataFrame(scored, columns=["image_id", *self.columns]).astype(types)

    def save(self, order: Iterable[str]) -> None:
        """Write the files, rows in the given order of image ids; scores last, so that none lacks its explanation."""
        order = list(order)
        write_json(self._given_up_path, self.given_up)
        failed = pd.DataFrame([self.failures[i] for i in order if i in self.failures], columns=FAILURE_COLUMNS)
        write_csv(self._failures_path, failed)
        write_csv(self._scores_path, self.table(order))
