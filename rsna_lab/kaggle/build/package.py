"""The package's sources → an importable copy and a wheel, the same bytes for the same commit on any machine.

The wheel is written here and not by setuptools: that one's bytes change with its own version, and building the
dataset must not need the network or more than a second. Its metadata are pyproject.toml's; a test compares them with
those that setuptools writes.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import time
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from rsna_kit.runtime.errors import RsnaKitError

PACKAGE = "rsna_kit"
SOURCES = (PACKAGE, "pyproject.toml", "README.md", "LICENSE")  # what `write_library` reads
_OLDEST = 315532800  # 1980-01-01, the first moment that a zip file can hold


@dataclass(frozen=True)
class State:
    """What a build is of: the commit (None outside a checkout), its time, and which files differ from it."""

    commit: str | None
    epoch: int
    dirty: tuple[str, ...]

    @property
    def name(self) -> str:
        """The commit, with a mark where the working tree differs from it."""
        return f"{self.commit or 'unknown'}{'-dirty' if self.dirty else ''}"


def read_state(root: Path, paths: Sequence[str]) -> State:
    """The state of some paths of a checkout; SOURCE_DATE_EPOCH in the environment replaces the commit's time."""
    said = _git(root, "log", "-1", "--format=%H %ct")
    commit, _, seconds = said.strip().partition(" ")
    changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *paths).splitlines()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or seconds or _OLDEST)
    return State(commit or None, max(epoch, _OLDEST), tuple(line[3:] for line in changes))


def write_library(root: Path, out: Path, state: State) -> None:
    """Put the importable copy, the wheel and the licence into `out`. A module that git ignores is left out."""
    ignored = set(_git(root, "ls-files", "--others", "--ignored", "--exclude-standard", PACKAGE).splitlines())
    for path in sorted((root / PACKAGE).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name not in ignored:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(path.read_bytes())
    (out / PACKAGE / "commit.txt").write_text(state.name + "\n", encoding="utf-8")
    (out / "LICENSE").write_bytes((root / "LICENSE").read_bytes())
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    _write_wheel(root, out, project, state.epoch)


def _write_wheel(root: Path, out: Path, project: Mapping[str, Any], epoch: int) -> None:
    """Zip the copy in `out` as a wheel: names in order, one time, not compressed (compressors differ)."""
    version = _version(root)
    stem = f"{project['name'].replace('-', '_')}-{version}"
    content = {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted((out / PACKAGE).rglob("*.*"))}
    info = f"{stem}.dist-info"
    content |= {
        f"{info}/METADATA": "\n".join([*_metadata(root, project, version), ""]).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: scripts/build\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": b"[console_scripts]\nrsna-kit = rsna_kit.cli:main\n",
        f"{info}/licenses/LICENSE": (root / "LICENSE").read_bytes(),
    }
    record = [f"{name},sha256={_record_hash(data)},{len(data)}\n" for name, data in content.items()]
    content[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()
    moment = time.gmtime(epoch)[:6]
    with zipfile.ZipFile(out / f"{stem}-py3-none-any.whl", "w") as wheel:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, moment)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            wheel.writestr(entry, data)


def _metadata(root: Path, project: Mapping[str, Any], version: str) -> Iterator[str]:
    yield "Metadata-Version: 2.1"
    yield f"Name: {project['name']}"
    yield f"Version: {version}"
    yield f"Summary: {project['description']}"
    yield f"License: {project['license']['text']}"
    yield f"Requires-Python: {project['requires-python']}"
    for text in project["dependencies"]:
        yield f"Requires-Dist: {Requirement(text)}"
    for extra, texts in project["optional-dependencies"].items():
        yield f"Provides-Extra: {extra}"
        for text in texts:
            wanted = Requirement(text)
            marker = f'({wanted.marker}) and extra == "{extra}"' if wanted.marker else f'extra == "{extra}"'
            wanted.marker = None
            yield f"Requires-Dist: {wanted}; {marker}"
    yield "Description-Content-Type: text/markdown"
    yield ""
    yield (root / project["readme"]).read_text(encoding="utf-8")


def _version(root: Path) -> str:
    text = (root / PACKAGE / "__init__.py").read_text(encoding="utf-8")
    return next(line.split('"')[1] for line in text.splitlines() if line.startswith("__version__"))


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


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
