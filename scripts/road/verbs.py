"""What scripts/push can be asked without going the road: how things stand, and what would go out."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from road import judge, pushing, staging, submissions, uploads
from road.account import Account
from road.advice import KaggleError
from road.metadata import KERNEL_FILE, filled, read_metadata
from road.pushing import Journey
from rsna_kit.competition.paths import SLUG


def status(account: Account) -> dict[str, Any]:
    """Every dataset and kernel of the project on Kaggle, the week's quota and today's submissions."""
    found: dict[str, Any] = {"owner": account.owner, "datasets": {}, "kernels": {}}
    for name in pushing.own_datasets(account):
        now = uploads.status(account, f"{account.owner}/{name}")
        found["datasets"][name] = {"status": now[0], "version": now[1]} if now else {"status": "not on Kaggle"}
    for path in sorted(account.project.glob(f"kernels/*/{KERNEL_FILE}")):
        reference = filled(read_metadata(path), account.owner)["id"]
        answer = account.program.ask("kernels", "status", reference)
        if answer.absent:
            found["kernels"][path.parent.name] = {"status": "not on Kaggle"}
            continue
        state, failure = judge.kernel_status(answer, f"The status of {reference}")
        found["kernels"][path.parent.name] = {"status": state, **({"failure": failure} if failure else {})}
    for key, words in (("quota", ["quota", "--format", "json"]),
                       ("submissions", ["competitions", "submission-limits", SLUG, "--json"])):  # fmt: skip
        try:
            found[key] = judge.as_json(account.program.told(*words), key)
        except KaggleError as error:
            found[key] = error.said
    return found


def show_status(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"account {found['owner']}"]
    for name, facts in found["datasets"].items():
        version = f", version {facts['version']}" if "version" in facts else ""
        lines.append(f"  dataset {name}: {facts['status']}{version}")
    for name, facts in found["kernels"].items():
        lines.append(f"  kernel {name}: {facts['status']} {facts.get('failure', '')}".rstrip())
    if isinstance(found["quota"], list):
        for row in found["quota"]:
            refresh = row["refreshAt"]
            lines.append(f"  {row['resource']}: {row['remaining']} of {row['total']} left this week, new at {refresh}")
    if isinstance(found["submissions"], dict):
        made, left = (found["submissions"].get(key, 0) for key in ("numToday", "numAllowedNow"))
        lines.append(f"  submissions: {made} today, {left} left" if made or left else "  submissions: none so far")
    return "\n".join(lines)


def scores(account: Account) -> list[dict[str, Any]]:
    """The submissions on Kaggle, newest first, with the kernel version that each came from where it is known."""
    found = []
    for row in submissions.rows(account, SLUG):
        verdict = judge.submission(row)
        line = account.ledger.last("submit", submission=row.get("ref")) or {}
        scored = account.ledger.last("score", submission=row.get("ref")) or {}
        found.append({
            "submission": row.get("ref"), "date": row.get("date"), "public": verdict.public, "private": verdict.private,
            "error": scored.get("error") or verdict.error, "pending": not verdict.done,
            "kernel": line.get("kernel"), "version": line.get("version"), "commit": line.get("commit"),
        })  # fmt: skip
    return found


def plan(account: Account, journey: Journey) -> list[dict[str, Any]]:
    """Every command of the road and every file that would go out with it; nothing is sent.

    The bundles of a training that has not run cannot be listed, nor what has still to be built.
    """
    pushing.check_folders(pushing.folders_of(account.project), account.public)
    pushing.check_offline(account.project, journey)
    steps: list[dict[str, Any]] = []
    if "upload" not in journey.skip:
        steps += [plan_upload(account, name) for name in pushing.own_datasets(account) if name != pushing.WEIGHTS]
    for name in pushing.KERNELS:
        if name == "infer" and "weights" not in journey.skip and journey.weights != "output":
            steps.append({"step": f"upload {pushing.WEIGHTS}", "note": f"the bundles of train, as a {journey.weights}"})
        if name not in journey.skip:
            steps.append(plan_push(account, name, journey))
    if "submit" not in journey.skip:
        words = ["competitions", "submit", SLUG, "-k", f"{account.owner}/…", "-v", "…", "-f", journey.file_name]
        steps.append({"step": "submit", "command": command(words)})
    return steps


def plan_upload(account: Account, name: str) -> dict[str, Any]:
    """What an upload would send."""
    folder = account.project / "build" / "datasets" / name
    if not folder.is_dir():
        return {"step": f"upload {name}", "note": f"to be built first: scripts/build {name}"}
    parcel = uploads.pack(account, folder)
    now = uploads.status(account, parcel.reference)
    if now and uploads.is_there(account, parcel, now[1]):
        return {"step": f"upload {name}", "note": f"version {now[1]} is there already, with the same files"}
    return {
        "step": f"upload {name}", "command": command(uploads.upload_command(account, parcel, now is not None)),
        "files": parcel.sizes, "bytes": parcel.size,
    }  # fmt: skip


def plan_push(account: Account, name: str, journey: Journey) -> dict[str, Any]:
    """What a push would send."""
    staged = staging.stage(account, account.project / "kernels" / name, journey.for_kernel(name))
    return {"step": f"push {name}", "command": command(staged.words()), "files": _sizes(staged.folder),
            "metadata": staged.metadata}  # fmt: skip


def command(words: list[str]) -> str:
    """A command as a person would type it."""
    return re.sub(r"'([\w/-]*…)'", r"\1", shlex.join(["kaggle", *words]))


def show_plan(steps: list[dict[str, Any]]) -> str:
    """The same for people: commands, files and sizes."""
    lines = []
    for step in steps:
        files = step.get("files", {})
        size = f"  ({len(files)} files, {sum(files.values()):,} bytes)" if files else ""
        lines += [f"== {step['step']}{size}"]
        lines += [f"$ {step['command']}"] if "command" in step else []
        lines += [f"  {step['note']}"] if "note" in step else []
        lines += [f"  {value:>14,}  {name}" for name, value in files.items()]
        lines += [f"  {json.dumps(step['metadata'])}"] if "metadata" in step else []
    return "\n".join(lines)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def show_scores(found: list[dict[str, Any]]) -> str:
    """The submissions as a table for people."""
    cells = [("submission", "date (UTC)", "public", "private", "kernel", "commit", "")]
    for row in found:
        kernel = f"{row['kernel']} v{row['version']}" if row["kernel"] else ""
        note = "pending" if row["pending"] else row["error"]
        date = str(row["date"] or "")[:19].replace("T", " ")
        cells.append((str(row["submission"]), date, row["public"] or "-", row["private"] or "-", kernel,
                      str(row["commit"] or "")[:8], note))  # fmt: skip
    widths = [max(len(cell[column]) for cell in cells) for column in range(6)]
    return "\n".join("  ".join([*(cell[c].ljust(widths[c]) for c in range(6)), cell[6]]).rstrip() for cell in cells)
