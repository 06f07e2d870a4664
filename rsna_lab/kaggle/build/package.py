"""The package's sources → an importable copy, the same bytes for the same commit on any machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rsna_kit.runtime.errors import RsnaKitError

PACKAGE = "rsna_kit"
SOURCES = (PACKAGE, "LICENSE")  # what `write_library` reads
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
    changes = _git(root, "status", "-z", "--porcelain", "--no-renames", "--untracked-files=all", "--", *paths)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or seconds or _OLDEST)
    return State(commit or None, max(epoch, _OLDEST), tuple(line[3:] for line in changes.split("\0") if line))


def write_library(root: Path, out: Path, state: State) -> None:
    """Put the importable copy and the licence into `out`. A module that git ignores is left out."""
    ignored = set(_git(root, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", PACKAGE).split("\0"))
    for path in sorted((root / PACKAGE).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name not in ignored:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(path.read_bytes())
    (out / PACKAGE / "commit.txt").write_text(state.name + "\n", encoding="utf-8")
    (out / "LICENSE").write_bytes((root / "LICENSE").read_bytes())


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
