"""A generator that comes back in mid-batch: it is given jobs again, and what was moved away from it is cancelled."""

import asyncio
from typing import Any

import pytest

from tests.helpers.processes import GeneratorProcess
from zrelay_client import AsyncClient, Embeds, Event, Job, Notice

JOB: dict[str, Any] = {"width": 128, "height": 128, "num_inference_steps": 40, "deterministic": True}


@pytest.mark.deep
async def test_back_in_mid_batch(steadfast: GeneratorProcess, brief: GeneratorProcess, embeds: Embeds) -> None:
    restarted, steady = steadfast, brief
    any_moved, moved = asyncio.Event(), set[str]()

    def note(index: int, event: Event) -> None:
        if isinstance(event, Notice) and event.kind == "moved" and event.message.startswith(restarted.endpoint):
            moved.add(f"back-{index}")
            any_moved.set()

    async def come_back() -> None:
        await asyncio.to_thread(restarted.kill)
        await any_moved.wait()
        restarted.start()
        await asyncio.to_thread(restarted.ready)

    async def left() -> list[Job]:
        """What was moved away, as it is where it was."""
        async with AsyncClient(generator=restarted.endpoint) as beside:
            return [job async for job in beside.jobs.list() if job.request_id in moved]

    async with AsyncClient(generator=[restarted.endpoint, steady.endpoint]) as client:
        outcomes = client.generate_many(embeds, seeds=range(10_000), batch_id="back", on_event=note, **JOB)
        coming: asyncio.Task[None] | None = None
        jobs: list[Job] = []
        async for outcome in outcomes:  # without end where it gets none
            assert outcome.error is None
            assert outcome.result is not None
            if outcome.result.generator != restarted.endpoint:
                continue
            if coming is None:
                coming = asyncio.create_task(come_back())
            elif coming.done():
                coming.result()
                jobs = await left()
                if all(job.ended for job in jobs):
                    break
        await outcomes.aclose()
    assert [job.failure.reason for job in jobs if job.failure].count("CANCELLED") > 0, jobs
