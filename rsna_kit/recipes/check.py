"""What this machine can decode, and what a competition folder holds: tables, files, headers, one decode a group."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit import __version__
from rsna_kit.competition.paths import Competition, check_files, find_competition
from rsna_kit.competition.submission import expected_ids
from rsna_kit.competition.tables import read_sample, read_test, read_train
from rsna_kit.runtime.errors import ImageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.hardware import describe

# DICOM PS3.6 table A-1; keyed by UID because names changed between libraries.
SYNTAXES = {
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless (Process 14)",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless (Process 14, Selection Value 1)",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
}
_MOST_PROBLEMS = 20


def check(where: Path | None, events: Events) -> dict[str, Any]:
    """Describe the machine and, when a folder is given, check it without changing anything.

    Args:
        where: competition folder; tables are read, every header is read, and one file of each group (transfer
            syntax, photometric interpretation, bits, window function, size) is decoded.

    Returns:
        JSON-ready; `ok` is False when a table's file is missing, or a header or a decode failed.
    """
    from rsna_kit.dicom.decode import backends

    decoders = {}
    for uid, name in SYNTAXES.items():
        rungs = backends(uid)
        decoders[f"{uid} {name}"] = {rung: "available" if there else "not installed" for rung, there in rungs}
        events.say(f"{name} ({uid}): {', '.join(rung for rung, there in rungs if there) or 'no decoder installed'}")
    result: dict[str, Any] = {"ok": True, "rsna_kit": __version__, **describe(), "decoders": decoders}
    if where is None:
        return result
    competition = find_competition(where)
    for split, path in (("train", competition.train_csv), ("test", competition.test_csv)):
        if path is not None:
            result[split] = _check_split(competition, split, path, events)
            result["ok"] &= not result[split]["problems"]
    return result


def _check_split(competition: Competition, split: str, path: Path, events: Events) -> dict[str, Any]:
    from rsna_kit.dicom.decode import decode
    from rsna_kit.dicom.frame import read_frame, read_header

    table = read_train(path) if split == "train" else read_test(path)
    if split == "test" and competition.sample_submission is not None:
        expected_ids(table, read_sample(competition.sample_submission))
    missing = check_files(competition, split, table)
    problems = [f"{file}: no such file" for file in missing]
    absent = set(missing)
    groups: Counter[str] = Counter()
    examples: dict[str, tuple[str, Path]] = {}
    with events.progress(len(table), f"{split} headers", "files") as progress:
        for image_id, file in competition.files(split, table):
            progress.advance()
            if file in absent:
                continue
            try:
                frame = read_header(file, image_id)
            except ImageError as error:
                problems.append(str(error))
                continue
            group = (
                f"{frame.transfer_syntax} {frame.photometric} {frame.bits_stored}/{frame.bits_allocated} bit "
                f"{frame.rows}x{frame.columns} {frame.voi_function} x{len(frame.windows)}"
            )
            groups[group] += 1
            examples.setdefault(group, (image_id, file))
    for group, (image_id, file) in examples.items():
        try:
            pixels = decode(read_frame(file, image_id))
        except ImageError as error:
            problems.append(str(error))
            continue
        if np.ptp(pixels) == 0:
            problems.append(f"{file}: all pixels are {pixels.flat[0]} ({group})")
    events.say(f"{split}: {len(table)} images, {len(groups)} kinds of file, {len(problems)} problems")
    for problem in problems[:_MOST_PROBLEMS]:
        events.say(f"  {problem}", kind="problem")
    return {
        "images": len(table),
        "patients": int(table["patient_id"].nunique()),
        "breasts": int(table["prediction_id"].nunique()),
        "groups": dict(groups.most_common()),
        "problems": problems[:_MOST_PROBLEMS],
        "problem_count": len(problems),
    }
