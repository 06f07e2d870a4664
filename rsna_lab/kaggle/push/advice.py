"""What Kaggle says → what to do about it. Every failure on the road ends with both."""

from __future__ import annotations

import re

from rsna_kit.runtime.errors import RsnaKitError

_REHEARSE = "Rehearse it on a hidden test set: scripts/rehearse --help"
# The first pattern that is found counts.
_ADVICE = (
    (
        r"batch [GT]PU session count|session count of \d+ reached",
        "Kaggle runs two GPU sessions at a time. Wait until one ends, or stop one in the browser ('View Active Events' "
        "at the lower left of kaggle.com), then run this again.",
    ),
    (
        r"weekly [GT]PU quota",
        "This week's accelerator hours are spent; `scripts/push status` says when they come back. Then run this again: "
        "what is done already is not done twice.",
    ),
    (
        r"[Nn]otebook not found",
        "Kaggle knows no kernel of this id. Check `id` and `title` in kernel-metadata.json. A token made lately may "
        "lack the right to kernels: then use kaggle.json (kaggle.com, Settings, API, 'Create Legacy API Key').",
    ),
    (
        r"not valid \w+ sources",
        "Check the name, that your account may use it, and that it is ready (`scripts/push status`). This version runs "
        "without it: stop it in the browser, it cannot be stopped from here.",
    ),
    (r"No module named", "The kaggle program is not whole. Install what it lacks beside it: pip install kaggle six"),
    (r"not valid tags", "Take these words out of `keywords` in the metadata."),
    (r"already in use", "The name is taken. Choose another `id` and `title` in the metadata."),
    (r"Upload unsuccessful|upload failed|Could not submit", "A file did not arrive. Run the same command again."),
    (r"Skipping folder", "Sub-folders go along only with `--dir-mode zip`. Use scripts/push upload, which says so."),
    (
        r"Authentication required|Unauthorized|\b401\b",
        "Kaggle does not accept the credentials. Make new ones at https://www.kaggle.com/settings (API), and take "
        "older ones out of the environment and of ~/.kaggle.",
    ),
    (
        r"\b429\b|Too Many Requests|rate limit|[Rr]ate limited",
        "Kaggle asks to be called less often. Wait ten minutes, then run the same command again: it goes on where it "
        "stopped.",
    ),
    (
        r"more memory than is available|Exceeded Allowed Compute",
        "The run needs more memory, disk or accelerator than there is. Use smaller batches or fewer workers. "
        + _REHEARSE,
    ),
    (
        r"max allowed execution duration|Notebook Timeout",
        "The run was too slow. Let it stop itself earlier (TIME_LIMIT in the kernel's SETTINGS), or do less.",
    ),
    (
        r"Submission CSV Not Found",
        "The scoring run left no file of that name in /kaggle/working. " + _REHEARSE,
    ),
    (
        r"Submission Scoring Error",
        "Rows or columns were not those of the hidden sample_submission.csv, or a value is no number. " + _REHEARSE,
    ),
    (
        r"Threw Exception|exited with code",
        "The script failed. Its log says where: scripts/push logs KERNEL. A scoring run shows no log. " + _REHEARSE,
    ),
    (r"accept.*rules", "Accept the competition's rules in the browser first, with this account."),
    (
        r"denied|Forbidden|\b40[34]\b|[Nn]ot found|Could not find",
        "Check the name, and that this account may use it. For a competition, accept its rules in the browser first. A "
        "token made lately may lack rights that kaggle.json has.",
    ),
    (
        r"\b5\d\d (?:Server )?Error|[Ii]nternal (?:server )?error|Kaggle's side",
        "The trouble is on Kaggle's side. Run the same command again later: it goes on where it stopped.",
    ),
    (
        r"timed out|Max retries|[Cc]onnection|resolve|unreachable",
        "Kaggle could not be reached. Check the network, then run the same command again: it goes on where it stopped.",
    ),
)


class KaggleError(RsnaKitError):
    """Something did not work on Kaggle: what, Kaggle's own words, and what to do."""

    def __init__(self, what: str, said: str, advice: str = "") -> None:
        self.said = said.strip()
        self.advice = advice or advice_for(said)
        words = self.said.replace("\n", "\n    ")
        lines = [what, f"Kaggle says: {words}" if words else "", f"What to do: {self.advice}"]
        super().__init__("\n  ".join(line for line in lines if line))


class UnreachableError(KaggleError):
    """Kaggle was not asked, or did not answer: what is there is unknown."""


def advice_for(said: str) -> str:
    """What helps against a message of Kaggle's.

    Example:
        >>> advice_for("The following are not valid tags: ['rsna']")
        'Take these words out of `keywords` in the metadata.'
    """
    for pattern, advice in _ADVICE:
        if re.search(pattern, said):
            return advice
    return "Nothing is taken as done. Mend what Kaggle complains about, then run the same command again."
