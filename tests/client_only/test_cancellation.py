"""A call that is cancelled while it connects leaves no coroutine that was never awaited."""

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable

import pytest

from zrelay_client import AsyncClient

NOBODY = "127.0.0.1:1"
CALLS: dict[str, Callable[[AsyncClient], Awaitable[object]]] = {
    "jobs.get": lambda client: client.jobs.get("a job"),
    "jobs.cancel": lambda client: client.jobs.cancel("a job"),
    "jobs.fetch": lambda client: client.jobs.fetch("a job"),
    "cancel": lambda client: client.cancel("a request"),
    "status": lambda client: client.status(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_cancelled_call_awaits_every_coroutine(call: Callable[[AsyncClient], Awaitable[object]]) -> None:
    async with AsyncClient(encoder=NOBODY, generator=NOBODY) as client:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work = asyncio.ensure_future(call(client))
            await asyncio.sleep(0)  # the call has made its tasks, and none has started
            work.cancel()
            await asyncio.wait({work})
            assert work.cancelled()
            del work  # its traceback refers to the coroutines, which warn only when they are freed
            gc.collect()
    assert [str(warning.message) for warning in caught if "never awaited" in str(warning.message)] == []
