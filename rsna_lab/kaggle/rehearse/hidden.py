"""A hidden test set with broken files; and what a submission scores on it.

It is made of a folder that has its truth (a phantom's `hidden/`), afresh beside the run's output, of links to images:

    test.csv  sample_submission.csv  test_images/   what the scoring run puts in the place of the visible test
    truth.csv                                       prediction_id, patient_id, laterality, cancer; never mounted
    broken.csv                                      image_id, patient_id, how
"""

from __future__ import annotations

import io
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
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.events import Events

SAMPLE_SCORE = 0.0211676964  # the constant of the real sample submission
_NEEDED = ("test.csv", "truth.csv", "test_images")
_MOST_BROKEN = 1 / 3  # of the images
# Transfer syntaxes whose names are equally long, so that a header keeps its lengths.
_OTHER_SYNTAX = {
    b"1.2.840.10008.1.2.4.70": b"1.2.840.10008.1.2.4.90",
    b"1.2.840.10008.1.2.4.90": b"1.2.840.10008.1.2.4.70",
    b"1.2.840.10008.1.2.4.57": b"1.2.840.10008.1.2.4.91",
    b"1.2.840.10008.1.2.1\0": b"1.2.840.10008.1.2.5\0",
}


def check_source(folder: Path) -> None:
    """See that there is what a hidden test set is made of, before anything is written.

    Raises:
        UsageError: a folder that lacks something.
    """
    for name in _NEEDED:
        if not (folder / name).exists():
            raise UsageError(
                f"{folder / name}: no such file. Give a folder with {', '.join(_NEEDED)}, such as a phantom's hidden/"
            )


def make_hidden(source: Path, out: Path, broken: int, seed: int, events: Events) -> None:
    """Build a hidden test set in `out`.

    Args:
        source: a folder with test.csv, truth.csv and test_images.
        out: a folder that is not there yet.
        broken: how many files to break, at most a third of them, in turn in each way; the first that is missing takes
            the other images of its breast along.
        seed: of which files.
        events: told what is done.

    Raises:
        UsageError: a source that lacks something.
    """
    check_source(source)
    test, truth = (read_rows(source / name).frame for name in ("test.csv", "truth.csv"))
    out.mkdir(parents=True)
    test.to_csv(out / "test.csv", index=False)
    truth.to_csv(out / "truth.csv", index=False)
    ids = test["prediction_id"].drop_duplicates()
    pd.DataFrame({"prediction_id": ids, "cancer": SAMPLE_SCORE}).to_csv(out / "sample_submission.csv", index=False)
    order = [str(name) for name in np.random.default_rng(seed).permutation(test["image_id"])]
    ways, count = list(_WAYS), min(broken, int(len(test) * _MOST_BROKEN))
    how = {name: ways[number % len(ways)] for number, name in enumerate(order[:count])}
    for name in [name for name, way in how.items() if way == "missing"][:1]:  # one breast loses all its images
        breast = test.loc[test["image_id"] == name, "prediction_id"].iloc[0]
        how = dict.fromkeys(test.loc[test["prediction_id"] == breast, "image_id"].astype(str), "missing") | how
    with events.progress(len(test), "hidden test set") as progress:
        for row in test.itertuples():
            name = f"{row.patient_id}/{row.image_id}.dcm"
            _put(source / "test_images" / name, out / "test_images" / name, _WAYS.get(how.get(str(row.image_id), "")))
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
