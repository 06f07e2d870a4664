"""A competition folder → another one with the split that published agents are scored on: tables, links to the images.

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

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from rsna_kit.competition.paths import find_competition
from rsna_kit.competition.rows import read_rows
from rsna_kit.competition.submission import prediction_id
from rsna_kit.competition.tables import TEST_COLUMNS, read_train
from rsna_kit.runtime.errors import TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_csv, write_json
from rsna_kit.runtime.lazy import require

TEST_SHARE, SEED = 0.1, 42
# Of the published split: rows of train.csv and test.csv, breasts of test.csv.
PUBLISHED = (49_232, 5_474, 2_384)
# pF1 from which MLE-bench gives a medal, taken from Kaggle's private board, and the median of the teams there.
MEDALS = {"gold": 0.49, "silver": 0.43, "bronze": 0.41, "median": 0.28}
_MARK = "leaderboard.json"  # written first: a folder that has it may be written anew


def leaderboard(where: Path | None, out: Path, events: Events) -> dict[str, Any]:
    """Write a competition folder whose test set is a tenth of the training patients.

    Args:
        where: competition folder with train.csv and train_images/, None for Kaggle's mounts.
        out: new folder: train.csv, test.csv, sample_submission.csv and truth.csv in the real columns; train_images/ and
            test_images/ with a symbolic link for each patient, no copies. One that this wrote is written anew.
        events: progress.

    Returns:
        Counts, and whether they are those of the published split; ready for JSON.

    Raises:
        UsageError: no train.csv or no images, or an `out` that holds something else.
        TableError: a table that the kit does not read.
    """
    competition = find_competition(where)
    path = competition.table("train.csv")
    if not competition.images("train").is_dir():
        raise UsageError(f"{competition.images('train')}: no such folder, expected the images of {path}")
    if out.exists() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise UsageError(f"{out} holds something that leaderboard did not write. Give a new folder.")
    read_train(path)  # whatever is wrong with the table, say so now
    board = split_leaderboard(read_rows(path).frame)
    counts = train_rows, test_rows, breasts = len(board["train"]), len(board["test"]), len(board["truth"])
    published = counts == PUBLISHED
    result = {
        "ok": True,
        "out": str(out),
        "train_rows": train_rows,
        "test_rows": test_rows,
        "test_breasts": breasts,
        "test_patients": board["test"]["patient_id"].nunique(),
        "test_cancers": int(board["truth"]["cancer"].astype(float).sum()),
        "published_counts": published,
    } | ({"pf1_of_medals": MEDALS} if published else {})
    write_json(out / _MARK, result)
    for split in ("train", "test"):
        _link(competition.images("train"), out / f"{split}_images", board[split]["patient_id"].unique())
    for name, table in board.items():
        write_csv(out / f"{name}.csv", table)
    events.say(
        f"leaderboard: {train_rows} images to train on, {test_rows} images of {breasts} breasts to score, "
        f"{result['test_cancers']} with cancer -> {out}"
    )
    events.say(
        "these are the counts of the published split: scores compare with those of published agents; pF1 of "
        f"MLE-bench's medals, and of the median team: {', '.join(f'{name} {least}' for name, least in MEDALS.items())}"
        if published
        else f"not the published split, which has {PUBLISHED[0]} images to train on and {PUBLISHED[1]} images of "
        f"{PUBLISHED[2]} breasts to score: scores compare only with others on this very table"
    )
    return result


def split_leaderboard(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split a training table.

    Args:
        table: the columns of train.csv as text, rows in the order of the file.

    Returns:
        `train`, `test`, `truth` and `sample_submission`, every cell as the text that it was; the sample's scores are
        numbers.

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
    return {"train": train, "test": test[list(TEST_COLUMNS)], "truth": truth, "sample_submission": sample}


def _link(images: Path, folder: Path, patients: Iterable[str]) -> None:
    """A folder of links, one a patient; links of an earlier run are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_symlink():
            old.unlink()
    for patient in patients:
        (folder / patient).symlink_to((images / patient).resolve(), target_is_directory=True)
