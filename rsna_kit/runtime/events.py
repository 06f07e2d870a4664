"""What a run tells: a JSON line for machines, one plain line for people, and progress with an ETA.

People read stderr; stdout belongs to results. A terminal gets one line that is written over, a log a line at most every
`LINE_EVERY_S` seconds. Every event is appended to `events.jsonl` when a path is given.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from rsna_kit.runtime.clock import format_duration
from rsna_kit.runtime.files import naming

LINE_EVERY_S = 10.0


class Events:
    """The voice of one run.

    Args:
        path: file that receives JSON lines, or None.
        stream: where people read, standard error unless given.
    """

    def __init__(self, path: Path | None = None, stream: TextIO | None = None) -> None:
        self._path = path
        self._stream = stream
        self._start = time.monotonic()

    @property
    def stream(self) -> TextIO:
        """Looked up at each use, so that a redirected sys.stderr is honoured."""
        return self._stream or sys.stderr

    def record(self, kind: str, **fields: Any) -> None:
        """Append one event to the file without telling people."""
        if self._path is None:
            return
        line = {"t": round(time.monotonic() - self._start, 3), "event": kind, **fields}
        self._path.parent.mkdir(parents=True, exist_ok=True)  # here, so that a refused command leaves no folder
        with naming(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def say(self, message: str, kind: str = "note", **fields: Any) -> None:
        """Tell people one line and record it with its fields."""
        self.record(kind, message=message, **fields)
        print(message, file=self.stream, flush=True)

    def progress(self, total: int, label: str, unit: str = "images") -> Progress:
        """A progress display for `total` steps; use as a context manager."""
        return Progress(self, total, label, unit)


class Progress:
    """How far a loop has come. `advance` may be called from one thread only."""

    def __init__(self, events: Events, total: int, label: str, unit: str) -> None:
        self._events, self.total, self.label, self._unit = events, total, label, unit
        self.done = 0
        self._kinds: Counter[str] = Counter()
        self._start = self._last = time.monotonic()
        self._terminal = events.stream.isatty()

    def __enter__(self) -> Progress:
        return self

    def advance(self, steps: int = 1, note: str = "", kind: str = "") -> None:
        """Count `steps` as done.

        Args:
            steps: how many.
            note: shown behind the numbers.
            kind: who did them; where there are several kinds, the rate of each is shown. They share the work, so there
                is one ETA.
        """
        self.done += steps
        self._kinds[kind] += steps
        now = time.monotonic()
        if now - self._last < (0.2 if self._terminal else LINE_EVERY_S):
            return
        self._last, elapsed = now, max(now - self._start, 1e-9)
        parts = [
            f"{self.done / elapsed:.1f}/s",
            f"ETA {format_duration((self.total - self.done) * elapsed / self.done)}",
        ]
        if len(self._kinds) > 1:
            parts += [f"{name} {count / elapsed:.1f}/s" for name, count in sorted(self._kinds.items())]
        self._line(", ".join(["", *parts, note] if note else ["", *parts]), "" if self._terminal else "\n")

    def _line(self, text: str, end: str = "\n") -> None:
        over = "\r\x1b[K" if self._terminal else ""  # to the line's beginning, and rub out what stands there
        text = f"{over}{self.label}: {self.done}/{self.total} {self._unit}{text}"
        print(text, end=end, file=self._events.stream, flush=True)

    def __exit__(self, *exc: object) -> None:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        self._line(f" in {format_duration(elapsed)} ({self.done / elapsed:.1f}/s)")
        self._events.record("progress", label=self.label, done=self.done, total=self.total, seconds=round(elapsed, 2))
