"""Whose turn it is at the service: cancelled, waiting, urgent and stuck jobs, and a queue that is full."""

import asyncio
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.helpers.jobs import ENDLESS
from tests.helpers.polling import until_async
from zrelay.v1 import generation_pb2 as gpb
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.errors import Cancelled, NotFound, QueueFull

from .fixture_types import RequestOf, Serve
from .generator_client import SERVICE, SOON_S, GeneratorClient, stopped

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_ending_the_call_frees_the_device(caller: GeneratorClient, request_of: RequestOf) -> None:
    task = await caller.begun(request_of(**ENDLESS))
    await stopped(task)
    after = request_of(num_inference_steps=1)
    after.message.spec.priority, after.message.spec.deterministic = gpb.JOB_PRIORITY_BATCH, True
    assert (await caller.image(after)).data


async def test_cancel_by_request_id(caller: GeneratorClient, request_of: RequestOf) -> None:
    task = await caller.begun(request_of(request_id="poster.1", **ENDLESS))
    reply = await caller.stub.call("CancelJob", pb.CancelJobRequest(request_id="poster.1"), pb.CancelJobResponse)
    assert reply.message.job.state == jpb.JOB_STATE_CANCELLED
    with pytest.raises(Cancelled):
        await task
    with pytest.raises(NotFound):
        await caller.stub.call("CancelJob", pb.CancelJobRequest(job_id="nobody"), pb.CancelJobResponse)


async def test_a_waiting_job_is_cancelled_at_once(caller: GeneratorClient, request_of: RequestOf) -> None:
    running_task = await caller.begun(request_of(**ENDLESS))
    events = caller.stream(request_of(request_id="second", **ENDLESS))
    accepted = (await anext(events)).accepted
    assert accepted.queue_position == 1 and accepted.estimated_wait_s > 0.0
    await caller.stub.call("CancelJob", pb.CancelJobRequest(request_id="second"), pb.CancelJobResponse)
    with pytest.raises(Cancelled):
        await anext(events)
    await stopped(running_task)


async def test_a_full_queue_says_when_to_come_back(serve: Serve, request_of: RequestOf) -> None:
    caller = await serve(max_waiting=1)
    tasks = [await caller.begun(request_of(**ENDLESS))]
    waiting = caller.stream(request_of())
    await anext(waiting)
    with pytest.raises(QueueFull) as refused:
        await caller.generate(request_of())
    assert (refused.value.retry_after_s or 0.0) >= 1.0 and refused.value.metadata["max_waiting"] == "1"
    await stopped(tasks[0])
    assert [event async for event in waiting][-1].WhichOneof("event") == "done"


async def test_health_answers_while_the_device_is_busy(caller: GeneratorClient, request_of: RequestOf) -> None:
    task = await caller.begun(request_of(**ENDLESS))
    health: Any = health_pb2_grpc.HealthStub(caller.channel)
    for _ in range(50):
        reply = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE.full_name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    assert not task.done()
    await stopped(task)


class Stuck(GeneratorServicer):
    """A generator whose device may be stuck."""

    stuck = ""

    @property
    def unhealthy_reason(self) -> str:
        return self.stuck


async def test_a_stuck_device_is_seen_in_health(serve: Serve, request_of: RequestOf) -> None:
    caller = await serve(Stuck)
    health: Any = health_pb2_grpc.HealthStub(caller.channel)

    async def becomes(status: int) -> None:
        async def is_so() -> bool:
            reply = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE.full_name))
            return bool(reply.status == status)

        await until_async(is_so, f"health is {status}")

    await becomes(health_pb2.HealthCheckResponse.SERVING)
    service = caller.service
    assert isinstance(service, Stuck)
    service.stuck = "a step has run for 99 s"
    await becomes(health_pb2.HealthCheckResponse.NOT_SERVING)
    service.stuck = ""
    await becomes(health_pb2.HealthCheckResponse.SERVING)


async def test_an_urgent_job_goes_first(caller: GeneratorClient, request_of: RequestOf) -> None:
    slow = await caller.begun(request_of(**ENDLESS))
    urgent = request_of(num_inference_steps=2)
    urgent.message.spec.priority = gpb.JOB_PRIORITY_INTERACTIVE
    await asyncio.wait_for(caller.image(urgent), SOON_S)
    assert not slow.done()
    await stopped(slow)
