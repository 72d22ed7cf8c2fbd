"""A stream that says nothing for long: is anybody still there?"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

SILENCE_S = 10.0
"""A generator tells of a waiting job every 2 s and of a running one with each step; a long step may be silent, a
generator that is asked is not. gRPC's own keep-alive takes up to 40 s to notice."""
T = TypeVar("T")


async def listen(
    messages: AsyncGenerator[T, None], ask: Callable[[], Awaitable[None]], silence_s: float = SILENCE_S
) -> AsyncGenerator[T, None]:
    """The messages, as they come; while there are none for `silence_s` seconds, `ask` must return. Raises what it
    raises, and then the stream is over."""
    while True:
        coming = asyncio.ensure_future(anext(messages))
        try:
            while not (await asyncio.wait({coming}, timeout=silence_s))[0]:
                await ask()
            message = coming.result()
        except StopAsyncIteration:
            return
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})
        yield message
