"""Heartbeats of waiting jobs."""

import asyncio

import pytest
import torch

from tests.helpers.jobs import ENDLESS
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.jobs.manager import Intervals
from zrelay_shared.torch_devices import DeviceReport, report

from .fixture_types import RequestOf, Serve
from .generator_client import SOON_S, GeneratorClient


async def heartbeats(caller: GeneratorClient, job_id: str, count: int) -> list[int]:
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
    jobs = [await caller.submit(request_of(request_id=f"{n}", **ENDLESS), detached=True) for n in range(20)]
    assert min(await heartbeats(caller, jobs[-1].job_id, 3)) > 0
    assert "a heartbeat failed" in caplog.text
    for job in jobs:
        await caller.cancel(job.job_id)
