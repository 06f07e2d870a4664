"""The log of a kernel's run → lines for people, while it is written."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from types import TracebackType

from rsna_lab.kaggle.push import judge
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.waiting import Waiting


class LogTail:
    """Shows a run's log from the moment that `start` is called until the block ends.

    The program follows the log and comes back by itself when the line breaks. Where it cannot, nothing is lost but the
    view: what counts is the status.
    """

    def __init__(self, account: Account, label: str, waiting: Waiting) -> None:
        self._account, self._label, self._waiting = account, label, waiting
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.shown = 0

    def __enter__(self) -> LogTail:
        return self

    def start(self) -> None:
        """Begin to follow; a second call does nothing."""
        if self._process is None:
            self._process = self._account.program.open_stream("kernels", "logs", "-f", self._label)
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            for text in judge.plain(self._account.scrub(line)).splitlines():
                self._waiting.line(f"  | {text}")
                self.shown += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        if error is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)  # the last lines
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._reader is not None:
            self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
