"""What a kernel left on Kaggle → a folder here that holds it, every file checked, beside whatever else lies there.

The names come from whatever the kernel wrote, so they are not trusted: the program is told a pattern that only plain
relative names match, it writes into a temporary folder, and its files come into the result only after they were
compared with Kaggle's list and with the checksums that the kernel noted. An error page in a file's place is no file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.files import sha256_file
from rsna_kit.session.verdict import VERDICT
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.advice import KaggleError
from rsna_lab.kaggle.push.judge import check
from rsna_lab.kaggle.push.staging import Run
from rsna_lab.kaggle.push.uploads import list_files

# No absolute path, no way up, no backslash, nothing invisible. The program searches each name for it.
_PLAIN_NAME = r"^(?!/)(?!(?:.*/)?\.{1,2}(?:/|$))(?!.*//)(?!.*[\\\x00-\x1f])"
_MOST_NOTED = 100  # files whose checksums stand in the ledger one by one
_SLOWEST_BYTES_S = 100_000  # a download slower than this is stopped


def is_plain(name: str) -> bool:
    """Whether a file name stays inside the folder it is written to.

    Example:
        >>> is_plain("model/fold0/config.json"), is_plain("../config.json"), is_plain("/etc/passwd")
        (True, False, False)
    """
    return re.search(_PLAIN_NAME + ".", name) is not None


def output_folder(account: Account, run: Run) -> Path:
    """Where the output of a run lies here."""
    return account.project / "runs" / "kaggle" / run.reference.split("/")[1] / f"v{run.version}"


def fetch(account: Account, run: Run, only: str = "", out: Path | None = None, needed: bool = True) -> dict[str, str]:
    """Fetch the output of a run, unless it is here as it was fetched; returns name → sha256.

    Args:
        account: who asks.
        run: which version; with an older program it must be the newest.
        only: a regular expression; other files stay where they are.
        out: a new or empty folder; `runs/kaggle/<kernel>/v<version>` unless given, whose other files stay.
        needed: whether it is an error that no file matches `only`.

    Raises:
        KaggleError: files that are missing, cut short, exchanged, or that want to be written elsewhere.
        UsageError: no file matches, or one would take the place of a file that was not fetched.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is there already. Name a new or empty folder")
    out = (out or output_folder(account, run)).absolute()  # the program runs in a folder of its own
    try:
        wanted = re.compile(only)
    except re.error as error:
        raise UsageError(f"--only {only!r}: {error}") from None
    if known := _here(account, run, only, out):
        account.events.say(f"{run.reference}: version {run.version} lies in {_shown(account, out)} already")
        return known
    left = dict(list_files(account, ["kernels", "files", run.label(account)]))
    if hostile := [name for name in left if not is_plain(name)]:
        raise KaggleError(
            f"{run.reference}: version {run.version} has a file that would be written outside its folder.",
            ", ".join(map(repr, hostile[:5])),
            "Nothing was fetched. Do not trust this kernel; if it is yours, look at what it writes.",
        )
    # Names with two underscores are pages that Kaggle makes of a run and need not deliver.
    listed = {name: size for name, size in left.items() if wanted.search(name) and not name.startswith("__")}
    if only and not listed:
        if needed:
            files = ", ".join(list(left)[:8]) or "no file"
            raise UsageError(
                f"--only {only!r}: matches none of what {run.reference} left: {files}. Nothing was changed"
            )
        return {}
    out.parent.mkdir(parents=True, exist_ok=True)
    _check_space(out.parent, sum(listed.values()))
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=out.parent) as scratch:
        folder = Path(scratch) / "output"
        folder.mkdir()
        _download(account, run, only, listed, folder)
        (folder / f"{run.reference.split('/')[1]}.log").unlink(missing_ok=True)  # scripts/push logs shows it
        found = _sizes(run, folder)
        sums = {name: sha256_file(folder / name) for name in found}
        _check(run, found, sums, listed, read_verdict(folder), wanted)
        _merge(account, run, folder, sums, out)
    size = sum(found.values())
    account.ledger.add(
        "fetch", kernel=run.reference, version=run.version, only=only, files=len(found), bytes=size,
        digest=_digest(sums), sha256=sums if len(sums) <= _MOST_NOTED else {},
    )  # fmt: skip
    account.events.say(f"{run.reference}: {size / 1e6:.1f} MB fetched to {_shown(account, out)}")
    return sums


def fetch_verdict(account: Account, run: Run) -> dict[str, Any]:
    """What a run says about itself, fetched where it is not here yet; empty for a kernel that says nothing."""
    fetched = fetch(account, run, only=rf"^{re.escape(VERDICT)}$", needed=False)
    return read_verdict(output_folder(account, run)) if fetched else {}


def _merge(account: Account, run: Run, folder: Path, sums: dict[str, str], out: Path) -> None:
    """Move the files that came into `out`, over those of earlier fetches and beside everything else.

    Raises:
        UsageError: a file that was not fetched lies where one would come to lie; nothing is moved then.
    """
    lines = [line for line in account.ledger.lines() if line["kind"] == "fetch" and line["kernel"] == run.reference
             and line["version"] == run.version]  # fmt: skip
    ours = {name for line in lines for name in line["sha256"]}
    anything = any(len(line["sha256"]) < line["files"] for line in lines)  # too many names to have been noted
    for name, digest in sums.items():
        path = out / name
        inside = [parent for parent in path.parents if parent.is_relative_to(out)]
        blocked = [parent for parent in inside if parent.exists() and not parent.is_dir()]
        foreign = path.is_file() and not anything and name not in ours and sha256_file(path) != digest
        if blocked or path.is_dir() or foreign:
            place = _shown(account, blocked[0] if blocked else path)
            raise UsageError(f"{place} was not fetched, and {name} would take its place. Move it, or fetch with --out")
    if not run.version:  # the newest, whatever its number: what an earlier one left does not belong to it
        for name in ours - set(sums):
            (out / name).unlink(missing_ok=True)
    for name in sums:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, out / name)
    out.mkdir(exist_ok=True)


def _digest(sums: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _here(account: Account, run: Run, only: str, out: Path) -> dict[str, str]:
    """name → sha256 of what was fetched of this run, if it lies in `out` as it came; else empty."""
    line = account.ledger.last("fetch", kernel=run.reference, version=run.version, only=only)
    if line is None or not run.version or not out.is_dir():
        return {}
    names = list(line["sha256"])
    if len(names) < line["files"]:
        paths = sorted(path for path in out.rglob("*") if path.is_file())
        names = [name for path in paths if re.search(only, name := path.relative_to(out).as_posix())]
    sums = {name: sha256_file(out / name) for name in names if (out / name).is_file()}
    return sums if _digest(sums) == line.get("digest") else {}


def _shown(account: Account, path: Path) -> Path:
    return path.relative_to(account.project) if path.is_relative_to(account.project) else path


def _download(account: Account, run: Run, only: str, listed: dict[str, int], folder: Path) -> None:
    pattern = f"{_PLAIN_NAME}(?=.*?(?:{only}))." if only else f"{_PLAIN_NAME}."
    what = f"The download of what {run.reference} left"
    limit_s = 900 + sum(listed.values()) / _SLOWEST_BYTES_S
    with account.events.progress(len(listed), run.reference, unit="files") as progress:

        def listen(line: str) -> None:
            if line.startswith("Output file downloaded"):
                progress.advance()
            elif found := re.match(r"(\d+%)\|", line):
                progress.advance(0, note=f"this one {found[1]}")

        words = ["kernels", "output", run.label(account), "-p", str(folder), "--force", "--page-size", "200"]
        answer = account.program.call(*words, "--file-pattern", pattern, limit_s=limit_s, listen=listen)
    check(answer, what)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise UsageError(
            f"{folder}: {needed / 1e9:.1f} GB to fetch and {free / 1e9:.1f} GB free. Make room, or fetch less: --only"
        )


def _sizes(run: Run, folder: Path) -> dict[str, int]:
    """Sizes by name of what came: plain files, and no error page in the place of one."""
    found: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise KaggleError(f"{run.reference}: {name} is no plain file.", "", "Nothing was kept. Look at the kernel.")
        if path.is_file():
            found[name] = path.stat().st_size
            if page := error_page(path):
                raise _broken(run, f"in the place of {name} came an error page", page)
    return found


def _check(
    run: Run,
    found: dict[str, int],
    sums: dict[str, str],
    listed: dict[str, int],
    verdict: dict[str, Any],
    wanted: re.Pattern[str],
) -> None:
    """Compare with what the kernel noted in its verdict, and what it did not note with Kaggle's list."""
    noted = verdict.get("sha256") or {}
    expected = {*listed, *(name for name in noted if wanted.search(name))}
    if lost := sorted(expected - set(found)):
        raise _broken(run, f"{', '.join(lost[:5])} did not come")
    for name, digest in sums.items():
        if noted.get(name, digest) != digest:
            raise _broken(run, f"{name} is not what the kernel wrote (its sha256 in {VERDICT} is another)")
        if name not in noted and listed.get(name, found[name]) not in (0, found[name]):
            raise _broken(run, f"{name} has {found[name]} bytes here and {listed[name]} at Kaggle")
    if verdict.get("ok") is False:
        raise KaggleError(
            f"{run.reference}: version {run.version} says itself that it failed.",
            str(verdict.get("reason")),
            "Mend it, rehearse it (scripts/rehearse), and push again.",
        )


def _broken(run: Run, problem: str, said: str = "") -> KaggleError:
    """Links to a kernel's output live for a short time, and lines break: a second fetch mends most of it."""
    return KaggleError(
        f"{run.reference}: {problem}.",
        said,
        "Nothing was kept. Run the same command again; if it stays, run the kernel again.",
    )


def error_page(path: Path) -> str:
    """The message of the storage's error page, "" for any other file."""
    with open(path, "rb") as file:
        head = file.read(2000).decode("utf-8", errors="replace")
    if not re.match(r"\s*(?:<\?xml[^>]*>)?\s*<Error>\s*<Code>", head):
        return ""
    return " ".join(re.sub(r"<[^>]*>", " ", head).split())


def read_verdict(folder: Path) -> dict[str, Any]:
    """What a kernel of ours says about its run; empty for others."""
    try:
        value = json.loads((folder / VERDICT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
