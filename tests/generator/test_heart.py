"""Heartbeats of waiting jobs, and the bounds of the queue by count and by bytes on the disk."""

import asyncio

import pytest
import torch

from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.jobs.manager import Intervals
from zrelay_shared.errors import QueueFull
from zrelay_shared.torch_devices import DeviceReport, report

from .callers import LONG, SOON_S, Caller, serialized
from .kinds import MakeEmbeds, RequestOf, Serve


async def heartbeats(caller: Caller, job_id: str, count: int) -> list[int]:
    """Returns the queue positions in the first `count` heartbeats of a waiting job."""
    places = []
    async with asyncio.timeout(SOON_S):
        stream = caller.watching(job_id)
        async for parcel in stream:
            event = parcel.message.event
            if event.WhichOneof("event") == "progress" and event.progress.state == jpb.JOB_STATE_QUEUED:
                places.append(event.progress.queue_position)
            if len(places) == count:
                break
        await stream.aclose()
    return places


async def test_heartbeats_continue_when_the_device_cannot_be_queried(
    serve_kept: Serve, request_of: RequestOf, caplog: pytest.LogCaptureFixture
) -> None:
    reports = iter([report(torch.device("cpu"))])

    def report_once(device: torch.device) -> DeviceReport:
        for found in reports:
            return found
        raise RuntimeError("NVML: unknown error")

    caller = await serve_kept(
        max_wait_s=1e9, parts={"intervals": Intervals(heartbeat_s=0.2), "report_device": report_once}
    )
    jobs = [await caller.submit(request_of(request_id=f"{n}", **LONG), detached=True) for n in range(20)]
    assert min(await heartbeats(caller, jobs[-1].job_id, 3)) > 0
    assert "a heartbeat failed" in caplog.text
    for job in jobs:
        await caller.cancel(job.job_id)


@pytest.mark.parametrize("bound", ["count", "bytes"])
async def test_jobs_are_taken_up_to_a_count_and_up_to_a_share_of_the_disk(
    serve_kept: Serve, request_of: RequestOf, embeds: MakeEmbeds, bound: str
) -> None:
    size = len(serialized(request_of(embeds(20, 128, 0))))
    limit = {"count": {"max_waiting": 20}, "bytes": {"max_waiting_bytes": int(2.5 * size)}}[bound]
    caller = await serve_kept(max_wait_s=1e9, **limit)
    taken = []
    with pytest.raises(QueueFull) as refused:
        for number in range(60):  # some of them wait next to the device, where bytes do not count
            request = request_of(embeds(20, 128, number), request_id=f"{number}", **LONG)
            taken.append(await caller.submit(request, detached=True))
    assert (refused.value.retry_after_s or 0.0) >= 1.0 and "use another generator" in refused.value.message
    assert 16 <= len(taken) <= 22
    for job in taken[-3:]:
        await caller.cancel(job.job_id)
    again = request_of(embeds(20, 128, 99), request_id="again", **LONG)
    assert (await caller.submit(again, detached=True)).state == jpb.JOB_STATE_QUEUED, "there is room again"
