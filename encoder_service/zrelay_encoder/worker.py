"""One thread that owns the device, and the queue before it."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from zrelay_shared.errors import QueueFull

T = TypeVar("T")
_SMOOTHING = 0.2
_MIN_RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """A result with the seconds it waited and ran."""

    value: T
    queue_seconds: float
    compute_seconds: float


class DeviceWorker:
    """Runs functions one after another in a thread of its own, first come first served.

    Used from one event loop. A caller that is cancelled while it waits costs nothing.
    """

    def __init__(self, name: str, max_waiting: int, on_start: Callable[[], None] = lambda: None) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=on_start)
        self._max_waiting = max_waiting
        self._taken = 0
        self._mean_s = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Calls on the device: 0 or 1."""
        return min(1, self._taken)

    @property
    def waiting(self) -> int:
        """Calls that wait for it."""
        return max(0, self._taken - 1)

    @property
    def estimated_wait_s(self) -> float:
        """Seconds until a call sent now would start, from the smoothed mean of those before."""
        return self._taken * self._mean_s

    def forget(self) -> None:
        """Back to nothing measured: what ran so far says nothing about what comes."""
        self._mean_s = 0.0

    async def run(self, work: Callable[[], T]) -> Timed[T]:
        """The result of `work`, run in the thread. Raises QueueFull where `max_waiting` calls wait already."""
        if self.waiting >= self._max_waiting:
            raise QueueFull(
                f"{self.waiting} calls wait for this encoder, at most {self._max_waiting} may: try again later, or on "
                "another encoder",
                retry_after_s=max(_MIN_RETRY_S, self._mean_s),
                metadata={"waiting": self.waiting, "max_waiting": self._max_waiting},
            )
        asked = time.perf_counter()

        def timed() -> Timed[T]:
            began = time.perf_counter()
            value = work()
            return Timed(value, began - asked, time.perf_counter() - began)

        loop = asyncio.get_running_loop()
        future = self._executor.submit(timed)
        self._taken += 1
        self._idle.clear()
        # The device is free when the thread is done with it, which a cancelled caller does not wait for.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._release))
        result = await asyncio.wrap_future(future)
        seconds = result.compute_seconds
        self._mean_s += _SMOOTHING * (seconds - self._mean_s) if self._mean_s else seconds
        return result

    async def drained(self) -> None:
        """Returns when nothing waits or runs."""
        await self._idle.wait()

    async def close(self) -> None:
        """Drops what waits, lets what runs end, and ends the thread."""
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)

    def _release(self) -> None:
        self._taken -= 1
        if not self._taken:
            self._idle.set()
