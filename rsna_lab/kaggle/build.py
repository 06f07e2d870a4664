"""A dataset's name → a folder that Kaggle can take: filled, searched for what must not travel, and listed.

The same commit and the same inputs give the same bytes and file times in any folder. A folder is whole or absent: it is
filled and checked beside its place, and takes the place of an earlier build at the very end. A build that fails leaves
that one as it was.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import RsnaKitError, UsageError
from rsna_kit.runtime.files import read_json, write_json
from rsna_kit.session.contents import CONTENTS, write_contents
from rsna_lab.kaggle import wheels
from rsna_lab.kaggle.metadata import DATASET_FILE, check_owner, file_problem, filled, read_metadata
from rsna_lab.kaggle.secrecy import known_secrets, secret_by_name, secret_in

PACKAGE = "rsna_kit"
_ALWAYS = (r"README\.md", r"dataset-metadata\.json")
_OLDEST = 315532800  # 1980-01-01, the first moment that a zip file can hold
_SHOWN = 5
_BUNDLES = (r"(?:[\w.-]+/){1,3}(?:model\.weights\.h5|(?:config|threshold|metadata)\.json)", r"ensemble\.json")


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


@dataclass(frozen=True)
class Job:
    """A build under way: of which checkout and commit, into which folder, of what, and who is told."""

    root: Path
    folder: Path
    wanted: Wanted
    commit: str
    say: Callable[[str], None]

    @property
    def source(self) -> Path:
        """The folder that --from names, or that of the dataset in the checkout."""
        return self.wanted.source or self.root / "datasets" / self.wanted.name


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
    kind = KINDS[wanted.name]
    if wanted.owner is not None:
        check_owner(wanted.owner)
    if wanted.source is not None and not wanted.source.is_dir():
        raise UsageError(f"--from {wanted.source}: no such folder. {wanted.name} is made of {kind.made_of}")
    inputs = [root / "datasets", root / PACKAGE, *([wanted.source] if wanted.source else [])]
    place = _check_place(out, wanted.name, inputs)
    commit, _, seconds = _git(root, "log", "-1", "--format=%H %ct").strip().partition(" ")
    words = ("status", "-z", "--porcelain", "--no-renames", "--untracked-files=all", "--")
    changes = _git(root, *words, f"datasets/{wanted.name}", *kind.paths).split("\0")
    dirty = [line[3:] for line in changes if line]
    shown = f"{commit or 'unknown'}{'-dirty' if dirty else ''}"
    time = max(int(os.environ.get("SOURCE_DATE_EPOCH") or seconds or _OLDEST), _OLDEST)
    temporary, old = (place.with_name(f"{place.name}.{end}-{os.getpid()}") for end in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _copy_plain(root / "datasets" / wanted.name, temporary)
        published = kind.fill(Job(root, temporary, wanted, shown, say)) or set()
        files = _check_files(temporary, (*_ALWAYS, *kind.files), published)
        if wanted.owner:
            metadata = temporary / DATASET_FILE
            write_json(metadata, filled(read_metadata(metadata), wanted.owner))
        said = {"dataset": wanted.name, "commit": commit or None, "dirty": dirty}
        content = write_contents(temporary, said, [name for name in files if name != DATASET_FILE])
        for path in [temporary, *temporary.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (time, time))
        if place.exists():
            place.rename(old)
        temporary.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = content["bytes"] / 1e6
    say(f"{out}: {len(content['files'])} files, {size:.1f} MB, of commit {shown}; nothing in it looks like a secret")
    if not commit:
        say(f"  no git here: {CONTENTS} cannot say which commit this is of")
    if dirty:
        more = ", …" if len(dirty) > _SHOWN else ""
        say(f"  NOT COMMITTED: {len(dirty)} files differ from the commit ({', '.join(dirty[:_SHOWN])}{more})")
    return {"out": str(out), **content}


def _git(root: Path, *words: str) -> str:
    """What git says of a folder that is the top of a checkout, "" where it is none.

    Raises:
        RsnaKitError: git fails, or is not there. An empty answer would be taken for "nothing is ignored".
    """
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        code, said = done.returncode, done.stderr.strip()
    except OSError as error:
        code, said = 1, str(error)
    if code != 0:
        raise RsnaKitError(
            f"{root} is a git checkout, and git {words[0]} fails, so nobody knows what git ignores and which commit "
            f"this is. Nothing was built. Git says:\n{said}"
        )
    return done.stdout


def _copy_plain(source: Path, target: Path) -> None:
    """Copy a folder as it is, links as links: whatever should not be in it is to be found and refused."""
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


def _check_place(out: Path, dataset: str, inputs: Iterable[Path]) -> Path:
    """Where a build goes, behind links: nothing but an earlier build of this dataset is lost there.

    What was built here is known by its contents.json, which is of the same dataset and lists every file there.
    """
    place = out.resolve()
    for path in inputs:
        read = path.resolve()
        if place.is_relative_to(read) or read.is_relative_to(place):
            raise UsageError(f"{out} and {path}, which is read, lie in one another. Name another folder with --out.")
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return place
    there = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_symlink() or not path.is_dir()}
    why = "" if place.is_dir() else "it is a file"
    try:
        content = {} if why else read_json(place / CONTENTS)
        if not why and content["dataset"] != dataset:
            why = f"it is the dataset {content['dataset']}"
        elif not why and (foreign := sorted(there - {CONTENTS, DATASET_FILE, *content["files"]})):
            why = f"its {CONTENTS} does not list {', '.join(foreign[:_SHOWN])}"
    except (OSError, ValueError, KeyError, TypeError):
        why = f"it has no {CONTENTS} of ours"
    if why:
        raise UsageError(
            f"{out} is there and was not built by scripts/build {dataset}: {why}. Name a new or empty folder with "
            "--out, or remove it."
        )
    return place


def _check_files(folder: Path, kinds: Sequence[str], published: set[str]) -> list[str]:
    """Refuse a folder with a file of no kind, or that should not travel; returns the relative paths, sorted.

    Files whose bytes are known to be what someone else published are not searched.
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


# ---- how each is filled; returned are the files whose bytes were compared with what was published


def _fill_library(job: Job) -> None:
    """The importable package, without modules that git ignores, and the licence."""
    listed = _git(job.root, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", PACKAGE)
    names = {path.relative_to(job.root).as_posix() for path in (job.root / PACKAGE).rglob("*.py")}
    for name in (*sorted(names - set(listed.split("\0"))), "LICENSE"):
        (job.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (job.folder / name).write_bytes((job.root / name).read_bytes())
    (job.folder / PACKAGE / "commit.txt").write_text(job.commit + "\n", encoding="utf-8")


def _fill_weights(job: Job) -> None:
    """Every bundle under the source after checking its checksums; or, where there is one, an ensemble as it is."""
    from rsna_kit.competition.paths import find_inputs
    from rsna_kit.models.bundle import open_bundle
    from rsna_kit.models.members import LIST, open_list

    if (job.source / LIST).is_file():
        for member in open_list(job.source).members:
            _copy_plain(member.bundle.path, job.folder / member.bundle.path.relative_to(job.source))
        shutil.copy(job.source / LIST, job.folder)
        if (job.source / DATASET_FILE).is_file():  # a dataset itself, such as the start: its licence goes with it
            shutil.copy(job.source / "README.md", job.folder)
            here, there = (read_metadata(folder / DATASET_FILE) for folder in (job.folder, job.source))
            write_json(job.folder / DATASET_FILE, here | {"licenses": there["licenses"]})
        return
    bundles = find_inputs("metadata.json", job.source)
    names = [path.name for path in bundles]
    if not bundles:
        what = KINDS[job.wanted.name].made_of
        raise RsnaKitError(f"no bundle (a folder with metadata.json) under {job.source}. Expected {what}")
    if len(set(names)) < len(names):
        raise RsnaKitError(f"bundles of one name under {job.source}: {', '.join(names)}. Rename one, or build twice.")
    for path in bundles:
        opened = open_bundle(path)
        job.say(f"  {path.name}: fold {opened.metadata['fold']}, made by commit {opened.metadata['commit']}")
        _copy_plain(path, job.folder / path.name)


def _fill_starts(job: Job) -> set[str]:
    """Every published weights file of keras.applications under the source after checking its checksum."""
    from rsna_kit.models.starts import published

    sums = {}
    for start in published(job.source):
        sums[start.path.name] = start.sha256
        shutil.copy(start.path, job.folder)
    if not sums:
        what = KINDS[job.wanted.name].made_of
        raise RsnaKitError(f"no published weights file under {job.source}. Expected {what}")
    wheels.write_sums(job.folder / wheels.SUMS, sums)
    return set(sums)


def _fill_wheels(job: Job) -> set[str]:
    """The wheels of the named packages, with the list of hashes that a kernel's pip compares them with."""
    return set(wheels.fill(job.root, job.folder, job.wanted.more, job.wanted.accept_hashes, job.say))


@dataclass(frozen=True)
class Kind:
    """A dataset.

    Attributes:
        fill: brings its files; returns those that are what someone else published.
        files: what it may hold, as regular expressions.
        paths: what of the checkout decides its bytes, beside its own folder.
        source: for --from, such a folder; "" for a dataset that is made of the checkout alone.
        made_of: what is in that folder, and where it comes from.
    """

    fill: Callable[[Job], set[str] | None]
    files: tuple[str, ...]
    paths: tuple[str, ...] = ()
    source: str = ""
    made_of: str = ""


KINDS: Mapping[str, Kind] = {
    "rsna-kit": Kind(
        _fill_library, (r"rsna_kit/(?:\w+/)*\w+\.py", r"rsna_kit/commit\.txt", "LICENSE"), (PACKAGE, "LICENSE")
    ),
    "rsna-wheels": Kind(_fill_wheels, (r"[^/]+\.whl", r"requirements\.txt", "SHA256SUMS"), ("constraints.txt",)),
    "rsna-weights": Kind(
        _fill_weights,
        _BUNDLES,
        source="runs/model/bundles",
        made_of="the bundles of a training, such as runs/model/bundles. They come from `rsna-kit train …`, or from "
        "Kaggle with `scripts/push fetch train`.",
    ),
    "mammography-start": Kind(_fill_weights, (*_BUNDLES, r"oof\.csv")),
    "imagenet-starts": Kind(
        _fill_starts,
        (r"[^/]+\.h5", "SHA256SUMS"),
        source="~/.keras/models",
        made_of="weights of keras.applications, such as ~/.keras/models. Where there is a network, this fills it: "
        'python -c "import keras; keras.applications.ConvNeXtTiny(include_top=False)"',
    ),
    "phantom": Kind(
        lambda job: _copy_plain(job.source, job.folder),
        (
            r"(?:hidden/)?(?:train|test|truth|sample_submission)\.csv",
            r"phantom\.json",
            r"(?:hidden/)?(?:train|test)_images/\d+/\d+\.dcm",
        ),
        source="runs/phantom",
        made_of="a synthetic competition, which `rsna-kit phantom runs/phantom` makes.",
    ),
}
