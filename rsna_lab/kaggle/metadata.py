"""A folder with kernel-metadata.json or dataset-metadata.json → what Kaggle would refuse, drop or misread in it.

Kaggle and its program ignore keys they do not know, turn the internet on where nothing is said, replace accelerators
that are gone, uploads one file of a kernel's folder and no sub-folder of a dataset's: all of it with exit code 0. So
everything is checked here first, and all problems are told at once. Nothing is sent and nothing is changed.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import RsnaKitError, UsageError, did_you_mean

KERNEL_FILE, DATASET_FILE = "kernel-metadata.json", "dataset-metadata.json"  # the program keeps these for itself
PLACEHOLDER = "OWNER"  # stands for the account's name in the repository's files
MOST_SOURCE_BYTES = 1_000_000  # Kaggle refuses a kernel whose source is larger
SOURCE_KEYS = ("dataset_sources", "competition_sources", "kernel_sources", "model_sources")
BOOLEANS = ("is_private", "enable_gpu", "enable_tpu", "enable_internet")
_NEEDED = ("id", "title", "code_file", "language", "kernel_type", *BOOLEANS)
_MORE = ("machine_shape", *SOURCE_KEYS, "docker_image", "docker_image_pinning_type")
DATASET_KEYS = ("id", "title", "subtitle", "licenses", "description")
SHAPES = ("NvidiaTeslaT4", "NvidiaL4", "NvidiaL4X1", "NvidiaTeslaA100", "NvidiaH100", "NvidiaRtxPro6000")
RETIRED = {"nvidiateslap100": "NvidiaTeslaT4"}  # in lower case → what Kaggle takes instead
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_REFERENCE = r"[\w-]+/(?=.{%d,})[a-z0-9]+(?:-[a-z0-9]+)*(/\d+)?"
# Key → the values that it may have.
_VALUES = {
    "language": ("python",),
    "kernel_type": ("script",),
    "docker_image_pinning_type": ("original", "latest"),
    **dict.fromkeys(BOOLEANS, ("true", "false")),
}
# Key → a source's form, and how that is said.
_FORMS = {
    "dataset_sources": (_REFERENCE % 1, f"{PLACEHOLDER}/slug or {PLACEHOLDER}/slug/version"),
    "kernel_sources": (_REFERENCE % 5, f"{PLACEHOLDER}/slug or {PLACEHOLDER}/slug/version"),
    "competition_sources": (r"[a-z0-9]+(?:-[a-z0-9]+)*", "the slug alone, such as rsna-breast-cancer-detection"),
    "model_sources": (r"(?:[^/]+/){4}\d+", "owner/model/framework/variation/version, the version a number"),
}
_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


class MetadataError(RsnaKitError):
    """A kernel or dataset folder that Kaggle would refuse or misread; lists every problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n  ".join(["not ready for Kaggle:", *problems]))
        self.problems = list(problems)


def slugify(title: str) -> str:
    """The address that Kaggle makes of a title.

    Example:
        >>> slugify("RSNA kit: infer")
        'rsna-kit-infer'
    """
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"(?<=\d),(?=\d)", "", plain)
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def is_true(value: Any, default: bool = False) -> bool:
    """A boolean of kernel-metadata.json: JSON's, or one of the words true and false in any case."""
    return default if value is None else str(value).strip().lower() == "true"


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON object in a metadata file.

    Raises:
        MetadataError: no such file, no JSON, no object, or a key that is there twice.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except FileNotFoundError:
        raise MetadataError([f"{path} is missing"]) from None
    except (ValueError, OSError) as error:
        raise MetadataError([f"{path}: {error}"]) from None
    if not isinstance(value, dict):
        raise MetadataError([f"{path}: got {type(value).__name__}, expected an object"])
    return value


def filled(value: Any, owner: str) -> Any:
    """The same metadata with the account's name where the repository's files say OWNER."""
    if isinstance(value, str):
        return owner + value.removeprefix(PLACEHOLDER) if f"{value}/".startswith(f"{PLACEHOLDER}/") else value
    if isinstance(value, list):
        return [filled(item, owner) for item in value]
    if isinstance(value, dict):
        return {key: filled(item, owner) for key, item in value.items()}
    return value


def check_owner(name: str) -> str:
    """An account's name as it was typed, returned as it is.

    Raises:
        UsageError: no name that an account can have.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == PLACEHOLDER:
        raise UsageError(f"--owner: got {name!r}, expected the name in the address of your Kaggle profile")
    return name


def check_folders(folders: Iterable[Path], public: bool = False) -> None:
    """Check kernels and datasets without asking Kaggle.

    Raises:
        MetadataError: with every problem of every folder.
        UsageError: a folder that is not there.
    """
    wrong = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder. Expected one in kernels/, datasets/ or build/datasets/")
        is_kernel = (folder / KERNEL_FILE).is_file()
        problems = kernel_problems(folder, public) if is_kernel else dataset_problems(folder)
        wrong += [f"{folder}: {problem}" for problem in problems]
    if wrong:
        raise MetadataError(wrong)


def kernel_problems(folder: Path, public: bool = False) -> list[str]:
    """What is wrong with a kernel's folder, in sentences; empty when all is well.

    Args:
        folder: holds kernel-metadata.json and the one file it names.
        public: whether the person asked for a kernel that everybody sees.
    """
    try:
        data = read_metadata(folder / KERNEL_FILE)
    except MetadataError as error:
        return error.problems
    problems = [*_unknown(data, (*_NEEDED, *_MORE), "Kaggle ignores it, and turns on the internet if nothing is said.")]
    problems += [f"{key} is missing: Kaggle would decide it by itself" for key in _NEEDED if key not in data]
    problems += _identity(data, shortest=5)
    for key, known in _VALUES.items():
        value = str(data.get(key)).strip().lower() if key in BOOLEANS else data.get(key)
        if key in data and value not in known:
            problems.append(f"{key}: got {data[key]!r}, expected {' or '.join(known)}.{did_you_mean(data[key], known)}")
    problems += [said for said, wrong in _rules(data, public).items() if wrong]
    for key, (form, said) in _FORMS.items():
        sources = data.get(key, [])
        if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
            problems.append(f"{key}: got {sources!r}, expected a list of names")
            continue
        problems += [f"{key}: {source!r} is there twice" for source in set(sources) if sources.count(source) > 1]
        problems += [f"{key}: got {source!r}, expected {said}" for source in sources if not re.fullmatch(form, source)]
    return [*problems, *_code(folder, data)]


def _rules(data: Mapping[str, Any], public: bool) -> dict[str, bool]:
    """What may be wrong with who sees a kernel, its accelerator and its image → whether it is."""
    shape, gpu = str(data.get("machine_shape") or ""), is_true(data.get("enable_gpu"))
    image, instead = data.get("docker_image"), RETIRED.get(shape.strip().lower())
    return {
        "is_private is false: everybody would see the code. Set it to true, or say --public": (
            not public and "is_private" in data and not is_true(data["is_private"])
        ),
        "enable_tpu is true: a session has one kind of accelerator, and this kit uses GPUs": is_true(
            data.get("enable_tpu")
        ),
        f"machine_shape: {shape} is retired, Kaggle would run the kernel on {instead} without a word": bool(instead),
        f"machine_shape: got {shape!r}, expected one of {', '.join(SHAPES)}.{did_you_mean(shape, SHAPES)}": (
            bool(shape) and not instead and shape not in SHAPES
        ),
        f"machine_shape is missing: say which accelerator, one of {', '.join(SHAPES)}": gpu and not shape,
        f"machine_shape is {shape}, but enable_gpu is {gpu}. Make them agree": shape in SHAPES and not gpu,
        f"docker_image: got {image!r}, expected NAME@sha256:DIGEST as `kaggle kernels pull -m` writes it": (
            bool(image) and not re.fullmatch(r"[\w./-]+@sha256:[0-9a-f]{64}", str(image))
        ),
        'docker_image is given: without "docker_image_pinning_type": "original" Kaggle may take a newer one': (
            bool(image) and data.get("docker_image_pinning_type") != "original"
        ),
    }


def dataset_problems(folder: Path) -> list[str]:
    """What is wrong with a folder that becomes a dataset, its files included; empty when all is well."""
    try:
        data = read_metadata(folder / DATASET_FILE)
    except MetadataError as error:
        return error.problems
    problems = [*_unknown(data, DATASET_KEYS, "Kaggle ignores it. A dataset is private unless --public is given.")]
    problems += [f"{key} is missing" for key in ("id", "title", "licenses") if key not in data]
    problems += _identity(data, shortest=6, longest=50)
    subtitle = data.get("subtitle")
    if subtitle is not None and (not isinstance(subtitle, str) or not 20 <= len(subtitle) <= 80):
        problems.append(f"subtitle: got {subtitle!r}, expected 20 to 80 characters")
    licences = data.get("licenses", [{"name": "MIT"}])
    names = [isinstance(one, dict) and bool(one.get("name")) for one in licences] if isinstance(licences, list) else []
    if names != [True]:
        problems.append(f'licenses: got {licences!r}, expected exactly one, such as [{{"name": "MIT"}}]')
    if not any(entry.name != DATASET_FILE for entry in folder.iterdir()):
        problems.append("the folder holds nothing but its metadata. Build it first: scripts/build")
    for path in sorted(folder.rglob("*")):
        if problem := file_problem(folder, path):
            problems.append(f"{path.relative_to(folder).as_posix()}: {problem}")
    return problems


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"{', '.join(twice)} is there twice")
    return dict(pairs)


def _unknown(data: Mapping[str, Any], known: Sequence[str], consequence: str) -> Iterator[str]:
    for key in data:
        if key not in known:
            yield f"unknown key {key!r}.{did_you_mean(key, known)} {consequence}"


def _identity(data: Mapping[str, Any], shortest: int, longest: int | None = None) -> Iterator[str]:
    """`id` is OWNER/slug, and the title must lead to the same slug: Kaggle uses the title's for a new kernel."""
    identity, title = data.get("id"), data.get("title")
    owner, _, slug = str(identity).partition("/")
    limits = f"{shortest} to {longest} characters" if longest else f"at least {shortest} characters"
    if identity is not None and (not owner or not _SLUG.fullmatch(slug)):
        yield f"id: got {identity!r}, expected {PLACEHOLDER}/slug, the slug of a-z, 0-9 and single hyphens"
    elif identity is not None and (len(slug) < shortest or len(slug) > (longest or len(slug))):
        yield f"id: the slug {slug!r} has {len(slug)} characters, expected {limits}"
    if title is None:
        return
    if not isinstance(title, str) or len(title) < shortest or len(title) > (longest or len(title)):
        yield f"title: got {title!r}, expected {limits}"
    elif longest is None and identity is not None and slugify(title) != slug:
        yield (
            f"title: Kaggle makes the address {slugify(title)!r} of {title!r}, but id says {slug!r}; a new kernel "
            "would be pushed there and not be found again. Make them agree"
        )


def _code(folder: Path, data: Mapping[str, Any]) -> Iterator[str]:
    """The one file that is uploaded: there, small enough, and able to stand alone."""
    name = data.get("code_file")
    if not isinstance(name, str) or not name:
        return
    path = folder / name
    if path.is_symlink() or not path.is_file() or Path(name).name != name:
        yield f"code_file: {name!r} is no file directly in this folder"
        return
    if (size := path.stat().st_size) > MOST_SOURCE_BYTES:
        yield f"{name} has {size:,} bytes, Kaggle takes at most {MOST_SOURCE_BYTES:,}. Move code or data to a dataset"
    try:
        text = path.read_text(encoding="utf-8")
        names: set[str] = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        neighbours = {entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or entry.is_dir()}
        if found := sorted(names & (neighbours - {path.stem})):
            yield f"{name} imports {', '.join(found)} from this folder, but only {name} itself is uploaded"
    except (SyntaxError, ValueError) as error:
        yield f"{name} cannot be read: {error}"


def file_problem(folder: Path, path: Path) -> str | None:
    """Why a file or folder of a dataset would not arrive, would arrive as something else, or has no business in it."""
    if path.is_symlink():
        return "a link: what it points to would travel. Copy it, or leave it out"
    if path.name.startswith(".") or path.name == "__pycache__":
        return "hidden files and caches have no business in a dataset. Delete it"
    if re.search(r'[\x00-\x1f\\@:*?"<>|]', path.name):
        return "Kaggle refuses this file name. Keep to letters, digits, space and ._-+()=,"
    if path.is_file() and path.name.lower().endswith(_ARCHIVES):
        return f"Kaggle unpacks archives, so the file would be gone. Unpack it, or name it {path.name}.blob"
    if path.parent == folder and path.name in (KERNEL_FILE, "datapackage.json"):
        return "the kaggle program keeps this name for itself and does not upload it"
    return None
