"""A finished kernel version → a submission, and the score it got.

A submission whose scoring run failed is "complete" on Kaggle, too: with an empty score. Only a score is success.
"""

from __future__ import annotations

import time
from typing import Any

from rsna_kit.competition.paths import SLUG
from rsna_kit.runtime.errors import UsageError
from rsna_lab.kaggle.metadata import is_true
from rsna_lab.kaggle.push import judge, kernels, uploads
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.advice import KaggleError
from rsna_lab.kaggle.push.ledger import short_commit
from rsna_lab.kaggle.push.staging import Run
from rsna_lab.kaggle.push.waiting import Waiting

_LIST = ("--page-size", "100", "--format", "json")


def submit(account: Account, run: Run, file_name: str = "submission.csv", competition: str = SLUG) -> int:
    """Submit a version of a kernel, unless that was done before; returns the submission's number.

    Raises:
        KaggleError: the version cannot be scored, or Kaggle refused it.
    """
    if not run.version:
        raise UsageError(f"{run.reference} was not pushed from here: say which version is to be submitted, --version N")
    message = f"rsna_kit {short_commit(account.project)} {run.reference.split('/')[1]} v{run.version}"
    match = {"kernel": run.reference, "version": run.version, "competition": competition}
    known = [line.get("submission") for line in account.ledger.lines()
             if line["kind"] == "submit" and match.items() <= line.items()]  # fmt: skip
    made = [row for row in rows(account, competition) if row.get("ref") in known or row.get("description") == message]
    if made and account.again:
        message += f", {len(made) + 1}. time"
    for row in made:
        if not account.again:
            account.events.say(f"{run.reference}: version {run.version} is submission {row['ref']} already")
            return int(row["ref"])
    check_submittable(account, run, file_name, competition)
    words = ["competitions", "submit", competition, "-k", run.reference, "-v", str(run.version), "-f", file_name]
    answer = account.program.call(*words, "-m", message)
    judge.check(answer, f"The submission of {run.reference} version {run.version}")
    number = judge.submission_number(answer) or _find(account, competition, message)
    account.ledger.add("submit", **match, submission=number, message=message)
    account.events.say(f"{run.reference}: version {run.version} is submission {number}")
    return number


def _find(account: Account, competition: str, message: str) -> int:
    """The number of the submission with this description: the older program does not say it."""
    for _ in range(10):
        for row in rows(account, competition):
            if row.get("description") == message:
                return int(row["ref"])
        time.sleep(account.poll_s)
    raise KaggleError(
        "The submission was accepted, but Kaggle does not list it.",
        "",
        f"Look at https://www.kaggle.com/competitions/{competition}/submissions before you submit again.",
    )


def check_submittable(account: Account, run: Run, file_name: str, competition: str) -> None:
    """What Kaggle would refuse, or run for hours and then not score.

    Raises:
        KaggleError: unfinished, internet on, competition not attached, no such output, or no submission left today.
    """
    name = f"{run.reference} version {run.version}"
    answer = account.program.told("kernels", "status", run.label(account))
    status, failure = judge.kernel_status(answer, f"The status of {name}")
    if status != "COMPLETE":
        raise KaggleError(f"{name} is {status}, and only a complete version can be submitted.", failure,
                          "Wait until it is complete (scripts/push status), or mend it and push again.")  # fmt: skip
    data, _ = kernels.pull(account, run)
    if is_true(data.get("enable_internet")):
        raise KaggleError(f"{name} has the internet on: Kaggle does not score it.", "",
                          'Set "enable_internet": false in kernel-metadata.json and push again.')  # fmt: skip
    if judge.missing_sources([competition], data.get("competition_sources") or []):
        raise KaggleError(f"{name} does not have the competition attached: the scoring run would find no test set.", "",
                          f"Add {competition} to competition_sources and push again.")  # fmt: skip
    files = [file for file, _ in uploads.list_files(account, ["kernels", "files", run.label(account)])]
    if file_name not in files:
        raise KaggleError(f"{name} left no {file_name}.", f"its files: {', '.join(files[:8]) or 'none'}",
                          "Let the kernel write it into /kaggle/working, rehearse it, and push again.")  # fmt: skip
    limits = judge.as_json(
        account.program.told("competitions", "submission-limits", competition, "--json"), "The submission limits"
    )
    if limits.get("numToday") and not limits.get("numAllowedNow"):  # all zero before the first one ever
        raise KaggleError(f"No submission is left today, {limits['numToday']} were made.", "",
                          "The day ends at 00:00 UTC. Run the same command again then.")  # fmt: skip


def rows(account: Account, competition: str) -> list[dict[str, Any]]:
    """The newest submissions, newest first."""
    answer = account.program.told("competitions", "submissions", competition, *_LIST)
    return judge.rows(answer, "The list of submissions")[0]


def wait_for_score(account: Account, run: Run, number: int, competition: str = SLUG) -> judge.Verdict:
    """Wait until a submission is scored.

    Raises:
        KaggleError: it was not, with Kaggle's reason where the program can tell it.
    """
    waiting = Waiting(account.events, f"submission {number}", account.limit_s)
    while True:
        row = next((row for row in rows(account, competition) if row.get("ref") == number), None)
        verdict = judge.submission(row)
        if verdict.done:
            break
        waiting.look("PENDING" if row else "not listed yet")
        time.sleep(account.poll_s)
    waiting.close()
    if verdict.error and account.program.precise:
        details = account.program.ask("competitions", "submission", str(number))
        verdict = judge.submission(row, details.out)
    facts = {"kernel": run.reference, "version": run.version, "competition": competition, "submission": number,
             "public": verdict.public, "private": verdict.private, "error": verdict.error}  # fmt: skip
    if account.ledger.last("score", **facts) is None:
        account.ledger.add("score", **facts)
    if not verdict.error:
        account.events.say(f"submission {number}: public {verdict.public or '-'}, private {verdict.private or '-'}")
        return verdict
    where = f"https://www.kaggle.com/competitions/{competition}/submissions"
    advice = "" if account.program.precise else (
        f"The reason stands at {where} (kaggle 2.2.5 can read it). A scoring run shows no log: rehearse it with "
        "scripts/rehearse kernels/infer"
    )  # fmt: skip
    raise KaggleError(f"Submission {number} has no score.", verdict.error, advice)
