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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import RsnaKitError, UsageError, did_you_mean

KERNEL_FILE, DATASET_FILE = "kernel-metadata.json", "dataset-metadata.json"
MODEL_FILE, VARIATION_FILE = "model-metadata.json", "model-instance-metadata.json"
NOT_UPLOADED = (KERNEL_FILE, DATASET_FILE, MODEL_FILE, VARIATION_FILE)  # names the program keeps for itself
PLACEHOLDER = "OWNER"  # stands for the account's name in the repository's files
MOST_SOURCE_BYTES = 1_000_000  # Kaggle refuses a kernel whose source is larger
SOURCE_KEYS = ("dataset_sources", "competition_sources", "kernel_sources", "model_sources")
BOOLEANS = ("is_private", "enable_gpu", "enable_tpu", "enable_internet")
KERNEL_KEYS = ("id", "title", "code_file", "language", "kernel_type", *BOOLEANS, "machine_shape", *SOURCE_KEYS,
               "keywords", "docker_image", "docker_image_pinning_type")  # fmt: skip
DATASET_KEYS = ("id", "title", "subtitle", "licenses", "description", "keywords")
SHAPES = ("NvidiaTeslaT4", "NvidiaL4", "NvidiaL4X1", "NvidiaTeslaA100", "NvidiaH100", "NvidiaRtxPro6000", "TpuV5E8",
          "TpuV6E8")  # fmt: skip
RETIRED = {"nvidiateslap100": "NvidiaTeslaT4", "tpuv38": "TpuV5E8", "tpu1vmv38": "TpuV5E8", "tpuv232": "a plain CPU",
           "tpuv2256": "a plain CPU"}  # fmt: skip
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_PREFIXES = {"dataset_sources": ("datasets/",), "kernel_sources": ("code/", "kernels/", "notebooks/"),
             "competition_sources": ("c/", "competitions/"), "model_sources": ("models/", "m/")}  # fmt: skip
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
    problems = [*_unknown(data, KERNEL_KEYS, "Kaggle ignores it, and turns the internet on where nothing is said.")]
    missing = [key for key in ("id", "title", "code_file", "language", "kernel_type", *BOOLEANS) if key not in data]
    problems += [f"{key} is missing: {_why_needed(key)}" for key in missing]
    problems += _identity(data, shortest=5)
    problems += _choice(data, "language", ("python", "r", "rmarkdown"))
    problems += _choice(data, "kernel_type", ("script", "notebook"))
    problems += _choice(data, "docker_image_pinning_type", ("original", "latest"))
    for key in BOOLEANS:
        if key in data and str(data[key]).strip().lower() not in ("true", "false"):
            problems.append(f"{key}: got {data[key]!r}, expected true or false")
    if not public and "is_private" in data and not is_true(data["is_private"]):
        problems.append("is_private is false: everybody would see the code. Set it to true, or say --public")
    problems += [*_accelerator(data), *_image(data)]
    for key in SOURCE_KEYS:
        problems += _sources(key, data.get(key, []))
    return [*problems, *_code(folder, data)]


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
    licences = data.get("licenses")
    if licences is not None and not _one_licence(licences):
        problems.append(f'licenses: got {licences!r}, expected exactly one, such as [{{"name": "MIT"}}]')
    if not any(entry.name != DATASET_FILE for entry in folder.iterdir()):
        problems.append("the folder holds nothing but its metadata. Build it first: scripts/build")
    return [*problems, *(problem for path in sorted(folder.rglob("*")) for problem in _file(folder, path))]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"{', '.join(twice)} is there twice")
    return dict(pairs)


def _unknown(data: Mapping[str, Any], known: Sequence[str], consequence: str) -> Iterator[str]:
    for key in data:
        if key not in known:
            yield f"unknown key {key!r}.{did_you_mean(key, known)} {consequence}"


def _why_needed(key: str) -> str:
    return {
        "enable_internet": "Kaggle turns the internet on where nothing is said, and code competitions forbid it",
        "is_private": "say true, so that nobody has to know Kaggle's default",
        "enable_gpu": "say true or false, so that no quota is spent by accident",
        "enable_tpu": "say true or false, so that no quota is spent by accident",
    }.get(key, "Kaggle needs it")


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
        yield (f"title: Kaggle makes the address {slugify(title)!r} of {title!r}, but id says {slug!r}; a new kernel "
               "would be pushed there and not be found again. Make them agree")  # fmt: skip


def _choice(data: Mapping[str, Any], key: str, known: Sequence[str]) -> Iterator[str]:
    if key in data and data[key] not in known:
        yield f"{key}: got {data[key]!r}, expected {' or '.join(known)}.{did_you_mean(str(data[key]), known)}"


def _accelerator(data: Mapping[str, Any]) -> Iterator[str]:
    shape, gpu, tpu = data.get("machine_shape") or "", is_true(data.get("enable_gpu")), is_true(data.get("enable_tpu"))
    if gpu and tpu:
        yield "enable_gpu and enable_tpu are both true: a session has one of them"
    if not shape:
        if gpu or tpu:
            yield f"machine_shape is missing: say which accelerator, one of {', '.join(SHAPES)}"
        return
    if problem := shape_problem(str(shape)):
        yield problem
    elif str(shape).startswith("Nvidia") != gpu or str(shape).startswith("Tpu") != tpu:
        yield f"machine_shape is {shape}, but enable_gpu is {gpu} and enable_tpu is {tpu}. Make them agree"


def shape_problem(shape: str) -> str | None:
    """Why an accelerator's name would not give that accelerator; None when it would."""
    if instead := RETIRED.get(shape.strip().lower()):
        return f"machine_shape: {shape} is retired, Kaggle would run the kernel on {instead} without a word"
    if shape not in SHAPES:
        return f"machine_shape: got {shape!r}, expected one of {', '.join(SHAPES)}.{did_you_mean(shape, SHAPES)}"
    return None


def _image(data: Mapping[str, Any]) -> Iterator[str]:
    image = data.get("docker_image")
    if not image:
        return
    if not re.fullmatch(r"[\w./-]+@sha256:[0-9a-f]{64}", str(image)):
        yield f"docker_image: got {image!r}, expected NAME@sha256:DIGEST as `kaggle kernels pull -m` writes it"
    if data.get("docker_image_pinning_type") != "original":
        yield 'docker_image is given: without "docker_image_pinning_type": "original" Kaggle may take a newer one'


def _sources(key: str, sources: Any) -> Iterator[str]:
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        yield f"{key}: got {sources!r}, expected a list of names"
        return
    for source in sources:
        prefix = next((prefix for prefix in _PREFIXES[key] if source.startswith(prefix)), "")
        parts = source.removeprefix(prefix).split("/")
        if prefix and len(parts) < 6:
            yield f"{key}: {source!r}: leave out {prefix!r}, Kaggle would not find it"
        elif sources.count(source) > 1:
            yield f"{key}: {source!r} is there twice"
        elif key == "model_sources" and (len(parts) != 5 or not all(parts) or not parts[-1].isdigit()):
            yield f"{key}: got {source!r}, expected owner/model/framework/variation/version, the version a number"
        elif key == "competition_sources" and not _SLUG.fullmatch(source):
            yield f"{key}: got {source!r}, expected the slug alone, such as rsna-breast-cancer-detection"
        elif key in ("dataset_sources", "kernel_sources") and not _is_reference(parts, key):
            yield f"{key}: got {source!r}, expected {PLACEHOLDER}/slug or {PLACEHOLDER}/slug/version"


def _is_reference(parts: Sequence[str], key: str) -> bool:
    slug_fits = len(parts) in (2, 3) and bool(parts[0]) and bool(_SLUG.fullmatch(parts[1]))
    return slug_fits and all(part.isdigit() for part in parts[2:]) and (key != "kernel_sources" or len(parts[1]) >= 5)


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
        if data.get("kernel_type") == "notebook":
            if not json.loads(text).get("metadata", {}).get("kernelspec", {}).get("name"):
                yield f"{name}: no metadata.kernelspec.name, so Kaggle could not start it. Save it once with Jupyter"
        elif data.get("language") == "python":
            neighbours = {entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or entry.is_dir()}
            if found := sorted(_imported(text) & (neighbours - {path.stem})):
                yield f"{name} imports {', '.join(found)} from this folder, but only {name} itself is uploaded"
    except (SyntaxError, ValueError, AttributeError) as error:
        yield f"{name} cannot be read: {error}"


def _imported(text: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return names


def _one_licence(licences: Any) -> bool:
    one = isinstance(licences, list) and len(licences) == 1 and isinstance(licences[0], dict)
    return one and isinstance(licences[0].get("name"), str) and bool(licences[0]["name"])


def _file(folder: Path, path: Path) -> Iterator[str]:
    """Files that would not arrive, would arrive as something else, or have no business in a dataset."""
    name = path.relative_to(folder).as_posix()
    if path.is_symlink():
        yield f"{name} is a link: what it points to would be uploaded. Copy it, or leave it out"
    elif path.name.startswith(".") or path.name == "__pycache__":
        yield f"{name}: hidden files and caches have no business in a dataset. Delete it"
    elif re.search(r'[\x00-\x1f\\@:*?"<>|]', path.name):
        yield f"{name}: Kaggle refuses this file name. Keep to letters, digits, space and ._-+()=,"
    elif path.is_file() and path.name.lower().endswith(_ARCHIVES):
        yield f"{name}: Kaggle unpacks archives, so the file would be gone. Unpack it, or name it {path.name}.blob"
    elif path.parent == folder and path.name in (KERNEL_FILE, "datapackage.json"):
        yield f"{name}: the kaggle program keeps this name for itself and does not upload it"
