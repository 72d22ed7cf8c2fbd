"""The device worker: threads that compute, and the bounded queue of calls in front of them."""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from zrelay_shared.callers import current_caller
from zrelay_shared.errors import QueueFull, QuotaExceeded
from zrelay_shared.shares import CALLER_SHARE_PERCENT, Shares

T = TypeVar("T")
_SMOOTHING = 0.2
"""Weight of the newest call in the smoothed mean of seconds per call."""
_MIN_RETRY_S = 0.1
_LOWER_PRIORITY = 5


def serving_threads(threads: int | None) -> int:
    """Returns the number of torch threads on a CPU.

    Args:
        threads: The setting; None leaves one of the usable cores to the event loop.
    """
    if threads is not None:
        return threads
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable - 1)


def lower_thread_priority() -> None:
    """Gives the calling thread a lower priority. Only Linux has priorities of threads; elsewhere nothing happens.

    On a busy machine it still gets a quarter of a core (the lowest priority would get a hundredth): calls may wait for
    its result.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWER_PRIORITY)


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """A result with the seconds that the call waited and computed."""

    value: T
    queue_seconds: float
    compute_seconds: float


class DeviceWorker:
    """Admits calls up to a limit and runs their work in threads, first come first served.

    It belongs to one event loop. A call that is cancelled while it waits is never computed. There are two ways to use
    it: `run` for calls that are one function on the device, and `turn` with `on_device` for calls of several parts.
    """

    def __init__(
        self,
        name: str,
        max_waiting: int,
        on_start: Callable[[], None] = lambda: None,
        *,
        slots: int = 1,
        share_percent: float = CALLER_SHARE_PERCENT,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Makes the worker; its threads start with the first call.

        Args:
            name: Prefix of the device thread's name.
            max_waiting: Calls that may wait; more are refused.
            on_start: Runs first in the device thread.
            slots: Calls that have their turn at the same time: one on the device, others that prepare theirs.
            share_percent: What one caller may take of the places that the others leave.
            clock: Seconds that only grow; measures how long calls wait and compute.
        """
        self._max_waiting, self._slots, self._clock = max_waiting, slots, clock
        self._share_percent = share_percent
        self._turns = asyncio.Semaphore(slots)
        self._calls = Shares(max_waiting + slots, share_percent)
        self._busy = 0
        self._mean_s = 0.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._threads: list[ThreadPoolExecutor] = []
        self._device = self.add_thread(name, on_start)

    @property
    def running(self) -> int:
        """Number of calls that have a slot."""
        return min(self._slots, self._calls.used)

    @property
    def waiting(self) -> int:
        """Number of calls that wait for a slot."""
        return max(0, self._calls.used - self._slots)

    @property
    def estimated_wait_s(self) -> float:
        """Seconds until a call that arrives now would start, from the smoothed mean of past calls."""
        return self._calls.used * self._mean_s

    def forget(self) -> None:
        """Discards the measured seconds per call, for example those of loading the model."""
        self._mean_s = 0.0

    async def run(self, work: Callable[[], T]) -> Timed[T]:
        """Runs one call that consists of `work` on the device.

        Raises:
            QueueFull: `max_waiting` calls wait already.
            QuotaExceeded: The caller has its share of the places.
        """
        caller = self._enter()
        asked = self._clock()

        def timed() -> Timed[T]:
            began = self._clock()
            value = work()
            return Timed(value, began - asked, self._clock() - began)

        result = await self._submit(self._device, timed, partial(self._leave, caller))
        self._measure(result.compute_seconds)
        return result

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a slot and holds it while the `with` block runs; the block is one call.

        Raises:
            QueueFull: `max_waiting` calls wait already.
            QuotaExceeded: The caller has its share of the places.
        """
        caller = self._enter()
        self._idle.clear()
        try:
            async with self._turns:
                began = self._clock()
                yield
                self._measure(self._clock() - began)
        finally:
            self._leave(caller)
            self._set_idle()

    async def on_device(self, work: Callable[[], T]) -> T:
        """Runs `work` in the device thread, as a part of a call."""
        return await self._submit(self._device, work)

    def add_thread(self, name: str, on_start: Callable[[], None] = lambda: None) -> ThreadPoolExecutor:
        """Adds a thread for parts of calls that do not need the device; use it with `on_thread`. `close` ends it."""
        thread = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=on_start)
        self._threads.append(thread)
        return thread

    async def on_thread(self, thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """Runs `work` in a thread that `add_thread` returned, as a part of a call."""
        return await self._submit(thread, work)

    async def drained(self) -> None:
        """Waits until no call waits or runs."""
        await self._idle.wait()

    async def close(self) -> None:
        """Discards waiting calls, lets running ones finish, and ends the threads."""
        for thread in reversed(self._threads):
            await asyncio.to_thread(thread.shutdown, wait=True, cancel_futures=True)

    def _enter(self) -> str:
        """Counts a new call and returns its caller. Raises QueueFull, QuotaExceeded."""
        caller = current_caller().name
        if not self._calls.take(caller):
            raise self._refusal(caller)
        return caller

    def _refusal(self, caller: str) -> QueueFull | QuotaExceeded:
        retry_s = max(_MIN_RETRY_S, self._mean_s)
        if self.waiting >= self._max_waiting:
            return QueueFull(
                f"{self.waiting} calls are waiting, and at most {self._max_waiting} may wait: try again later, "
                "or use another server",
                retry_after_s=retry_s,
                metadata={"waiting": self.waiting, "max_waiting": self._max_waiting},
            )
        own, most = self._calls.used_by(caller), self._calls.limit_of(caller)
        return QuotaExceeded(
            f"{own} of your calls wait or run here, and at most {most} of one caller may; the other places are for "
            "other callers: send fewer at once, use another server, or have its operator raise --caller-share",
            retry_after_s=retry_s,
            metadata={"calls": own, "max_calls": most, "caller_share": f"{self._share_percent:g}"},
        )

    async def _submit(
        self, thread: ThreadPoolExecutor, work: Callable[[], T], after: Callable[[], None] = lambda: None
    ) -> T:
        loop = asyncio.get_running_loop()

        def release() -> None:
            after()
            self._busy -= 1
            self._set_idle()

        future = thread.submit(work)
        self._busy += 1
        self._idle.clear()
        # The thread is free when its function returns; a cancelled caller does not wait for that.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(release))
        return await asyncio.wrap_future(future)

    def _leave(self, caller: str) -> None:
        self._calls.give(caller)

    def _measure(self, seconds: float) -> None:
        self._mean_s += _SMOOTHING * (seconds - self._mean_s) if self._mean_s else seconds

    def _set_idle(self) -> None:
        if not self._calls.used and not self._busy:
            self._idle.set()
