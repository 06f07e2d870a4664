"""A finished kernel version → a submission, and the score it got.

A submission is spent only after a look at what is there. One whose scoring run failed is "complete" on Kaggle, too,
with an empty score: only a score is success.
"""

from __future__ import annotations

import time
from typing import Any

from rsna_kit.competition.paths import SLUG
from rsna_kit.runtime.errors import UsageError
from rsna_lab.kaggle.push import runs
from rsna_lab.kaggle.push.account import Account, commit_of
from rsna_lab.kaggle.push.api import LOOKS
from rsna_lab.kaggle.push.errors import KaggleError, UnreachableError, advice_for
from rsna_lab.kaggle.push.kernels import missing_sources
from rsna_lab.kaggle.push.project import Run, look
from rsna_lab.kaggle.push.waiting import Waiting

_PAGE = f"https://www.kaggle.com/competitions/{SLUG}/submissions"


def submit_and_wait(account: Account, run: Run, file_name: str = "submission.csv") -> dict[str, Any]:
    """Submit a version of a kernel, unless that was done before, and wait for its score.

    Raises:
        KaggleError: the version cannot be scored, Kaggle refused it, or it got no score.
    """
    number = _submit(account, run, file_name)
    waiting = Waiting(account.events, f"submission {number}", account.limit_s, account.poll_s, _PAGE)
    while not (row := next((row for row in rows(account) if row.get("ref") == number), None)) or outcome(row) is None:
        waiting.look("PENDING" if row else None)
    waiting.close()
    error = outcome(row)
    facts = {"submission": number, "public": row.get("publicScore") or "", "private": row.get("privateScore") or ""}
    line = {**run.match, "competition": SLUG, **facts, "error": error}
    if not account.ledger.last("score", **line):
        account.ledger.add("score", **line)
    if error:
        raise KaggleError(
            f"Submission {number} has no score.",
            error,
            f"{advice_for(error)} To submit version {run.version} once more as it is: scripts/push submit --again",
        )
    account.events.say(f"submission {number}: public {facts['public'] or '-'}, private {facts['private'] or '-'}")
    return facts


def rows(account: Account) -> list[dict[str, Any]]:
    """Every submission, newest first."""
    return account.kaggle.every("competitions/list_submissions", "submissions", competitionName=SLUG, pageSize=100)


def outcome(row: dict[str, Any]) -> str | None:
    """ "" for a scored submission, what went wrong with a failed one, None while it is under way."""
    if row.get("status") == "COMPLETE" and (row.get("publicScore") or row.get("privateScore")):
        return ""
    if row.get("status") not in ("COMPLETE", "ERROR"):
        return None
    said = " ".join(str(row.get("errorDescription") or "").split())
    return said or f"{row['status']}, without a score and without a reason"


def _submit(account: Account, run: Run, file_name: str) -> int:
    """The number of the submission of a version: of a new one, or of the one that is there."""
    if not run.version:
        raise UsageError(f"{run.reference} was not pushed from here: say which version is to be submitted, --version N")
    about = f"{run.reference.split('/')[1]} v{run.version}"
    match = {**run.match, "competition": SLUG}
    known = {line.get("submission") for line in account.ledger.lines("submit", **match)}

    def made() -> list[dict[str, Any]]:
        return [
            row
            for row in rows(account)
            if row.get("ref") in known
            or (f"{row.get('description')},".startswith("rsna_kit ") and f" {about}," in f"{row['description']},")
        ]

    before = made()
    if before and not account.again:
        account.events.say(f"{run.reference}: version {run.version} is submission {before[0]['ref']} already")
        return int(before[0]["ref"])
    check_submittable(account, run, file_name)
    message = f"rsna_kit {commit_of(account.project)[:8]} {about}" + (f", time {len(before) + 1}" if before else "")
    owner, slug = run.reference.split("/")
    number = 0
    try:
        answer = account.kaggle.change(
            "competitions/create_code_submission",
            f"The submission of {run.reference} version {run.version}",
            competitionName=SLUG,
            kernelOwner=owner,
            kernelSlug=slug,
            kernelVersion=run.version,
            fileName=file_name,
            submissionDescription=message,
        )
        number = int(answer.get("ref") or 0)
        lost = KaggleError(
            "The submission was accepted, but Kaggle does not list it.",
            str(answer.get("message") or ""),
            f"Look at {_PAGE} before you submit again.",
        )
    except UnreachableError as error:
        lost = error
    for _ in range(0 if number else 2 * LOOKS):
        time.sleep(account.poll_s)
        number = next((int(row["ref"]) for row in made() if row not in before), 0)
        if number:
            break
    if not number:
        raise lost
    account.ledger.add("submit", **match, submission=number, message=message)
    account.events.say(f"{run.reference}: version {run.version} is submission {number}")
    return number


def check_submittable(account: Account, run: Run, file_name: str) -> None:
    """What Kaggle would refuse, or run for hours and then not score.

    Raises:
        KaggleError: unfinished, failed by its own words, internet on, competition not attached, no such output, or no
            submission left today.
    """
    name = f"{run.reference} version {run.version}"
    state = account.kaggle.ask("kernels/get_kernel_session_status", **run.body)
    if state.get("status") != "COMPLETE":
        raise KaggleError(
            f"{name} is {state.get('status')}, and only a complete version can be submitted.",
            str(state.get("failureMessage") or ""),
            "Wait until it is complete (scripts/push status), or mend it and push again.",
        )
    there = look(account, run)
    data = there.metadata if there else {}
    if data.get("enableInternet"):
        raise KaggleError(
            f"{name} has the internet on: Kaggle does not score it.",
            advice='Set "enable_internet": false in kernel-metadata.json and push again.',
        )
    if missing_sources([SLUG], data.get("competitionDataSources") or []):
        raise KaggleError(
            f"{name} does not have the competition attached: the scoring run would find no test set.",
            advice=f"Add {SLUG} to competition_sources and push again.",
        )
    runs.read_verdict(account, run)
    files = runs.list_files(account, run)
    if file_name not in files:
        raise KaggleError(
            f"{name} left no {file_name}; its files: {', '.join(list(files)[:8]) or 'none'}.",
            advice="Let the kernel write it into /kaggle/working, rehearse it, and push again.",
        )
    check_left(account)


def check_left(account: Account, refuse: bool = True) -> str:
    """How many submissions were made and are left today, for people.

    Raises:
        KaggleError: none is left, and `refuse`.
    """
    made, left = left_today(account)
    if refuse and made and not left:  # both 0 before the first one ever
        raise KaggleError(
            f"No submission is left today, {made} were made.",
            advice="The day ends at 00:00 UTC: run the same command again then. Or leave out the last step of all, "
            "--skip submit",
        )
    return f"submissions: {made} today, {left} left" if made or left else "submissions: none so far"


def left_today(account: Account) -> tuple[int, int]:
    """How many submissions were made today, and how many may be made now."""
    limits = account.kaggle.ask("competitions/get_submission_limits", competitionName=SLUG)
    return int(limits.get("numToday") or 0), int(limits.get("numAllowedNow") or 0)
