"""What takes its time on Kaggle, and what may have been done although nobody heard the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from rsna_kit.runtime.clock import format_duration
from rsna_lab.kaggle.push.account import Account
from rsna_lab.kaggle.push.errors import KaggleError, UnreachableError

LOOKS = 4  # what was just made may not be found yet, for so many looks
_LINE_EVERY_S = 60.0
T = TypeVar("T")


def look_again(account: Account, find: Callable[[], T], good: Callable[[T], object] = bool, looks: int = LOOKS) -> T:
    """What `find` brings as soon as it is `good`, else what the last look brought."""
    found = find()
    for _ in range(looks - 1):
        if good(found):
            break
        time.sleep(account.poll_s)
        found = find()
    return found


def once(account: Account, name: str, what: str, send: Callable[[], T], find: Callable[[], T]) -> T:
    """Change something on Kaggle. Where the answer is lost, look whether it was carried out, and do not do it again.

    Args:
        account: who changes it.
        name, what: of which kernel or dataset a version or a submission is made, for people.
        send: changes it, and brings the number of what was made.
        find: the same number, of what is there; 0 for nothing.

    Raises:
        UnreachableError: no answer, and nothing is there.
    """
    try:
        return send()
    except UnreachableError:
        if not (found := look_again(account, find)):
            raise
        account.events.say(f"{name}: the answer was lost, and {what} {found} is there")
        return found


class Waiting:
    """Tells how something stands when that changes, and every minute; and gives up in the end.

    Args:
        account: who waits, how long at most, and where people read.
        label: what is waited for.
        page: where a person sees it on Kaggle.
        expected_s: how long it took the last time, for an ETA.
    """

    def __init__(self, account: Account, label: str, page: str, expected_s: float | None = None) -> None:
        self._account, self._label, self._page, self._expected_s = account, label, page, expected_s
        self._start, self._missed, self._said, self._said_at = time.monotonic(), 0, "", 0.0

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
            raise KaggleError(
                f"{self._label}: Kaggle does not show it to this account.",
                advice=f"Look at {self._page}. A token made lately may lack rights that kaggle.json has.",
            )
        if state != self._said or self.seconds - self._said_at >= _LINE_EVERY_S:
            text = f"{self._label}: {state}, {format_duration(self.seconds)}"
            if self._expected_s:
                left = max(self._expected_s - self.seconds, 0.0)
                text += f", ETA {format_duration(left)} (it took {format_duration(self._expected_s)} the last time)"
            self._account.events.say(text)
            self._said, self._said_at = state, self.seconds
        if self.seconds > self._account.limit_s:
            raise KaggleError(
                f"{self._label}: still {state} after {format_duration(self.seconds)}.",
                advice="Run the same command again: it goes on where things stand. --wait says how long it looks.",
            )
        time.sleep(self._account.poll_s)
