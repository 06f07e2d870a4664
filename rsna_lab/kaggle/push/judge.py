"""What the `kaggle` program printed → what really happened, or an error with Kaggle's words and what to do.

Exit code 0 is not believed: errors that Kaggle reports inside an answer are only printed, a source that was not
attached is a remark, a model that was not attached is no remark at all, and a status may be that of the version before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rsna_lab.kaggle.push.advice import KaggleError

_TRANSIENT = re.compile(
    r"\b429\b|Too Many Requests|rate.limit|\b50[0234]\b|Max retries|Connection (?:aborted|reset|refused|error)|"
    r"timed out|Temporary failure|RemoteDisconnected",
    re.IGNORECASE,
)
_ABSENT = re.compile(r"\b40[34]\b|not found|denied|forbidden", re.IGNORECASE)
_PUSHED = re.compile(r"Kernel version (\d+) successfully (?:pushed|saved).*?(https?://\S+)", re.DOTALL)
_STATUS = re.compile(r'has status "(?:KernelWorkerStatus\.)?(\w+)"')
_FAILURE = re.compile(r'Failure message: "(.*?)"\s*$', re.DOTALL | re.MULTILINE)
_BAD_LINE = re.compile(
    r"^.*(?:Kernel push error|creation error|are not valid \w+|Upload unsuccessful|Skipping folder|Skipping: |"
    r"Could not submit).*$",
    re.MULTILINE,
)
RUNNING = ("QUEUED", "RUNNING", "NEW_SCRIPT", "CANCEL_REQUESTED")


@dataclass(frozen=True)
class Answer:
    """What one call of the program gave."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Its message without progress bars and without the help on credentials."""
        text = "Authentication required" if "Authentication required" in self.out else f"{self.err}\n{self.out}"
        lines = [line.rstrip() for line in text.splitlines()]
        return "\n".join(line for line in lines if line and not re.match(r"\s*\d+%\|", line))[-1500:]

    @property
    def transient(self) -> bool:
        """Whether the same call may work a little later."""
        return self.code != 0 and bool(_TRANSIENT.search(self.said))

    @property
    def absent(self) -> bool:
        """Whether it failed because the thing does not exist, or not for this account."""
        return self.code != 0 and not self.transient and bool(_ABSENT.search(self.said))


def check(answer: Answer, what: str) -> Answer:
    """The same answer, unless it failed or holds a line that is an error whatever the exit code.

    Raises:
        KaggleError: with that line.
    """
    if answer.code != 0:
        raise KaggleError(f"{what} failed.", answer.said)
    if bad := _BAD_LINE.findall(answer.out):
        raise KaggleError(f"{what} failed, although the program ended well.", "\n".join(bad))
    return answer


@dataclass(frozen=True)
class Pushed:
    """A kernel version that Kaggle has accepted."""

    reference: str
    version: int
    url: str


def version_in(answer: Answer) -> int:
    """The number of the version that a push made, whatever else is wrong with it; 0 for none."""
    found = _PUSHED.search(answer.out)
    return int(found[1]) if found else 0


def pushed(answer: Answer, expected: str) -> Pushed:
    """The version that a push made.

    Args:
        answer: of `kernels push`.
        expected: owner/slug that the metadata say.

    Raises:
        KaggleError: refused, thrown away, sources left out, or pushed to another address.
    """
    what = f"The push of {expected}"
    check(answer, what)
    found = _PUSHED.search(answer.out)
    if not found or int(found[1]) < 1:
        raise KaggleError(f"{what} made no version.", answer.said, "Kaggle threw the push away. Push again.")
    url = found[2].rstrip(".")
    reference = "/".join(url.split("?")[0].rstrip("/").split("/")[-2:])
    if reference.lower() != expected.lower():
        advice = (
            "The address of a new kernel is made of its title. Make `title` in kernel-metadata.json lead to the slug "
            f"in `id`, delete {url} in the browser, and push again."
        )
        raise KaggleError(f"{what} went to another address, {reference}.", answer.said, advice)
    return Pushed(reference, int(found[1]), url)


def created(answer: Answer, what: str) -> None:
    """Nothing, when a dataset, a model or a version of one is being made.

    Raises:
        KaggleError: anything else.
    """
    check(answer, what)
    if not re.search(r"(?:is being|was) created", answer.out):
        raise KaggleError(f"{what} was not confirmed.", answer.said)


def kernel_status(answer: Answer, what: str) -> tuple[str, str]:
    """`(status, failure message)` of a kernel's run, such as `("ERROR", "Your notebook …")`."""
    found = _STATUS.search(check(answer, what).out)
    if not found:
        raise KaggleError(f"{what} gave no status.", answer.said)
    failure = _FAILURE.search(answer.out)
    return found[1], failure[1] if failure else ""


def dataset_status(answer: Answer, what: str) -> tuple[str, int]:
    """`(status, version)` of a dataset, such as `("ready", 3)`; the version is 0 while the first is processed."""
    value = as_json(check(answer, what), what)
    return str(value["status"]).lower(), int(value["current_version_number"] or 0)


def as_json(answer: Answer, what: str) -> Any:
    """The JSON value that an answer holds, after whatever is printed before it.

    Raises:
        KaggleError: there is none.
    """
    for start in re.finditer(r"^[\[{]", answer.out, re.MULTILINE):
        try:
            return json.JSONDecoder().raw_decode(answer.out[start.start() :])[0]
        except ValueError:
            continue
    raise KaggleError(f"{what}: the answer is not what was asked for.", answer.said)


def rows(answer: Answer, what: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of a list printed as JSON, and the token of its next page ("" at the end)."""
    check(answer, what)
    token = re.search(r"^Next Page Token = (\S+)", answer.out, re.MULTILINE | re.IGNORECASE)
    if re.search(r"^No \w+ found", answer.out, re.MULTILINE):
        return [], ""
    return list(as_json(answer, what)), token[1] if token else ""


def log_lines(answer: Answer, what: str) -> list[str]:
    """The lines of a kernel's log, from its JSON or as they are."""
    text = check(answer, what).out
    found = re.search(r"^\[\s*\{", text, re.MULTILINE)  # a warning may stand before it
    try:
        events = json.loads(text[found.start() if found else 0 :])
        text = "".join(str(event.get("data", "")) for event in events)
    except (ValueError, AttributeError, TypeError):
        pass
    return plain(text).splitlines()


def plain(text: str) -> str:
    """Text of others without what could steer a terminal; a progress bar keeps its last state."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join("".join(c for c in line if c.isprintable() or c == "\t") for line in lines)


@dataclass(frozen=True)
class Verdict:
    """What became of a submission."""

    done: bool
    public: str
    private: str
    error: str


def submission(row: dict[str, Any] | None, details: str = "") -> Verdict:
    """What a row of the submissions says; a complete one without a score is a failed one.

    Args:
        row: of `competitions submissions`, None while it is not listed.
        details: what `competitions submission REF` printed, where there is such a command.
    """
    status = str(row.get("status", "")).rpartition(".")[2] if row else "PENDING"
    public, private = (str(row.get(key) or "") if row else "" for key in ("publicScore", "privateScore"))
    error = re.search(r"^Error:\s*(.*?)\n(?=\w[\w ]*:)", details, re.DOTALL | re.MULTILINE)
    if status == "COMPLETE" and (public or private):
        return Verdict(True, public, private, "")
    if status in ("COMPLETE", "ERROR"):
        said = " ".join(error[1].split()) if error else f"{status}, without a score and without a reason"
        return Verdict(True, public, private, said)
    return Verdict(False, "", "", "")


def submission_number(answer: Answer) -> int | None:
    """The number that newer programs print; None where it has to be looked for."""
    found = re.search(r"^Submission ref: (\d+)", answer.out, re.MULTILINE)
    return int(found[1]) if found else None


def missing_sources(wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    """Those of `wanted` that are not among `there`, whatever prefix, case or version the server writes."""
    found = {_core(source) for source in there}
    return [source for source in wanted if _core(source) not in found]


def _core(source: str) -> str:
    parts = source.strip("/").lower().split("/")
    while parts and parts[0] in ("datasets", "code", "kernels", "notebooks", "c", "competitions", "models", "m"):
        if len(parts) < 2:
            break
        parts = parts[1:]
    return "/".join(parts if len(parts) > 3 else parts[:2])
