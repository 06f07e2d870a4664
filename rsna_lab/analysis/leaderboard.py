"""train.csv → the train and test tables of a public local leaderboard: the split that published agents are scored on.

MLE-bench (Chan et al., 2024; `openai/mle-bench`, competition `rsna-breast-cancer-detection`) takes a tenth of the
patients of the public train.csv as a test set, since nobody has the hidden one:

    patients   the unique patient_id in the order in which they first appear
    test       the second part of sklearn.model_selection.train_test_split(patients, test_size=0.1, random_state=42)
    rows       keep their order; test.csv has the columns of the real one, prediction_id is <patient>_<laterality>
    truth      the first label of each breast, sorted by prediction_id as text
    sample     the same ids, each with the share of the training images that have cancer

The split depends on the order of the patients, so the table has to be the competition's own, unsorted. Scores on it
compare with those of published agents. They do not compare with Kaggle's boards: other patients, and about a quarter of
the cancers of the private board, so a score is twice as uncertain.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from rsna_kit.competition.submission import prediction_id
from rsna_kit.competition.tables import TEST_COLUMNS
from rsna_kit.runtime.errors import TableError
from rsna_kit.runtime.lazy import require

TEST_SHARE, SEED = 0.1, 42
# Of the published split: rows of train.csv and test.csv, breasts of test.csv.
PUBLISHED = (49_232, 5_474, 2_384)


@dataclass(frozen=True)
class Leaderboard:
    """The tables of the split, every cell as the text that it was; `sample`'s scores are numbers."""

    train: pd.DataFrame
    test: pd.DataFrame
    truth: pd.DataFrame
    sample: pd.DataFrame

    @property
    def counts(self) -> tuple[int, int, int]:
        """Rows of train and test, breasts of test: to be compared with PUBLISHED."""
        return len(self.train), len(self.test), len(self.truth)


def split_leaderboard(table: pd.DataFrame) -> Leaderboard:
    """Split a training table.

    Args:
        table: the columns of train.csv as text, rows in the order of the file.

    Raises:
        TableError: fewer than two patients.
        MissingDependencyError: scikit-learn is not installed.
    """
    patients = table["patient_id"].drop_duplicates()
    if len(patients) < 2:
        raise TableError(f"leaderboard: got {len(patients)} patients, expected two or more. Use the whole train.csv.")
    split = require("sklearn.model_selection", "train").train_test_split
    _, held = split(patients.to_numpy(), test_size=TEST_SHARE, random_state=SEED)
    is_test = table["patient_id"].isin(held)
    train, test = table[~is_test].reset_index(drop=True), table[is_test].reset_index(drop=True)
    pairs = zip(test["patient_id"], test["laterality"], strict=True)
    test = test.assign(prediction_id=[prediction_id(patient, laterality) for patient, laterality in pairs])
    truth = test.groupby("prediction_id", sort=True)["cancer"].first().reset_index()
    sample = truth[["prediction_id"]].assign(cancer=train["cancer"].astype(float).mean())
    return Leaderboard(train, test[list(TEST_COLUMNS)], truth, sample)
