"""A dataset's name → its folder, filled by the project's own scripts/build, and a version on Kaggle."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from rsna_kit.runtime.errors import RsnaKitError
from rsna_lab.kaggle.build.datasets import FROM
from rsna_lab.kaggle.push import uploads
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.names import built_folder

LIBRARY = "rsna-kit"


def bring(account: Account, name: str, skip: frozenset[str] = frozenset()) -> int | None:
    """Build a dataset and upload it; returns its version, None when it stays here.

    Raises:
        RsnaKitError: no such dataset, or one that has to be built by hand first.
    """
    folder = built_folder(account.project, name)
    # Wheels and ImageNet weights are fetched from the network and change by hand only; the library with every commit.
    if "build" not in skip and (name == LIBRARY or not folder.is_dir()):
        build(account, name)
    if "upload" in skip:
        return None
    if not folder.is_dir():
        raise RsnaKitError(f"{name} is not built. What to do: {build_command(name)}, then run this again")
    return uploads.upload(account, folder)


def build_command(name: str) -> str:
    """What a person types to build a dataset."""
    return f"scripts/build {name}" + (f" --from {FROM[name]}" if name in FROM else "")


def build(account: Account, name: str, *arguments: str | Path) -> Path:
    """Fill build/datasets/<name> with the project's own scripts/build.

    Raises:
        RsnaKitError: it needs to be told where from, or failed; its own message is on standard error.
    """
    if name in FROM and not arguments:
        raise RsnaKitError(f"{name} is not built. What to do: {build_command(name)}, then run this again")
    folder = account.project / "build" / "datasets" / name
    command = [sys.executable, account.project / "scripts" / "build", name, "--out", folder, *arguments]
    words = [str(word) for word in command]
    account.events.say(f"building {name}")
    if subprocess.run(words, cwd=account.project, stdout=sys.stderr.fileno()).returncode != 0:
        raise RsnaKitError(f"{name} could not be built. What to do: run {shlex.join(words[1:])} and mend what it says")
    return folder
