"""What went wrong with Kaggle → an error that ends with Kaggle's own words and what to do about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rsna_kit.runtime.errors import MissingDependencyError, RsnaKitError

PACKAGES = "kaggle==2.2.5 kagglesdk==0.1.38 six"
INSTALL = (
    f"Install it beside this project, not into it: python3 -m venv ~/kaggle && ~/kaggle/bin/pip install {PACKAGES}. "
    "Then name it: --kaggle ~/kaggle/bin/kaggle, or link this one program into a folder on PATH: "
    "ln -s ~/kaggle/bin/kaggle ~/.local/bin/"
)
_REHEARSE = "Rehearse it on a hidden test set (scripts/rehearse --help)"
# What Kaggle's servers say inside a good answer, or of a run or submission that failed → what to do. The first counts.
_ADVICE = {
    r"batch [GT]PU session count|session count of \d+ reached": "Kaggle runs two GPU sessions at a time. Wait until "
    "one ends, or stop one in the browser ('View Active Events' at the lower left of kaggle.com), then run this again.",
    r"weekly [GT]PU quota": "This week's accelerator hours are spent; `scripts/push status` says when they come back. "
    "Then run this again: what is done already is not done twice.",
    r"[Nn]otebook not found": "Kaggle knows no kernel of this id. Check `id` and `title` in kernel-metadata.json. A "
    "token made lately may lack the right to kernels: then use kaggle.json (kaggle.com, Settings, API).",
    r"already in use": "The name is taken. Choose another `id` and `title` in the metadata.",
    r"more memory than is available|Exceeded Allowed Compute": "The run needs more memory, disk or accelerator than "
    f"there is. Use smaller batches or fewer workers. {_REHEARSE}, then push it.",
    r"max allowed execution duration|Notebook Timeout": "The run was too slow. Let it stop itself earlier (TIME_LIMIT "
    "in the kernel's SETTINGS), or do less.",
    r"Submission CSV Not Found": "The scoring run left no file of that name in /kaggle/working. "
    f"{_REHEARSE}, push it, and submit that version.",
    r"Submission Scoring Error": "Rows or columns were not those of the hidden sample_submission.csv, or a value is no "
    f"number. {_REHEARSE}, push it, and submit that version.",
    r"Threw Exception|exited with code": "The script failed. Its log says where: scripts/push logs KERNEL. A scoring "
    f"run shows no log. {_REHEARSE}, then push it.",
}
_AGAIN = "run the same command again: it goes on where it stopped."
# Kind of error or HTTP status → the problem, and what to do. The first ones pass; the others are answers.
_PASSES: dict[Any, tuple[str, str]] = {
    "garbled": ("what came is no answer of Kaggle's interface", f"Later, {_AGAIN}"),
    "network": ("Kaggle cannot be reached", f"Check the network, then {_AGAIN}"),
    429: ("Kaggle asks to be called less often", f"Wait ten minutes, then {_AGAIN}"),
    **dict.fromkeys(
        (408, 500, 502, 503, 504),
        ("Kaggle does not answer", f"The trouble is on Kaggle's side. Later, {_AGAIN}"),
    ),
}
_REFUSED: dict[Any, tuple[str, str]] = {
    401: (
        "Kaggle does not take the credentials",
        "Make new ones at https://www.kaggle.com/settings (API), and take older ones out of the environment and of "
        "~/.kaggle.",
    ),
    **dict.fromkeys(
        (403, 404),
        (
            "not there, or not for this account",
            "Check the name, and that this account may use it. A token made lately may lack rights that kaggle.json "
            "has.",
        ),
    ),
}


class KaggleError(RsnaKitError):
    """Something did not work on Kaggle: what, Kaggle's own words, and what to do."""

    def __init__(self, what: str, said: str = "", advice: str = "") -> None:
        self.said = said.strip()
        self.advice = advice or advice_for(said)
        words = self.said.replace("\n", "\n    ")
        lines = [what, f"Kaggle says: {words}" if words else "", f"What to do: {self.advice}"]
        super().__init__("\n  ".join(line for line in lines if line))


class UnreachableError(KaggleError):
    """Kaggle was not asked, or did not answer: what is there, or what became of a change, is unknown."""


class RefusedError(KaggleError):
    """Kaggle answered, and the answer is no."""

    def __init__(self, what: str, said: str, status: int, advice: str = "") -> None:
        self.status = status
        super().__init__(what, said, advice)


def advice_for(said: str) -> str:
    """What helps against a message of Kaggle's.

    Example:
        >>> advice_for("The requested title is already in use by a dataset.")
        'The name is taken. Choose another `id` and `title` in the metadata.'
    """
    found = next((advice for pattern, advice in _ADVICE.items() if re.search(pattern, said)), None)
    return found or "Nothing is taken as done. Mend what Kaggle complains about, then run the same command again."


def passing(error: Mapping[str, Any]) -> bool:
    """Whether the same call may work a little later."""
    return error["kind"] in _PASSES or error.get("status") in _PASSES


def failure(what: str, error: Mapping[str, Any]) -> RsnaKitError:
    """The error that a person reads of one that client.py describes."""
    kind, status, said = error["kind"], error.get("status") or 0, str(error.get("text") or "")
    if kind == "import":
        return MissingDependencyError(f"the kaggle package cannot be used: {said}\n  What to do: {INSTALL}")
    if kind == "unknown field":
        return MissingDependencyError(f"{said}: this kagglesdk is not the one that is needed.\n  What to do: {INSTALL}")
    if kind == "credentials":
        return RefusedError("No credentials were found.", "", 401)
    if kind == "dead token":
        return RefusedError(f"The token in {said} is one that Kaggle does not take.", "", 401)
    if kind == "disk":
        advice = "Make room, or mend the permissions, then run the same command again."
        return KaggleError(f"{what} failed here, not at Kaggle: {said}", advice=advice)
    if passing(error) or status >= 500:
        problem, advice = _PASSES.get(kind) or _PASSES.get(status, _PASSES[500])
        return UnreachableError(f"{what}: {problem}.", said, advice)
    if status in _REFUSED:
        problem, advice = _REFUSED[status]
        return RefusedError(f"{what}: {problem}.", said, status, advice)
    return RefusedError(f"{what} failed.", said, status) if kind == "http" else KaggleError(f"{what} failed.", said)
