"""How long jobs and their results live: leases, retention, and a disk that refuses a part."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.polling import eventually, until_async
from zrelay_generator.engine.job import StageTimings
from zrelay_generator.jobs.events import ImageFinished, JobAccepted, JobSucceeded
from zrelay_generator.jobs.live import LiveJob
from zrelay_generator.store.blobs import Buffer
from zrelay_generator.store.records import JobState
from zrelay_shared.callers import NOBODY
from zrelay_shared.errors import (
    Cancelled,
    NotFound,
)

from .fixture_types import MakeManager
from .managed_jobs import ManagedJobs, collected, finished_image
from .stores import Put, intercepted_writes


def state(job: LiveJob) -> JobState:
    return job.record.state


async def over(job: LiveJob) -> None:
    await eventually(lambda: job.over, "the job is over")


async def later_leases_ended(made: ManagedJobs) -> None:
    """Returns once the lease of a job that is submitted now has ended, and with it every lease that began before."""
    await over(await made.submit("later"))


async def test_a_job_that_nobody_watches_has_a_lease(manager: MakeManager) -> None:
    made = manager(lease_s=0.1, first_watch_s=0.0)
    watched, detached, forgotten = [await made.submit(n, detached=n == "detached") for n in ("a", "detached", "c")]
    first, second = made.manager.watch(watched), made.manager.watch(watched)
    await anext(first)
    await anext(second)
    await first.aclose()
    await over(forgotten)
    assert [entry.record.state for entry in (watched, detached, forgotten)] == [
        JobState.QUEUED,
        JobState.QUEUED,
        JobState.CANCELLED,
    ]
    assert made.jobs[2].cancelled and isinstance(forgotten.record.error, Cancelled)
    assert forgotten.record.error.reason == "LEASE_EXPIRED", "unlike one that somebody asked for"
    await second.aclose()
    third = made.manager.watch(watched)
    await anext(third)
    await later_leases_ended(made)
    assert state(watched) is JobState.QUEUED, "a watcher renews the lease"
    await third.aclose()
    await over(watched)
    assert state(watched) is JobState.CANCELLED


async def test_a_job_can_be_detached_later(manager: MakeManager) -> None:
    made = manager(lease_s=0.1, first_watch_s=0.0)
    entry = await made.submit("a")
    assert await made.submit("a", detached=True) is entry
    await later_leases_ended(made)
    assert entry.record.state is JobState.QUEUED and entry.record.detached


async def test_a_job_of_which_the_disk_refused_a_part_is_not_stored_as_done(manager: MakeManager) -> None:
    made = manager()
    entry = await made.submit("a", num_images=2)
    lost, kept = finished_image(), finished_image()

    def put(real: Put, sha256: str, data: Buffer) -> None:
        if sha256 == lost.file_sha256:
            raise OSError(28, "No space left on device")
        real(sha256, data)

    with intercepted_writes(made.store, put):
        made.publish(lost)
        await made.ended(entry)
        made.publish(replace(kept, image_index=1), JobSucceeded(2, StageTimings()))
        await made.ended(entry)
    assert [type(event) for event in await collected(made.manager, entry)] == [
        JobAccepted,
        ImageFinished,
        ImageFinished,
        JobSucceeded,
    ]
    rows, _ = await made.store.unfinished()
    assert [row.job_id for row in rows] == [entry.record.job_id], "it runs again, whole, after the next start"


async def test_only_a_job_that_is_not_over_can_be_blamed(manager: MakeManager, tmp_path: Path) -> None:
    made = manager(state=tmp_path)
    over, under_way = await made.submit("a"), await made.submit("b", detached=True)
    made.publish(finished_image(), JobSucceeded(1, StageTimings()), job=0)
    await made.ended(over)
    await made.store.record_device_loss([over.record.job_id, under_way.record.job_id, "unknown"])
    await made.store.record_device_loss([under_way.record.job_id])
    assert await made.store.device_losses() == {under_way.record.job_id: 2}
    await made.store.forget([under_way.record.arrival])
    assert await made.store.device_losses() == {}


@pytest.mark.parametrize(
    ("bound", "left"),
    [({"keep_results_bytes": 25}, "cb"), ({"keep_results": 1}, "c"), ({"keep_results_s": 0.0}, "")],
)
async def test_results_are_kept_within_bounds(manager: MakeManager, bound: dict[str, Any], left: str) -> None:
    made = manager(**bound)
    for name in "abc":
        entry = await made.submit(name)
        made.publish(finished_image(), JobSucceeded(1, StageTimings()))
        await made.ended(entry)

    async def kept() -> str:
        await made.store.retain()
        listed = await made.manager.directory.page(1 << 62, frozenset(JobState), 10, NOBODY)
        return "".join(entry.record.request_id for entry in listed)

    async def settled() -> bool:
        return await kept() == left

    await until_async(settled, f"only {left!r} is kept", 20.0)  # the age of a result must exceed its limit
    with pytest.raises(NotFound):
        await made.manager.directory.by_request("a", NOBODY)
    assert len(made.store.blobs.names()) == len(left), "their files are gone too"
