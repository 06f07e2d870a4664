"""A competition folder → another one with the split of the local leaderboard: tables, and links to the images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rsna_kit.competition.paths import find_competition
from rsna_kit.competition.rows import read_rows
from rsna_kit.competition.tables import read_train
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import replacing, write_json
from rsna_lab.analysis.leaderboard import PUBLISHED, split_leaderboard

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
    if not competition.train_images.is_dir():
        raise UsageError(f"{competition.train_images}: no such folder, expected the images of {path}")
    if out.exists() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise UsageError(f"{out} holds something that leaderboard did not write. Give a new folder.")
    read_train(path)  # whatever is wrong with the table, say so now
    board = split_leaderboard(read_rows(path).frame)
    published = board.counts == PUBLISHED
    train_rows, test_rows, breasts = board.counts
    result = {
        "ok": True,
        "out": str(out),
        "train_rows": train_rows,
        "test_rows": test_rows,
        "test_breasts": breasts,
        "test_patients": board.test["patient_id"].nunique(),
        "test_cancers": int(board.truth["cancer"].astype(float).sum()),
        "published_counts": published,
    }
    write_json(out / _MARK, result)
    for split, table in (("train", board.train), ("test", board.test)):
        _link(competition.train_images, out / f"{split}_images", table["patient_id"].unique())
    names = {"train": board.train, "test": board.test, "truth": board.truth, "sample_submission": board.sample}
    for name, table in names.items():
        with replacing(out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
    events.say(
        f"leaderboard: {train_rows} images to train on, {test_rows} images of {breasts} breasts to score, "
        f"{result['test_cancers']} with cancer -> {out}"
    )
    events.say(
        "these are the counts of the published split: scores compare with those of published agents"
        if published
        else f"not the published split, which has {PUBLISHED[0]} images to train on and {PUBLISHED[1]} images of "
        f"{PUBLISHED[2]} breasts to score: scores compare only with others on this very table"
    )
    return result


def _link(images: Path, folder: Path, patients: Iterable[str]) -> None:
    """A folder of links, one a patient; links of an earlier run are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_symlink():
            old.unlink()
    for patient in patients:
        (folder / patient).symlink_to((images / patient).resolve(), target_is_directory=True)
