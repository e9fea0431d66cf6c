"""Waiting for conditions, never for time."""

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

INTERVAL = 0.02  # seconds between two looks at a condition, unless it costs much to look


class NeverHappened(AssertionError):
    """A condition did not come true in time, or cannot come true any more."""


def until(condition: Callable[[], Value | None], what: str, seconds: float = 20.0, interval: float = INTERVAL) -> Value:
    """The first true value of `condition`. `what` names it in the error when it stays false for `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise NeverHappened(f"not within {seconds:g} s: {what}")
        time.sleep(interval)
