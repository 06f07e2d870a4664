"""A folder of wheels → what Kaggle's interpreter cannot install from it. Names and tags are read, nothing is run.

A wheel says in its name for which interpreter, ABI and platform it was built. Kaggle's image has Python 3.12 on
Ubuntu 22.04 (glibc 2.35, x86-64), so cp312, abi3 and py3 fit, with manylinux up to 2_35, linux or any. A dataset may
hold wheels for other interpreters as well, as long as each of its packages has one that fits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

KAGGLE_PYTHON = (3, 12)
_GLIBC_MINOR = 35
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@cache
def kaggle_tags(python: tuple[int, int] = KAGGLE_PYTHON) -> frozenset[Tag]:
    """Every tag that pip accepts inside Kaggle's image, with this Python."""
    platforms = []
    for minor in range(_GLIBC_MINOR, 4, -1):
        platforms.append(f"manylinux_2_{minor}_x86_64")
        if minor in _LEGACY:
            platforms.append(f"{_LEGACY[minor]}_x86_64")
    platforms.append("linux_x86_64")
    interpreter = f"cp{python[0]}{python[1]}"
    own = cpython_tags(python, [interpreter], platforms)
    return frozenset([*own, *compatible_tags(python, interpreter, platforms)])


def fits(wheel: str, python: tuple[int, int] = KAGGLE_PYTHON) -> bool:
    """Whether Kaggle's pip would take a wheel of this file name.

    Raises:
        packaging.utils.InvalidWheelFilename: the name is none of a wheel.

    Example:
        >>> fits("dicomsdl-0.109.4-cp312-cp312-manylinux_2_17_x86_64.whl")
        True
        >>> fits("dicomsdl-0.109.4-cp311-cp311-manylinux_2_17_x86_64.whl")
        False
    """
    return not kaggle_tags(python).isdisjoint(parse_wheel_filename(wheel)[3])


def wheel_problems(folder: Path, python: tuple[int, int] = KAGGLE_PYTHON) -> list[str]:
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
    problems += [
        f"{', '.join(files)}: not for {wanted}, which Kaggle has. Build the dataset again with a wheel that is."
        for name, files in named.items()
        if name not in fitting
    ]
    for path in sorted(folder.glob("requirements*.txt")) if named else ():
        problems += [f"{path.name} asks for {line}, and no wheel for {wanted} gives it. Build the dataset again."
                     for line in _unmet(path.read_text(encoding="utf-8").splitlines(), fitting, python)]  # fmt: skip
    return problems


def _unmet(lines: Sequence[str], fitting: dict[str, list[str]], python: tuple[int, int]) -> list[str]:
    """Requirements that apply at Kaggle and that no version among the fitting wheels satisfies."""
    short = f"{python[0]}.{python[1]}"
    place = {"python_version": short, "python_full_version": f"{short}.0", "sys_platform": "linux",
             "platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython"}  # fmt: skip
    unmet = []
    for line in lines:
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text or text.startswith("-"):
            continue
        try:
            requirement = Requirement(re.split(r"\s--", text)[0])
        except InvalidRequirement:
            unmet.append(text)
            continue
        if requirement.marker is not None and not requirement.marker.evaluate(place):
            continue
        versions = fitting.get(canonicalize_name(requirement.name), [])
        if not any(requirement.specifier.contains(version, prereleases=True) for version in versions):
            unmet.append(text)
    return unmet
