"""What this machine can decode, and what a folder of mammograms holds: its coding, what is wrong, time and disk.

A folder is a competition (its tables are checked first) or any folder of DICOM files. Every head is read; a few files
of each kind are then read as `prepare` and `infer` read them, which finds decoders that fail and gives the time.
"""

from __future__ import annotations

import os
import re
import statistics
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rsna_kit import __version__
from rsna_kit.competition.paths import Competition, find_competition
from rsna_kit.competition.submission import expected_ids
from rsna_kit.competition.tables import read_sample, read_test, read_train
from rsna_kit.config import ImageConfig
from rsna_kit.dicom.decode import backends
from rsna_kit.dicom.frame import HTJ2K_UIDS, JPEG2000_UIDS, JPEG_LOSSLESS_UIDS, where
from rsna_kit.dicom.survey import Failure, Kind, Survey, Surveyed, survey
from rsna_kit.runtime.clock import format_duration
from rsna_kit.runtime.errors import DecodeError, ImageError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.hardware import cpu_count, describe

COMPETITION_UIDS = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"),
    *("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"),
)  # and those that other mammograms come in (DICOM PS3.6 table A-1)
_MOST_IDS = 20  # of one reason, in the JSON
_MOST_ROWS = 10  # of one property, on the screen
_WIDTH = 100
_TIMED, _LEAST_TIMED = 48, 3  # files that are read for the time: of all groups together, of each at least


def check(folder: Path | None, events: Events, image: ImageConfig) -> dict[str, Any]:
    """Describe the machine and, when a folder is given, what it holds, without changing anything.

    Args:
        folder: with train.csv or test.csv, or with DICOM files.
        image: the image section for which time and disk are measured.

    Returns:
        JSON-ready; `ok` is False when an image cannot be used.

    Raises:
        UsageError: no such folder, or nothing in it.
        TableError: a table that is wrong.
    """
    decoders = {}
    for uid in COMPETITION_UIDS:
        known, name = backends(uid), _name(uid)
        decoders[f"{uid} {name}"] = {decoder: "available" if there else "not installed" for decoder, there in known}
        events.say(
            f"{name} ({uid}): {', '.join(decoder for decoder, there in known if there) or 'no decoder installed'}"
        )
    result: dict[str, Any] = {"ok": True, "rsna_kit": __version__, **describe(), "decoders": decoders}
    if folder is None:
        return result
    if any((folder / name).is_file() for name in ("train.csv", "test.csv")):
        competition = find_competition(folder)
        splits = [("train", competition.train_csv), ("test", competition.test_csv)]
        # All tables before any image: a wrong table is known at once.
        sets = {split: _read_split(competition, split, path) for split, path in splits if path is not None}
    else:
        sets = {"folder": (find_dicoms(folder), {})}
    for label, (files, facts) in sets.items():
        result[label] = _check_files(label, files, facts, image, events)
        result["ok"] &= not result[label]["problem_count"]
    return result


def _read_split(competition: Competition, split: str, path: Path) -> tuple[list[tuple[str, Path]], dict[str, int]]:
    """The files that a table names, and what else it counts."""
    table = read_train(path) if split == "train" else read_test(path)
    if split == "test" and competition.sample_submission is not None:
        expected_ids(table, read_sample(competition.sample_submission))
    facts = {"patients": int(table["patient_id"].nunique()), "breasts": int(table["prediction_id"].nunique())}
    return competition.files(split, table), facts


def find_dicoms(folder: Path) -> list[tuple[str, Path]]:
    """Every `.dcm` file below a folder; every file that is not hidden, where none is called so.

    Returns:
        Names relative to the folder, without `.dcm`, and paths, sorted.

    Raises:
        UsageError: no such folder, or no file in it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder, expected one with train.csv, test.csv or DICOM files")
    paths = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    named = [path for path in paths if path.suffix.lower() == ".dcm"]
    # DICOMDIR is the name of a table of contents (PS3.10 8.6).
    others = [path for path in paths if not path.name.startswith(".") and path.name != "DICOMDIR" and path.is_file()]
    if not (named or others):
        raise UsageError(f"{folder}: no file in it, expected train.csv, test.csv or DICOM files")
    return sorted(
        ((path.with_suffix("") if named else path).relative_to(folder).as_posix(), path) for path in named or others
    )


def _check_files(
    label: str, files: list[tuple[str, Path]], facts: dict[str, int], image: ImageConfig, events: Events
) -> dict[str, Any]:
    with events.progress(len(files), f"{label} heads", "files") as progress:
        found = survey(files, advance=progress.advance)
    unknown = list(_without_decoder(found.files))
    refused = {failure.path for failure in unknown}
    readable = Survey([file for file in found.files if file.path not in refused], [])
    seconds, disk, timed, broken = _measure(readable, image, events, label)
    failures = [*found.failures, *unknown, *broken]
    sizes, kinds = [file.size for file in found.files], Counter(file.kind for file in found.files)
    result = {
        "images": len(files),
        **facts,
        "bytes": sum(sizes),
        "median_bytes": statistics.median(sizes) if sizes else None,
        "counts": {name: _counted(kinds, tell) for name, tell in _PROPERTIES.items()},
        "problem_count": len(failures),
        "problems": _by_reason(failures),
        "time": {
            "image": [image.height, image.width],
            "timed": timed,
            "cpus": cpu_count(),
            "core_hours": seconds / 3600,
            "wall_hours": seconds / 3600 / cpu_count(),
        },
        "prepared_bytes": round(disk),
    }
    _tell(label, result, events)
    return result


def _measure(found: Survey, image: ImageConfig, events: Events, label: str) -> tuple[float, float, int, list[Failure]]:
    """Read a few files of each group, one after the other, as `prepare` and `infer` read them.

    Returns:
        Seconds of one core for all files, at what a pixel of the same transfer syntax took, waiting for disks left out;
        bytes that their pictures take as PNG; how many files that rests on; those that failed.
    """
    from rsna_kit.imaging.render import encode_picture, read_image

    examples = found.examples(max(_LEAST_TIMED, _TIMED // max(len(found.groups), 1))).values()
    spent: dict[str, list[tuple[float, int, int]]] = {}
    failures = []
    with events.progress(sum(map(len, examples)), f"{label} samples", "files") as progress:
        for image_id, path, _, kind in (file for files in examples for file in files):
            uid = kind.group.transfer_syntax
            try:
                for _ in range(1 if uid in spent else 2):  # the first file loads the decoder's libraries: not timed
                    path.read_bytes()
                    began = time.perf_counter()
                    rendered = read_image(path, image_id, image)
                    took = time.perf_counter() - began
                size = len(encode_picture(rendered.image, "png"))
                spent.setdefault(uid, []).append((took, kind.rows * kind.columns, size))
            except Exception as error:  # a bug met by one file must not hide what the others have
                said = str(error) if isinstance(error, ImageError) else f"unexpected {type(error).__name__}: {error}"
                failures.append(Failure(image_id, path, getattr(error, "stage", ImageError.stage), said))
            progress.advance()
    seconds = disk = 0.0
    for file in found.files:
        if measured := spent.get(file.kind.group.transfer_syntax):
            took, pixels, size = map(sum, zip(*measured, strict=True))
            seconds += took / pixels * file.kind.rows * file.kind.columns
            disk += size / len(measured)
    return seconds, disk, sum(map(len, spent.values())), failures


def _without_decoder(files: Iterable[Surveyed]) -> Iterable[Failure]:
    """The files whose transfer syntax nothing here decodes."""
    advice: dict[str, str] = {}
    for image_id, path, _, kind in files:
        uid = kind.group.transfer_syntax
        if uid not in advice:
            known = backends(uid)
            names = ", ".join("a plug-in of pydicom" if name == "pydicom" else name for name, _ in known)
            missing = f"no decoder of {uid} is installed. Install one of {names}"
            unknown = f"no decoder knows transfer syntax {uid}. Convert the file first"
            advice[uid] = "" if any(there for _, there in known) else missing if known else unknown
        if advice[uid]:
            yield Failure(image_id, path, DecodeError.stage, f"{where(image_id, path)}: {advice[uid]}")


# --- What the heads say --------------------------------------------------------------------------------------------


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _name(uid: str) -> str:
    """Of a transfer syntax, as pydicom has it."""
    from pydicom.uid import UID

    return UID(uid).name


def _windows(kind: Kind) -> str:
    return f"{kind.voi_function}, {_plural(kind.num_windows, 'window')}" if kind.num_windows else "none"


def _jpeg2000(kind: Kind) -> str:
    if kind.group.transfer_syntax not in (*JPEG2000_UIDS, *HTJ2K_UIDS):
        return ""
    boxes, wavelet = "JP2 boxes" if kind.jp2 else "bare", kind.wavelet
    if wavelet is None:
        return f"no coding style, {boxes}"
    transform = "reversible" if wavelet.reversible else "irreversible"
    counts = (_plural(wavelet.levels, "level"), _plural(wavelet.layers, "layer"), _plural(wavelet.tiles, "tile"))
    return ", ".join([counts[0], wavelet.progression, *counts[1:], transform, boxes])


def _lossless_jpeg(kind: Kind) -> str:
    if kind.group.transfer_syntax not in JPEG_LOSSLESS_UIDS:
        return ""
    restarts = f"restarts every {kind.restart_interval}" if kind.restart_interval else "no restarts"
    return f"predictor {kind.predictor}, {restarts}" if kind.predictor else "none: the stream has loss"


# What is counted → how a kind is called; an empty name is not counted.
_PROPERTIES: dict[str, Callable[[Kind], str]] = {
    "transfer syntax": lambda kind: f"{kind.group.transfer_syntax} {_name(kind.group.transfer_syntax)}",
    "bits": lambda k: f"{k.group.precision} coded, {k.group.bits_stored} stored" + ", signed" * k.group.signed,
    "rows x columns": lambda kind: f"{kind.rows} x {kind.columns}",
    "photometric": lambda kind: kind.group.photometric,
    "VOI window": _windows,
    "JPEG 2000": _jpeg2000,
    "lossless JPEG": _lossless_jpeg,
}


def _counted(kinds: Counter[Kind], tell: Callable[[Kind], str]) -> dict[str, int]:
    """Files by what `tell` calls their kind, most of them first."""
    counts: Counter[str] = Counter()
    for kind, number in kinds.items():
        counts[tell(kind)] += number
    return {name: counts[name] for name in sorted(counts, key=lambda name: (-counts[name], name)) if name}


def _by_reason(failures: Iterable[Failure]) -> list[dict[str, Any]]:
    """Failures that differ in names and numbers alone are one row; most images first."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for image_id, path, stage, reason in failures:
        said = reason.removeprefix(f"{where(image_id, path)}: ").replace(str(path), path.name)
        first, *others = said.splitlines()  # what each decoder said follows in lines of its own
        said = " ".join([first, "; ".join(line.strip() for line in others)]).strip()
        like = re.sub(r"\b[0-9a-f]{2}( [0-9a-f]{2})+\b|\d+", "#", said.replace(path.name, "").replace(image_id, ""))
        new = {"stage": stage, "reason": said, "images": 0, "example": str(path), "image_ids": []}
        row = rows.setdefault((stage, like), new)
        row["images"] += 1
        if row["images"] <= _MOST_IDS:
            row["image_ids"].append(image_id)
    return sorted(rows.values(), key=lambda row: -row["images"])


# --- What people read ----------------------------------------------------------------------------------------------


def _tell(label: str, result: dict[str, Any], events: Events) -> None:
    """The same facts as tables of at most 100 columns."""
    images, took = result["images"], result["time"]
    parts = [_plural(images, "image")]
    if "patients" in result:
        parts += [_plural(result["patients"], "patient"), _plural(result["breasts"], "breast")]
    if result["median_bytes"]:
        parts += [_bytes(result["bytes"]), f"median {_bytes(result['median_bytes'])} a file"]
    events.say(f"\n{label}: {', '.join(parts)}\n")
    for name, counts in result["counts"].items():
        rows = [(f"{count:>8,} {count / images:>7.1%}  ", value, count) for value, count in counts.items()]
        for number, (start, value, _) in enumerate(rows[:_MOST_ROWS]):
            events.say(f"  {name if number == 0 else '':<16}{start}{value:.64}")
        if rest := rows[_MOST_ROWS:]:
            events.say(f"  {'':<16}{sum(count for *_, count in rest):>8,} {'':>7}  {len(rest)} others")
    if took["timed"]:
        height, width = took["image"]
        core, wall = (format_duration(took[name] * 3600) for name in ("core_hours", "wall_hours"))
        events.say(
            f"\n  from file to image of {height} x {width}: {core} on one core, {wall} on all {took['cpus']} of this"
        )
        events.say(
            f"  machine, without waiting for disks; prepared they take {_bytes(result['prepared_bytes'])}, and a"
        )
        events.say(f"  third more with data.save=jpeg; projected from {_plural(took['timed'], 'file')}")
    if not result["problems"]:
        events.say("\n  no problem found")
        return
    events.say(f"\n  {result['problem_count']:,} of {_plural(images, 'image')} cannot be used\n")
    paragraph = textwrap.TextWrapper(_WIDTH, break_long_words=False, break_on_hyphens=False)
    paragraph.subsequent_indent = " " * 20
    for problem in result["problems"]:
        paragraph.initial_indent = f"  {problem['images']:>8,}  {problem['stage']:<7} "
        events.say(paragraph.fill(problem["reason"]), kind="problem")
        events.say(f"{paragraph.subsequent_indent}{problem['example']}")


def _bytes(count: float) -> str:
    """Decimal units: `5.1 MB`."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
