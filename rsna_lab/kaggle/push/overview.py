"""What scripts/push shows without sending anything: how things stand on Kaggle, and what would go out."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from rsna_lab.kaggle.metadata import KERNEL_FILE, filled, read_metadata
from rsna_lab.kaggle.push import checks, models, staging, steps, submissions, uploads
from rsna_lab.kaggle.push.account import Account, columns
from rsna_lab.kaggle.push.choices import KERNELS, Choices
from rsna_lab.kaggle.push.errors import UnreachableError
from rsna_lab.kaggle.push.project import LIBRARY, WEIGHTS, Run, build, build_command, built_folder, own_datasets


def status(account: Account) -> dict[str, Any]:
    """Every dataset and kernel of the project on Kaggle, the week's quota and today's submissions."""
    found: dict[str, Any] = {"owner": account.owner, "datasets": {}, "kernels": {}}
    for name in own_datasets(account):
        now = uploads.find(account, f"{account.owner}/{name}", private=False)
        found["datasets"][name] = {"status": now.status, "version": now.version} if now else {"status": "not on Kaggle"}
    for path in sorted(account.project.glob(f"kernels/*/{KERNEL_FILE}")):
        run = Run(filled(read_metadata(path), account.owner)["id"], 0)
        state = account.kaggle.find("kernels/get_kernel_session_status", **run.body) or {"status": "not on Kaggle"}
        failure = {"failure": state["failureMessage"]} if state.get("failureMessage") else {}
        found["kernels"][path.parent.name] = {"status": state["status"], **failure}
    left, total, fresh = checks.gpu_hours(account)
    made, left_now = submissions.left_today(account)
    found["gpu"] = {"hours_left": round(left, 2), "hours": round(total, 2), "new_at": fresh}
    found["submissions"] = {"today": made, "left": left_now}
    return found


def show_status(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"account {found['owner']}"]
    for name, facts in found["datasets"].items():
        version = f", version {facts['version']}" if "version" in facts else ""
        lines.append(f"  dataset {name}: {facts['status']}{version}")
    for name, facts in found["kernels"].items():
        lines.append(f"  kernel {name}: {facts['status']} {facts.get('failure', '')}".rstrip())
    gpu, made, left = found["gpu"], found["submissions"]["today"], found["submissions"]["left"]
    lines.append(
        f"  GPU: {gpu['hours_left']:.1f} of {gpu['hours']:.1f} hours left this week, new ones at {gpu['new_at']}"
    )
    lines.append(f"  submissions: {made} today, {left} left" if made or left else "  submissions: none so far")
    return "\n".join(lines)


def scores(account: Account) -> list[dict[str, Any]]:
    """The submissions on Kaggle, newest first, with the kernel version that each came from where it is known."""
    found = []
    for row in submissions.rows(account):
        error, line = submissions.outcome(row), account.ledger.last("submit", submission=row.get("ref"))
        found.append(
            {
                "submission": row.get("ref"),
                "date": row.get("date"),
                "public": row.get("publicScore") or "",
                "private": row.get("privateScore") or "",
                "error": error or "",
                "pending": error is None,
                "kernel": line.get("kernel"),
                "version": line.get("version"),
                "commit": line.get("commit"),
            }
        )
    return found


def show_scores(found: list[dict[str, Any]]) -> str:
    """The same as a table for people."""
    cells = [("submission", "date (UTC)", "public", "private", "kernel", "commit", "")]
    for row in found:
        kernel = f"{row['kernel']} v{row['version']}" if row["kernel"] else ""
        note = "pending" if row["pending"] else row["error"]
        date = str(row["date"] or "")[:19].replace("T", " ")
        cells.append(
            (
                str(row["submission"]),
                date,
                row["public"] or "-",
                row["private"] or "-",
                kernel,
                str(row["commit"] or "")[:8],
                note,
            )
        )
    return columns(cells)


def plan(account: Account, choices: Choices) -> list[dict[str, Any]]:
    """Every step and every file that would go out with it; nothing is sent.

    The library is built, as the steps would do. The bundles of a training that has not run cannot be listed, nor what
    has still to be fetched from the network; what cannot be asked is unknown.
    """
    checks.check_here(account, choices)
    with contextlib.suppress(UnreachableError):
        checks.check_there(account, choices)
    planned: list[dict[str, Any]] = []
    names = [name for name in own_datasets(account) if name != WEIGHTS]
    if "build" not in choices.skip and LIBRARY in names:
        build(account, LIBRARY)
    if "upload" not in choices.skip:
        planned += [plan_upload(account, name) for name in names]
    for name in KERNELS:
        if name == "infer" and "weights" not in choices.skip and choices.weights != "output":
            planned.append({"step": f"upload {WEIGHTS}", "note": f"the bundles of train, as a {choices.weights}"})
        if name not in choices.skip:
            planned.append(plan_push(account, name, choices))
    if "submit" not in choices.skip:
        planned.append({"step": "submit", "note": f"{choices.file_name} of the newest version of infer"})
    return planned


def plan_upload(account: Account, name: str) -> dict[str, Any]:
    """What an upload would send."""
    folder, step = built_folder(account.project, name), f"upload {name}"
    if not folder.is_dir():
        return {"step": step, "note": f"to be built first: {build_command(name)}"}
    contents = uploads.pack(account, folder)
    try:
        now = uploads.find(account, contents.reference)
        note = f"as version {now.version + 1}" if now else "as a new dataset"
        if now and uploads.is_there(account, contents, now.version):
            return {"step": step, "note": f"version {now.version} is there already, with the same files"}
    except UnreachableError:
        note = "as a new dataset; whether it is on Kaggle already is unknown"
    return {
        "step": step,
        "note": f"{contents.reference}, {'public' if account.public else 'private'}, {note}",
        "files": contents.sizes,
        "bytes": contents.size,
    }


def plan_push(account: Account, name: str, choices: Choices) -> dict[str, Any]:
    """What pushing one kernel would send."""
    with contextlib.suppress(UnreachableError):
        checks.check_attached(account, choices, name)
    note = "" if not choices.timeout_s else f"ended by Kaggle after {choices.timeout_s} s"
    if name == "train":
        staged = steps.planned_training(account, choices)
    else:
        model = ""
        if name == "infer" and choices.weights == "model":
            model, note = _next_model(account, "weights" in choices.skip)
        sources = steps.infer_sources(account, choices.weights, model) if name == "infer" else {}
        staged = staging.stage(account, choices, name, sources)
    sizes = {path.name: path.stat().st_size for path in sorted(staged.folder.iterdir())}
    return {"step": f"push {name}", "note": note, "files": sizes, "metadata": staged.metadata}


def _next_model(account: Account, skipped: bool) -> tuple[str, str]:
    """The version of the model that infer would get, and what is not known of it."""
    try:
        if skipped:
            return models.newest(account), ""
        number = models.newest_version(account, models.variation(account)) + 1
        note = "the version of the model is the next one, unless its bundles are there already"
    except UnreachableError:
        number, note = 1, "the version of the model is the newest one, whose number is unknown"
    return f"{models.variation(account)}/{number}", note


def show_plan(planned: list[dict[str, Any]]) -> str:
    """The same for people: steps, files and sizes."""
    lines = []
    for step in planned:
        files = step.get("files", {})
        size = f"  ({len(files)} files, {sum(files.values()):,} bytes)" if files else ""
        lines += [f"== {step['step']}{size}"]
        lines += [f"  {step['note']}"] if step.get("note") else []
        lines += [f"  {value:>14,}  {name}" for name, value in files.items()]
        lines += [f"  {json.dumps(step['metadata'])}"] if "metadata" in step else []
    return "\n".join(lines)
