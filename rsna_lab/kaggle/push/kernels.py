"""A kernel's folder → a version of it on Kaggle that has everything attached, or the one that is there already.

What goes out is a copy: the account's name in its metadata, the settings in its script, and a last line that says what
it was made of. By that line a run whose answer or whose ledger was lost is found again instead of started twice.
After a push, Kaggle is asked what it really made of it: sources, privacy, internet, text, image, accelerator.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rsna_lab.kaggle.metadata import SOURCE_KEYS, is_true
from rsna_lab.kaggle.push.account import Account, same
from rsna_lab.kaggle.push.api import LOOKS
from rsna_lab.kaggle.push.errors import KaggleError, UnreachableError
from rsna_lab.kaggle.push.project import Run, There, look
from rsna_lab.kaggle.push.staging import FIELDS, Staged, inputs_of

GOING = ("QUEUED", "RUNNING", "NEW_SCRIPT", "CANCEL_REQUESTED")
_MARK = "# rsna_kit pushed this: "


class AcceleratorError(KaggleError):
    """The version runs on another accelerator than the one it asked for."""


def push(account: Account, staged: Staged, covers: str | None = None) -> Run:
    """Push a kernel, or take up the run of the same script on the same inputs, and verify it.

    Args:
        account: who pushes.
        staged: the copy that goes out.
        covers: digest of the training that this begins or goes on with.

    Raises:
        KaggleError: refused, or not what was asked for.
    """
    inputs = inputs_of(account, staged)
    digest = staged.digest(inputs)
    mark = f"{_MARK}{digest[:16]} {(covers or digest)[:16]}"
    before = look(account, Run(staged.reference, 0))
    if before and not account.public and not before.metadata.get("isPrivate"):
        raise _public(staged.reference)
    facts = {"kernel": staged.reference, "digest": digest, "inputs": inputs, "settings": dict(staged.settings)}
    facts["covers"] = covers or digest
    if before and not account.again and _taken_over(account, staged, before, mark, facts):
        return Run(staged.reference, before.version)
    _say_why(account, staged, inputs)
    what = f"The push of {staged.reference}"
    try:
        answer = account.kaggle.change("kernels/save_kernel", what, **staged.body(mark))
        version = _judge(account, staged, answer, what)
    except UnreachableError:
        version = _look_for(account, staged, mark, before.version if before else 0)
        if not version:
            raise
        account.events.say(f"{staged.reference}: the answer was lost, and version {version} is there")
    run = Run(staged.reference, version)
    account.ledger.add("push", version=version, **facts)
    account.events.say(f"{staged.reference}: version {version} pushed, https://www.kaggle.com/code/{staged.reference}")
    verify(account, staged, run)
    return run


def _judge(account: Account, staged: Staged, answer: Mapping[str, Any], what: str) -> int:
    """The version that a push made; an error for one that is not whole, which the ledger notes."""
    version = int(answer.get("versionNumber") or 0)
    lost = [
        f"{name} ({kind})"
        for kind in ("Dataset", "Competition", "Kernel", "Model")
        for name in answer.get(f"invalid{kind}Sources") or []
    ]
    there = "/".join(str(answer.get("url") or staged.reference).split("?")[0].rstrip("/").split("/")[-2:])
    problem = advice = ""
    if version < 1:
        problem, advice = f"{what} made no version.", "Kaggle threw the push away. Push again."
    elif not same(there, staged.reference):
        problem = f"{what} went to another address, {there}."
        advice = (
            "The address of a new kernel is made of its title. Make `title` in kernel-metadata.json lead to the "
            f"slug in `id`, delete https://www.kaggle.com/code/{there} in the browser, and push again."
        )
    elif lost:
        problem = f"{what} made version {version}, and these are not attached: {', '.join(lost)}."
        advice = (
            "Check the name, that your account may use it, and that it is ready (`scripts/push status`). This "
            "version runs without it: stop it in the browser, it cannot be stopped from here."
        )
    if problem:
        account.ledger.add("push", kernel=staged.reference, version=version, problem=problem)
        raise KaggleError(problem, advice=advice)
    return version


def stands(account: Account, staged: Staged, run: Run) -> bool:
    """Whether a version is still on Kaggle as it was pushed; then it need not be pushed again, and that is said."""
    try:
        verify(account, staged, run)
    except (AcceleratorError, UnreachableError):
        raise
    except KaggleError:
        return False  # another version lies above it, or somebody changed it
    account.events.say(
        f"{run.reference}: version {run.version} is the same script on the same inputs; not pushed again"
    )
    return True


def _taken_over(account: Account, staged: Staged, there: There, mark: str, facts: Mapping[str, Any]) -> bool:
    """Whether the newest version on Kaggle is what would be pushed now. An older one does not count: what reads a
    kernel's output gets the newest."""
    own, theirs = mark.split()[-2:], _mark_of(there.text).split()[-2:]
    match = {"kernel": staged.reference, "version": there.version}
    noted = account.ledger.last("push", **match)
    if not theirs or not there.version or not (own[0] == theirs[0] or (not noted and own[1] == theirs[1])):
        return False
    run = Run(staged.reference, there.version)
    state = account.kaggle.find("kernels/get_kernel_session_status", **run.body) or {}
    if state.get("status") not in (*GOING, "COMPLETE") or not stands(account, staged, run):
        return False
    if not noted:
        account.ledger.add("push", version=there.version, **facts)
        account.events.say(f"{run.reference}: version {run.version} on Kaggle was made of the same; it is taken over")
    return True


def _look_for(account: Account, staged: Staged, mark: str, before: int) -> int:
    """The version that a push made whose answer was lost; 0 for none."""
    for _ in range(LOOKS):
        time.sleep(account.poll_s)
        there = look(account, Run(staged.reference, 0))
        if there and there.version > before and _mark_of(there.text) == mark:
            return there.version
    return 0


def _say_why(account: Account, staged: Staged, inputs: Mapping[str, Any]) -> None:
    """Tell when only the inputs of a kernel are newer: a run for that may cost hours of quota."""
    before = account.ledger.last("push", kernel=staged.reference).get("inputs") or {}
    newer = [
        f"{name} is version {version} now, not {before[name]}"
        for name, version in inputs.items()
        if before.get(name) not in (None, version)
    ]
    if newer:
        account.events.say(f"{staged.reference}: pushed anew, {'; '.join(newer)}")


def verify(account: Account, staged: Staged, run: Run) -> None:
    """Compare what Kaggle has with what was sent.

    Raises:
        KaggleError: a source is missing, everybody can see it, the internet is on, or it is another text or image.
        AcceleratorError: it runs on another accelerator than the one it asked for.
    """
    for attempt in range(LOOKS):
        there = look(account, run)
        if there and _words_of(there.text) == _words_of(staged.text):
            break
        if attempt + 1 < LOOKS:  # right after a push the one before may still be shown
            time.sleep(account.poll_s)
    if there is None:
        raise KaggleError(
            f"{run.reference}: version {run.version} is not there, or not for this account.",
            advice=f"Look at https://www.kaggle.com/code/{run.reference}.",
        )
    wanted, data, problems = staged.metadata, there.metadata, []
    for key in SOURCE_KEYS:
        if lost := missing_sources(wanted.get(key, []), data.get(FIELDS[key]) or []):
            problems.append(f"not attached: {', '.join(lost)} ({key})")
    if data.get("enableInternet") and not is_true(wanted["enable_internet"]):
        problems.append("the internet is on")
    if wanted.get("docker_image") and data.get("dockerImage") != wanted["docker_image"]:
        problems.append(f"the image is {data.get('dockerImage')}, not {wanted['docker_image']}")
    if _words_of(there.text) != _words_of(staged.text):
        problems.append("the text is another one; was a newer version pushed from elsewhere?")
    facts = {"image": data.get("dockerImage"), "accelerator": data.get("machineShape")}
    public = not data.get("isPrivate") and not account.public
    if problems or public:
        problem = "; ".join([*problems, *(["everybody can see it"] if public else [])])
        account.ledger.add("verify", **run.match, **facts, problem=problem)
        if public:
            raise _public(run.reference)
        raise KaggleError(
            f"{run.reference}: version {run.version} is not what was sent: {problem}.",
            advice="Check the names, and that the account may use them; then push again. This version runs as it is: "
            f"stop it in the browser (https://www.kaggle.com/code/{run.reference}), it cannot be stopped from here.",
        )
    if not account.ledger.last("verify", **run.match):
        account.ledger.add("verify", **run.match, **facts)
    asked, got = wanted.get("machine_shape") or "", str(data.get("machineShape") or "")
    if not same(asked, got) and asked:
        told = f"{run.reference}: version {run.version} asked for {asked}, and Kaggle says {got or 'nothing'}"
        if not account.accept_accelerator:
            raise AcceleratorError(
                f"{told}.",
                advice="It runs as it is. If that will do, the same command with --accept-accelerator goes on with it; "
                f"else stop it (https://www.kaggle.com/code/{run.reference}) and name another: --accelerator",
            )
        account.events.say(told)


def _public(reference: str) -> KaggleError:
    return KaggleError(
        f"{reference} can be seen by everybody.",
        "isPrivate is false",
        f"Nothing more is pushed to it. Make it private at https://www.kaggle.com/code/{reference} (Share), then "
        "run the same command again; or say --public if that is meant.",
    )


def _mark_of(text: str) -> str:
    """The line that says what a script was made of, "" without one."""
    last = text.rstrip().rpartition("\n")[2]
    return last if last.startswith(_MARK) else ""


def _words_of(text: str) -> list[str]:
    """A source without our mark and without what a server may do to line ends."""
    return [line.rstrip() for line in text.rstrip().removesuffix(_mark_of(text)).strip().splitlines()]


def missing_sources(wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    """Those of `wanted` that are not among `there`, whatever prefix, case or version the server writes."""
    found = {_core(source) for source in there}
    return [source for source in wanted if _core(source) not in found]


def _core(source: str) -> str:
    plain = re.sub(r"^(?:datasets|code|kernels|notebooks|c|competitions|models|m)/(?=.)", "", source.strip("/").lower())
    parts = plain.split("/")
    return "/".join(parts if len(parts) > 3 else parts[:2])
