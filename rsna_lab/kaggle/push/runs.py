"""A run on Kaggle → its end, its log while it is written, and a folder here with what it left, every file checked.

The names of its files come from whatever the kernel wrote, so they are not trusted: only plain relative names are
fetched, into a temporary folder, and they come into the result only after they were compared with Kaggle's list and
with the checksums in the kernel's verdict.json. A kernel of ours without a whole verdict is not believed at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.files import sha256_file
from rsna_kit.session.verdict import VERDICT
from rsna_lab.kaggle.push.account import Account, same
from rsna_lab.kaggle.push.errors import KaggleError
from rsna_lab.kaggle.push.kernels import GOING
from rsna_lab.kaggle.push.project import Run, own_kernels, state_of
from rsna_lab.kaggle.push.waiting import Waiting

# No absolute path, no way up, no backslash, nothing invisible.
_PLAIN_NAME = r"^(?!/)(?!(?:.*/)?\.{1,2}(?:/|$))(?!.*//)(?!.*[\\\x00-\x1f])."
_SLOWEST_BYTES_S = 100_000  # a download slower than this is stopped
_RUN_AGAIN = "run the kernel again: scripts/push push KERNEL --again"


def follow(account: Account, run: Run) -> None:
    """Wait for the end of a run, its log as it is written, and judge it.

    Raises:
        KaggleError: it failed, is not there, or did not end in time.
    """
    last = account.ledger.last("run", kernel=run.reference, status="COMPLETE")
    waiting = Waiting(account, f"{run.reference} v{run.version}", run.page, last.get("seconds"))
    shown: list[str] = []
    stop, tail = threading.Event(), None

    def tell(event: dict[str, Any]) -> None:
        for line in plain(account.secrets.hide(event.get("log", ""))).splitlines():
            account.events.say(f"  | {line}", kind="log")
            shown.append(line)

    log = run.reference + (f"/{run.version}" if run.version else "")
    try:
        while (status := (answer := state_of(account, run))["status"]) in ("", *GOING):
            if status == "RUNNING" and tail is None:
                tail = threading.Thread(target=account.kaggle.log, args=(log, tell, stop), daemon=True)
                tail.start()
            waiting.look(status or None)
        if tail:
            tail.join(10)  # the last lines
    finally:
        stop.set()
        if tail:
            tail.join()
    failure = str(answer.get("failureMessage") or "")
    facts = {"kernel": run.reference, "version": run.version, "status": status, "failure": failure}
    if not account.ledger.last("run", kernel=run.reference, version=str(run.version)):
        account.ledger.add("run", **facts, seconds=round(waiting.seconds))
    if status == "COMPLETE":
        account.events.say(f"{run.reference}: version {run.version} is complete")
        return
    for line in [] if shown else read_log(account, run)[-15:]:
        account.events.say(f"  | {line}", kind="log")
    advice = "It was stopped by hand or by Kaggle. Push again." if status.startswith("CANCEL") else ""
    said = failure or f"status {status}, without a message"
    raise KaggleError(f"{run.reference}: version {run.version} failed.", said, advice)


def read_log(account: Account, run: Run) -> list[str]:
    """The log of a run that has ended, line by line."""
    text = str(account.kaggle.ask("kernels/list_kernel_session_output", **run.body, pageSize=1).get("log") or "")
    with contextlib.suppress(ValueError, AttributeError, TypeError):  # where it is a list of events
        text = "".join(str(event.get("data", "")) for event in json.loads(text))
    return plain(account.secrets.hide(text)).splitlines()


def plain(text: str) -> str:
    """Text of others without what could steer a terminal; a progress bar keeps its last state."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join("".join(c for c in line if c.isprintable() or c == "\t") for line in lines)


def output_folder(account: Account, run: Run) -> Path:
    """Where the output of a run lies here."""
    return account.project / "runs" / "kaggle" / run.reference.split("/")[1] / f"v{run.version}"


def list_files(account: Account, run: Run) -> dict[str, int]:
    """Name → bytes of what a run left."""
    rows = account.kaggle.every("kernels/list_kernel_files", "files", **run.body)
    return {str(row["name"]): int(row.get("size") or 0) for row in rows}


def fetch(account: Account, run: Run, only: str = "", out: Path | None = None, needed: bool = True) -> dict[str, str]:
    """Fetch the output of a run, unless it is here as it was fetched; returns name → sha256.

    Args:
        account: who asks.
        run: which version.
        only: a regular expression; other files stay where they are.
        out: a new or empty folder. Otherwise `runs/kaggle/<kernel>/v<version>`, which belongs to this: files of these
            names are replaced there, others stay.
        needed: whether it is an error that no file matches `only`.

    Raises:
        KaggleError: no verdict, or one that says no; files that are missing, cut short or exchanged, or that want to be
            written elsewhere.
        UsageError: no file matches, or there is no room.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is there already. Name a new or empty folder")
    try:
        wanted = re.compile(only)
    except re.error as error:
        raise UsageError(f"--only {only!r}: {error}") from None
    out = (out or output_folder(account, run)).absolute()
    shown = os.path.relpath(out, account.project)
    match = {"kernel": run.reference, "version": run.version, "only": only}
    known = account.ledger.last("fetch", **{key: str(value) for key, value in match.items()}).get("sha256") or {}
    if known and all((out / name).is_file() and sha256_file(out / name) == known[name] for name in known):
        account.events.say(f"{run.reference}: version {run.version} lies in {shown} already")
        return dict(known)
    left = list_files(account, run)
    rows = account.kaggle.every("kernels/list_kernel_session_output", "files", **run.body)
    links = {str(row["fileName"]): str(row["url"]) for row in rows}
    if hostile := [name for name in {**left, **links} if not re.search(_PLAIN_NAME, name)]:
        raise KaggleError(
            f"{run.reference}: version {run.version} has a file that would be written outside its folder: "
            f"{', '.join(map(repr, hostile[:5]))}.",
            advice="Nothing was fetched. Do not trust this kernel; if it is yours, look at what it writes.",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=out.parent) as scratch:
        folder = Path(scratch)
        if VERDICT in links:
            account.kaggle.download({links[VERDICT]: folder / VERDICT}, lambda _: None, 300)
        noted: dict[str, str] = _judge(account, run, folder / VERDICT).get("sha256") or {}
        # Names with two underscores are pages that Kaggle makes of a run and need not deliver.
        names = [name for name in {**left, **noted} if wanted.search(name) and not name.startswith("__")]
        if only and not names:
            if not needed:
                return {}
            raise UsageError(
                f"--only {only!r}: matches none of what {run.reference} left: "
                f"{', '.join(list(left)[:8]) or 'no file'}. Nothing was changed"
            )
        sums = _download(account, run, {name: links.get(name, "") for name in names}, left, noted, folder)
        size = sum((folder / name).stat().st_size for name in names)
        for name in names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / name, out / name)
    out.mkdir(exist_ok=True)
    account.ledger.add("fetch", **match, files=len(sums), bytes=size, sha256=sums)
    account.events.say(f"{run.reference}: {size / 1e6:.1f} MB fetched to {shown}")
    return sums


def read_verdict(account: Account, run: Run) -> dict[str, Any]:
    """What a run says about itself, fetched where it is not here yet; empty for a stranger's kernel that says nothing.

    Raises:
        KaggleError: a kernel of this project left none, or none that can be read; or it says that the run failed.
    """
    path = output_folder(account, run) / VERDICT
    if not path.is_file():
        fetch(account, run, only=rf"^{re.escape(VERDICT)}$", needed=False)
    return _judge(account, run, path)


def _judge(account: Account, run: Run, path: Path) -> dict[str, Any]:
    """What a verdict says, if it is whole and says yes."""
    name = re.sub(r"-\d+$", "", run.reference)  # of a part of prepare
    ours = any(
        same(str(data.get("id")), each) for data in own_kernels(account).values() for each in (name, run.reference)
    )
    if not path.is_file() and not ours:
        account.events.say(f"{run.reference}: has no {VERDICT}; its files are compared with Kaggle's sizes alone")
        return {}
    try:
        verdict = json.loads(path.read_bytes())
        whole = isinstance(verdict["sha256"], dict) and isinstance(verdict["ok"], bool)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise KaggleError(
            f"{run.reference}: version {run.version} left no {VERDICT} that can be read, so nothing of it is taken.",
            advice=f"Look at its log (scripts/push logs), and {_RUN_AGAIN}",
        )
    if not verdict["ok"]:
        raise KaggleError(
            f"{run.reference}: version {run.version} says itself that it failed.",
            str(verdict.get("reason")),
            "Mend it, rehearse it (scripts/rehearse) and push it anew. The same script on the same inputs is run "
            "again only where you say --again.",
        )
    return dict(verdict)


def _download(
    account: Account,
    run: Run,
    links: Mapping[str, str],
    left: Mapping[str, int],
    noted: Mapping[str, str],
    folder: Path,
) -> dict[str, str]:
    """Fetch files into a folder and compare them with Kaggle's list and the verdict; returns name → sha256."""
    needed, free = sum(left.get(name, 0) for name in links), shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise UsageError(
            f"{folder.parent}: {needed / 1e9:.1f} GB to fetch and {free / 1e9:.1f} GB free. Make room, or "
            "fetch less: --only"
        )
    sums: dict[str, str] = {}
    problems = [f"{name} did not come" for name, link in links.items() if not link][:5]
    if not problems:
        for name in links:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with account.events.progress(len(links), run.reference, unit="files") as progress:
            account.kaggle.download(
                {link: folder / name for name, link in links.items()},
                lambda event: progress.advance(1 if "file" in event else 0),
                900 + needed / _SLOWEST_BYTES_S,
            )
        sums = {name: sha256_file(folder / name) for name in links}
    for name, digest in sums.items():
        size = (folder / name).stat().st_size
        if noted.get(name, digest) != digest:
            problems.append(f"{name} is not what the kernel wrote (its sha256 in {VERDICT} is another)")
        elif name not in noted and left.get(name) not in (None, 0, size):
            problems.append(f"{name} has {size} bytes here and {left[name]} at Kaggle")
    if problems:  # links to a kernel's output live for a short time, and lines break: a second fetch mends most of it
        raise KaggleError(
            f"{run.reference}: {'; '.join(problems[:5])}.",
            advice=f"Nothing was kept. Run the same command again; if it stays, {_RUN_AGAIN}",
        )
    return sums
