"""A folder of labelled pictures or DICOM files → a competition of DICOM files, so that the same main job runs on it.

DICOM files stay as they are: OUT has links to them. All are of one site, 3 unless another is named (the competition has
1 and 2), and every manufacturer's model is a machine of it. A row's file is `<image_id>.dcm` or `.dicom` anywhere below
the folder, or the only DICOM file below a folder that is called so.

Every picture becomes one DICOM with exactly its grey values: 8-bit pictures as 8 bits stored in 16 allocated,
16-bit ones as 16, MONOCHROME2, one LINEAR window over the full range. Patients alternate between the two transfer
syntaxes of the competition, so both decoders work on every such set: JPEG lossless (.70) is called site 1, machine 1,
JPEG 2000 (.90) site 2, machine 2. Patients, sides and views are those of the table; nothing is flipped or scaled.

    labels.csv   image_id, patient_id, laterality, cancer                        needed
                 view, age, density (or breast_density; A-D or 1-4), implant    used when there, left empty when not
    OUT          train.csv, train_images/                                        always
                 hidden/{test.csv, sample_submission.csv, test_images/, truth.csv}     with a split column

Without a split column there is no test set: all rows are train.csv. BIRADS, biopsy and the other outcome columns
are left empty or follow the label; they are never inputs of the kit. A breast is a cancer breast when one of its
images is: the competition's label belongs to the breast.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from rsna_kit.competition.rows import Rows, read_rows
from rsna_kit.competition.submission import prediction_id
from rsna_kit.runtime.errors import RsnaKitError, TableError, did_you_mean
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_json
from rsna_lab.phantom.dicom_file import JPEG2000, JPEG_LOSSLESS, DicomFacts, write_dicom
from rsna_lab.phantom.tables import counts, write_test, write_train, write_truth

SUFFIXES, DICOM_SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm"), (".dcm", ".dicom")
_NEEDED = ("image_id", "patient_id", "laterality", "cancer")
_DENSITIES = {"1": "A", "2": "B", "3": "C", "4": "D", "A": "A", "B": "B", "C": "C", "D": "D"}
_DONE = "wrapped.json"


def wrap_pictures(
    pictures: Path,
    labels: Path,
    out: Path,
    *,
    split_column: str | None = None,
    site: int = 3,
    events: Events | None = None,
) -> dict[str, Any]:
    """Wrap the pictures that `labels` names as a competition in `out`.

    Args:
        pictures: folder of `<image_id>.png`, `.jpg`, `.jpeg` or `.pgm`, 8- or 16-bit gray, one of each; or with DICOM
            files.
        labels: CSV table, one row an image; see the module's docstring.
        out: a new or empty folder.
        split_column: column whose rows "test" become the hidden test set; all others are "train".
        site: number of the site that DICOM files are of.
        events: where progress goes.

    Returns:
        JSON-ready counts, as written to `wrapped.json`.

    Raises:
        TableError: a missing column (with the nearest name), a bad cell, or a split that cuts through a patient.
        RsnaKitError: `out` is not empty; a picture is missing, ambiguous, unreadable or not gray. The table and the
            presence of all pictures are checked before anything is written.
    """
    table = read_labels(labels, split_column)
    paths = _find_pictures(pictures, table["image_id"])
    heads = {image_id: _machine(path) for image_id, path in paths.items() if path.suffix.lower() in DICOM_SUFFIXES}
    machines = {name: 100 * site + number for number, name in enumerate(sorted(set(heads.values())))}
    for image_id, head in heads.items():
        table.loc[table["image_id"] == image_id, ["site_id", "machine_id"]] = [site, machines[head]]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RsnaKitError(f"wrap-pictures: {out} is not an empty folder. Choose another one; nothing was changed.")
    events = events or Events()
    hidden = table["split"] == "test"
    with events.progress(len(table), "wrap") as progress:
        for row in table.to_dict("records"):
            images = out / "hidden" / "test_images" if row["split"] == "test" else out / "train_images"
            image_id = str(row["image_id"])
            _wrap(paths[image_id], images / str(row["patient_id"]) / f"{image_id}.dcm", row)
            progress.advance()
    write_train(table[~hidden], out / "train.csv")
    if hidden.any():
        write_test(table[hidden], out / "hidden")
        write_truth(table[hidden], out / "hidden" / "truth.csv")
    summary = {name: counts(part) for name, part in (("train", table[~hidden]), ("hidden", table[hidden]))}
    write_json(out / _DONE, summary)
    return summary


def read_labels(path: Path, split_column: str | None = None) -> pd.DataFrame:
    """The labels as a table with every column of the competition's tables and `split` ("train" or "test").

    Raises:
        TableError: see `wrap_pictures`.
    """
    rows = read_rows(path)
    rows.require([*_NEEDED, *([split_column] if split_column else [])])
    table = pd.DataFrame(
        {
            "patient_id": _safe(rows, "patient_id"),
            "image_id": _safe(rows, "image_id", unique=True),
            "laterality": rows.choice("laterality", ("L", "R")),
            "view": rows.text("view", blank=True) if "view" in rows.columns else "",
            "age": rows.number("age", 0, 130, blank=True) if "age" in rows.columns else np.nan,
            "cancer": rows.flag("cancer").astype(int),
            "implant": rows.flag("implant").astype(int) if "implant" in rows.columns else 0,
            "density": _density(rows),
        }
    )
    table["split"] = _split(rows, split_column, table)
    table["prediction_id"] = [prediction_id(*pair) for pair in zip(table.patient_id, table.laterality, strict=True)]
    table["cancer"] = table.groupby("prediction_id")["cancer"].transform("max")
    # Patients alternate between the sites in the order of their first row, within each part of the split.
    turn = table.groupby("split")["patient_id"].transform(lambda ids: pd.factorize(ids)[0] % 2)
    table["site_id"] = turn.astype(int) + 1
    table["machine_id"] = table["site_id"]
    for name, value in (("biopsy", table["cancer"]), ("invasive", 0), ("BIRADS", np.nan)):
        table[name] = value
    table["difficult_negative_case"] = False
    return table


def _safe(rows: Rows, name: str, unique: bool = False) -> pd.Series:
    """Ids become file names: text without a path separator, not hidden."""
    values = rows.ids(name, once=unique)
    bad = values.str.contains(r"[/\\\0]") | values.str.startswith(".")
    rows.refuse(bad, name, "an id without / or \\ that does not begin with a dot", "Rename it.")
    return values


def _density(rows: Rows) -> pd.Series | None:
    """`density` or `breast_density`, A-D or 1-4, as A-D; None where the cell is empty, 0 or there is no column."""
    name = next((name for name in ("density", "breast_density") if name in rows.columns), None)
    if name is None:
        return None
    values = rows.text(name, blank=True).str.upper().str.removesuffix(".0")
    rows.refuse(~values.isin([*_DENSITIES, "", "0"]), name, "A to D, 1 to 4 or nothing", "Correct it.")
    return values.map(_DENSITIES).astype(object)


def _split(rows: Rows, column: str | None, table: pd.DataFrame) -> pd.Series:
    """The part every row belongs to, `train` or `test`; a patient must lie in one of them."""
    if column is None:
        return pd.Series("train", index=table.index)
    split = rows.choice(column, ("train", "test"))
    parts = split.groupby(table["patient_id"]).transform("nunique")
    rows.refuse(parts > 1, "patient_id", "each patient in train or in test, not in both", "Move the rows together.")
    if (split == "train").sum() == 0:
        raise TableError(f"{rows.path}: column {column!r} puts every row into the test set, expected training rows too")
    return split


def _find_pictures(folder: Path, image_ids: pd.Series) -> dict[str, Path]:
    """Path of every picture; the folder is listed once, so that a missing file is found before work starts."""
    if not folder.is_dir():
        raise RsnaKitError(f"wrap-pictures: {folder} is no folder")
    there: dict[str, list[Path]] = {}
    for path in sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names):
        if path.suffix.lower() in SUFFIXES and path.parent == folder:
            there.setdefault(path.stem, []).append(path)
        elif path.suffix.lower() in DICOM_SUFFIXES:
            for name in {path.stem, *path.relative_to(folder).parts[:-1]}:
                there.setdefault(name, []).append(path)
    missing = [image_id for image_id in image_ids if image_id not in there]
    if missing:
        raise RsnaKitError(
            f"wrap-pictures: {folder} has no picture for {len(missing)} of {len(image_ids)} rows, first {missing[0]!r}:"
            f" expected {missing[0]}{{{','.join((*SUFFIXES, *DICOM_SUFFIXES))}}}.{did_you_mean(missing[0], there)}"
        )
    twice = [image_id for image_id in image_ids if len(there[image_id]) > 1]
    if twice:
        names = ", ".join(path.name for path in there[twice[0]])
        raise RsnaKitError(f"wrap-pictures: {folder} has several pictures for {twice[0]!r} ({names}). Keep one.")
    return {image_id: there[image_id][0] for image_id in image_ids}


def _machine(path: Path) -> str:
    """Manufacturer and model of a DICOM file (PS3.3 C.7.5.1), as far as its header says them."""
    tags = ["Manufacturer", "ManufacturerModelName"]
    try:
        head = dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
    except (OSError, ValueError, InvalidDicomError) as error:
        raise RsnaKitError(f"{path}: its header cannot be read ({error}). Mend it, or remove its row.") from error
    return " ".join(str(head.get(tag) or "") for tag in tags).strip()


def read_picture(path: Path) -> tuple[np.ndarray, int]:
    """Grey values as uint16 (rows, columns) and the bits they are stored in, 8 or 16.

    A colour file whose channels are equal counts as gray.

    Raises:
        RsnaKitError: not a picture, real colour, or another depth.
    """
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise RsnaKitError(f"{path}: not a picture that can be read, expected an 8- or 16-bit gray PNG, JPEG or PGM")
    if values.ndim == 3 and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
        raise RsnaKitError(
            f"{path}: got {values.dtype} {values.shape}, expected 8- or 16-bit gray. Convert it to gray."
        )
    return np.ascontiguousarray(values, dtype=np.uint16), 8 * values.dtype.itemsize


def _wrap(source: Path, target: Path, row: dict[Any, Any]) -> None:
    if source.suffix.lower() in DICOM_SUFFIXES:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.resolve())
        return
    pixels, bits = read_picture(source)
    facts = DicomFacts(
        patient_id=row["patient_id"],
        image_id=row["image_id"],
        laterality=row["laterality"],
        transfer_syntax=JPEG_LOSSLESS if row["site_id"] == 1 else JPEG2000,
        bits_stored=bits,
        windows=((float(1 << (bits - 1)), float(1 << bits)),),
        voi_function="LINEAR",
        padding=None,
    )
    write_dicom(target, pixels, facts)
