"""What Kaggle's interpreter can install from a folder of wheels, and what would not hold there. Nothing is run.

A wheel says in its name for which interpreter, ABI and platform it was built. Kaggle's image has Python 3.12 on
Ubuntu 22.04 (glibc 2.35, x86-64), so cp312, abi3 and py3 fit, with manylinux up to 2_35, linux or any. A dataset may
hold wheels for other interpreters as well, as long as each of its packages has one that fits.

Kernels install with --no-deps, so that nothing of the image is replaced: what pip would otherwise find out has to be
found out before. A package that the image has is never installed, so its version there is the one that counts.
"""

from __future__ import annotations

import email
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.files import read_json

Python = tuple[int, int]
KAGGLE_PYTHON: Python = (3, 12)


@dataclass(frozen=True)
class Image:
    """Packages of Kaggle's image; the version is None where nobody says which it is.

    `tolerated` names requirements (`package: requirement`) that do not hold and do no harm.
    """

    python: Python
    packages: Mapping[str, str | None]
    tolerated: frozenset[str]


def read_image(path: Path, python: Python) -> Image:
    """The image as `datasets/rsna-wheels/image.json` has it."""
    content = read_json(path)
    packages = content["packages"] | content.get(f"{python[0]}.{python[1]}", {})
    return Image(python, packages, frozenset(content["tolerated"]))


@cache
def _kaggle_tags(python: Python) -> frozenset[Tag]:
    """Every tag that pip accepts inside Kaggle's image, with this Python."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(35, 4, -1)]
    platforms += [f"{name}_x86_64" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    interpreter = f"cp{python[0]}{python[1]}"
    own = cpython_tags(python, [interpreter], platforms)
    return frozenset([*own, *compatible_tags(python, interpreter, platforms)])


def fits(wheel: str, python: Python = KAGGLE_PYTHON) -> bool:
    """Whether Kaggle's pip would take a wheel of this file name.

    Raises:
        packaging.utils.InvalidWheelFilename: the name is none of a wheel.

    Example:
        >>> fits("dicomsdl-0.109.4-cp312-cp312-manylinux_2_17_x86_64.whl")
        True
        >>> fits("dicomsdl-0.109.4-cp311-cp311-manylinux_2_17_x86_64.whl")
        False
    """
    return not _kaggle_tags(python).isdisjoint(parse_wheel_filename(wheel)[3])


def wheel_problems(folder: Path, python: Python = KAGGLE_PYTHON) -> list[str]:
    """What keeps Kaggle's pip from installing out of a folder, in sentences; empty when all is well.

    Every package must have a wheel whose tags fit, and so must every line of a `requirements*.txt` in the folder.
    """
    problems: list[str] = []
    named: dict[str, list[str]] = {}
    fitting: dict[str, list[str]] = {}  # versions by package
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            problems.append(f"{path.name} is no name of a wheel. Take the file as it was published.")
            continue
        named.setdefault(name, []).append(path.name)
        if fits(path.name, python):
            fitting.setdefault(name, []).append(str(version))
    wanted = f"Python {python[0]}.{python[1]} on Linux x86-64"
    for files in (files for name, files in named.items() if name not in fitting):
        problems.append(f"{', '.join(files)}: not for {wanted}, which Kaggle has. Build the dataset again.")
    for path in sorted(folder.glob("requirements*.txt")) if named else ():
        for line in path.read_text(encoding="utf-8").splitlines():
            text = re.sub(r"(^|\s)#.*", "", line).strip()
            if text and not text.startswith("-") and not _given(text, fitting, python):
                problems.append(f"{path.name} asks for {text}, and no wheel for {wanted} gives it. Build it again.")
    return problems


def _given(text: str, versions: Mapping[str, Sequence[str]], python: Python) -> bool:
    """Whether one of these versions satisfies a line of a requirements file, or it does not apply."""
    try:
        requirement = Requirement(re.split(r"\s--", text)[0])
    except InvalidRequirement:
        return False
    there = versions.get(canonicalize_name(requirement.name), ())
    return not _applies(requirement, python) or any(requirement.specifier.contains(v, prereleases=True) for v in there)


def _applies(requirement: Requirement, python: Python) -> bool:
    """Whether a requirement's marker holds at Kaggle."""
    short = f"{python[0]}.{python[1]}"
    place = {
        "python_version": short, "python_full_version": f"{short}.0", "sys_platform": "linux", "os_name": "posix",
        "platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "extra": "",
    }  # fmt: skip
    return requirement.marker is None or requirement.marker.evaluate(place)


def find_conflicts(wheels: Sequence[Path], image: Image, needs: Mapping[str, Sequence[str]]) -> list[str]:
    """What does not hold in the image with these wheels beside it, in sentences; empty when all is well.

    Args:
        wheels: files; those for other interpreters are passed over.
        image: what is there.
        needs: what others require: name → requirements, such as the library's own.

    Raises:
        RsnaKitError: a damaged wheel.
    """
    has, asked = dict(image.packages), dict(needs)
    problems, short = [], f"{image.python[0]}.{image.python[1]}"
    for path in wheels:
        package, version, _, _ = parse_wheel_filename(path.name)
        if not fits(path.name, image.python) or package in image.packages:
            continue
        said = _metadata(path)
        has[package], asked[package] = str(version), said.get_all("Requires-Dist") or []
        wanted = said.get("Requires-Python")
        if wanted and not SpecifierSet(wanted).contains(f"{short}.0"):
            problems.append(f"{package} {version} is for Python {wanted}, Kaggle's has {short}")
    for asking, texts in asked.items():
        for requirement in map(Requirement, texts):
            other, wish = canonicalize_name(requirement.name), f"{requirement.name}{requirement.specifier}"
            if not _applies(requirement, image.python) or f"{asking}: {wish}" in image.tolerated:
                continue
            found = has.get(other)
            if other not in has:
                problems.append(f"{asking} requires {wish}, which neither image nor wheels have (Python {short})")
            elif found and not requirement.specifier.contains(found, prereleases=True):
                whose = "the image has" if other in image.packages else "the wheels bring"
                problems.append(f"{asking} requires {wish}, {whose} {other} {found} (Python {short})")
    return problems


def _metadata(path: Path) -> Any:
    """What a wheel says of itself.

    Raises:
        RsnaKitError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            inside = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            return email.message_from_bytes(wheel.read(inside))
    except (zipfile.BadZipFile, StopIteration) as error:
        raise RsnaKitError(f"{path}: no wheel, or a damaged one ({error}). Download it again.") from error
