"""How a run ended and what it left → what Kaggle would say, why, and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from rsna_kit.competition.submission import check_submission
from rsna_kit.runtime.clock import format_duration
from rsna_kit.runtime.errors import SubmissionError
from rsna_lab.kaggle.rehearse.watching import Ended, Limits
from rsna_lab.kaggle.secrecy import Secrets, known_in

COMPLETE = "Complete"
TIMEOUT = "Notebook Timeout"
EXCEPTION = "Notebook Threw Exception"
EXCEEDED = "Notebook Exceeded Allowed Compute"
NOT_FOUND = "Submission CSV Not Found"
SCORING = "Submission Scoring Error"
SECRET = "Secret In Output"  # no word of Kaggle's: nobody there looks
_OWN = (
    "It is not a stand-in but your own, which a plain process can read. Find out what in the kernel does, delete "
    "what holds it, and make a new one if that was ever given away."
)
_LIVE = "At Kaggle it is a live token, and logs and outputs can be downloaded. Print names of variables, never values."
_REBUILD = (
    "Build it from sample_submission.csv of the same run, which has other rows in the scoring run, and fill what has "
    "no score."
)
# What a log says → what it means here.
_SIGNS = {
    r"No module named '([\w.]+)'": "{0} is not there. Attach a dataset with its wheel and install it with pip "
    "--no-index, or put the module into the dataset rsna-kit.",
    r"Read-only file system|Permission denied: '/kaggle/(?:input|src)": "Inputs and source are read-only: write below "
    "/kaggle/working (kept) or /tmp (not kept).",
    r"Name or service not known|name resolution|Network is unreachable|NewConnectionError": "There is no network: "
    "attach what is needed as a dataset; give pip --no-index and --find-links.",
    r"No matching distribution found|is not a supported wheel": "pip found no wheel that fits this interpreter. Give "
    "--no-index and --find-links with the folder of wheels; build them for Kaggle's Python 3.12.",
    r"No such file or directory: '(?!/kaggle|/tmp)(/[^']*)'": "{0} lies on this machine and not at Kaggle: attach it, "
    "and look below /kaggle/input.",
    r"No such file or directory: '(/kaggle/[^']*)'": "{0} is not there: attach its source (kernel-metadata.json), or "
    "give its folder here with --dataset; look in both mount layouts.",
    r"MemoryError|Unable to allocate|std::bad_alloc|ResourceExhausted|OOM when": "It ran out of memory: smaller "
    "batches, fewer workers.",
    r"No space left on device": "The disk is full: /kaggle/working holds 20 GB.",
}


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


def of_run(ended: Ended, limits: Limits, siblings: Sequence[str] = ()) -> Verdict:
    """What the end of a process alone says.

    Args:
        ended: how it ended.
        limits: what it was held to.
        siblings: names of what lies beside the script and is not uploaded with it.
    """
    memory, disk = f"{limits.memory_bytes / 1e9:.1f} GB", f"{limits.working_bytes / 1e9:g} GB"
    less = "Smaller batches, fewer workers."
    how = f"exit code {ended.code}" if (ended.code or 0) > 0 else f"signal {-(ended.code or 0)}"
    word, said, advice = {
        "time": (
            TIMEOUT,
            f"It was stopped after {format_duration(limits.seconds)}.",
            ["Do less, or watch the clock and write what there is before the limit."],
        ),
        "memory": (EXCEEDED, f"Your notebook tried to allocate more memory than is available ({memory}).", [less]),
        "disk": (
            EXCEEDED,
            f"/kaggle/working held {ended.working_bytes / 1e9:.3g} GB, more than {disk}.",
            ["Write what is not needed afterwards to /tmp, or delete it."],
        ),
        "killed": (
            EXCEEDED,
            "It was killed (signal 9), as Linux does when memory runs out.",
            [f"{ended.memory_bytes / 1e9:.1f} GB were seen. {less}"],
        ),
        "failed": (EXCEPTION, f"It ended with {how}.", _advice(ended.tail, siblings)),
        "": (COMPLETE, "", []),
    }[ended.stopped or ("killed" if ended.code in (-9, 137) else "failed" if ended.code else "")]
    return Verdict(word, said, tuple(advice), () if word == COMPLETE else tuple(ended.tail[-20:]))


def of_submission(submission: Path, sample: Path) -> Verdict:
    """What the scoring would say of a submission file.

    Rows may come in any order, and whole numbers may be written as floats. Columns must be the sample's, in its order;
    ids its, each once; values finite numbers from 0 to 1.
    """
    if not submission.is_file():
        return Verdict(
            NOT_FOUND,
            f"There is no {submission.name} in /kaggle/working.",
            ("Write it first thing, with a value for every row of sample_submission.csv.",),
        )
    try:
        table, wanted = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (submission, sample))
    except (OSError, ValueError) as error:
        return Verdict(SCORING, f"It cannot be read as a CSV file in UTF-8: {error}.", ("Write it with pandas.",))
    names, expected = list(map(str, table.columns)), list(map(str, wanted.columns))
    try:
        if names != expected or "cancer" not in names:
            raise SubmissionError(f"columns are {', '.join(names)}, expected {', '.join(expected)}")
        check_submission(table.assign(cancer=pd.to_numeric(table["cancer"], errors="coerce")), wanted)
    except SubmissionError as error:
        return Verdict(SCORING, str(error), (_REBUILD,))
    return Verdict(COMPLETE)


def of_secrets(tokens: Mapping[str, str], log: Path, working: Path, own: Secrets, said: Sequence[str]) -> Verdict:
    """Whether a stand-in for one of Kaggle's tokens, or a secret of the person's own, was printed or written.

    Args:
        tokens: variable → stand-in.
        log: what the run said, without the person's own secrets.
        working: what it left.
        own: those, which a plain process can read.
        said: what those are called that it printed.
    """
    if said:
        return Verdict(SECRET, f"It printed the value of {' and '.join(said)}; the log here has *** instead.", (_OWN,))
    names, found = {**own.known, **{value: name for name, value in tokens.items()}}, list[str]()
    for path in (log, *sorted(path for path in working.rglob("*") if path.is_file() and not path.is_symlink())):
        with suppress(OSError):  # what we may not read, nobody can download
            found = known_in(path, names)
        if found:
            where = "the log" if path == log else f"/kaggle/working/{path.relative_to(working)}"
            advice = _LIVE if set(found) <= set(tokens) else _OWN
            return Verdict(SECRET, f"The value of {' and '.join(found)} stands in {where}.", (advice,))
    return Verdict(COMPLETE)


def _advice(tail: Sequence[str], siblings: Sequence[str]) -> list[str]:
    """What to do about the last error that a log shows; the last traceback is what ended the run."""
    text = "\n".join(tail)
    missing = re.findall(r"No module named '([\w]+)|(?:No such file or directory|does not exist): '?([^'\n]+)", text)
    beside = [name for pair in missing for name in pair if Path(name).name in siblings or f"{name}.py" in siblings]
    if beside:
        return [
            f"{Path(beside[-1]).name} lies beside the script, and only code_file is uploaded. Code: put it into the "
            "dataset rsna-kit, or into the script. Data: attach it as a dataset, and look below /kaggle/input."
        ]
    found = [(re.findall(pattern, text), sentence) for pattern, sentence in _SIGNS.items()]
    return [sentence.format(names[-1]) for names, sentence in found if names]
