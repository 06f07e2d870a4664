"""A staged kernel → a version of it on Kaggle that has everything attached, and what became of its run.

After a push, Kaggle is asked what it really made of it: every source attached, models among them, who may see it, no
internet, the text as it was sent. The status of a run is believed only when it is surely that of this version.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsna_lab.kaggle.metadata import KERNEL_FILE, SOURCE_KEYS, is_true
from rsna_lab.kaggle.push import judge
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.advice import KaggleError
from rsna_lab.kaggle.push.logs import LogTail
from rsna_lab.kaggle.push.staging import Run, Staged, inputs_of
from rsna_lab.kaggle.push.waiting import Waiting

_SHY_LOOKS = 4  # a version that was just pushed may not be found yet
_STALE_S = 900.0  # this long the status may be that of the version before


def push(account: Account, staged: Staged, covers: str | None = None) -> Run:
    """Push a kernel, or take up the run of the same script on the same inputs, and verify it.

    Args:
        account: who pushes.
        staged: the copy that goes out.
        covers: for the ledger: digest of the training that this begins or goes on with.

    Raises:
        KaggleError: refused, or not what was asked for.
    """
    inputs = inputs_of(account, staged)
    digest = staged.digest(inputs)
    if not account.again and (run := _known(account, staged, digest)):
        return run
    _say_why(account, staged, inputs)
    if is_true(staged.metadata["enable_gpu"]):
        say_quota(account)
    before = None if account.program.precise else _state(account, staged.reference)
    if before and before["status"] in judge.RUNNING:
        raise KaggleError(
            f"{staged.reference}: a version of it is {before['status']} already, and this kaggle program could not "
            "tell the two apart.",
            "",
            "Wait until it has ended (scripts/push status), or use kaggle 2.2.5.",
        )
    answer = account.program.call(*staged.words())
    try:
        done = judge.pushed(answer, staged.reference)
    except KaggleError as error:
        problem = str(error).splitlines()[0]
        account.ledger.add("push", kernel=staged.reference, version=judge.version_in(answer), problem=problem)
        raise
    run = Run(done.reference, done.version)
    account.ledger.add(
        "push", kernel=run.reference, version=run.version, digest=digest, url=done.url, inputs=inputs, before=before,
        settings=dict(staged.settings), **({"covers": covers} if covers else {}),
    )  # fmt: skip
    account.events.say(f"{run.reference}: version {run.version} pushed, {done.url}")
    verify(account, staged, run)
    return run


def _known(account: Account, staged: Staged, digest: str) -> Run | None:
    """The run of the same script on the same inputs, if Kaggle still has it so."""
    line = account.ledger.last("push", kernel=staged.reference, digest=digest)
    if line is None:
        return None
    run = Run(staged.reference, int(line["version"]))
    match = {"kernel": run.reference, "version": run.version}
    seen, ended = account.ledger.last("verify", **match), account.ledger.last("run", **match)
    if (seen and seen.get("problem")) or (ended and ended["status"] != "COMPLETE"):
        return None
    return run if stands(account, staged, run) else None


def stands(account: Account, staged: Staged, run: Run) -> bool:
    """Whether a version is still on Kaggle as it was pushed; then it need not be pushed again, and that is said."""
    try:
        verify(account, staged, run)
    except KaggleError:
        return False  # another version lies above it, or somebody changed it
    account.events.say(
        f"{run.reference}: version {run.version} is the same script on the same inputs; not pushed again"
    )
    return True


def _say_why(account: Account, staged: Staged, inputs: Mapping[str, Any]) -> None:
    """Tell when only the inputs of a kernel are newer: a run for that may cost hours of quota."""
    before = (account.ledger.last("push", kernel=staged.reference) or {}).get("inputs") or {}
    newer = [f"{name} is version {version} now, not {before[name]}" for name, version in inputs.items()
             if before.get(name) not in (None, version)]  # fmt: skip
    if newer:
        account.events.say(f"{staged.reference}: pushed anew, {'; '.join(newer)}")


def verify(account: Account, staged: Staged, run: Run) -> None:
    """Compare what Kaggle has with what was sent.

    Raises:
        KaggleError: a source is missing, everybody can see it, the internet is on, or it is another text or image.
    """
    for look in range(_SHY_LOOKS):
        data, text = pull(account, run)
        if _words_of(text) == _words_of(staged.text):
            break
        if look + 1 < _SHY_LOOKS:  # right after a push the one before may still be shown
            time.sleep(account.poll_s)
    wanted = staged.metadata
    problems = []
    for key in SOURCE_KEYS:
        if lost := judge.missing_sources(wanted.get(key, []), data.get(key) or []):
            problems.append(f"not attached: {', '.join(lost)} ({key})")
    if not is_true(data.get("is_private")) and not account.public:
        problems.append("everybody can see it: is_private is false")
    if is_true(data.get("enable_internet")) and not is_true(wanted["enable_internet"]):
        problems.append("the internet is on")
    if wanted.get("docker_image") and data.get("docker_image") != wanted["docker_image"]:
        problems.append(f"the image is {data.get('docker_image')}, not {wanted['docker_image']}")
    if _words_of(text) != _words_of(staged.text):
        problems.append("the text is another one; was a newer version pushed from elsewhere?")
    facts = {"image": data.get("docker_image"), "accelerator": data.get("machine_shape")}
    match = {"kernel": run.reference, "version": run.version}
    if problems:
        account.ledger.add("verify", **match, **facts, problem="; ".join(problems))
        raise KaggleError(
            f"{run.reference}: version {run.version} is not what was sent: {'; '.join(problems)}.",
            "",
            "Check the names, and that the account may use them; then push again. This version runs as it is: stop it "
            f"in the browser (https://www.kaggle.com/code/{run.reference}), it cannot be stopped from here.",
        )
    if account.ledger.last("verify", **match) is None:
        account.ledger.add("verify", **match, **facts)
    if wanted.get("machine_shape") and data.get("machine_shape") != wanted["machine_shape"]:
        account.events.say(
            f"{run.reference}: asked for {wanted['machine_shape']}, Kaggle says {data.get('machine_shape')!r}"
        )


def pull(account: Account, run: Run) -> tuple[dict[str, Any], str]:
    """Metadata and source that Kaggle has."""
    with tempfile.TemporaryDirectory() as scratch:
        account.program.told("kernels", "pull", run.label(account), "-m", "-p", scratch)
        data = json.loads((Path(scratch) / KERNEL_FILE).read_text(encoding="utf-8"))
        return data, (Path(scratch) / Path(data["code_file"]).name).read_text(encoding="utf-8")


def _words_of(text: str) -> list[str]:
    """A source without what a server may do to line ends; of a notebook, the cells."""
    try:
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    except (ValueError, KeyError, TypeError):
        pass
    return [line.rstrip() for line in text.strip().splitlines()]


def say_quota(account: Account) -> None:
    """Tell what is left of the week's GPU hours; a run that cannot start is refused by the push itself."""
    answer = account.program.call("quota", "--format", "json")
    try:
        rows, _ = judge.rows(answer, "The quota")
    except KaggleError:
        return
    for row in rows:
        if row.get("resource") == "GPU":
            account.events.say(f"GPU quota: {row['remaining']} of {row['total']} left, new hours at {row['refreshAt']}")


def _state(account: Account, reference: str) -> dict[str, str] | None:
    """Status and log of the newest run, to tell the next one from it; None for a new kernel."""
    answer = account.program.ask("kernels", "status", reference)
    if answer.code != 0:
        return None
    status, _ = judge.kernel_status(answer, f"The status of {reference}")
    log = account.program.ask("kernels", "logs", reference).out
    return {"status": status, "log": hashlib.sha256(log.encode()).hexdigest()}


def follow(account: Account, run: Run) -> None:
    """Wait for the end of a run, its log as it is written, and judge it.

    Raises:
        KaggleError: it failed, or did not end in time.
    """
    match = {"kernel": run.reference, "version": run.version}
    pushed = account.ledger.last("push", **match) or {}
    ended = account.ledger.last("run", **match)
    last = account.ledger.last("run", kernel=run.reference, status="COMPLETE") or {}
    waiting = Waiting(account.events, f"{run.reference} v{run.version}", account.limit_s, last.get("seconds"))
    with LogTail(account, run.label(account), waiting) as tail:
        status, failure = _wait_for_end(account, run, None if ended else pushed.get("before"), waiting, tail)
    waiting.close()
    if ended is None:
        account.ledger.add("run", **match, status=status, failure=failure, seconds=round(waiting.seconds))
    if status == "COMPLETE":
        account.events.say(f"{run.reference}: version {run.version} is complete")
        return
    said = failure or f"status {status}, without a message"
    if not tail.shown:
        for line in read_log(account, run)[-15:]:
            account.events.say(f"  | {line}", kind="log")
    advice = "It was stopped by hand or by Kaggle. Push again." if status.startswith("CANCEL") else ""
    raise KaggleError(f"{run.reference}: version {run.version} failed.", said, advice)


def read_log(account: Account, run: Run) -> list[str]:
    """The log of a run that has ended, line by line."""
    return judge.log_lines(account.program.told("kernels", "logs", run.label(account)), f"The log of {run.reference}")


def _wait_for_end(
    account: Account, run: Run, before: dict[str, str] | None, waiting: Waiting, tail: LogTail
) -> tuple[str, str]:
    """`(status, failure)` of this version, not of the one before it.

    The older program answers for the newest version, and right after a push Kaggle still gives the status of the one
    before. So an end counts when the run was seen going, or when status or log differ from what was there before.
    """
    ours, looks = before is None, 0
    while True:
        answer = account.program.ask("kernels", "status", run.label(account))
        looks += 1
        if answer.absent and looks <= _SHY_LOOKS:
            waiting.look("not listed yet")
            time.sleep(account.poll_s)
            continue
        status, failure = judge.kernel_status(answer, f"The status of {run.reference}")
        going = status in judge.RUNNING
        if not ours and not going and _state(account, run.reference) != before:
            ours = True  # but what was read above may be of the version before: look again
            time.sleep(account.poll_s)
            continue
        ours = ours or going
        if ours and not going:
            return status, failure
        if status == "RUNNING":
            tail.start()
        if not ours and waiting.seconds > max(_STALE_S, 20 * account.poll_s):
            raise KaggleError(
                f"{run.reference}: Kaggle shows nothing of version {run.version}, only the one before ({status}).",
                "",
                f"Look at https://www.kaggle.com/code/{run.reference}. kaggle 2.2.5 can be asked about one version.",
            )
        waiting.look(status if ours else f"Kaggle still shows the version before ({status})")
        time.sleep(account.poll_s)
