"""Waits for a condition to become true. The deadlines are for hung processes; they assert nothing about speed."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 240.0
"""Far longer than anything here takes, however busy the machine is."""
_POLL_S = 0.02


def until(condition: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Polls `condition` until its value is true, and returns the value. Fails the test, naming `what`, otherwise."""
    ends = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < ends, f"waited {deadline_s:g} s in vain until {what}"
        time.sleep(_POLL_S)
    return value


async def until_async(condition: Callable[[], Awaitable[T | None]], what: str, deadline_s: float = DEADLINE_S) -> T:
    """As `until`, for a condition that is awaited."""
    ends = time.monotonic() + deadline_s
    while not (value := await condition()):
        assert time.monotonic() < ends, f"waited {deadline_s:g} s in vain until {what}"
        await asyncio.sleep(_POLL_S)
    return value


async def eventually(condition: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """As `until`, while the event loop runs."""

    async def value() -> T | None:
        return condition()

    return await until_async(value, what, deadline_s)
