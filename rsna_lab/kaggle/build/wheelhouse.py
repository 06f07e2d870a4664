"""Names of packages → their wheels for Kaggle's interpreters, each with the one hash it may have.

datasets/rsna-wheels/SHA256SUMS lists every wheel that may be shipped. A wheel that is not on it, or has other bytes, is
refused: what pip is served may change, what the kernels run does not.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.utils import parse_wheel_filename

from rsna_kit.runtime.errors import RsnaKitError
from rsna_kit.runtime.files import sha256_file
from rsna_lab.kaggle.wheels import Python, find_conflicts, fits, read_image

PYTHONS: tuple[Python, ...] = ((3, 12), (3, 13))  # Kaggle's interpreter now, and the one its next base brings
SUMS = "SHA256SUMS"
_PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(35, 16, -1)), "manylinux2014_x86_64", "any")


def download(requirements: Sequence[str], constraints: Path, out: Path) -> None:
    """Fetch the wheels of some packages for each of Kaggle's interpreters; pip shows its progress.

    Raises:
        RsnaKitError: pip could not.
    """
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    for python in PYTHONS:
        version = f"{python[0]}.{python[1]}"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
            "--implementation",
            "cp",
            "--python-version",
            version,
            *platforms,
            "--constraint",
            str(constraints),
            "--dest",
            str(out),
            *requirements,
        ]
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
