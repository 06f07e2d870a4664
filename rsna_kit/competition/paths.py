"""Where the competition's files are: a folder someone names, or one of Kaggle's two mount layouts.

    <input>/competitions/rsna-breast-cancer-detection/   kernels pushed through the API (since 2025)
    <input>/rsna-breast-cancer-detection/                older kernels and kernels made in the browser

`<input>` is `/kaggle/input`, or what the environment variable RSNA_KIT_INPUT says. Image folders hold
tens of thousands of files on a network disk: nothing here lists them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rsna_kit.runtime.errors import UsageError

SLUG = "rsna-breast-cancer-detection"
_IMAGE_FOLDERS = {"train": "train_images", "test": "test_images"}
# A folder with more entries than this is data, not a place where bundles lie: find_inputs does not enter its children.
_MOST_ENTRIES = 1000


@dataclass(frozen=True)
class Competition:
    """The files of one competition folder; a table that is absent is None."""

    root: Path
    train_csv: Path | None
    test_csv: Path | None
    sample_submission: Path | None

    @property
    def train_images(self) -> Path:
        """`<root>/train_images`, whether or not it exists."""
        return self.images("train")

    @property
    def test_images(self) -> Path:
        """`<root>/test_images`, whether or not it exists."""
        return self.images("test")

    def images(self, split: str) -> Path:
        """The image folder of `"train"` or `"test"`."""
        if split not in _IMAGE_FOLDERS:
            raise UsageError(f"split: got {split!r}, expected train or test")
        return self.root / _IMAGE_FOLDERS[split]

    def dicom_path(self, split: str, patient_id: str, image_id: str) -> Path:
        """Door 1: `<images>/<patient_id>/<image_id>.dcm`."""
        return self.images(split) / patient_id / f"{image_id}.dcm"

    def files(self, split: str, table: pd.DataFrame) -> list[tuple[str, Path]]:
        """`(image_id, path)` of every row, in table order; nothing is looked up on the disk."""
        pairs = zip(table["patient_id"], table["image_id"], strict=True)
        return [(image_id, self.dicom_path(split, patient_id, image_id)) for patient_id, image_id in pairs]

    def table(self, name: str) -> Path:
        """The path of `train.csv`, `test.csv` or `sample_submission.csv`.

        Raises:
            UsageError: this folder has none.
        """
        path = self.root / name
        if not path.is_file():
            raise UsageError(f"{_contents(self.root)}, expected {name}. Give the competition folder that holds it.")
        return path


def input_root() -> Path:
    """The folder under which Kaggle mounts inputs: RSNA_KIT_INPUT, or /kaggle/input."""
    return Path(os.environ.get("RSNA_KIT_INPUT") or "/kaggle/input")


def find_competition(where: Path | None = None) -> Competition:
    """Find the competition's tables.

    Args:
        where: the folder that holds train.csv and/or test.csv; None looks at both Kaggle mounts.

    Raises:
        UsageError: no candidate holds train.csv or test.csv; the message lists what is there.
    """
    root = input_root()
    candidates = [where] if where is not None else [root / "competitions" / SLUG, root / SLUG]
    for folder in candidates:
        found = {name: _file_or_none(folder / f"{name}.csv") for name in ("train", "test", "sample_submission")}
        if found["train"] or found["test"]:
            return Competition(folder, found["train"], found["test"], found["sample_submission"])
    seen = [where] if where is not None else [root, *candidates]
    advice = (
        "Give the folder that holds train.csv or test.csv."
        if where is not None
        else f"Attach the competition '{SLUG}' to the kernel, or give the folder that holds train.csv or test.csv."
    )
    raise UsageError(f"no competition found: {'; '.join(_contents(folder) for folder in seen)}. {advice}")


def find_inputs(marker: str, root: Path | None = None, depth: int = 4) -> list[Path]:
    """Folders at most `depth` levels below `root` that hold a file named `marker`, sorted.

    Image folders and folders of more than 1,000 entries are not entered.

    Args:
        marker: a file name such as `"metadata.json"`.
        root: where to start, the Kaggle input folder unless given.
        depth: 0 looks only at `root`; `datasets/<owner>/<slug>/<folder>` is 4.
    """
    return sorted(folder for folder in _folders(root or input_root(), depth) if (folder / marker).is_file())


def _file_or_none(path: Path) -> Path | None:
    return path if path.is_file() else None


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """`folder` and the folders below it, without image trees."""
    if not folder.is_dir():
        return
    yield folder
    if depth <= 0:
        return
    children: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count >= _MOST_ENTRIES:
                    return
                if entry.is_dir() and entry.name not in _IMAGE_FOLDERS.values():
                    children.append(Path(entry.path))
    except PermissionError:
        return
    for child in sorted(children):
        yield from _folders(child, depth - 1)


def _contents(folder: Path) -> str:
    """One clause of an error message: what a folder holds, at most eight names."""
    if not folder.is_dir():
        return f"{folder} does not exist"
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            names.append(entry.name + ("/" if entry.is_dir() else ""))
            if len(names) > 8:
                break
    shown = ", ".join(sorted(names[:8])) + (", …" if len(names) > 8 else "")
    return f"{folder} holds {shown}" if names else f"{folder} is empty"
