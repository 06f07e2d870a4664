"""Waiting for what another thread or process does, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether the condition came true within 20 seconds."""
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.02)
    return False
