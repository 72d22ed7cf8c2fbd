"""Room in memory for images that are being sent."""

import asyncio
import functools
from contextlib import AsyncExitStack

import pytest

from tests.helpers.polling import eventually
from zrelay_generator.jobs.events import ImageFinished
from zrelay_generator.jobs.image_room import ImageRoom

from .fixture_types import MakeManager
from .managed_jobs import finished_image

pytestmark = pytest.mark.hostile


async def taken(stack: AsyncExitStack, room: ImageRoom, caller: str, size: int) -> None:
    await stack.enter_async_context(room.taken(caller, size))


async def test_a_caller_waits_for_its_own_images_only() -> None:
    room = ImageRoom(total=100, caller_percent=30, held_s=3600.0)
    async with AsyncExitStack() as greedy, AsyncExitStack() as later, AsyncExitStack() as other:
        await taken(greedy, room, "a", 20)
        waiting = [asyncio.create_task(taken(later, room, "a", size)) for size in (20, 1)]
        await taken(other, room, "b", 30)
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting), "the second waits behind the first"
        await greedy.aclose()
        await asyncio.gather(*waiting)


async def test_images_that_are_not_read_give_their_room_back() -> None:
    room = ImageRoom(total=10, caller_percent=100, held_s=0.02)
    async with AsyncExitStack() as deaf:
        await taken(deaf, room, "a", 10)
        async with room.taken("b", 10):
            pass
    async with room.taken("a", 10):
        pass


async def test_a_stream_that_ends_while_it_waits_leaves_the_room() -> None:
    room = ImageRoom(total=10, caller_percent=100, held_s=3600.0)
    async with AsyncExitStack() as stack:
        async with room.taken("a", 10):
            waiting = [asyncio.create_task(taken(stack, room, name, 10)) for name in ("b", "c")]
            await asyncio.sleep(0)
            waiting[0].cancel()
        await waiting[1]


async def test_an_image_larger_than_a_callers_room_is_sent_alone() -> None:
    room = ImageRoom(total=100, caller_percent=30, held_s=3600.0)
    async with room.taken("a", 1000), room.taken("b", 30):
        pass


async def test_a_watcher_reads_an_image_once_there_is_room(manager: MakeManager) -> None:
    made, room = manager(), ImageRoom(total=8, caller_percent=37.5, held_s=3600.0)  # an image of one pixel has 3 bytes
    job = await made.submit("a")
    await eventually(lambda: made.jobs, "the device has the job")
    made.publish(finished_image())
    watchers = [made.manager.watch(job, 1, functools.partial(room.taken, name)) for name in "aab"]
    first, second, other = [asyncio.ensure_future(anext(watcher)) for watcher in watchers]
    await asyncio.gather(first, other)
    assert not second.done()
    await watchers[0].aclose()
    sequence, event = await second
    assert sequence == 2 and isinstance(event, ImageFinished)
    for watcher in watchers[1:]:
        await watcher.aclose()
