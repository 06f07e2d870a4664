"""A hidden test set of another size, with unseen machines and broken files; and what a submission scores on it.

Two sources: a folder that has its truth (a phantom's `hidden/`), or women drawn from a competition's training set. The
set is built afresh beside the run's output, out of links to the images:

    test.csv  sample_submission.csv  test_images/   what the scoring run puts in the place of the visible test
    truth.csv                                       prediction_id, patient_id, laterality, cancer; never mounted
    broken.csv                                      image_id, patient_id, how

Women drawn from a training set: a quarter of them with cancer where there are enough, because at 2 % a small set has
none, and a fifth of them with a machine_id that the training set does not have. A network that was trained on them
scores better than it will.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_kit.competition.rows import read_rows
from rsna_kit.competition.submission import prediction_id
from rsna_kit.competition.tables import TEST_COLUMNS
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.events import Events

TRUTH_COLUMNS = ("prediction_id", "patient_id", "laterality", "cancer")
SAMPLE_SCORE = 0.0211676964  # the constant of the real sample submission
_CANCERS, _UNSEEN = 0.25, 0.2  # shares of the women drawn
_MOST_BROKEN = 1 / 3  # of the images
# Transfer syntaxes whose names are equally long, so that a header keeps its lengths.
_OTHER_SYNTAX = {
    b"1.2.840.10008.1.2.4.70": b"1.2.840.10008.1.2.4.90",
    b"1.2.840.10008.1.2.4.90": b"1.2.840.10008.1.2.4.70",
    b"1.2.840.10008.1.2.4.57": b"1.2.840.10008.1.2.4.91",
    b"1.2.840.10008.1.2.1\0": b"1.2.840.10008.1.2.5\0",
}


def check_source(choice: str, competition: Path) -> None:
    """See that there is what a hidden test set is made of, before anything is written.

    Raises:
        UsageError: a folder that lacks something.
    """
    folder, names = Path(choice), ["test.csv", "truth.csv", "test_images"]
    advice = f"Give a folder with {', '.join(names)}, such as a phantom's hidden/, or --hidden train"
    if choice == "train":
        folder, names = competition, ["train.csv", "train_images"]
        advice = "--hidden train draws from the training set. Give a --competition that has one"
    for name in names:
        if not (folder / name).exists():
            raise UsageError(f"{folder / name}: no such file. {advice}")


def make_hidden(
    choice: str, competition: Path, out: Path, patients: int, broken: int, seed: int, events: Events
) -> None:
    """Build a hidden test set in `out`.

    Args:
        choice: "train" (drawn from the competition's training set), or a folder with truth.csv.
        competition: folder with train.csv and train_images, for "train".
        out: a folder that is not there yet.
        patients: how many women are drawn.
        broken: how many files to break, at most a third of them, in turn in each way; the first that is missing takes
            the other images of its breast along.
        seed: of every choice.
        events: told what is done.

    Raises:
        UsageError: a source that lacks something.
    """
    check_source(choice, competition)
    rng, folder = np.random.default_rng(seed), Path(choice)
    if choice == "train":
        test, truth, images = _draw(competition, patients, rng)
    else:
        test, truth = (read_rows(folder / name).frame for name in ("test.csv", "truth.csv"))
        images = folder / "test_images"
    out.mkdir(parents=True)
    test.to_csv(out / "test.csv", index=False)
    truth.to_csv(out / "truth.csv", index=False)
    ids = test["prediction_id"].drop_duplicates()
    pd.DataFrame({"prediction_id": ids, "cancer": SAMPLE_SCORE}).to_csv(out / "sample_submission.csv", index=False)
    how = _choose_broken(test, min(broken, int(len(test) * _MOST_BROKEN)), rng)
    with events.progress(len(test), "hidden test set") as progress:
        for row in test.itertuples():
            name = f"{row.patient_id}/{row.image_id}.dcm"
            _put(images / name, out / "test_images" / name, _WAYS.get(how.get(str(row.image_id), "")))
            progress.advance()
    table = test[test["image_id"].isin(how)][["image_id", "patient_id"]]
    table.assign(how=table["image_id"].map(how)).to_csv(out / "broken.csv", index=False)
    said = ", ".join(f"{count} {way}" for way, count in Counter(how.values()).items()) or "none"
    women = test["patient_id"].nunique()
    events.say(f"hidden test set: {women} women, {len(test)} images, broken: {said}")


def score(submission: Path, truth: Path) -> dict[str, Any]:
    """pF1 of a submission with its interval by patient (95 %), ready for JSON; `value` is None without a cancer."""
    from rsna_kit.scoring.intervals import summarise
    from rsna_kit.scoring.predictions import read_predictions

    summary = summarise(read_predictions(submission, truth), 0.5)
    return {"metric": "pF1", **summary["metrics"]["pf1"], **summary["counts"]}


def _draw(competition: Path, patients: int, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, Path]:
    """Women of the training set as a test set."""
    train = read_rows(competition / "train.csv").frame
    ill = train.groupby("patient_id")["cancer"].max() == "1"
    with_cancer, without = (rng.permutation(ill.index[ill == value]) for value in (True, False))
    some = with_cancer[: max(1, round(_CANCERS * patients))]
    chosen = [*some, *without[: patients - len(some)]]
    test = train[train["patient_id"].isin(chosen)].copy()
    pairs = zip(test["patient_id"], test["laterality"], strict=True)
    test["prediction_id"] = [prediction_id(patient, side) for patient, side in pairs]
    unseen = rng.permutation(chosen)[: max(1, round(_UNSEEN * len(chosen)))]
    known = pd.to_numeric(train["machine_id"], errors="coerce").max()
    test.loc[test["patient_id"].isin(unseen), "machine_id"] = str(int(known) + 1)
    truth = test.groupby("prediction_id", sort=False).agg(
        patient_id=("patient_id", "first"), laterality=("laterality", "first"), cancer=("cancer", "max")
    )
    return test[list(TEST_COLUMNS)], truth.reset_index()[list(TRUTH_COLUMNS)], competition / "train_images"


def _choose_broken(test: pd.DataFrame, count: int, rng: np.random.Generator) -> dict[str, str]:
    """Image → how it is broken: the ways in turn, and one breast of which nothing whole is left."""
    order = [str(name) for name in rng.permutation(test["image_id"])]
    ways = list(_WAYS)
    how = {name: ways[number % len(ways)] for number, name in enumerate(order[:count])}
    gone = [name for name, way in how.items() if way == "missing"][:1]
    for name in gone:
        breast = test.loc[test["image_id"] == name, "prediction_id"].iloc[0]
        how = dict.fromkeys(test.loc[test["prediction_id"] == breast, "image_id"].astype(str), "missing") | how
    return how


def _put(source: Path, target: Path, spoil: Callable[[bytes], bytes | None] | None) -> None:
    """A file of the set: a link to the image, or what `spoil` makes of it. What was never there stays away."""
    if not source.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if spoil is not None:
        spoiled = spoil(source.read_bytes())
        if spoiled is not None:
            target.write_bytes(spoiled)
        return
    try:
        os.link(source, target)
    except OSError:  # another disk, or somebody else's file
        shutil.copy(source, target)


def _foreign(content: bytes) -> bytes:
    """The header names another transfer syntax than the pixels have."""
    head = content[:1024]
    for own, other in _OTHER_SYNTAX.items():
        if own in head:
            return content.replace(own, other, 1)
    return re.sub(rb"1\.2\.840\.10008\.1\.2", b"1.2.840.10008.9.9", content, count=1)


def _constant(content: bytes) -> bytes:
    """A valid file without a picture: the same header over zeros."""
    import io

    from pydicom import dcmread
    from pydicom.uid import ExplicitVRLittleEndian

    data = dcmread(io.BytesIO(content), force=True)
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.PixelData = bytes(int(data.Rows) * int(data.Columns) * (int(data.BitsAllocated) // 8))
    data["PixelData"].VR = "OW"
    data["PixelData"].is_undefined_length = False
    written = io.BytesIO()
    data.save_as(written, enforce_file_format=False)
    return written.getvalue()


_WAYS: dict[str, Callable[[bytes], bytes | None]] = {
    "truncated": lambda content: content[: len(content) * 3 // 5],
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "constant": _constant,
    "of another syntax": _foreign,
    "not DICOM": lambda content: b"<html>503 Service Unavailable</html>",
}
