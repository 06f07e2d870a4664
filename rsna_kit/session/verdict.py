"""How a kernel's run ended → verdict.json and the last line of its log, for whoever pushed it."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rsna_kit.runtime.files import sha256_file, write_json

PREFIX = "RSNA_KIT_VERDICT "  # of the last line of every kernel's log
VERDICT = "verdict.json"
_MOST_FILES = 500  # in that line; the file lists any number


def write_verdict(working: Path, verdict: Mapping[str, Any]) -> None:
    """Write verdict.json and print it, with the sha256 of every output: the last thing of a run.

    Args:
        working: folder of the outputs.
        verdict: ok, kernel, reason, counts, minutes and facts; what JSON does not know is made a text, NaN null.
    """
    files = sorted(path for path in working.rglob("*") if path.is_file() and not path.is_symlink())
    with suppress(OSError):
        size = sum(path.stat().st_size for path in files)
        if size > 1e9:
            print(f"outputs    sha256 of {len(files)} files, {size / 1e9:.1f} GB", flush=True)
    digests: dict[str, str] = {}
    for path in files:
        with suppress(OSError):  # gone meanwhile, or unreadable
            digests[path.relative_to(working).as_posix()] = sha256_file(path)
    digests.pop(VERDICT, None)  # of an earlier run
    said: dict[str, Any] = _plain(verdict)
    try:
        write_json(working / VERDICT, {**said, "sha256": digests})
    except OSError as error:  # a full disk: the log is there still
        said |= {"ok": False, "reason": f"{said['reason']} {VERDICT} could not be written: {error}".strip()}
    if len(digests) > _MOST_FILES and (working / VERDICT).is_file():
        digests = {VERDICT: sha256_file(working / VERDICT)}
    sys.stderr.flush()
    print(PREFIX + json.dumps({**said, "sha256": digests}), flush=True)


def redacted(text: str) -> str:
    """The text without the values of secrets that Kaggle puts into the environment."""
    for name, value in os.environ.items():
        if re.search("TOKEN|SECRET|KEY|PASSWORD|CREDENTIAL", name.upper()) and len(value) >= 8:
            text = text.replace(value, f"<{name}>")
    return text


def _plain(value: Any) -> Any:
    """The same for JSON, which knows no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
