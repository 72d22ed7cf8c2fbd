"""The queue before the two threads: bounded, first come first served, at most two calls with pixels at a time."""

import asyncio
import threading

import pytest

from tests.helpers.polling import eventually
from zrelay_shared.errors import QueueFull
from zrelay_vision.worker import VisionWorker


async def test_calls_take_turns_in_order_and_at_most_two_at_a_time() -> None:
    worker, inside, most, order = VisionWorker(10), 0, 0, []

    async def call(at: int) -> None:
        nonlocal inside, most
        async with worker.turn():
            inside += 1
            most = max(most, inside)
            await worker.on_images(lambda: None)
            await worker.on_device(lambda: order.append(at))
            inside -= 1

    await asyncio.gather(*(call(at) for at in range(8)))
    assert (order, most) == (list(range(8)), 2)
    await worker.drained()
    assert (worker.running, worker.waiting) == (0, 0)
    await worker.close()


async def test_more_than_may_wait_are_refused_with_a_hint() -> None:
    worker, go = VisionWorker(1), threading.Event()

    async def call() -> None:
        async with worker.turn():
            await worker.on_device(go.wait)

    calls = [asyncio.create_task(call()) for _ in range(3)]
    await eventually(lambda: (worker.running, worker.waiting) == (2, 1), "two calls run and one waits")
    with pytest.raises(QueueFull) as caught:
        await call()
    assert caught.value.retry_after_s and caught.value.metadata == {"waiting": "1", "max_waiting": "1"}
    go.set()
    await asyncio.gather(*calls)
    await call()
    assert worker.estimated_wait_s == 0
    await worker.close()


async def test_a_cancelled_call_costs_nothing_but_drained_waits_for_the_thread() -> None:
    worker, begun, go, ran = VisionWorker(4), threading.Event(), threading.Event(), []

    def wait_and_note(what: str) -> None:
        begun.set()
        go.wait()
        ran.append(what)

    async def call(what: str) -> None:
        async with worker.turn():
            await worker.on_device(lambda: wait_and_note(what))

    calls = [asyncio.create_task(call(what)) for what in "abc"]
    await eventually(begun.is_set, "the first call computes")
    assert (worker.running, worker.waiting) == (2, 1)
    for task in calls:
        task.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert (worker.running, worker.waiting) == (0, 0)
    drained = asyncio.create_task(worker.drained())
    await asyncio.sleep(0.01)  # it must not happen: a short time in which a wrong `drained` would return
    assert not drained.done()
    go.set()
    await drained
    assert ran == ["a"]
    await worker.close()


async def test_threads_start_with_their_initializer() -> None:
    begun = []
    worker = VisionWorker(1, lambda: begun.append(threading.current_thread().name))
    await worker.on_device(lambda: None)
    assert len(begun) == 1 and begun[0].startswith("vision-device")
    with pytest.raises(ZeroDivisionError):
        await worker.on_device(lambda: 1 / 0)
    await worker.close()
