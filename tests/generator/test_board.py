"""Taking, watching and draining jobs, with a real store in memory and without a device."""

import asyncio
from dataclasses import replace

import pytest

from zrelay_generator.engine.events import Accepted, Done, Failed, Image, Preview, Progress, Stage, Waiting
from zrelay_generator.engine.job import Timings
from zrelay_generator.jobs.entry import State
from zrelay_shared.errors import (
    Draining,
    IdempotencyConflict,
    InternalError,
)

from .boards import collected, picture


async def test_a_job_from_beginning_to_end(board):
    made = board()
    entry = await made.submit("a")
    watching = asyncio.create_task(collected(made.board, entry))
    await asyncio.sleep(0)
    image = picture()
    made.publish(Progress(Stage.DENOISE, 1, 1, 0.1, 0.0), image, Done(1, Timings()))
    assert [type(event) for event in await watching] == [Accepted, Progress, Image, Done]
    assert entry.state is State.SUCCEEDED and entry.job is None
    made.publish(Failed(InternalError("late")))
    assert entry.state is State.SUCCEEDED, "nothing follows the last event"
    await made.ended(entry)
    assert not list(made.board.jobs), "it lives in the store alone"
    kept = await made.board.jobs.by_id(entry.id)
    assert await collected(made.board, kept, after=1) == [image, Done(1, Timings())]


async def test_slow_readers_get_the_latest(board):
    made = board()
    entry = await made.submit("a")
    for step in range(100):
        made.publish(Preview(0, step, b""), Progress(Stage.DENOISE, step + 1, 100, 0.1, 0.0))
    made.publish(Done(1, Timings()))
    events = await collected(made.board, entry)
    assert [event.step for event in events if isinstance(event, Preview)] == [99]
    assert [event.completed for event in events if isinstance(event, Progress)] == list(range(69, 101))


async def test_heartbeats_go_to_those_who_wait_and_are_watched(board):
    made = board()
    await made.submit("a")
    entry, unwatched = await made.submit("b"), await made.submit("c")
    watching = made.board.watch(entry)
    await anext(watching)
    for _ in range(3):
        await made.board.heartbeat()
    waits = [event for _, event in entry.events if isinstance(event, Waiting)]
    assert [wait.queue_position for wait in waits] == [1]
    assert len(unwatched.events) == 1, "nothing accumulates where nobody watches"
    assert (made.board.workload.waiting, made.board.workload.running) == (3, 0)
    await watching.aclose()


async def test_a_job_that_has_begun_and_is_passed_over_is_told_of(board):
    made = board()
    made.measured()
    entry = await made.submit("a", steps=4)
    watching = made.board.watch(entry)
    await anext(watching)
    made.publish(Progress(Stage.DENOISE, 1, 4, 1.0, 3.0))
    await made.board.heartbeat()
    steps = lambda: [event for _, event in entry.events if isinstance(event, Progress)]  # noqa: E731
    assert [step.eta_s for step in steps()] == [3.0], "it has just moved"
    entry.moved_at -= 2.0
    await made.board.heartbeat()
    first, second = steps()
    assert replace(second, eta_s=first.eta_s) == first and second.eta_s == made.board.workload.standing(entry).eta_s
    assert entry.state is State.RUNNING
    await watching.aclose()


async def test_a_page_of_many(board):
    made = board()
    entries = [await made.submit(f"{number}", detached=True) for number in range(6)]
    for number in (0, 1, 3):
        made.publish(Done(1, Timings()), job=number)
        await made.ended(entries[number])
    made.store.before, asked = _counted(made.store.before)
    everything = frozenset(State)
    pages, before = [], 1 << 62
    while page := await made.board.jobs.listed(before, everything, 2):
        pages.append([entry.request_id for entry in page])
        before = page[-1].arrival
    assert pages == [["5", "4"], ["3", "2"], ["1", "0"]]
    ended = await made.board.jobs.listed(1 << 62, frozenset({State.SUCCEEDED}), 2)
    assert [entry.request_id for entry in ended] == ["3", "1"]
    assert max(asked) <= 4, "not as many as there are jobs that wait"


def _counted(call):
    asked = []

    async def counted(before, states, limit):
        asked.append(limit)
        return await call(before, states, limit)

    return counted, asked


async def test_the_same_request_is_the_same_job(board):
    made = board()
    several = await asyncio.gather(*(made.submit("a", identity="1") for _ in range(5)))
    assert len({id(entry) for entry in several}) == 1 and len(made.jobs) == 1
    with pytest.raises(IdempotencyConflict):
        await made.submit("a", identity="2")
    made.publish(Failed(InternalError("a bug")))
    await made.ended(several[0])
    with pytest.raises(IdempotencyConflict):
        await made.submit("a", identity="2")
    assert await made.submit("a", identity="1") is not several[0], "a failed request may be made again"


async def test_draining_finishes_what_it_can(board):
    made = board()
    made.measured()
    short, long = await made.submit("short", steps=1), await made.submit("long", steps=90)
    draining = asyncio.create_task(made.board.drain(20.0))
    await asyncio.sleep(0.01)
    assert long.parked and made.jobs[1].cancelled, "it cannot be done in time: its watchers may look elsewhere at once"
    with pytest.raises(Draining):
        await made.submit("b")
    made.publish(Done(1, Timings()), job=0)
    await asyncio.wait_for(draining, 5)
    assert short.state is State.SUCCEEDED and long.state is State.QUEUED
    (failed,) = [event for event in await collected(made.board, long) if isinstance(event, Failed)]
    assert failed.error.metadata == {"job_id": long.id, "parked": "false"}


async def test_a_parked_job_can_be_cancelled(board):
    made = board()
    entry = await made.submit("a", detached=True)
    await made.board.drain(0.0)
    assert entry.parked and len((await made.store.unfinished())[0]) == 1
    made.board.cancel(entry)
    await made.ended(entry)
    assert entry.state is State.CANCELLED and (await made.store.unfinished())[0] == [], "nobody goes on with it"
