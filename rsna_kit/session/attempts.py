"""A kernel's script in a process of its own, and once more where that died.

What ends a process without asking Python (a crash in a native library, a lost GPU, the kernel's out-of-memory killer)
ends a Kaggle run, and in the scoring run the submission with it. So the script runs as a child of itself: this process
only waits, holds no GPU and next to no memory, and is still there to start the child again, which goes on from the
scores that are saved, or to leave the submission as it is. Attempts begin at different images and go in both
directions: one that kills whoever opens it then costs itself and its neighbours, not all that come after it.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rsna_kit.runtime.clock import Clock, format_duration

ATTEMPT, BEGAN = "RSNA_KIT_ATTEMPT", "RSNA_KIT_BEGAN"  # what a child is told: its number; time.monotonic() of the first
LATE_S = 600.0  # beyond its limit; it ends itself before that, unless it hangs
STALL_S, FIRST_S = 1800.0, 3600.0  # without a new score: ever, and before the very first
MOST_ATTEMPTS, MOST_IDLE = 20, 4  # attempts; those in a row that saved nothing new
_LEAST_S = 300.0  # less is not worth a start
_LOOK_EVERY_S = 5.0
_PAUSE_S = 10.0  # after a process could not even be started
_NOT_STARTED = 71  # EX_OSERR


@dataclass(frozen=True)
class Ended:
    """How the last attempt ended.

    Attributes:
        code: exit code, minus the signal's number where one ended it.
        reason: "" when it ended well.
        attempts: how many there were.
        saved: rows of the file that shows the progress.
    """

    code: int
    reason: str
    attempts: int
    saved: int


def run_attempts(
    attempt: Callable[[int], tuple[int, str]], progress: Path, clock: Clock, most: int, say: Callable[[str], None]
) -> Ended:
    """Make attempts until one ends well, nothing new comes, or the time is over.

    Args:
        attempt: number, from 1 → exit code, and what happened where that is not 0; such as `run_script`.
        progress: a CSV file to which every attempt adds rows.
        clock: of all attempts together.
        most: attempts, 1 for a run that is to fail when it fails.
        say: told when an attempt ended badly and what comes next.
    """
    idle = number = 0
    while True:
        number += 1
        before = count_rows(progress)
        try:
            code, reason = attempt(number)
        except OSError as error:  # no memory for another process, perhaps for a moment only
            code, reason = _NOT_STARTED, f"it could not be started: {error}"
            time.sleep(_PAUSE_S)
        saved = count_rows(progress)
        idle = 0 if saved > before else idle + 1
        left = clock.remaining_s()
        if code == 0 or number >= most or idle >= MOST_IDLE or left < _LEAST_S:
            return Ended(code, reason, number, saved)
        say(
            f"attempt {number} ended: {reason}. {saved} images are scored, {format_duration(left)} are left: once more "
            "from there, in a new process"
        )


def run_script(script: str, number: int, progress: Path, began: float, clock: Clock) -> tuple[int, str]:
    """An attempt in a process of its own, which is ended with all that it started when it hangs.

    Args:
        script: its file; ATTEMPT and BEGAN in its environment are `number` and `began`.
        progress: a CSV file; where it does not grow for STALL_S (FIRST_S before there is anything), the process hangs.
        clock: LATE_S after its end the process is ended, too.

    Returns:
        Exit code, minus the signal's number where one ended it; and what happened, "" where the code is 0.
    """
    environment = {**os.environ, ATTEMPT: str(number), BEGAN: repr(began)}
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # gigabytes of output
    process = subprocess.Popen([sys.executable, script], env=environment, start_new_session=True)
    hung = ""
    rows = count_rows(progress)
    grown = time.monotonic()
    try:
        while not hung:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_EVERY_S)
                break
            now, found = time.monotonic(), count_rows(progress)
            if found != rows:
                rows, grown = found, now
            patience = STALL_S if rows or number > 1 else FIRST_S
            if now > grown + patience:
                hung = f"it hung: nothing new for {format_duration(patience)}"
            if clock.remaining_s() < -LATE_S:
                hung = f"it did not end, {format_duration(LATE_S)} after its time was over"
    finally:
        with suppress(ProcessLookupError):  # and whatever it has left behind
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # what waits for a dead disk cannot be ended
            process.wait(60)
    code = -signal.SIGKILL if process.returncode is None else process.returncode
    return code, hung or _said(code)


def count_rows(path: Path) -> int:
    """Lines of a CSV file behind its header; 0 where there is none."""
    try:
        return max(0, path.read_bytes().count(b"\n") - 1)
    except OSError:
        return 0


def _said(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}" if code else ""
    name = {one.value: one.name for one in signal.Signals}.get(-code, f"signal {-code}")
    return f"ended by {name}" + (", as Linux does when memory runs out" if name == "SIGKILL" else "")
