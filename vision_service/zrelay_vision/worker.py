"""Two threads and the queue before them: one for the device, one that decodes images for it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from zrelay_shared.errors import QueueFull

T = TypeVar("T")
_SMOOTHING = 0.2
_MIN_RETRY_S = 0.1
_AHEAD = 2
"""Calls that hold decoded pixels at a time: one on the device, one whose image is being decoded meanwhile."""


class Worker:
    """Runs functions in the threads, and admits calls to them, first come first served. Used from one event loop."""

    def __init__(self, max_waiting: int, on_start: Callable[[], None] = lambda: None) -> None:
        self._device = ThreadPoolExecutor(1, thread_name_prefix="vision-device", initializer=on_start)
        self._images = ThreadPoolExecutor(1, thread_name_prefix="vision-images")
        self._max_waiting = max_waiting
        self._turns = asyncio.Semaphore(_AHEAD)
        self._calls = self._busy = 0
        self._mean_s = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Calls that have their turn: on the device, or decoding for it."""
        return min(_AHEAD, self._calls)

    @property
    def waiting(self) -> int:
        """Calls that wait for a turn."""
        return max(0, self._calls - _AHEAD)

    @property
    def estimated_wait_s(self) -> float:
        """Seconds until a call sent now would start, from the smoothed mean of those before."""
        return self._calls * self._mean_s

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The block of one call. Raises QueueFull where `max_waiting` calls wait already.

        A call that is cancelled while it waits costs nothing.
        """
        if self.waiting >= self._max_waiting:
            raise QueueFull(
                f"{self.waiting} calls wait for this vision service, at most {self._max_waiting} may: try again later, "
                "or on another one",
                retry_after_s=max(_MIN_RETRY_S, self._mean_s),
                metadata={"waiting": self.waiting, "max_waiting": self._max_waiting},
            )
        self._calls += 1
        self._idle.clear()
        try:
            async with self._turns:
                began = time.perf_counter()
                yield
                seconds = time.perf_counter() - began
                self._mean_s += _SMOOTHING * (seconds - self._mean_s) if self._mean_s else seconds
        finally:
            self._calls -= 1
            self._set_idle()

    async def on_device(self, work: Callable[[], T]) -> T:
        """The result of `work`, run in the device thread."""
        return await self._run(self._device, work)

    async def on_images(self, work: Callable[[], T]) -> T:
        """The result of `work`, run in the thread for images."""
        return await self._run(self._images, work)

    async def drained(self) -> None:
        """Returns when nothing waits or runs."""
        await self._idle.wait()

    async def close(self) -> None:
        """Drops what waits, lets what runs end, and ends the threads."""
        for pool in (self._images, self._device):
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        future = pool.submit(work)
        self._busy += 1
        self._idle.clear()
        # A thread is free when it is done with it, which a cancelled caller does not wait for.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._release))
        return await asyncio.wrap_future(future)

    def _release(self) -> None:
        self._busy -= 1
        self._set_idle()

    def _set_idle(self) -> None:
        if not self._calls and not self._busy:
            self._idle.set()
