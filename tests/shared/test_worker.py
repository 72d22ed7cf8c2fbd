"""One thread, first come first served; who went away costs nothing, who is too many is told."""

import asyncio
import threading
import time

import pytest

from zrelay_shared.errors import QueueFull
from zrelay_shared.service.worker import DeviceWorker


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
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as caught:
        await worker.run(lambda: 3)
    assert caught.value.retry_after_s
    assert caught.value.metadata == {"waiting": "1", "max_waiting": "1"}
    go.set()
    assert (await running).value is True
    assert (await waiting).value == 2
    await worker.close()


async def test_what_is_forgotten_makes_no_hint() -> None:
    worker, go = DeviceWorker("test", 1), threading.Event()
    await worker.run(lambda: time.sleep(0.3))
    worker.forget()
    calls = [asyncio.create_task(worker.run(go.wait)) for _ in range(2)]
    await asyncio.sleep(0)
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
    await asyncio.sleep(0)
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
    worker, go = DeviceWorker("test", 4), threading.Event()
    running = asyncio.create_task(worker.run(go.wait))
    waiting = asyncio.create_task(worker.run(lambda: 2))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(worker.close())
    await asyncio.sleep(0.05)
    go.set()
    await closing
    assert (await running).value is True
    with pytest.raises(asyncio.CancelledError):
        await waiting
