"""Wheels for Kaggle's interpreters: fetched, each with the one hash it may have, and agreeing with Kaggle's image.

A wheel says in its name for which interpreter, ABI and platform it was built. Kaggle's image has Python 3.12 on
Ubuntu 22.04 (glibc 2.35, x86-64), so cp312, abi3 and py3 fit, with manylinux up to 2_35, linux or any. A dataset may
hold wheels for other interpreters as well, as long as each of its packages has one that fits.

Kernels install with --no-deps, so that nothing of the image is replaced: what pip would otherwise find out has to be
found out before. A package that the image has is never installed, so its version there is the one that counts.

datasets/rsna-wheels/SHA256SUMS lists every wheel that may be shipped. A wheel that is not on it, or has other bytes, is
refused: what pip is served may change, what the kernels run does not.
"""

from __future__ import annotations

import email
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.files import read_json, sha256_file

Python = tuple[int, int]
KAGGLE_PYTHON: Python = (3, 12)
PYTHONS: tuple[Python, ...] = (KAGGLE_PYTHON, (3, 13))  # Kaggle's interpreter now, and the one its next base brings
SUMS = "SHA256SUMS"
_PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(35, 16, -1)), "manylinux2014_x86_64", "any")


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


def wheel_problems(folder: Path) -> list[str]:
    """The packages below a folder of which no wheel is for Kaggle's Python, in sentences."""
    named: dict[str, list[str]] = {}
    fitting = set()
    for name in sorted({path.name for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}*.whl")}):
        package = name.partition("-")[0]
        named.setdefault(package, []).append(name)
        with suppress(InvalidWheelFilename):
            fitting |= {package} if fits(name) else set()
    wanted = "Python {}.{} on Linux x86-64".format(*KAGGLE_PYTHON)
    lost = (files for package, files in named.items() if package not in fitting)
    return [f"{', '.join(files)}: not for {wanted}, which Kaggle has. Build the dataset again." for files in lost]


def _applies(requirement: Requirement, python: Python) -> bool:
    """Whether a requirement's marker holds at Kaggle."""
    short = f"{python[0]}.{python[1]}"
    place = {"python_version": short, "python_full_version": f"{short}.0", "implementation_name": "cpython"}
    place |= {"sys_platform": "linux", "os_name": "posix", "platform_system": "Linux", "platform_machine": "x86_64"}
    place |= {"platform_python_implementation": "CPython", "extra": ""}
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
            other, wanted = canonicalize_name(requirement.name), f"{requirement.name}{requirement.specifier}"
            if not _applies(requirement, image.python) or f"{asking}: {wanted}" in image.tolerated:
                continue
            found = has.get(other)
            if other not in has:
                problems.append(f"{asking} requires {wanted}, which neither image nor wheels have (Python {short})")
            elif found and not requirement.specifier.contains(found, prereleases=True):
                whose = "the image has" if other in image.packages else "the wheels bring"
                problems.append(f"{asking} requires {wanted}, {whose} {other} {found} (Python {short})")
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


def fill(root: Path, folder: Path, more: Sequence[str], accept: bool, say: Callable[[str], None]) -> dict[str, str]:
    """Bring the wheels of a dataset, with the list of hashes that a kernel's pip compares them with.

    Args:
        root: the checkout.
        folder: a copy of datasets/rsna-wheels, which is filled.
        more: further requirement lists, "dali" or "runtimes".
        accept: whether what is downloaded now becomes the only wheels that may be.
        say: told of a list that was changed.

    Returns:
        File → sha256.

    Raises:
        RsnaKitError: pip could not, or a wheel that may not be shipped.
    """
    home = root / "datasets" / "rsna-wheels"
    lists = ["requirements.txt", *(f"requirements-{name}.txt" for name in more)]
    names = [line for name in lists for line in (folder / name).read_text(encoding="utf-8").split()]
    for path in [*folder.glob("requirements*.txt"), folder / SUMS, folder / "image.json"]:
        path.unlink(missing_ok=True)
    download(names, root / "constraints.txt", folder)
    files, admitted = sorted(folder.glob("*.whl")), read_sums(home / SUMS)
    if accept:
        admitted = updated_sums(admitted, files)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sums = check_wheels(files, admitted, home / "image.json", {project["name"]: project["dependencies"]})
    if accept:
        write_sums(home / SUMS, admitted)
        say(f"  {home / SUMS}: now lists what was downloaded; look at the change before you commit it")
    write_sums(folder / SUMS, sums)
    (folder / "requirements.txt").write_text(pinned(sums), encoding="utf-8")
    return sums


def download(requirements: Sequence[str], constraints: Path, out: Path) -> None:
    """Fetch the wheels of some packages for each of Kaggle's interpreters; pip shows its progress.

    Raises:
        RsnaKitError: pip could not.
    """
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    for python in PYTHONS:
        version = f"{python[0]}.{python[1]}"
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", version, *platforms]
        command += ["--constraint", str(constraints), "--dest", str(out), *requirements]
        if subprocess.run(command, stdout=sys.stderr).returncode != 0:
            raise RsnaKitError(
                f"pip could not download the wheels for Python {version}: see above. It needs the "
                "network; every package needs a wheel for this interpreter."
            )


def read_sums(path: Path) -> dict[str, str]:
    """File → sha256, from a list as sha256sum writes it."""
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return {name: digest for digest, name in rows}


def write_sums(path: Path, sums: Mapping[str, str]) -> None:
    """The inverse of `read_sums`, sorted by name."""
    path.write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)), encoding="utf-8")


def updated_sums(sums: Mapping[str, str], wheels: Sequence[Path]) -> dict[str, str]:
    """A list with these wheels in the place of all others of their packages."""
    packages = {parse_wheel_filename(path.name)[0] for path in wheels}
    others = {name: digest for name, digest in sums.items() if parse_wheel_filename(name)[0] not in packages}
    return others | {path.name: sha256_file(path) for path in wheels}


def check_wheels(
    wheels: Sequence[Path], admitted: Mapping[str, str], image: Path, needs: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """See that wheels may be shipped: their hashes, that each of Kaggle's interpreters is served, no conflict.

    Returns:
        File → sha256.

    Raises:
        RsnaKitError: all that is wrong, with names.
    """
    sums = {path.name: sha256_file(path) for path in wheels}
    problems = [f"{name} is not on the list of hashes" for name in sums if name not in admitted]
    problems += [
        f"{name} has sha256 {digest}, the list says {admitted[name]}"
        for name, digest in sums.items()
        if admitted.get(name, digest) != digest
    ]
    packages = {parse_wheel_filename(name)[0] for name in sums}
    releases = {parse_wheel_filename(name)[:2] for name in sums}
    if len(releases) > len(packages):
        problems.append(f"several versions of one package: {', '.join(f'{a} {b}' for a, b in sorted(releases))}")
    for python in PYTHONS:
        served = {parse_wheel_filename(name)[0] for name in sums if fits(name, python)}
        problems += [f"{name}: no wheel for Python {python[0]}.{python[1]}" for name in sorted(packages - served)]
        problems += find_conflicts(wheels, read_image(image, python), needs)
    if problems:
        raise RsnaKitError(
            "these wheels cannot be shipped:\n  " + "\n  ".join(problems) + "\nChange constraints.txt so that they "
            f"agree with {image}. After a change of versions, and once you trust what was downloaded: "
            "scripts/build rsna-wheels --accept-hashes"
        )
    return sums


def pinned(sums: Mapping[str, str]) -> str:
    """The requirements file of a kernel: a line a package, a hash for each of its wheels."""
    lines: dict[tuple[str, str], list[str]] = {}
    for name, digest in sorted(sums.items()):
        package, version, _, _ = parse_wheel_filename(name)
        lines.setdefault((package, str(version)), []).append(f"--hash=sha256:{digest}")
    return "".join(f"{name}=={version} {' '.join(hashes)}\n" for (name, version), hashes in lines.items())
