"""Taking, watching and draining jobs, with a real store in memory and without a device."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.helpers.polling import eventually
from zrelay_generator.engine.events import JobFailed, JobStage, StageProgress
from zrelay_generator.engine.job import StageTimings
from zrelay_generator.jobs.directory import JobDirectory
from zrelay_generator.jobs.events import ImageFinished, JobAccepted, JobSucceeded, PreviewReady
from zrelay_generator.scheduling.scheduler import QueueStanding
from zrelay_generator.store.protocol import JobStore
from zrelay_generator.store.records import JobRecord, JobState
from zrelay_shared.callers import NOBODY
from zrelay_shared.errors import (
    Draining,
    IdempotencyConflict,
    InternalError,
)

from .fixture_types import MakeManager
from .managed_jobs import collected, finished_image


async def test_a_job_from_beginning_to_end(manager: MakeManager) -> None:
    made = manager()
    entry = await made.submit("a")
    watching = asyncio.create_task(collected(made.manager, entry))
    await eventually(lambda: entry.watchers, "the job is watched")
    image = finished_image()
    made.publish(StageProgress(JobStage.DENOISE, 1, 1, 0.1, 0.0), image, JobSucceeded(1, StageTimings()))
    assert [type(event) for event in await watching] == [JobAccepted, StageProgress, ImageFinished, JobSucceeded]
    assert entry.record.state is JobState.SUCCEEDED and entry.device_job is None
    made.publish(JobFailed(InternalError("late")))
    assert entry.record.state is JobState.SUCCEEDED, "nothing follows the last event"
    await made.ended(entry)
    assert not list(made.manager.directory), "it lives in the store alone"
    kept = await made.manager.directory.by_id(entry.record.job_id, NOBODY)
    assert await collected(made.manager, kept, after=1) == [image, JobSucceeded(1, StageTimings())]


async def test_slow_readers_get_the_latest(manager: MakeManager) -> None:
    made = manager()
    entry = await made.submit("a")
    for step in range(100):
        made.publish(PreviewReady(0, step, b""), StageProgress(JobStage.DENOISE, step + 1, 100, 0.1, 0.0))
    made.publish(JobSucceeded(1, StageTimings()))
    events = await collected(made.manager, entry)
    assert [event.step for event in events if isinstance(event, PreviewReady)] == [99]
    assert [event.completed for event in events if isinstance(event, StageProgress)] == list(range(69, 101))


async def test_heartbeats_go_to_those_who_wait_and_are_watched(manager: MakeManager) -> None:
    made = manager()
    await made.submit("a")
    entry, unwatched = await made.submit("b"), await made.submit("c")
    watching = made.manager.watch(entry)
    await anext(watching)
    for _ in range(3):
        await made.manager.heartbeat()
    waits = [event for _, event in entry.log if isinstance(event, QueueStanding)]
    assert [wait.queue_position for wait in waits] == [1]
    assert len(list(unwatched.log)) == 1, "nothing accumulates where nobody watches"
    assert (made.manager.scheduler.waiting, made.manager.scheduler.running) == (3, 0)
    await watching.aclose()


async def test_a_started_job_that_is_passed_over_gets_its_eta(manager: MakeManager) -> None:
    made = manager()
    made.measured()
    entry = await made.submit("a", steps=4)
    watching = made.manager.watch(entry)
    await anext(watching)
    made.publish(StageProgress(JobStage.DENOISE, 1, 4, 1.0, 3.0))
    await made.manager.heartbeat()

    def steps() -> list[StageProgress]:
        return [event for _, event in entry.log if isinstance(event, StageProgress)]

    assert [step.eta_s for step in steps()] == [3.0], "it has just moved"
    made.clock_s += 2.5
    await made.manager.heartbeat()
    first, second = steps()
    assert (
        replace(second, eta_s=first.eta_s) == first
        and second.eta_s == made.manager.scheduler.standing(entry.record).eta_s
    )
    assert entry.record.state is JobState.RUNNING
    await watching.aclose()


class CountingStore:
    """A store that notes how many rows each page reads."""

    def __init__(self, real: JobStore) -> None:
        self._real = real
        self.limits: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def before(self, before: int, states: Sequence[JobState], limit: int, owner: str | None) -> list[JobRecord]:
        self.limits.append(limit)
        return await self._real.before(before, states, limit, owner)


async def test_a_page_of_many(manager: MakeManager) -> None:
    made = manager()
    entries = [await made.submit(f"{number}", detached=True) for number in range(6)]
    for number in (0, 1, 3):
        made.publish(JobSucceeded(1, StageTimings()), job=number)
        await made.ended(entries[number])
    store: Any = CountingStore(made.store)
    directory = JobDirectory(store)
    for job in made.manager.directory:
        directory.add(job)
    everything = frozenset(JobState)
    pages, before = [], 1 << 62
    while page := await directory.page(before, everything, 2, NOBODY):
        pages.append([entry.record.request_id for entry in page])
        before = page[-1].record.arrival
    assert pages == [["5", "4"], ["3", "2"], ["1", "0"]]
    ended = await directory.page(1 << 62, frozenset({JobState.SUCCEEDED}), 2, NOBODY)
    assert [entry.record.request_id for entry in ended] == ["3", "1"]
    assert max(store.limits) <= 4, "not as many as there are jobs that wait"


async def test_the_same_request_is_the_same_job(manager: MakeManager) -> None:
    made = manager()
    several = await asyncio.gather(*(made.submit("a", identity="1") for _ in range(5)))
    assert len({id(entry) for entry in several}) == 1 and len(made.jobs) == 1
    with pytest.raises(IdempotencyConflict):
        await made.submit("a", identity="2")
    made.publish(JobFailed(InternalError("a bug")))
    await made.ended(several[0])
    with pytest.raises(IdempotencyConflict):
        await made.submit("a", identity="2")
    assert await made.submit("a", identity="1") is not several[0], "a failed request may be made again"


async def test_draining_finishes_what_it_can(manager: MakeManager) -> None:
    made = manager()
    made.measured()
    short, long = await made.submit("short", steps=1), await made.submit("long", steps=90)
    draining = asyncio.create_task(made.manager.drain(20.0))
    await eventually(lambda: long.suspended, "the long job is suspended")
    assert made.jobs[1].cancelled, "it cannot be done in time: its watchers may look elsewhere at once"
    with pytest.raises(Draining):
        await made.submit("b")
    made.publish(JobSucceeded(1, StageTimings()), job=0)
    await draining  # the clock stands still: it does not wait for the end of the grace period
    assert short.record.state is JobState.SUCCEEDED and long.record.state is JobState.QUEUED
    (failed,) = [event for event in await collected(made.manager, long) if isinstance(event, JobFailed)]
    assert failed.error.metadata == {"job_id": long.record.job_id, "parked": "false"}


async def test_a_parked_job_can_be_cancelled(manager: MakeManager) -> None:
    made = manager()
    entry = await made.submit("a", detached=True)
    await made.manager.drain(0.0)
    assert entry.suspended and len((await made.store.unfinished())[0]) == 1
    made.manager.cancel(entry)
    await made.ended(entry)
    assert entry.record.state is JobState.CANCELLED and (await made.store.unfinished())[0] == [], (
        "nobody goes on with it"
    )
