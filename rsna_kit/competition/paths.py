"""Where the competition's files and other inputs are: a folder someone names, or one of Kaggle's two mount layouts.

    source       kernels pushed through the API (since 2025)         older kernels, and those made in the browser
    competition  <input>/competitions/<slug>                         <input>/<slug>
    dataset      <input>/datasets/<owner>/<slug>                     <input>/<slug>
    kernel       <input>/notebooks/<owner>/<slug>                    <input>/<slug>
    model        <input>/models/<owner>/<model>/<framework>/         <input>/<model>/<framework>/<variation>/<version>,
                 <variation>/<version>                               <input>/m/<owner>/<model>/...

`<input>` is `/kaggle/input`, or what the environment variable RSNA_KIT_INPUT says. Image folders hold
tens of thousands of files on a network disk: nothing here lists them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.files import read_json

SLUG = "rsna-breast-cancer-detection"
_IMAGE_FOLDERS = {"train": "train_images", "test": "test_images"}
# A folder with more entries than this is data, not a place where bundles lie: find_inputs does not enter its children.
_MOST_ENTRIES = 1000
_NEW_LAYOUT = {
    "competitions": ("competition", 1),
    "datasets": ("dataset", 2),
    "notebooks": ("kernel", 2),
    "models": ("model", 5),
    "m": ("model", 5),
}
# What Kaggle calls a model's framework, in lower case as it mounts it.
_FRAMEWORKS = {
    "flax",
    "jax",
    "keras",
    "onnx",
    "other",
    "pytorch",
    "scikitlearn",
    "tensorflow1",
    "tensorflow2",
    "tflite",
    "tfjs",
    "transformers",
}
_PHANTOM = "phantom.json"  # in a competition that `rsna-kit phantom` wrote


@dataclass(frozen=True)
class Competition:
    """The files of one competition folder; a table that is absent is None."""

    root: Path
    train_csv: Path | None
    test_csv: Path | None
    sample_submission: Path | None

    def images(self, split: str) -> Path:
        """The image folder of `"train"` or `"test"`, whether or not it exists."""
        if split not in _IMAGE_FOLDERS:
            raise UsageError(f"split: got {split!r}, expected train or test")
        return self.root / _IMAGE_FOLDERS[split]

    def dicom_path(self, split: str, patient_id: str, image_id: str) -> Path:
        """`<images>/<patient_id>/<image_id>.dcm`, whether or not it exists."""
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


@dataclass(frozen=True)
class Source:
    """Something that is attached to a kernel.

    Attributes:
        kind: "competition", "dataset", "kernel" (its output) or "model". In the older layout the place does not tell a
            dataset from a kernel's output: a folder with verdict.json or events.jsonl is taken for the latter.
        reference: as Kaggle's metadata name it, `owner/slug`; in the older layout without the owner.
        path: where it is mounted.
    """

    kind: str
    reference: str
    path: Path


def attached_sources(root: Path | None = None) -> list[Source]:
    """Everything that is attached, in either layout, sorted by kind and name; lists at most five levels of folders."""
    root = root or input_root()
    found: list[Source] = []
    for top in _children(root):
        if top.name in _NEW_LAYOUT:
            kind, depth = _NEW_LAYOUT[top.name]
            found += [Source(kind, str(path.relative_to(top)), path) for path in _below(top, depth)]
        else:
            frameworks = [child for child in _children(top) if child.name in _FRAMEWORKS]
            versions = [path for child in frameworks for path in _below(child, 2) if path.name.isdigit()]
            found += [Source("model", str(path.relative_to(root)), path) for path in versions]
            if not versions:
                output = any((top / name).is_file() for name in ("verdict.json", "events.jsonl"))
                kind = "competition" if top.name == SLUG else "kernel" if output else "dataset"
                found.append(Source(kind, top.name, top))
    # A folder that is mounted in both layouts is one source; the longer name, of the newer layout, has the owner.
    longest = sorted(found, key=lambda source: len(source.reference))
    places = {(stat.st_dev, stat.st_ino): source for source in longest for stat in [source.path.stat()]}
    return sorted(places.values(), key=lambda source: (source.kind, source.reference))


def find_competition(where: Path | None = None) -> Competition:
    """Find the competition's tables.

    Args:
        where: the folder that holds train.csv and/or test.csv; None looks at both Kaggle mounts, and where there is no
            competition for an attached phantom, which a scoring run never takes.

    Raises:
        UsageError: no candidate holds train.csv or test.csv; the message lists what is there.
    """
    root, advice = input_root(), "give the folder that holds train.csv or test.csv."
    candidates = [where] if where is not None else [root / "competitions" / SLUG, root / SLUG]
    seen = candidates if where is not None else [root, *candidates]
    if where is None and not os.environ.get("KAGGLE_IS_COMPETITION_RERUN"):
        candidates = [*candidates, *find_inputs(_PHANTOM, root, depth=3)]
    for folder in candidates:
        paths = [folder / name for name in ("train.csv", "test.csv", "sample_submission.csv")]
        train, test, sample = (path if path.is_file() else None for path in paths)
        if train or test:
            return Competition(folder, train, test, sample)
    advice = advice.capitalize() if where is not None else f"Attach the competition '{SLUG}' to the kernel, or {advice}"
    raise UsageError(f"no competition found: {'; '.join(_contents(folder) for folder in seen)}. {advice}")


def find_inputs(marker: str, root: Path | None = None, depth: int = 4) -> list[Path]:
    """Folders at most `depth` levels below `root` that hold a file named `marker`, sorted.

    Image folders and folders of more than 1,000 entries are not entered.

    Args:
        marker: a file name such as `"metadata.json"`.
        root: where to start, the Kaggle input folder unless given.
        depth: 0 looks only at `root`; `datasets/<owner>/<slug>/<folder>` is 4.
    """
    root = root or input_root()
    below = [path for child in (_children(root) if depth else ()) for path in find_inputs(marker, child, depth - 1)]
    return sorted([root, *below] if (root / marker).is_file() else below)


def find_bundles(folder: Path) -> list[Path]:
    """Folders at or below `folder` that hold a bundle. A preset of Keras has files of the same names and is none."""
    found = []
    for path in find_inputs("metadata.json", folder):
        try:
            is_bundle = "image_fingerprint" in read_json(path / "metadata.json")
        except (OSError, ValueError, TypeError):
            is_bundle = (path / "threshold.json").is_file()  # damaged: whoever opens it says how
        if is_bundle:
            found.append(path)
    return found


def _below(folder: Path, depth: int) -> list[Path]:
    """The folders exactly `depth` levels below."""
    folders = [folder]
    for _ in range(depth):
        folders = [child for parent in folders for child in _children(parent)]
    return folders


def _children(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without image folders; none where there are too many entries."""
    children: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count >= _MOST_ENTRIES:
                    return []
                if entry.is_dir() and entry.name not in _IMAGE_FOLDERS.values():
                    children.append(Path(entry.path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:  # what cannot be listed is not empty
        if folder.name == "lost+found":
            return []
        raise UsageError(
            f"{folder} cannot be listed: {error.strerror}. Give yourself access, or move it away."
        ) from error
    return sorted(children)


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
