"""Streams that say nothing for a while, with plain generators."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from zrelay_client._transport.stub import listen
from zrelay_shared.errors import Unavailable


class Stream:
    """Yields 1, waits for `resume`, yields 2."""

    def __init__(self) -> None:
        self.resume, self.waits = asyncio.Event(), asyncio.Event()
        self.ended = False

    async def messages(self) -> AsyncGenerator[int, None]:
        try:
            yield 1
            self.waits.set()
            await self.resume.wait()
            yield 2
        finally:
            self.ended = True


class Asked:
    """Answers whether the sender is there; the third answer resumes `stream`."""

    def __init__(self, stream: Stream | None = None, *, there: bool) -> None:
        self.count, self._stream, self._there = 0, stream, there

    async def __call__(self) -> None:
        self.count += 1
        if not self._there:
            raise Unavailable("gone")
        if self.count == 3 and self._stream is not None:
            self._stream.resume.set()


async def test_who_is_there_may_be_silent() -> None:
    stream = Stream()
    asked = Asked(stream, there=True)
    assert [number async for number in listen(stream.messages(), asked, 0.01)] == [1, 2]
    assert asked.count >= 3
    assert stream.ended


async def test_who_is_gone_ends_the_stream() -> None:
    stream, asked = Stream(), Asked(there=False)
    got = []
    with pytest.raises(Unavailable):
        async for number in listen(stream.messages(), asked, 0.01):
            got.append(number)
    assert (got, asked.count, stream.ended) == ([1], 1, True)


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_leaving_ends_the_stream(how: str) -> None:
    stream = Stream()

    async def read() -> None:
        messages = stream.messages()
        async with contextlib.aclosing(messages), contextlib.aclosing(listen(messages, Asked(there=True))) as heard:
            async for _ in heard:
                if how == "closed":
                    return

    work = asyncio.create_task(read())
    if how == "cancelled":
        await stream.waits.wait()
        work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert stream.ended


async def test_a_failing_stream_fails() -> None:
    async def broken() -> AsyncGenerator[int, None]:
        yield 1
        raise Unavailable("broken")

    with pytest.raises(Unavailable, match="broken"):
        [number async for number in listen(broken(), Asked(there=True))]
