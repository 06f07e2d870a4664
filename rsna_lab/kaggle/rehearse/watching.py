"""A command and its limits → how it ended. Time, memory and disk are watched from outside, without any rights.

Memory is the resident size of all the command's processes, looked at twice a second: a limit on address space would
forbid the huge maps that CUDA and TensorFlow reserve and never fill. Pages that processes share count once, as soon as
it matters. The disk limit is the size of the files in the working folder, looked at as often as that is cheap and once
more at the end. Both see what was there when they looked: a peak between two looks can pass.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rsna_kit.runtime.clock import format_duration
from rsna_lab.kaggle.secrecy import Secrets

_LOOK_EVERY_S = 0.5
_TELL_EVERY_S = 30.0
_TAIL_LINES = 60
_PIECE = 1 << 16
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Limits:
    """What a run may use."""

    seconds: float
    memory_bytes: float
    working_bytes: float
    cores: int


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        code: exit code, minus the signal's number where one ended it; None when it was stopped.
        stopped: the limit that stopped it, "time", "memory" or "disk", else "".
        seconds: how long it ran.
        memory_bytes: largest resident size that was seen.
        files, working_bytes: what it left in the working folder.
        tail: the last lines of its log.
        said: what it printed of the secrets that it was watched for; the log has *** there.
    """

    code: int | None
    stopped: str
    seconds: float
    memory_bytes: int
    files: int
    working_bytes: int
    tail: list[str]
    said: Sequence[str] = ()


def watch(command: Sequence[str], environment: Mapping[str, str], working: Path, limits: Limits, log: Path) -> Ended:
    """Run a command to its end, or until it breaks a limit.

    What it says goes to stderr and to `log`, line by line, without this person's own secrets.

    Args:
        command, environment: of the process.
        working: its folder, whose size is watched.
        limits: what it may use.
        log: file for what it says.

    Raises:
        KeyboardInterrupt: after the command and all its processes are ended.
    """
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what a child has left behind is ours to end
    others, cores = set(_children().get(os.getpid(), ())), os.sched_getaffinity(0)
    began = time.monotonic()
    os.sched_setaffinity(0, sorted(cores)[: limits.cores])  # a child inherits it
    try:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=working,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        os.sched_setaffinity(0, cores)
    with open(log, "wb") as kept:
        watcher = _Watcher(process, working, limits, began, kept)
        try:
            stopped = watcher.wait()
        finally:
            seconds = time.monotonic() - began
            _end(process, others)
            watcher.reader.join(10)
    files, size = folder_size(working)
    if not stopped and size > limits.working_bytes:
        stopped = "disk"
    code = None if stopped else process.returncode
    return Ended(code, stopped, seconds, watcher.memory, files, size, watcher.tail(), watcher.secrets.seen)


class _Watcher:
    """Looks at a process until it ends or breaks a limit, passes on what it says and remembers the end of it."""

    def __init__(
        self, process: subprocess.Popen[bytes], working: Path, limits: Limits, began: float, kept: IO[bytes]
    ) -> None:
        self._process, self._working, self._limits, self._began, self._kept = process, working, limits, began, kept
        self.memory, self.secrets, self._lines = 0, Secrets(), deque[str](maxlen=_TAIL_LINES)
        self._told, self._size_at, self._size = began, 0.0, (0, 0)
        self.reader = threading.Thread(target=self._pass_on, daemon=True)
        self.reader.start()

    def wait(self) -> str:
        """The limit that was broken, "" when the process ended by itself."""
        while (left := self._limits.seconds - (time.monotonic() - self._began)) > 0:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(min(left, _LOOK_EVERY_S))
                return ""
            if broken := self._look(time.monotonic()):
                return broken
        return "time"

    def tail(self) -> list[str]:
        """The last lines; of a line that was written over (a progress bar), what stands there in the end."""
        return [line.rstrip().rpartition("\r")[2] for line in list(self._lines)]

    def _pass_on(self) -> None:
        """Pass on whole lines, and most of a line of megabytes: no secret is as long as what is held."""
        assert self._process.stdout is not None
        held, piece = "", b"begin"
        while piece:
            piece = os.read(self._process.stdout.fileno(), _PIECE)
            text = self.secrets.hide(held + piece.decode("utf-8", "surrogateescape"))
            end = max(text.rfind("\n") + 1, len(text) - _PIECE) if piece else len(text)
            text, held = text[:end], text[end:]
            self._kept.write(text.encode("utf-8", "surrogateescape"))
            self._kept.flush()
            shown = text.encode("utf-8", "replace").decode()
            sys.stderr.write(shown)
            sys.stderr.flush()
            self._lines.extend(shown.removesuffix("\n").split("\n") if shown else [])
        self._process.stdout.close()

    def _look(self, now: float) -> str:
        """The limit of memory or disk that is broken now, or ""; says twice a minute how the run is doing."""
        processes = descendants(self._process.pid)
        resident = sum(map(_resident, processes))
        if resident > self._limits.memory_bytes:
            resident = sum(map(_own_share, processes))
        self.memory = max(self.memory, resident)
        if resident > self._limits.memory_bytes:
            return "memory"
        if now >= self._size_at:
            self._size = folder_size(self._working)
            self._size_at = now + max(2.0, 20 * (time.monotonic() - now))
            if self._size[1] > self._limits.working_bytes:
                return "disk"
        if now - self._told >= _TELL_EVERY_S:
            self._told = now
            last = next((line for line in reversed(self.tail()) if line), "nothing said yet")
            print(
                f"[rehearse] {format_duration(now - self._began)} of {format_duration(self._limits.seconds)}, "
                f"{resident / 1e9:.1f} GB of memory, {self._size[0]} files of {self._size[1] / 1e6:.1f} MB in "
                f"/kaggle/working; last line: {last[:100]}",
                file=sys.stderr,
                flush=True,
            )
        return ""


def descendants(pid: int) -> list[int]:
    """A process and all its children's children that are alive."""
    children = _children()
    found, left = list[int](), [pid]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def folder_size(folder: Path) -> tuple[int, int]:
    """Files below a folder and their bytes; links are not followed, and what vanishes meanwhile is nothing."""
    files = size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
            files += 1
    return files, size


def _children() -> dict[int, list[int]]:
    """Process → its children."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        with suppress(OSError, IndexError, ValueError):  # it has ended meanwhile, or is none
            parent = Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(entry))
    return children


def _resident(pid: int) -> int:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    return 0


def _own_share(pid: int) -> int:
    """Resident bytes with every shared page divided among those that share it."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Pss:"))
    return _resident(pid)


def _end(process: subprocess.Popen[bytes], others: set[int]) -> None:
    """End a process, what it started, and what those have left behind. `others`: our children from before."""
    for _ in range(250):
        ours = set(_children().get(os.getpid(), ())) - others
        if not ours and process.poll() is not None:
            return
        for pid in [pid for child in ours for pid in descendants(child)]:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in ours - {process.pid}:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        process.poll()
        time.sleep(0.02)
