"""A folder of mammograms without tables → a competition that `infer` scores: DICOM files linked, pictures wrapped.

Patient, side and view come from the header (Patient ID, Image Laterality or Laterality, View Position) or, where it
does not say, from the names, read from the file upwards: a side is a word `L`, `R`, `left`, `right` (also `LCC`,
`RMLO`), a view one of CC, MLO, ML, LM, AT, LMO, XCCL. What is left of the file's name is the patient, or its folder's
name where nothing is left. An image whose side nobody says is a breast of its own.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from rsna_kit.competition.submission import prediction_id
from rsna_kit.runtime.errors import RsnaKitError, UsageError, one_line
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import sha256_file, write_csv
from rsna_lab.phantom.dicom_file import JPEG_LOSSLESS, DicomFacts, write_dicom
from rsna_lab.phantom.tables import write_test
from rsna_lab.phantom.wrap import SUFFIXES, read_picture

FOLDER, REFUSED = "competition", "refused.csv"
_SIDES = {"l": "L", "left": "L", "lt": "L", "r": "R", "right": "R", "rt": "R"}
_VIEWS = ("cc", "mlo", "ml", "lm", "at", "lmo", "xccl")
_JOINED = re.compile(rf"([lr])({'|'.join(_VIEWS)})")
_DICOM = (".dcm", ".dicom", ".ima")
_MANY = 8  # images of a breast; the competition's have two, a few up to five


class Named(NamedTuple):
    """What is known of an image; "" for unknown."""

    patient: str
    side: str
    view: str


def gather(folder: Path, out: Path, events: Events) -> Path:
    """Make a competition of all mammograms in and below a folder.

    Args:
        folder: DICOM files (by suffix, or by the letters DICM at byte 128; PS3.10 7.1) and pictures (PNG, JPEG, PGM; 8
            or 16 bits, grey), nested as people have them. Other files are counted and left.
        out: `out/competition` is made, anew where an earlier call made it; `out/refused.csv` lists files that cannot be
            read, pictures that are no mammogram, and files that are there twice.
        events: told what was found.

    Returns:
        The competition's folder: test.csv, sample_submission.csv and test_images/.

    Raises:
        UsageError: no such folder, no mammogram in it, or an `out/competition` that somebody else made.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Give one with DICOM files or pictures, or a competition.")
    made, listed = out / FOLDER, out / REFUSED
    if made.exists() and not listed.is_file():
        raise UsageError(f"{made} is there and not of an earlier infer of a folder. Name another folder than {out}.")
    refused: list[dict[str, str]] = []
    _list(refused, listed)
    shutil.rmtree(made, ignore_errors=True)
    rows: list[dict[str, Any]] = []
    taken: set[str] = set()
    seen: dict[str, Path] = {}
    others = 0
    paths = sorted(_files(folder, out.resolve()))
    with events.progress(len(paths), "files") as progress:
        for path in paths:
            progress.advance()
            name = path.relative_to(folder)
            try:
                dicom = _is_dicom(path)
                if not path.stat().st_size or (not dicom and path.suffix.lower() not in SUFFIXES):
                    others += 1
                    continue
                first = seen.setdefault(sha256_file(path), name)
                if first != name:
                    raise RsnaKitError(f"the same bytes as {first}")
                row = _row(name, _known(path, name, dicom), taken)
                _put(path, made / "test_images" / row["patient_id"] / f"{row['image_id']}.dcm", row, dicom)
                rows.append(row)
            except (RsnaKitError, OSError) as error:
                refused.append({"file": str(name), "reason": one_line(error)})
    if not rows:
        raise UsageError(
            f"{folder}: no mammogram among {len(paths)} files, expected DICOM files or grey pictures "
            f"({', '.join(SUFFIXES)}){'; ' + refused[0]['reason'] if refused else ''}"
        )
    table = pd.DataFrame(rows).assign(site_id=1, machine_id=1, age=None, implant=0)
    write_test(table, made)
    _list(refused, listed)
    views = ", ".join(
        f"{number} {view}" for view, number in sorted(Counter(table["view"].replace("", "no view")).items())
    )
    events.say(
        f"{folder}: {len(rows)} images of {table['prediction_id'].nunique()} breasts ({views}); "
        f"{int(table['alone'].sum())} without a side are a breast each; {len(refused)} refused ({listed}), "
        f"{others} other files left"
    )
    images = table["prediction_id"].value_counts()
    if images.iloc[0] > _MANY:
        events.say(f"{images.index[0]} has {images.iloc[0]} images: do files of several women carry one Patient ID?")
    return made


def _list(refused: list[dict[str, str]], path: Path) -> None:
    write_csv(path, pd.DataFrame(refused, columns=["file", "reason"]))


def _row(name: Path, known: Named, taken: set[str]) -> dict[str, Any]:
    """A row of test.csv; an image without a side is a breast of its own, and stands in the table as a left one.

    `taken` are the ids of other images, and its own is added: of `a.dcm` and `a.png`, say, the second is `a-2`.
    """
    plain = _safe("_".join(name.with_suffix("").parts))
    image_id = next(one for number in count(1) if (one := f"{plain}-{number}" if number > 1 else plain) not in taken)
    taken.add(image_id)
    patient = _safe(known.patient) if known.side else image_id
    breast = prediction_id(patient, known.side) if known.side else image_id
    ids = {"patient_id": patient, "image_id": image_id, "prediction_id": breast}
    return {**ids, "laterality": known.side or "L", "view": known.view, "alone": not known.side}


def _files(folder: Path, out: Path) -> Iterator[Path]:
    """All files below a folder, but those of `out` and hidden ones."""
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".") and Path(place, name).resolve() != out]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in _DICOM:
        return True
    with open(path, "rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def _put(path: Path, target: Path, row: dict[str, Any], dicom: bool) -> None:
    """A link to a DICOM file, or a picture wrapped as one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if dicom:
        target.symlink_to(path.resolve())
        return
    pixels, bits = read_picture(path)
    ids, window = (row["patient_id"], row["image_id"], row["laterality"]), (float(1 << (bits - 1)), float(1 << bits))
    facts = DicomFacts(*ids, JPEG_LOSSLESS, bits, windows=(window,), voi_function="LINEAR", padding=None)
    write_dicom(target, pixels, facts)


def _known(path: Path, name: Path, dicom: bool) -> Named:
    """What header and names say."""
    said, told = name_facts(name), Named("", "", "")
    if dicom:
        told = _header(path)
    side = told.side or said.side
    return Named(told.patient or said.patient, side, told.view or said.view)


def _header(path: Path) -> Named:
    from pydicom import dcmread

    try:
        head = dcmread(path, force=True, stop_before_pixels=True)
        side = str(head.get("ImageLaterality") or head.get("Laterality") or "").strip().upper()
        patient, view = str(head.get("PatientID") or "").strip(), str(head.get("ViewPosition") or "").strip().upper()
    except Exception:  # a header that cannot be read: `infer` will say why, in failures.csv
        return Named("", "", "")
    return Named(patient, side if side in ("L", "R") else "", view)


def name_facts(name: Path) -> Named:
    """Patient, side and view by the names of a file and its folders.

    Example:
        >>> name_facts(Path("Mass-Test_P_00016_LEFT_CC.png"))
        Named(patient='Mass-Test_P_00016', side='L', view='CC')
    """
    side = view = ""
    patient = ""
    for part in (name.stem, *reversed(name.parent.parts)):
        kept = []
        for word in re.split(r"([^A-Za-z0-9]+)", part):
            lower = word.lower()
            joined = _JOINED.fullmatch(lower)
            found = _SIDES.get(joined[1] if joined else lower, ""), (joined[2] if joined else lower)
            if found[0] and not side:
                side = found[0]
            elif found[1] not in _VIEWS or view:
                kept.append(word)
                continue
            if found[1] in _VIEWS and not view:
                view = found[1].upper()
        patient = patient or "".join(kept).strip("_-. ")
    return Named(patient, side, view)


def _safe(name: str) -> str:
    """As the name of a file or folder."""
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "_"
