"""How a run ended and what it left → what Kaggle would say, why, and what to do."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rsna_kit.runtime.clock import format_duration
from rsna_lab.kaggle.rehearse.watching import Ended, Limits

COMPLETE = "Complete"
TIMEOUT = "Notebook Timeout"
EXCEPTION = "Notebook Threw Exception"
EXCEEDED = "Notebook Exceeded Allowed Compute"
NOT_FOUND = "Submission CSV Not Found"
SCORING = "Submission Scoring Error"
PUSH = "Kernel push error"
SECRET = "Secret In Output"  # no word of Kaggle's: nobody there looks
_OWN = ("It is not a stand-in but your own, which a plain process can read. Find out what in the kernel does, delete "
        "what holds it, and make a new one if that was ever given away.")  # fmt: skip
_SHOWN = 5
_CHUNK = 1 << 20
# What a log says → what it means here.
_SIGNS = (
    (r"No module named '([\w.]+)'", "{0} is not there. Attach a dataset with its wheel and install it with pip "
     "--no-index, or put the module into the dataset rsna-kit."),
    (r"Read-only file system|Permission denied: '/kaggle/(?:input|src)", "Inputs and source are read-only: write below "
     "/kaggle/working (kept) or /tmp (not kept)."),
    (r"Name or service not known|name resolution|Network is unreachable|NewConnectionError|ENETUNREACH",
     "There is no network: attach what is needed as a dataset; give pip --no-index and --find-links."),
    (r"No matching distribution found|is not a supported wheel", "pip found no wheel that fits this interpreter. "
     "Give --no-index and --find-links with the folder of wheels; build them for Kaggle's Python 3.12."),
    (r"No such file or directory: '(?!/kaggle|/tmp)(/[^']*)'", "{0} lies on this machine and not at Kaggle: attach it, "
     "and look below /kaggle/input."),
    (r"No such file or directory: '(/kaggle/[^']*)'", "{0} is not there: attach its source (kernel-metadata.json), or "
     "give its folder here with --dataset; look in both mount layouts."),
    (r"MemoryError|Unable to allocate|std::bad_alloc|ResourceExhausted|OOM when", "It ran out of memory: smaller "
     "batches, fewer workers."),
    (r"No space left on device", "The disk is full: /kaggle/working holds 20 GB."),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Kaggle's word for an outcome, what was seen, what to do, and the last lines of the log where they help."""

    word: str
    explanation: str = ""
    advice: tuple[str, ...] = ()
    log: tuple[str, ...] = field(default=(), repr=False)

    @property
    def good(self) -> bool:
        """Whether Kaggle would have nothing to say."""
        return self.word == COMPLETE

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def of_run(ended: Ended, limits: Limits, siblings: Sequence[str] = ()) -> Verdict:
    """What the end of a process alone says.

    Args:
        ended: how it ended.
        limits: what it was held to.
        siblings: modules that lie beside the script and are not uploaded with it.
    """
    log = tuple(ended.tail[-20:])
    memory, disk = f"{limits.memory_bytes / 1e9:.1f} GB", f"{limits.working_bytes / 1e9:g} GB"
    if ended.stopped == "time":
        return Verdict(TIMEOUT, f"It was stopped after {format_duration(limits.seconds)}.",
                       ("Do less, or watch the clock and write what there is before the limit.",), log)  # fmt: skip
    if ended.stopped == "memory":
        return Verdict(EXCEEDED, f"Your notebook tried to allocate more memory than is available ({memory}).",
                       ("Smaller batches, fewer workers, float32 instead of float64.",), log)  # fmt: skip
    if ended.stopped == "disk":
        return Verdict(EXCEEDED, f"/kaggle/working held {ended.working_bytes / 1e9:.3g} GB, more than {disk}.",
                       ("Write what is not needed afterwards to /tmp, or delete it.",), log)  # fmt: skip
    if ended.code in (-9, 137):
        seen = f"{ended.memory_bytes / 1e9:.1f} GB were seen. Smaller batches, fewer workers."
        return Verdict(EXCEEDED, "It was killed (signal 9), as Linux does when memory runs out.", (seen,), log)
    if ended.code != 0:
        how = f"exit code {ended.code}" if (ended.code or 0) > 0 else f"signal {-(ended.code or 0)}"
        return Verdict(EXCEPTION, f"It ended with {how}.", tuple(_advice(ended.tail, siblings)), log)
    return Verdict(COMPLETE)


def of_submission(submission: Path, sample: Path) -> Verdict:
    """What the scoring would say of a submission file.

    Rows may come in any order, and whole numbers may be written as floats. Columns must be the sample's, in its order;
    ids its, each once; values finite numbers from 0 to 1.
    """
    if not submission.is_file():
        return Verdict(NOT_FOUND, f"There is no {submission.name} in /kaggle/working.",
                       ("Write it first thing, with a value for every row of sample_submission.csv.",))  # fmt: skip
    try:
        header, rows = _read(submission)
        wanted_header, wanted = _read(sample)
    except (OSError, ValueError, csv.Error) as error:
        return Verdict(SCORING, f"It cannot be read as a CSV file in UTF-8: {error}.", ("Write it with pandas.",))
    problems = _problems(header, rows, wanted_header, wanted)
    if not problems:
        return Verdict(COMPLETE)
    return Verdict(SCORING, f"{submission.name} of {len(rows)} rows, expected {len(wanted)}: {'; '.join(problems)}.",
                   ("Build it from sample_submission.csv of the same run, which has other rows in the scoring run, and "
                    "fill what has no score.",))  # fmt: skip


def of_secrets(
    tokens: Mapping[str, str], log: Path, working: Path, own: Mapping[str, str] | None = None,
    said: Sequence[str] = (),
) -> Verdict:  # fmt: skip
    """Whether a stand-in for one of Kaggle's tokens, or a secret of the person's own, was printed or written.

    Args:
        tokens: variable → stand-in.
        log: what the run said, without the person's own secrets.
        working: what it left.
        own: such a secret → what it is called.
        said: what those are called that it printed.
    """
    if said:
        return Verdict(SECRET, f"It printed the value of {' and '.join(said)}; the log here has *** instead.", (_OWN,))
    own = own or {}
    names = {**own, **{value: name for name, value in tokens.items()}}
    for path in (log, *sorted(path for path in working.rglob("*") if path.is_file() and not path.is_symlink())):
        if found := _occurring(path, list(names)):
            where = "the log" if path == log else f"/kaggle/working/{path.relative_to(working)}"
            shown = " and ".join(dict.fromkeys(names[value] for value in found))
            advice = _OWN if any(value in own for value in found) else (
                "At Kaggle it is a live token, and logs and outputs can be downloaded. Print names of variables, never "
                "values.")  # fmt: skip
            return Verdict(SECRET, f"The value of {shown} stands in {where}.", (advice,))
    return Verdict(COMPLETE)


def _occurring(path: Path, values: Sequence[str]) -> list[str]:
    """Which values occur in a file, which may be of any size."""
    wanted = {value.encode(): value for value in values}
    longest = max(map(len, wanted), default=0)
    found, before = set[str](), b""
    with suppress(OSError), open(path, "rb") as file:  # what we may not read, nobody can download
        while piece := file.read(_CHUNK):
            text = before + piece
            found |= {value for code, value in wanted.items() if code in text}
            before = text[-longest:]
    return [value for value in values if value in found]


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file, strict=True) if row]
    return (rows[0], rows[1:]) if rows else ([], [])


def _problems(header: list[str], rows: list[list[str]], wanted_header: list[str], wanted: list[list[str]]) -> list[str]:
    if header != wanted_header:
        return [f"columns are {', '.join(header) or 'none'}, expected {', '.join(wanted_header)}"]
    ragged = [row[0] for row in rows if len(row) != len(header)]
    counts = Counter(row[0] for row in rows)
    ids = {row[0] for row in wanted}
    found = [
        _named("with another number of cells", ragged),
        _named("missing", [name for name in ids if name not in counts]),
        _named("extra", [name for name in counts if name not in ids]),
        _named("duplicated", [name for name, count in counts.items() if count > 1]),
        _named("whose value is no number from 0 to 1", [row[0] for row in rows if not all(map(_is_score, row[1:]))]),
    ]
    return [problem for problem in found if problem]


def _is_score(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and 0 <= value <= 1


def _named(problem: str, names: Sequence[str]) -> str:
    """`3 missing (10008_L, 10008_R, 10009_L)`, or an empty string."""
    if not names:
        return ""
    return f"{len(names)} {problem} ({', '.join(sorted(names)[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"


def _advice(tail: Sequence[str], siblings: Sequence[str]) -> list[str]:
    """What to do about the last error that a log shows; the last traceback is what ended the run."""
    text = "\n".join(tail)
    advice = []
    for pattern, sentence in _SIGNS:
        found = re.findall(pattern, text)
        if not found:
            continue
        name = str(found[-1])
        if "No module" in pattern and name.partition(".")[0] in siblings:
            sentence = ("{0} lies beside the script, and only code_file is uploaded: put it into the dataset rsna-kit, "
                        "or into the script.")  # fmt: skip
        advice.append(sentence.format(name))
    return advice
