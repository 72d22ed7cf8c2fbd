"""Ctrl-C while something is painted: once stops it at the generator too, twice leaves it running there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from zrelay_shared.errors import ZrelayError
from zrelay_shared.signals import on_signals

_SECOND_S = 0.7
"""How long the first press waits for the second before anything is stopped."""
T = TypeVar("T")


class Interrupted(Exception):
    """Ctrl-C has ended the work; the message says what became of it."""


async def interruptible(
    work: Coroutine[Any, Any, T], *, warn: Callable[[str], None], leave: Callable[[], Awaitable[str]], stopped: str
) -> T:
    """Does the work, whose cancellation stops the generator. Raises Interrupted with `stopped` after one Ctrl-C; after
    two with what `leave`, which lets the jobs run on by themselves, says of how to come back."""
    task = asyncio.ensure_future(work)
    async with _presses() as presses:
        pressed = asyncio.ensure_future(presses.get())
        try:
            await asyncio.wait({task, pressed}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            warn("Ctrl-C: stopping; once more now leaves it running")
            message = stopped
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(presses.get(), _SECOND_S)
                message = await _left(leave)
        finally:
            pressed.cancel()
    # From here on Ctrl-C ends the process as it always does.
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, ZrelayError):
        return await task
    raise Interrupted(message)


async def _left(leave: Callable[[], Awaitable[str]]) -> str:
    try:
        return await leave()
    except ZrelayError as error:
        return f"it could not be left running, and is stopped: {error.message}"


@contextlib.asynccontextmanager
async def _presses() -> AsyncIterator["asyncio.Queue[None]"]:
    """Ctrl-C as items of a queue, where this process can have it so."""
    presses = asyncio.Queue[None]()
    with on_signals(("SIGINT",), lambda: presses.put_nowait(None)):
        yield presses
