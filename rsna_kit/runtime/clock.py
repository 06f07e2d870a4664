"""How long the run has taken and how long it may still take."""

from __future__ import annotations

import math
import re
import time

from rsna_kit.runtime.errors import UsageError


class Clock:
    """Counts from its making, or from `since` of `time.monotonic()`. `limit_s` is the whole allowance in seconds, None
    for no limit.

    Example:
        >>> clock = Clock(limit_s=None)
        >>> clock.remaining_s()
        inf
    """

    def __init__(self, limit_s: float | None = None, since: float | None = None) -> None:
        self._start = time.monotonic() if since is None else since
        self.limit_s = math.inf if limit_s is None else float(limit_s)

    def elapsed_s(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._start

    def remaining_s(self) -> float:
        """Seconds left, negative when the limit has passed, inf without a limit."""
        return self.limit_s - self.elapsed_s()


def parse_duration(text: str) -> float:
    """Seconds from `90`, `90s`, `15m`, `8h`, `8h30m`.

    Raises:
        UsageError: anything else, or zero.

    Example:
        >>> parse_duration("8h30m")
        30600.0
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    seconds = 0.0
    if match and text.strip():
        hours, minutes, rest = (float(part or 0) for part in match.groups())
        seconds = hours * 3600 + minutes * 60 + rest
    if seconds <= 0:
        raise UsageError(f"time limit: got {text!r}, expected a duration such as 90s, 15m, 8h or 8h30m")
    return seconds


def format_duration(seconds: float) -> str:
    """`0:42`, `12:05`, `3:07:00`; `?` when it is not finite.

    Example:
        >>> format_duration(725)
        '12:05'
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
