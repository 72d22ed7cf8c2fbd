"""Streams that say nothing for a while, with plain generators."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from zrelay_client._silence import listen
from zrelay_shared.errors import Unavailable


class Stream:
    """Says 1, is silent for a while, says 2."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self.ended = False

    async def messages(self) -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.sleep(self._pause_s)
            yield 2
        finally:
            self.ended = True


class Asked:
    """Whether somebody is there."""

    def __init__(self, *, there: bool) -> None:
        self.count, self._there = 0, there

    async def __call__(self) -> None:
        self.count += 1
        if not self._there:
            raise Unavailable("gone")


async def test_who_is_there_may_be_silent() -> None:
    stream, asked = Stream(0.2), Asked(there=True)
    assert [number async for number in listen(stream.messages(), asked, 0.03)] == [1, 2]
    assert 2 <= asked.count <= 7
    assert stream.ended


async def test_who_is_gone_ends_the_stream() -> None:
    stream, asked = Stream(60.0), Asked(there=False)
    got = []
    with pytest.raises(Unavailable):
        async for number in listen(stream.messages(), asked, 0.03):
            got.append(number)
    assert (got, asked.count, stream.ended) == ([1], 1, True)


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_leaving_ends_the_stream(how: str) -> None:
    stream = Stream(60.0)

    async def read() -> None:
        messages = stream.messages()
        async with contextlib.aclosing(messages), contextlib.aclosing(listen(messages, Asked(there=True))) as heard:
            async for _ in heard:
                if how == "closed":
                    return

    work = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert stream.ended


async def test_a_failing_stream_fails() -> None:
    async def broken() -> AsyncGenerator[int, None]:
        yield 1
        raise Unavailable("broken")

    with pytest.raises(Unavailable, match="broken"):
        [number async for number in listen(broken(), Asked(there=True))]
