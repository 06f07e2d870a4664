"""Something that takes its time on Kaggle → what a person sees of it, and an end to the patience."""

from __future__ import annotations

import math
import time

from rsna_kit.runtime.clock import format_duration
from rsna_kit.runtime.events import Events
from rsna_lab.kaggle.push.errors import KaggleError

LINE_EVERY_S = 60.0


class Waiting:
    """One line on a terminal that is written over; in a log a line when something changes, and every minute.

    Args:
        events: where people read.
        label: what is waited for.
        limit_s: when `look` gives up.
        expected_s: how long it took the last time, for an ETA.
    """

    def __init__(self, events: Events, label: str, limit_s: float, expected_s: float | None = None) -> None:
        self._events, self._label, self._limit_s, self._expected_s = events, label, limit_s, expected_s
        self._start = time.monotonic()
        self._said, self._said_at, self._open = "", -math.inf, False

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._start

    def look(self, state: str) -> None:
        """Say how it stands.

        Raises:
            KaggleError: the limit has passed.
        """
        text = f"{self._label}: {state}, {format_duration(self.seconds)}"
        if self._expected_s:
            left = max(self._expected_s - self.seconds, 0.0)
            text += f", ETA {format_duration(left)} (it took {format_duration(self._expected_s)} the last time)"
        if self._events.stream.isatty():
            print(f"\r\x1b[K{text}", end="", file=self._events.stream, flush=True)
            self._open = True
        elif state != self._said or self.seconds - self._said_at >= LINE_EVERY_S:
            self._events.say(text)
            self._said, self._said_at = state, self.seconds
        if self.seconds > self._limit_s:
            self.close()
            raise KaggleError(
                f"{self._label}: still {state} after {format_duration(self.seconds)}.",
                advice="Run the same command again: it goes on where things stand. --wait says how long it looks.",
            )

    def line(self, text: str) -> None:
        """A line in between, such as one of a log."""
        self.close()
        self._events.say(text, kind="log")

    def close(self) -> None:
        """End the line on a terminal."""
        if self._open:
            print(file=self._events.stream, flush=True)
            self._open = False
