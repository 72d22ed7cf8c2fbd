"""The device worker: one thread, first come first served; cancelled calls are not computed, too many are refused."""

import asyncio
import itertools
import threading

import pytest

from tests.helpers.polling import eventually
from zrelay.v1 import generator_pb2 as pb
from zrelay_shared import rpc
from zrelay_shared.errors import QueueFull, QuotaExceeded
from zrelay_shared.service.worker import DeviceWorker, serving_threads
from zrelay_shared.wire import Parcel

from .conftest import StartFake


async def test_results_and_times() -> None:
    worker = DeviceWorker("test", 4)
    timed = await worker.run(lambda: threading.current_thread().name)
    assert timed.value.startswith("test")
    assert timed.compute_seconds >= 0
    await worker.drained()
    assert (worker.running, worker.waiting) == (0, 0)
    await worker.close()


async def test_a_full_queue_says_when_to_come_back() -> None:
    worker, go = DeviceWorker("test", 1), threading.Event()
    running = asyncio.create_task(worker.run(go.wait))
    waiting = asyncio.create_task(worker.run(lambda: 2))
    await eventually(lambda: worker.waiting == 1, "one call waits")
    with pytest.raises(QueueFull) as caught:
        await worker.run(lambda: 3)
    assert caught.value.retry_after_s
    assert caught.value.metadata == {"waiting": "1", "max_waiting": "1"}
    go.set()
    assert (await running).value is True
    assert (await waiting).value == 2
    await worker.close()


async def test_one_caller_leaves_places_for_the_others(fake: StartFake) -> None:
    worker, go = DeviceWorker("test", 7), threading.Event()

    async def GetJob(parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> pb.GetJobResponse:
        await worker.run(go.wait)
        return pb.GetJobResponse()

    server = await fake(GetJob=GetJob)
    calls = [asyncio.create_task(server.stub.call("GetJob", pb.GetJobRequest(), pb.GetJobResponse)) for _ in range(8)]
    await eventually(lambda: sum(call.done() for call in calls) == 2, "two of the calls are refused")
    assert (worker.running, worker.waiting) == (1, 5)
    another = asyncio.create_task(worker.run(lambda: "another"))
    await asyncio.sleep(0)
    assert worker.waiting == 6, "a call of another caller finds a place"
    go.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, QuotaExceeded)]
    assert [error.metadata["max_calls"] for error in refused] == ["6", "6"]
    assert all(error.retry_after_s and "--caller-share" in error.message for error in refused)
    assert (await another).value == "another"
    await worker.close()


async def test_what_is_forgotten_makes_no_hint() -> None:
    seconds = itertools.count()
    worker, go = DeviceWorker("test", 1, clock=lambda: float(next(seconds))), threading.Event()
    await worker.run(lambda: None)
    worker.forget()
    calls = [asyncio.create_task(worker.run(go.wait)) for _ in range(2)]
    await eventually(lambda: worker.waiting == 1, "one call waits")
    with pytest.raises(QueueFull) as caught:
        await worker.run(lambda: 3)
    assert (caught.value.retry_after_s, worker.estimated_wait_s) == (0.1, 0.0)
    go.set()
    await asyncio.gather(*calls)
    await worker.close()


async def test_a_cancelled_caller_is_never_computed() -> None:
    worker, go, ran = DeviceWorker("test", 4), threading.Event(), list[int]()
    running = asyncio.create_task(worker.run(go.wait))
    gone = asyncio.create_task(worker.run(lambda: ran.append(1)))
    await eventually(lambda: worker.waiting == 1, "one call waits")
    gone.cancel()
    await asyncio.wait({gone})
    go.set()
    await running
    await worker.drained()
    assert ran == []
    await worker.close()


async def test_a_failure_reaches_its_caller_alone() -> None:
    def fail() -> None:
        raise ValueError("bad")

    worker = DeviceWorker("test", 4)
    with pytest.raises(ValueError, match="bad"):
        await worker.run(fail)
    assert (await worker.run(lambda: 1)).value == 1
    await worker.close()


async def test_closing_drops_what_waits() -> None:
    worker, go, begun = DeviceWorker("test", 4), threading.Event(), threading.Event()

    def hold() -> bool:
        begun.set()
        return go.wait()

    running = asyncio.create_task(worker.run(hold))
    await asyncio.to_thread(begun.wait)
    waiting = asyncio.create_task(worker.run(lambda: 2))
    await eventually(lambda: worker.waiting == 1, "one call waits")
    closing = asyncio.create_task(worker.close())
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go.set()
    await closing
    assert (await running).value is True


async def test_turns_are_taken_in_order_and_at_most_as_many_as_there_are_slots() -> None:
    worker, order, inside, most = DeviceWorker("test", 10, slots=2), list[int](), 0, 0
    other = worker.add_thread("other")

    async def call(number: int) -> None:
        nonlocal inside, most
        async with worker.turn():
            inside += 1
            most = max(most, inside)
            await worker.on_thread(other, lambda: None)
            await worker.on_device(lambda: order.append(number))
            inside -= 1

    await asyncio.gather(*(call(number) for number in range(6)))
    await worker.drained()
    assert (order, most, worker.running, worker.waiting) == (list(range(6)), 2, 0, 0)
    await worker.close()


def test_one_core_is_left_to_the_event_loop() -> None:
    assert serving_threads(3) == 3
    assert serving_threads(None) >= 1
