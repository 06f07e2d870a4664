"""A kernel's folder, and the folders that stand for its sources → what Kaggle mounts below /kaggle/input, and where.

source                     new layout (pushed through the API)            old layout
competition                competitions/<slug>                            <slug>
dataset                    datasets/<owner>/<slug>                        <slug>
output of a kernel         notebooks/<owner>/<slug>                       <slug>
model, framework lower     models/<owner>/<model>/<framework>/            <model>/<framework>/<variation>/<version>
                           <variation>/<version>
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import UsageError, did_you_mean
from rsna_lab.kaggle.metadata import KERNEL_FILE, SOURCE_KEYS, is_true, read_metadata

LAYOUTS = ("new", "old")
TEST_FILES = ("test.csv", "sample_submission.csv", "test_images")  # what the scoring run exchanges
# In a competition folder here and never in Kaggle's: the host's knowledge, and the phantom's notes on itself.
_HOST_ONLY = {"truth.csv", "hidden", "phantom.json"}


@dataclass(frozen=True)
class Source:
    """One line of a kernel's metadata. `slug` is what a person calls it, `where` its place below /kaggle/input."""

    kind: str
    reference: str
    slug: str
    where: str


@dataclass(frozen=True)
class Kernel:
    """A kernel as Kaggle will get it: its metadata and one script."""

    folder: Path
    metadata: Mapping[str, Any]

    @property
    def script(self) -> Path:
        """The one file that is uploaded."""
        return self.folder / str(self.metadata["code_file"])

    @property
    def gpu(self) -> bool:
        """Whether it asks for a GPU."""
        return is_true(self.metadata.get("enable_gpu"))

    @property
    def internet(self) -> bool:
        """Whether Kaggle will give it the network, which it does where the metadata are silent."""
        return is_true(self.metadata.get("enable_internet"), default=True)

    def sources(self, layout: str = "new") -> list[Source]:
        """Everything that is attached, in the metadata's order."""
        return [
            _source(key.removesuffix("_sources"), str(reference), layout)
            for key in SOURCE_KEYS
            for reference in self.metadata.get(key) or ()
        ]


def read_kernel(folder: Path) -> Kernel:
    """Read `kernel-metadata.json` and see that there is a script to run.

    Raises:
        MetadataError: what `read_metadata` cannot read.
        UsageError: no metadata, no script, or a kernel that is no Python script.
    """
    path = folder / KERNEL_FILE
    if not path.is_file():
        raise UsageError(f"{path}: no such file. Give a kernel's folder, e.g. kernels/infer.")
    metadata = read_metadata(path)
    if not isinstance(metadata.get("code_file"), str):
        raise UsageError(f"{path}: no code_file, expected the name of the kernel's script. Add it.")
    kernel = Kernel(folder, metadata)
    if not kernel.script.is_file():
        raise UsageError(f"{path}: code_file is {metadata['code_file']!r}, and {kernel.script} is no file. Correct it.")
    if kernel.script.suffix != ".py" or metadata.get("kernel_type", "script") != "script":
        raise UsageError(
            f"{kernel.script}: a notebook goes through papermill at Kaggle, which is not rehearsed here; expected a "
            "Python script. Make one: jupyter nbconvert --to script FILE, and set kernel_type to script."
        )
    return kernel


def find_mounts(
    kernel: Kernel, layout: str, given: Mapping[str, Path], competition: Mapping[str, Path] | None
) -> tuple[dict[str, Path], list[Source]]:
    """Where each source of the kernel appears below /kaggle/input, and the folder here that stands for it.

    Args:
        kernel: its metadata say what is attached.
        layout: one of LAYOUTS.
        given: slug (or whole reference) of a dataset, a kernel or a model → folder.
        competition: name → file or folder in the competition (`competition_files`), None when none is given.

    Returns:
        Path below /kaggle/input → file or folder here; and the sources that nothing was given for.

    Raises:
        UsageError: a folder for something that is not attached; a competition is attached and none is given.
    """
    found: dict[str, Path] = {}
    absent: list[Source] = []
    used = set[str]()
    for source in kernel.sources(layout):
        name = next((name for name in (source.reference, source.slug) if name in given and name not in used), None)
        if source.kind == "competition" and competition is None:
            raise UsageError(f"{kernel.folder} reads the competition {source.slug}: give its folder, --competition DIR")
        if source.kind == "competition":
            found |= {f"{source.where}/{entry}": path for entry, path in (competition or {}).items()}
        elif name:
            used.add(name)
            found[source.where] = given[name].resolve()
        else:
            absent.append(source)
    if left := given.keys() - used:
        known = [source.slug for source in kernel.sources()]
        raise UsageError(
            f"{kernel.folder / KERNEL_FILE} does not attach {', '.join(left)}, only {', '.join(known) or 'nothing'}."
            + "".join(did_you_mean(name, known) for name in left)
        )
    return found, absent


def competition_files(folder: Path, hidden: Path | None = None) -> dict[str, Path]:
    """What the competition's mount holds; with `hidden`, the scoring run's: its test files in the place of the others.

    Raises:
        UsageError: a folder that is none.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder, expected one that stands for the competition")
    files = {path.name: path.resolve() for path in sorted(folder.iterdir()) if path.name not in _HOST_ONLY}
    return files if hidden is None else files | {name: (hidden / name).resolve() for name in TEST_FILES}


def read_given(pairs: Iterable[str]) -> dict[str, Path]:
    """`SLUG=FOLDER` strings as a mapping.

    Raises:
        UsageError: a pair without "=", a slug that is given twice, or a folder that is none.
    """
    given: dict[str, Path] = {}
    for pair in pairs:
        slug, equals, folder = pair.partition("=")
        if not equals or not slug or not Path(folder).is_dir():
            raise UsageError(f"--dataset {pair}: expected SLUG=FOLDER, and {folder or 'FOLDER'} to be a folder")
        if slug in given:
            raise UsageError(f"--dataset {pair}: {slug} is given twice. Give it once.")
        given[slug] = Path(folder)
    return given


def _source(kind: str, reference: str, layout: str) -> Source:
    """Where Kaggle mounts one reference.

    Raises:
        UsageError: a reference of another form than Kaggle's.
    """
    parts, new = reference.split("/"), layout == "new"
    if kind == "competition":
        return Source(kind, reference, reference, f"competitions/{reference}" if new else reference)
    if len(parts) not in ((5,) if kind == "model" else (2, 3)):
        form = "owner/model/framework/variation/version" if kind == "model" else "owner/slug or owner/slug/version"
        raise UsageError(f"{kind}_sources: got {reference!r}, expected {form}")
    owner, slug, *more = parts
    where = "/".join([slug, more[0].lower(), *more[1:]]) if kind == "model" else slug
    place = {"model": "models", "dataset": "datasets", "kernel": "notebooks"}[kind]
    return Source(kind, reference, slug, f"{place}/{owner.lower()}/{where}" if new else where)
