"""What the command line asks of kernels → settings, sources and a time limit for each, or what is wrong with them.

Nothing is looked up here: whether a setting's value can work, `values` says, and whether a source exists, `ahead`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rsna_kit.runtime.clock import parse_duration
from rsna_kit.runtime.errors import UsageError, did_you_mean
from rsna_lab.kaggle.metadata import PLACEHOLDER

KERNELS = ("prepare", "train", "infer")
SHORTEST_S, SESSION_H = 300, 12.0  # Kaggle ends a session after 12 hours


def settings(given: Sequence[Sequence[str]], kernel: str | None = None) -> dict[str, dict[str, str]]:
    """Kernel → settings, of all --settings; without `kernel`, each begins with the name of one.

    Raises:
        UsageError: no such kernel, or something that is not NAME=VALUE.

    Example:
        >>> settings([["train", "PRESET=seed", "FOLDS=0 1"]])
        {'train': {'PRESET': 'seed', 'FOLDS': '0 1'}}
    """
    found: dict[str, dict[str, str]] = {}
    for words in given:
        name, pairs = _kernel_first("--settings", words, kernel, "NAME=VALUE")
        if not all("=" in pair for pair in pairs):
            raise UsageError(f"--settings {' '.join(words)}: expected NAME=VALUE")
        found.setdefault(name, {}).update((pair.split("=", 1)[0], pair.split("=", 1)[1]) for pair in pairs)
    return found


def attached(given: Sequence[Sequence[str]], kernel: str | None = None) -> dict[str, dict[str, list[str]]]:
    """Kernel → key of its metadata → further sources, of all --attach; a name alone is the account's own dataset.

    Raises:
        UsageError: no such kernel, or what is neither a dataset's nor a model's name.

    Example:
        >>> attached([["train", "imagenet-starts"]])
        {'train': {'dataset_sources': ['OWNER/imagenet-starts']}}
    """
    found: dict[str, dict[str, list[str]]] = {}
    for words in given:
        name, sources = _kernel_first("--attach", words, kernel, "SOURCE")
        for source in sources:
            parts = source.split("/")
            if not all(parts) or len(parts) not in (1, 2, 5):
                raise UsageError(
                    f"--attach {source}: expected a dataset (SLUG of your own, or OWNER/SLUG) or a version of a model "
                    "(OWNER/MODEL/FRAMEWORK/VARIATION/VERSION)"
                )
            key = "model_sources" if len(parts) == 5 else "dataset_sources"
            full = source if len(parts) > 1 else f"{PLACEHOLDER}/{source}"
            found.setdefault(name, {}).setdefault(key, []).append(full)
    return found


def session_seconds(what: str, text: str, most_h: float = SESSION_H) -> float:
    """How long a session may take, with its unit.

    Args:
        what: option or setting, for the message.
        text: such as 9h or 8h30m.
        most_h: the most hours that make sense.

    Raises:
        UsageError: a bare number, no duration, a few minutes only, or more than Kaggle gives.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        raise UsageError(f"{what} {text}: {text} what? Expected a unit: {text.strip()}h or {text.strip()}m")
    seconds = parse_duration(text)
    if not SHORTEST_S <= seconds <= most_h * 3600:
        raise UsageError(f"{what} {text}: expected {SHORTEST_S // 60}m to {most_h:g}h, what Kaggle gives at most")
    return seconds


def _kernel_first(option: str, words: Sequence[str], kernel: str | None, what: str) -> tuple[str, list[str]]:
    """The kernel that an option is for, and what is said of it."""
    name, *rest = words if kernel is None else [kernel, *words]
    if kernel is None and name not in KERNELS:
        hint = did_you_mean(name, KERNELS)
        raise UsageError(f"{option} {name}: expected {', '.join(KERNELS)}, then {what}.{hint}")
    if not rest:
        raise UsageError(f"{option} {' '.join(words)}: expected {what}")
    return name, rest
