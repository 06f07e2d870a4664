"""What scripts/push can be asked without going the road: how things stand, and what would go out."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

from rsna_kit.competition.paths import SLUG
from rsna_lab.kaggle.metadata import KERNEL_FILE, filled, read_metadata
from rsna_lab.kaggle.push import ahead, building, judge, models, staging, submissions, training, uploads
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.advice import KaggleError, UnreachableError
from rsna_lab.kaggle.push.building import LIBRARY
from rsna_lab.kaggle.push.journey import WEIGHTS, Journey, own_datasets
from rsna_lab.kaggle.push.names import built_folder, kernel_folder
from rsna_lab.kaggle.push.wishes import KERNELS


def status(account: Account) -> dict[str, Any]:
    """Every dataset and kernel of the project on Kaggle, the week's quota and today's submissions."""
    found: dict[str, Any] = {"owner": account.owner, "datasets": {}, "kernels": {}}
    for name in own_datasets(account):
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

    The library is built, as the road would do. The bundles of a training that has not run cannot be listed, nor what
    has still to be fetched from the network; what cannot be asked is unknown.
    """
    ahead.check_here(account, journey)
    with contextlib.suppress(UnreachableError):
        ahead.check_there(account, journey)
    steps: list[dict[str, Any]] = []
    names = [name for name in own_datasets(account) if name != WEIGHTS]
    if "build" not in journey.skip and LIBRARY in names:
        building.build(account, LIBRARY)
    if "upload" not in journey.skip:
        steps += [plan_upload(account, name) for name in names]
    for name in KERNELS:
        if name == "infer" and "weights" not in journey.skip and journey.weights != "output":
            steps.append({"step": f"upload {WEIGHTS}", "note": f"the bundles of train, as a {journey.weights}"})
        if name not in journey.skip:
            steps.append(plan_push(account, name, journey))
    if "submit" not in journey.skip:
        words = ["competitions", "submit", SLUG, "-k", f"{account.owner}/…", "-v", "…", "-f", journey.file_name]
        steps.append({"step": "submit", "command": command(words)})
    return steps


def plan_upload(account: Account, name: str) -> dict[str, Any]:
    """What an upload would send."""
    folder = built_folder(account.project, name)
    if not folder.is_dir():
        return {"step": f"upload {name}", "note": f"to be built first: {building.build_command(name)}"}
    parcel = uploads.pack(account, folder)
    note: dict[str, Any] = {}
    try:
        now = uploads.status(account, parcel.reference)
    except UnreachableError:
        now, note = None, {"note": "as a new dataset; whether it is on Kaggle already is unknown"}
    if now and uploads.is_there(account, parcel, now[1]):
        return {"step": f"upload {name}", "note": f"version {now[1]} is there already, with the same files"}
    return {
        "step": f"upload {name}", "command": command(uploads.upload_command(account, parcel, now is not None)), **note,
        "files": parcel.sizes, "bytes": parcel.size,
    }  # fmt: skip


def plan_one(account: Account, name: str, journey: Journey) -> list[dict[str, Any]]:
    """What pushing one kernel would send."""
    with contextlib.suppress(UnreachableError):
        ahead.check_attached(account, journey, name)
    return [plan_push(account, name, journey)]


def plan_push(account: Account, name: str, journey: Journey) -> dict[str, Any]:
    """What a push would send."""
    note: dict[str, Any] = {}
    if name == "train":
        staged = training.planned(account, journey)
    else:
        sources, note = _planned_sources(account, journey) if name == "infer" else ({}, {})
        folder = kernel_folder(account.project, name)
        staged = staging.stage(account, folder, journey.for_kernel(name, sources))
    return {"step": f"push {name}", "command": command(staged.words()), **note, "files": _sizes(staged.folder),
            "metadata": staged.metadata}  # fmt: skip


def _planned_sources(account: Account, journey: Journey) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The sources that infer would get in the place of its own, and what is not known of them."""
    if journey.weights != "model":
        return training.sources(account, journey.weights), {}
    reference, note = models.variation(account), "the version of the model is the newest one, whose number is unknown"
    try:
        number = models.newest_version(account, reference)
        if "weights" in journey.skip:
            return training.sources(account, journey.weights, models.newest(account)), {}
        number, note = number + 1, "the version of the model is the next one, unless its bundles are there already"
    except UnreachableError:
        number = 1
    return training.sources(account, journey.weights, f"{reference}/{number}"), {"note": note}


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
