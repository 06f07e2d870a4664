"""Wheels, and what Kaggle's image has → the requirements that would not hold there.

Wheels are installed with --no-deps, so that nothing of the image is replaced: what pip would otherwise find out has to
be found out before. A package that the image has is never installed, so its version there is the one that counts.
"""

from __future__ import annotations

import email
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.files import read_json
from rsna_lab.kaggle.wheels import fits

Python = tuple[int, int]


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


def find_conflicts(wheels: Sequence[Path], image: Image, needs: Mapping[str, Sequence[str]]) -> list[str]:
    """What does not hold in the image with these wheels beside it, in sentences; empty when all is well.

    Args:
        wheels: files; those for other interpreters are passed over.
        image: what is there.
        needs: what others require: name → requirements, such as the library's own.
    """
    brought: dict[str, tuple[str, Any]] = {}
    for path in wheels:
        name, version, _, _ = parse_wheel_filename(path.name)
        if fits(path.name, image.python) and name not in image.packages:
            brought[name] = (str(version), _metadata(path))
    has = {**image.packages, **{name: version for name, (version, _) in brought.items()}}
    asked = {**needs, **{name: said.get_all("Requires-Dist") or [] for name, (_, said) in brought.items()}}
    problems, short = [], f"{image.python[0]}.{image.python[1]}"
    for package, (release, said) in brought.items():
        wanted = said.get("Requires-Python")
        if wanted and not SpecifierSet(wanted).contains(f"{short}.0"):
            problems.append(f"{package} {release} is for Python {wanted}, Kaggle's has {short}")
    for package, requirements in asked.items():
        problems += [f"{problem} (Python {short})" for problem in _unmet(package, requirements, has, image)]
    return problems


def _unmet(name: str, requirements: Sequence[str], has: Mapping[str, str | None], image: Image) -> Iterator[str]:
    short = f"{image.python[0]}.{image.python[1]}"
    place = {"python_version": short, "python_full_version": f"{short}.0", "sys_platform": "linux", "os_name": "posix",
             "platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython",
             "platform_python_implementation": "CPython", "extra": ""}  # fmt: skip
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate(place):
            continue
        other, version = canonicalize_name(requirement.name), None
        if f"{name}: {requirement.name}{requirement.specifier}" in image.tolerated:
            continue
        if other not in has:
            yield f"{name} requires {requirement.name}{requirement.specifier}, which neither image nor wheels have"
        elif (version := has[other]) and not requirement.specifier.contains(version, prereleases=True):
            whose = "the image has" if other in image.packages else "the wheels bring"
            yield f"{name} requires {requirement.name}{requirement.specifier}, {whose} {other} {version}"


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
