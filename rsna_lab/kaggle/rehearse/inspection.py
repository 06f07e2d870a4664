"""A kernel and its inputs → what will go wrong at Kaggle and cannot be seen by running it here.

Problems are sure, warnings are not: a path of this machine may stand in a branch that Kaggle never takes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rsna_lab.kaggle.metadata import kernel_problems
from rsna_lab.kaggle.rehearse.mounts import Kernel
from rsna_lab.kaggle.wheels import KAGGLE_PYTHON, wheel_problems

# A text that begins like a path of a person's machine.
_ELSEWHERE = re.compile(r"(?:/(?:home|Users|mnt|media|data|content|scratch|workspace|root)/|~/|[A-Za-z]:\\).*")
_WHEEL_DEPTH = 2  # levels below a given folder


def problems(kernel: Kernel, given: Mapping[str, Path], submits: bool) -> list[str]:
    """What is sure to fail, in sentences.

    Args:
        kernel: checked as `scripts/push validate` does.
        given: slug of an attached dataset, kernel or model → folder, which is searched for wheels.
        submits: whether its output is to be scored.
    """
    found = kernel_problems(kernel.folder, public=True)  # who may see it is not what a rehearsal is about
    found += _syntax(kernel.script)
    if submits and kernel.internet:
        found.append("enable_internet is not false: Kaggle takes no submission from a kernel with the internet on")
    for slug, folder in given.items():
        for place in _folders_of_wheels(folder):
            found += [f"{slug}: {problem}" for problem in wheel_problems(place)]
    return found


def warnings(kernel: Kernel) -> list[str]:
    """What may fail: texts in the script that look like files of this machine."""
    try:
        tree = ast.parse(kernel.script.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return []
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        f"{kernel.script.name}, line {node.lineno}: {node.value!r} looks like a file of this machine; Kaggle has "
        "/kaggle/input, /kaggle/working and /tmp"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        and _ELSEWHERE.fullmatch(node.value)
    ]  # fmt: skip


def _syntax(script: Path) -> Iterator[str]:
    """Syntax that Kaggle's interpreter does not know, where this one is newer; and what only a compiler sees."""
    text = script.read_bytes()
    version = ".".join(map(str, KAGGLE_PYTHON))
    try:
        ast.parse(text, feature_version=KAGGLE_PYTHON)
        compile(text, script.name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        yield f"{script.name} is no Python {version}: {error}"


def _folders_of_wheels(folder: Path, depth: int = _WHEEL_DEPTH) -> Iterator[Path]:
    """`folder` and folders not far below it that hold a wheel."""
    if any(folder.glob("*.whl")):
        yield folder
    for child in sorted(folder.iterdir()) if depth else ():
        if child.is_dir():
            yield from _folders_of_wheels(child, depth - 1)
