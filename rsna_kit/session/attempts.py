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
from contextlib import suppress
from pathlib import Path

from rsna_kit.runtime.clock import Clock, format_duration

ATTEMPT, BEGAN = "RSNA_KIT_ATTEMPT", "RSNA_KIT_BEGAN"  # what a child is told: its number; time.monotonic() of the first
LATE_S = 600.0  # beyond its limit; it ends itself before that, unless it hangs
STALL_S, FIRST_S = 1800.0, 3600.0  # without a new score: ever, and before the very first
MOST_ATTEMPTS, MOST_IDLE = 20, 4  # attempts; those in a row that saved nothing new
_LEAST_S = 300.0  # less is not worth a start
_LOOK_EVERY_S = 5.0
_PAUSE_S = 10.0  # after a process could not even be started


def run_attempts(script: Path, progress: Path, verdict: Path, clock: Clock, most: int) -> str:
    """Run a script until it ends well, nothing new comes, or the time is over; what is done in between is printed.

    Args:
        script: its file; ATTEMPT and BEGAN in its environment are the number of the attempt, from 1, and when the first
            one began.
        progress: a CSV file to which every attempt adds rows. Where it does not grow for STALL_S (FIRST_S before there
            is anything), the process hangs, and is ended with all that it started.
        verdict: removed before each attempt.
        clock: of all attempts together; LATE_S after its end a process is ended, too.
        most: attempts, 1 for a run that is to fail when it fails.

    Returns:
        "" where the last attempt ended well, else what happened to it.
    """
    began, idle, number = repr(time.monotonic()), 0, 0
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # gigabytes of output
    while True:
        number += 1
        before = count_rows(progress)
        verdict.unlink(missing_ok=True)
        try:
            environment = {**os.environ, ATTEMPT: str(number), BEGAN: began}
            process = subprocess.Popen([sys.executable, script], env=environment, start_new_session=True)
            reason = _watch(process, progress, clock, FIRST_S if number == 1 else STALL_S)
        except OSError as error:  # no memory for another process, perhaps for a moment only
            reason = f"it could not be started: {error}"
            time.sleep(_PAUSE_S)
        saved, left = count_rows(progress), clock.remaining_s()
        idle = 0 if saved > before else idle + 1
        if not reason or number >= most or idle >= MOST_IDLE or left < _LEAST_S:
            return reason
        print(
            f"attempt {number} ended: {reason}. {saved} images are scored, {format_duration(left)} are left: once more "
            "from there, in a new process",
            flush=True,
        )


def count_rows(path: Path) -> int:
    """Lines of a CSV file behind its header; 0 where there is none."""
    try:
        return max(0, path.read_bytes().count(b"\n") - 1)
    except OSError:
        return 0


def _watch(process: subprocess.Popen[bytes], progress: Path, clock: Clock, first_s: float) -> str:
    """Wait for a process, and end it when it hangs; what happened to it, "" where it ended well."""
    hung, rows, grown = "", count_rows(progress), time.monotonic()
    try:
        while not hung:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_EVERY_S)
                break
            now, found = time.monotonic(), count_rows(progress)
            if found != rows:
                rows, grown = found, now
            patience = STALL_S if rows else first_s
            if now > grown + patience:
                hung = f"it hung: nothing new for {format_duration(patience)}"
            if clock.remaining_s() < -LATE_S:
                hung = f"it did not end, {format_duration(LATE_S)} after its time was over"
    finally:
        with suppress(ProcessLookupError):  # and whatever it has left behind
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # what waits for a dead disk cannot be ended
            process.wait(60)
    code = process.returncode
    if hung or not code:
        return hung
    if code > 0:
        return f"exit code {code}"
    name = {one.value: one.name for one in signal.Signals}.get(-code, f"signal {-code}")
    return f"ended by {name}" + (", as Linux does when memory runs out" if name == "SIGKILL" else "")
