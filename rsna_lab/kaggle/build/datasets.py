"""A dataset's name → a folder that Kaggle can take: filled, searched for what must not travel, and listed.

The same commit and the same inputs give the same bytes and file times in any folder. A folder is whole or absent: it is
filled and checked beside its place, and takes the place of an earlier build at the very end. A build that fails leaves
that one as it was.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import RsnaKitError, UsageError
from rsna_kit.runtime.files import read_json, write_json
from rsna_kit.session.contents import CONTENTS, write_contents
from rsna_lab.kaggle.build.package import PACKAGE, SOURCES, State, read_state, write_library
from rsna_lab.kaggle.metadata import DATASET_FILE, check_owner, file_problem, filled, read_metadata
from rsna_lab.kaggle.secrecy import known_secrets, secret_by_name, secret_in

_SHOWN = 5
_ALWAYS = (r"README\.md", r"dataset-metadata\.json")
_BUNDLE = r"model\.weights\.h5|config\.json|threshold\.json|metadata\.json"
# What each dataset may hold.
KINDS: Mapping[str, tuple[str, ...]] = {
    "rsna-kit": (r"rsna_kit/(?:\w+/)*\w+\.py", r"rsna_kit/commit\.txt", "LICENSE"),
    "rsna-wheels": (r"[^/]+\.whl", r"requirements\.txt", "SHA256SUMS"),
    "rsna-weights": (rf"(?:[\w.-]+/){{1,3}}(?:{_BUNDLE})", r"ensemble\.json"),
    "imagenet-starts": (r"[^/]+\.h5", "SHA256SUMS"),
    "phantom": (
        r"(?:hidden/)?(?:train|test|truth|sample_submission)\.csv",
        r"phantom\.json",
        r"(?:hidden/)?(?:train|test)_images/\d+/\d+\.dcm",
    ),
}

# Datasets that are made of a folder which a person names: one such folder, and where what is in it comes from.
FROM: Mapping[str, str] = {
    "rsna-weights": "runs/model/bundles",
    "imagenet-starts": "~/.keras/models",
    "phantom": "runs/phantom",
}
MADE_OF: Mapping[str, str] = {
    "rsna-weights": f"the bundles of a training, such as {FROM['rsna-weights']}. They come from `rsna-kit train …`, or "
    "from Kaggle with `scripts/push fetch train`.",
    "imagenet-starts": f"weights of keras.applications, such as {FROM['imagenet-starts']}. Where there is a network, "
    'this fills it: python -c "import keras; keras.applications.ConvNeXtTiny(include_top=False)"',
    "phantom": f"a synthetic competition, which `rsna-kit phantom {FROM['phantom']}` makes.",
}

# What of the checkout decides a dataset's bytes, beside its own folder.
_SOURCES = {"rsna-kit": SOURCES, "rsna-wheels": ("constraints.txt",)}


@dataclass(frozen=True)
class Wanted:
    """What a person asks for.

    Attributes:
        name: of the dataset.
        source: folder of bundles, of ImageNet weights, or a phantom.
        more: further requirement lists for rsna-wheels: "dali", "runtimes".
        accept_hashes: whether the wheels that are downloaded now become the only ones that may be.
        owner: account to write into the metadata in the place of OWNER.
    """

    name: str
    source: Path | None = None
    more: Sequence[str] = ()
    accept_hashes: bool = False
    owner: str | None = None


def build(root: Path, wanted: Wanted, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Build one dataset folder.

    Args:
        root: the checkout.
        wanted: which, and of what.
        out: its place, or a link to it. An earlier build that is there is replaced.
        say: told what is done and what came of it.

    Returns:
        What contents.json says, and the place.

    Raises:
        UsageError: an owner that cannot be, a source that is not there, or an `out` that is one of the inputs or was
            not built here.
        RsnaKitError: something that must not travel, damaged inputs, conflicts among wheels; `out` is as it was.
    """
    if wanted.owner is not None:
        check_owner(wanted.owner)
    if wanted.source is not None and not wanted.source.is_dir():
        raise UsageError(f"--from {wanted.source}: no such folder. {wanted.name} is made of {MADE_OF[wanted.name]}")
    inputs = [root / "datasets", root / PACKAGE, *([wanted.source] if wanted.source else [])]
    place = _check_place(out, wanted.name, inputs)
    state = read_state(root, (f"datasets/{wanted.name}", *_SOURCES.get(wanted.name, ())))
    temporary = place.with_name(f"{place.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _copy_plain(root / "datasets" / wanted.name, temporary)
        published = _FILL[wanted.name](root, temporary, wanted, state, say)
        files = _check_files(temporary, (*_ALWAYS, *KINDS[wanted.name]), published)
        if wanted.owner:
            metadata = temporary / DATASET_FILE
            write_json(metadata, filled(read_metadata(metadata), wanted.owner))
        said = {"dataset": wanted.name, "commit": state.commit, "dirty": list(state.dirty)}
        content = write_contents(temporary, said, [name for name in files if name != DATASET_FILE])
        for path in [temporary, *temporary.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (state.epoch, state.epoch))
        old = place.with_name(f"{place.name}.old-{os.getpid()}")
        if place.exists():
            place.rename(old)
        temporary.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _tell(out, content, state, say)
    return {"out": str(out), **content}


def _tell(out: Path, content: Mapping[str, Any], state: State, say: Callable[[str], None]) -> None:
    files = content["files"]
    size = content["bytes"]
    say(f"{out}: {len(files)} files, {size / 1e6:.1f} MB, of commit {state.name}; nothing in it looks like a secret")
    for name in sorted(files, key=lambda name: -int(files[name]["bytes"]))[:_SHOWN]:
        say(f"  {files[name]['bytes'] / 1e6:8.2f} MB  {name}")
    if state.commit is None:
        say("  no git here: contents.json cannot say which commit this is of")
    if state.dirty:
        shown = ", ".join(state.dirty[:_SHOWN]) + (", …" if len(state.dirty) > _SHOWN else "")
        say(f"  NOT COMMITTED: {len(state.dirty)} files differ from the commit ({shown}); contents.json says so")


def _copy_plain(source: Path, target: Path) -> None:
    """Copy a folder as it is, links as links: whatever should not be in it is to be found and refused."""
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


def _check_place(out: Path, dataset: str, inputs: Iterable[Path]) -> Path:
    """Where a build goes, behind links: nothing but an earlier build of this dataset is lost there.

    Every dataset on Kaggle has a dataset-metadata.json, a person's own as well. What was built here is known by its
    contents.json, which is of the same dataset and lists every file that is there.
    """
    place = out.resolve()
    for path in inputs:
        read = path.resolve()
        if place.is_relative_to(read) or read.is_relative_to(place):
            raise UsageError(f"{out} and {path}, which is read, lie in one another. Name another folder with --out.")
    if not place.exists():
        return place
    there = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_symlink() or not path.is_dir()}
    why = ""
    try:
        content = read_json(place / CONTENTS) if there else {"dataset": dataset, "files": []}
        if content["dataset"] != dataset:
            why = f"it is the dataset {content['dataset']}"
        elif foreign := sorted(there - {CONTENTS, DATASET_FILE, *content["files"]}):
            why = f"its {CONTENTS} does not list {', '.join(foreign[:_SHOWN])}"
    except (OSError, ValueError, KeyError, TypeError):
        why = f"it has no {CONTENTS} of ours"
    if why or not place.is_dir():
        raise UsageError(
            f"{out} is there and was not built by scripts/build {dataset}: {why or 'it is a file'}. Name a new or "
            "empty folder with --out, or remove it."
        )
    return place


def _check_files(folder: Path, kinds: Sequence[str], published: Collection[str]) -> list[str]:
    """Refuse a folder with anything in it that should not travel; returns the relative paths of its files, sorted.

    Args:
        folder: what would be uploaded.
        kinds: regular expressions; the path of every file must match one whole.
        published: files whose bytes are known to be what someone else published; they are not searched.
    """
    known, refused, files = known_secrets(os.environ), [], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        reason = file_problem(folder, path)
        if path.is_file() and not path.is_symlink():
            files.append(name)
            reason = secret_by_name(path) or reason
            if not any(re.fullmatch(kind, name) for kind in kinds):
                reason = reason or "no kind of file that this dataset holds"
            if name not in published:
                reason = reason or secret_in(path, known)
        refused += [f"{name}: {reason}"] if reason else []
    if refused:
        raise RsnaKitError(
            "this must not travel:\n  " + "\n  ".join(refused) + "\nRemove it where it comes from. A secret that "
            "others could read there has to be renewed as well."
        )
    return files


def _fill_library(root: Path, folder: Path, wanted: Wanted, state: State, say: Callable[[str], None]) -> set[str]:
    write_library(root, folder, state)
    return set()


def _fill_weights(root: Path, folder: Path, wanted: Wanted, state: State, say: Callable[[str], None]) -> set[str]:
    """Every bundle under the source after checking its checksums; or, where there is one, an ensemble as it is."""
    from rsna_kit.competition.paths import find_inputs
    from rsna_kit.models.bundle import open_bundle
    from rsna_kit.models.members import LIST, open_list

    source = wanted.source
    assert source is not None
    if (source / LIST).is_file():
        for member in open_list(source).members:
            _copy_plain(member.bundle.path, folder / member.bundle.path.relative_to(source))
        shutil.copy(source / LIST, folder)
        return set()
    bundles = find_inputs("metadata.json", source)
    if not bundles:
        raise RsnaKitError(f"no bundle (a folder with metadata.json) under {source}. Expected {MADE_OF[wanted.name]}")
    names = [path.name for path in bundles]
    if len(set(names)) < len(names):
        raise RsnaKitError(f"two bundles of one name under {source}: {', '.join(names)}. Rename one, or build twice.")
    for path in bundles:
        opened = open_bundle(path)
        say(f"  {path.name}: fold {opened.metadata['fold']}, made by commit {opened.metadata['commit']}")
        _copy_plain(path, folder / path.name)
    return set()


def _fill_starts(root: Path, folder: Path, wanted: Wanted, state: State, say: Callable[[str], None]) -> set[str]:
    """Every published weights file of keras.applications under the source after checking its checksum."""
    from rsna_kit.models.starts import published
    from rsna_lab.kaggle.build.wheelhouse import SUMS, write_sums

    source = wanted.source
    assert source is not None
    sums = {}
    for start in published(source):
        sums[start.path.name] = start.sha256
        shutil.copy(start.path, folder)
    if not sums:
        raise RsnaKitError(f"no published weights file under {source}. Expected {MADE_OF[wanted.name]}")
    write_sums(folder / SUMS, sums)
    return set(sums)


def _fill_wheels(root: Path, folder: Path, wanted: Wanted, state: State, say: Callable[[str], None]) -> set[str]:
    """The wheels of the named packages, with the list of hashes that a kernel's pip compares them with."""
    from rsna_lab.kaggle.build.wheelhouse import (
        SUMS,
        check_wheels,
        download,
        pinned,
        read_sums,
        updated_sums,
        write_sums,
    )

    lists = ["requirements.txt", *(f"requirements-{name}.txt" for name in wanted.more)]
    names = [line for name in lists for line in (folder / name).read_text(encoding="utf-8").split()]
    home = root / "datasets" / wanted.name
    for path in [*folder.glob("requirements*.txt"), folder / SUMS, folder / "image.json"]:
        path.unlink(missing_ok=True)
    download(names, root / "constraints.txt", folder)
    wheels, admitted = sorted(folder.glob("*.whl")), read_sums(home / SUMS)
    if wanted.accept_hashes:
        admitted = updated_sums(admitted, wheels)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = {project["name"]: project["dependencies"]}
    sums = check_wheels(wheels, admitted, home / "image.json", needs)
    if wanted.accept_hashes:
        write_sums(home / SUMS, admitted)
        say(f"  {home / SUMS}: now lists what was downloaded; look at the change before you commit it")
    write_sums(folder / SUMS, sums)
    (folder / "requirements.txt").write_text(pinned(sums), encoding="utf-8")
    return set(sums)


def _fill_phantom(root: Path, folder: Path, wanted: Wanted, state: State, say: Callable[[str], None]) -> set[str]:
    assert wanted.source is not None
    _copy_plain(wanted.source, folder)
    return set()


# Each fills a folder and names the files whose bytes it has compared with what was published.
_FILL: Mapping[str, Callable[[Path, Path, Wanted, State, Callable[[str], None]], set[str]]] = {
    "rsna-kit": _fill_library,
    "rsna-weights": _fill_weights,
    "imagenet-starts": _fill_starts,
    "rsna-wheels": _fill_wheels,
    "phantom": _fill_phantom,
}
