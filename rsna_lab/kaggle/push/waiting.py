"""Something that takes its time on Kaggle → what a person sees of it, and an end to the patience."""

from __future__ import annotations

import math
import time

from rsna_kit.runtime.clock import format_duration
from rsna_kit.runtime.events import Events
from rsna_lab.kaggle.push.api import LOOKS
from rsna_lab.kaggle.push.errors import KaggleError

LINE_EVERY_S = 60.0


class Waiting:
    """One line on a terminal that is written over; in a log a line when something changes, and every minute.

    Args:
        events: where people read.
        label: what is waited for.
        limit_s: when `look` gives up.
        poll_s: seconds between two looks.
        page: where a person sees it on Kaggle.
        expected_s: how long it took the last time, for an ETA.
    """

    def __init__(
        self, events: Events, label: str, limit_s: float, poll_s: float, page: str, expected_s: float | None = None
    ) -> None:
        self._events, self._label, self._limit_s, self._expected_s = events, label, limit_s, expected_s
        self._poll_s, self._page, self._missed = poll_s, page, 0
        self._start = time.monotonic()
        self._said, self._said_at, self._open = "", -math.inf, False

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._start

    def look(self, seen: str | None) -> None:
        """Say how it stands, and wait for the next look; None where Kaggle does not show it.

        Raises:
            KaggleError: the limit has passed, or Kaggle has not shown it for long.
        """
        state, self._missed = seen or "not listed yet", 0 if seen else self._missed + 1
        if self._missed > 5 * LOOKS:
            self.close()
            raise KaggleError(
                f"{self._label}: Kaggle does not show it to this account.",
                advice=f"Look at {self._page}. A token made lately may lack rights that kaggle.json has.",
            )
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
        time.sleep(self._poll_s)

    def line(self, text: str) -> None:
        """A line in between, such as one of a log."""
        self.close()
        self._events.say(text, kind="log")

    def close(self) -> None:
        """End the line on a terminal."""
        if self._open:
            print(file=self._events.stream, flush=True)
            self._open = False
