"""What was sent to Kaggle, and what became of it: runs.jsonl, one JSON line for each event, only ever added to.

    kind     one line for each
    upload   dataset version that is ready and checked: version, digest of its files
    model    version of a Kaggle Model: the same
    push     kernel version: digest of script and metadata, versions of what it reads
    verify   look at a pushed version: image and accelerator, or the problem with it
    run      ended run: status, failure, seconds
    fetch    output that was fetched and checked: sha256 of its files
    submit   submission: its number on Kaggle
    score    scored submission, or the error

Every line says when, of which commit, and whether the tree had changes. No line holds a secret.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rsna_kit.runtime.clock import format_duration


class Ledger:
    """The lines of one file.

    Args:
        path: need not exist.
        project: the checkout whose commit is noted.
        scrub: takes secrets out of a line.
    """

    def __init__(self, path: Path, project: Path, scrub: Callable[[str], str]) -> None:
        self.path, self._project, self._scrub = path, project, scrub

    def add(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Append one line, whole and on disk when this returns."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"at": now, "kind": kind, **commit_of(self._project), **fields}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = self._scrub(json.dumps(line, ensure_ascii=False)) + "\n"
            if file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                text = "\n" + text  # whoever wrote before was killed
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        return line

    def lines(self) -> list[dict[str, Any]]:
        """Every whole line, oldest first."""
        if not self.path.is_file():
            return []
        found = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the rest of a line whose writer was killed
            if isinstance(line, dict) and "kind" in line:
                found.append(line)
        return found

    def last(self, kind: str, **match: Any) -> dict[str, Any] | None:
        """The newest line of a kind whose fields have these values."""
        fitting = (line for line in reversed(self.lines()) if line["kind"] == kind)
        return next((line for line in fitting if all(line.get(key) == value for key, value in match.items())), None)


def commit_of(project: Path) -> dict[str, Any]:
    """`{"commit": …, "dirty": …}` of a checkout; None where git knows nothing of it."""
    git = ["git", "-C", str(project)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=20)
        changes = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": head.stdout.strip(), "dirty": bool(changes.stdout.strip())}


def short_commit(project: Path) -> str:
    """The commit in a word, for descriptions on Kaggle."""
    found = commit_of(project)
    return f"{found['commit'][:8]}{'*' if found['dirty'] else ''}" if found["commit"] else "no-commit"


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as a table for people, oldest first; * marks a commit with changes that were not committed."""
    if not lines:
        return "Nothing was pushed from here yet."
    cells = [("when (UTC)", "what", "which", "version", "commit", "outcome")]
    for line in lines:
        commit = str(line.get("commit") or "")[:8] + ("*" if line.get("dirty") else "")
        which = line.get("dataset") or line.get("kernel") or line.get("model") or ""
        cells.append((line["at"].replace("T", " ").rstrip("Z"), line["kind"], str(which),
                      str(line.get("version") or ""), commit, _outcome(line)))  # fmt: skip
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    return "\n".join("  ".join([*(row[c].ljust(widths[c]) for c in range(5)), row[5]]).rstrip() for row in cells)


def _outcome(line: dict[str, Any]) -> str:
    """The one thing a line is about."""
    problem = " ".join(str(line.get("problem") or line.get("failure") or line.get("error") or "").split())
    if line["kind"] == "run":
        took = f"in {format_duration(line['seconds'])}" if line.get("seconds") else ""
        return " ".join(filter(None, [str(line.get("status")), took, problem]))
    if problem:
        return problem
    if line["kind"] == "score":
        return f"submission {line.get('submission')}: public {line.get('public')}, private {line.get('private')}"
    if line["kind"] == "submit":
        return f"submission {line.get('submission')}"
    if line["kind"] == "fetch":
        return f"{line.get('files')} files, {line.get('bytes', 0) / 1e6:.1f} MB"
    if line["kind"] == "push":
        return ", ".join(f"{name} v{version}" for name, version in (line.get("inputs") or {}).items())
    return str(line.get("digest") or "")[:12]
