"""What scripts/push shows without sending anything: how things stand on Kaggle, and what would go out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from rsna_lab.kaggle.push import checks, steps, submissions, uploads
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.choices import KERNELS, Choices
from rsna_lab.kaggle.push.errors import UnreachableError
from rsna_lab.kaggle.push.expected import parts
from rsna_lab.kaggle.push.project import (
    LIBRARY,
    WEIGHTS,
    Run,
    build,
    build_command,
    built_folder,
    own_datasets,
    own_kernels,
    state_of,
)


def status(account: Account) -> dict[str, Any]:
    """Every dataset and kernel of the project on Kaggle, the week's quota and today's submissions."""
    datasets, shown = {}, {}
    for name in own_datasets(account):
        now = uploads.find(account, f"{account.owner}/{name}")
        datasets[name] = {"status": now.status, "version": now.version} if now else {"status": "not on Kaggle"}
    for name in own_kernels(account):
        for part, reference in parts(account, Choices(), name).items():
            state = state_of(account, Run(reference))
            failure = {"failure": state["failureMessage"]} if state.get("failureMessage") else {}
            shown[f"{name} {part}".strip()] = {"status": state["status"] or "not on Kaggle", **failure}
    left, total, fresh = checks.gpu_hours(account)
    made, left_now = submissions.left_today(account)
    return {
        "owner": account.owner,
        "datasets": datasets,
        "kernels": shown,
        "gpu": {"hours_left": round(left, 2), "hours": round(total, 2), "new_at": fresh},
        "submissions": {"today": made, "left": left_now},
    }


def plan(account: Account, choices: Choices) -> str:
    """Every step and every file that would go out with it; nothing is sent.

    The library is built, as the steps would do. The bundles of a training that has not run cannot be listed, nor what
    has still to be fetched from the network; what cannot be asked is unknown.
    """
    checks.check_here(account, choices)
    with contextlib.suppress(UnreachableError):
        checks.check_there(account, choices)
    planned, skip = [], choices.skip
    names = [name for name in own_datasets(account) if name != WEIGHTS]
    if "build" not in skip and LIBRARY in names:
        build(account, LIBRARY)
    if "upload" not in skip:
        planned += [plan_upload(account, name) for name in names]
    for name in KERNELS:
        if name == "infer" and "weights" not in skip:
            planned.append(_shown(f"upload {WEIGHTS}", "the bundles of train"))
        if name not in skip:
            planned.append(plan_push(account, name, choices))
    if "submit" not in skip:
        planned.append(_shown("submit", f"{choices.file_name} of the newest version of infer"))
    return "\n".join(planned)


def plan_upload(account: Account, name: str) -> str:
    """What an upload would send."""
    folder, step = built_folder(account.project, name), f"upload {name}"
    if not folder.is_dir():
        return _shown(step, f"to be built first: {build_command(name)}")
    contents = uploads.pack(account, folder)
    try:
        now = uploads.find(account, contents.reference)
        note = f"as version {now.version + 1}" if now else "as a new dataset"
        if now and not account.again and uploads.is_made_of(account, now, contents):
            return _shown(step, f"version {now.version} is there already, with the same files")
    except UnreachableError:
        note = "as a new dataset; whether it is on Kaggle already is unknown"
    private = "public" if account.public else "private"
    return _shown(step, f"{contents.reference}, {private}, {note}", contents.sizes)


def plan_push(account: Account, name: str, choices: Choices) -> str:
    """What pushing one kernel would send."""
    with contextlib.suppress(UnreachableError):
        checks.check_attached(account, choices, name)
    note = f"ended by Kaggle after {choices.timeout_s} s" if choices.timeout_s else ""
    shown = []
    for part in parts(account, choices, name):
        staged = steps.planned(account, choices, name, part)
        sizes = {path.name: path.stat().st_size for path in sorted(staged.folder.iterdir())}
        step = f"push {name}" + f", part {part}" * bool(part)
        shown += [_shown(step, note, sizes), f"  {json.dumps(staged.metadata)}"]
    return "\n".join(shown)


def _shown(step: str, note: str, sizes: Mapping[str, int] | None = None) -> str:
    """A step for people: what it is, and the bytes of every file of it."""
    head = f"== {step}" + (f"  ({len(sizes)} files, {sum(sizes.values()):,} bytes)" if sizes else "")
    files = [f"  {size:>14,}  {name}" for name, size in (sizes or {}).items()]
    return "\n".join([head, *([f"  {note}"] if note else []), *files])
