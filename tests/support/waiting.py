"""Waiting for a condition."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], seconds: float, interval: float = 0.1) -> bool:
    """Wait until a condition holds or the time is over; return whether it holds."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(interval)
    return holds
