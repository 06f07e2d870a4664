"""A finished kernel version → a submission, and the score it got.

A submission is spent only after a look at what is there: its description says which version it is of. One whose scoring
run failed is "complete" on Kaggle, too, with an empty score: only a score is success.
"""

from __future__ import annotations

from typing import Any

from rsna_kit.competition.paths import SLUG
from rsna_lab.kaggle.push import runs
from rsna_lab.kaggle.push.account import Account, commit_of
from rsna_lab.kaggle.push.errors import KaggleError, advice_for
from rsna_lab.kaggle.push.project import Run, look, missing_sources, state_of
from rsna_lab.kaggle.push.waiting import LOOKS, Waiting, look_again, once

_PAGE = f"https://www.kaggle.com/competitions/{SLUG}/submissions"


def submit_and_wait(account: Account, run: Run, file_name: str = "submission.csv") -> dict[str, Any]:
    """Submit a version of a kernel, unless that was done before, and wait for its score.

    Raises:
        KaggleError: the version cannot be scored, Kaggle refused it, or it got no score.
    """
    number = _submit(account, run, file_name)
    waiting = Waiting(account, f"submission {number}", _PAGE)
    while not (row := next((row for row in _rows(account) if row.get("ref") == number), None)) or _error(row) is None:
        waiting.look("PENDING" if row else None)
    error = _error(row)
    facts = {"submission": number, "public": row.get("publicScore") or "", "private": row.get("privateScore") or ""}
    line = {"kernel": run.reference, "version": run.version, "competition": SLUG, **facts, "error": error}
    if not line.items() <= account.ledger.last("score", submission=str(number)).items():
        account.ledger.add("score", **line)
    if error:
        raise KaggleError(
            f"Submission {number} has no score.",
            error,
            f"{advice_for(error)} To submit version {run.version} once more as it is: scripts/push submit --again",
        )
    account.events.say(f"submission {number}: public {facts['public'] or '-'}, private {facts['private'] or '-'}")
    return facts


def _rows(account: Account) -> list[dict[str, Any]]:
    """Every submission, newest first."""
    return account.kaggle.every("competitions/list_submissions", "submissions", competitionName=SLUG, pageSize=100)


def _error(row: dict[str, Any]) -> str | None:
    """ "" for a scored submission, what went wrong with a failed one, None while it is under way."""
    if row.get("status") == "COMPLETE" and (row.get("publicScore") or row.get("privateScore")):
        return ""
    if row.get("status") not in ("COMPLETE", "ERROR"):
        return None
    said = " ".join(str(row.get("errorDescription") or "").split())
    return said or f"{row['status']}, without a score and without a reason"


def _submit(account: Account, run: Run, file_name: str) -> int:
    """The number of the submission of a version: of a new one, or of the one that is there."""
    owner, slug = run.reference.split("/")
    about = f"{slug} v{run.version}"

    def made() -> list[int]:
        said = {int(row["ref"]): f"{row.get('description')}," for row in _rows(account)}
        return [number for number, text in said.items() if text.startswith("rsna_kit ") and f" {about}," in text]

    before = made()
    if before and not account.again:
        account.events.say(f"{run.reference}: version {run.version} is submission {before[0]} already")
        return before[0]
    check_submittable(account, run, file_name)
    message = f"rsna_kit {commit_of(account.project)[:8]} {about}" + (f", time {len(before) + 1}" if before else "")
    body = {"competitionName": SLUG, "kernelOwner": owner, "kernelSlug": slug, "kernelVersion": run.version}
    body |= {"fileName": file_name, "submissionDescription": message}
    said = ""

    def find() -> int:
        return next((number for number in made() if number not in before), 0)

    def send() -> int:
        nonlocal said
        what = f"The submission of {run.reference} version {run.version}"
        answer = account.kaggle.change("competitions/create_code_submission", what, **body)
        said = str(answer.get("message") or "")
        return int(answer.get("ref") or 0) or look_again(account, find, looks=2 * LOOKS)

    number = once(account, run.reference, "submission", send, find)
    if not number:
        advice = f"Look at {_PAGE} before you submit again."
        raise KaggleError("The submission was accepted, but Kaggle does not list it.", said, advice)
    facts = {"kernel": run.reference, "version": run.version, "competition": SLUG}
    account.ledger.add("submit", **facts, submission=number, message=message)
    account.events.say(f"{run.reference}: version {run.version} is submission {number}")
    return number


def check_submittable(account: Account, run: Run, file_name: str) -> None:
    """What Kaggle would refuse, or run for hours and then not score.

    Raises:
        KaggleError: unfinished, failed by its own words, internet on, competition not attached, no such output, or no
            submission left today.
    """
    name = f"{run.reference} version {run.version}"
    state, data = state_of(account, run), look(account, run.reference, run.version).metadata
    if state["status"] != "COMPLETE":
        raise KaggleError(
            f"{name} is {state['status'] or 'not there'}, and only a complete version can be submitted.",
            str(state.get("failureMessage") or ""),
            "Wait until it is complete (scripts/push status), or mend it and push again.",
        )
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
