"""Decoding of pictures in a service: threads of its own, bounded memory, and nothing for callers that have left.

A picture of 33 megapixels may be a file of a few kilobytes and takes half a gigabyte while it is decoded.
"""

import asyncio
import contextlib
import ctypes
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from zrelay_shared.callers import current_caller
from zrelay_shared.errors import Cancelled
from zrelay_shared.shares import CallerTurns

T = TypeVar("T")
MAX_DECODING_PIXELS = 1 << 25
"""Pixels of all pictures that a process decodes at the same time. At 17 bytes for each they take 544 MiB. Other memory
for decoding counts as the pixels that take as much (`PictureFile.cost`)."""
LARGE_PIXELS = 1 << 22
"""Pixels of a picture after which free memory is given back to the system: they take 16 to 68 MiB."""
_THREADS = 2
_CHECK_S = 0.2
"""Interval at which a picture that waits for others checks whether its caller has left."""


class PixelBudget:
    """Bounds the pixels of the pictures that are decoded at the same time. First come, first served; thread-safe."""

    def __init__(self, max_pixels: int = MAX_DECODING_PIXELS) -> None:
        """Makes a budget. A picture of more than `max_pixels` is decoded alone."""
        self._max_pixels, self._used = max_pixels, 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Pixels that are being decoded."""
        return self._used

    @property
    def waiting(self) -> int:
        """Number of pictures that wait."""
        return len(self._waiting)

    @contextmanager
    def reserved(self, pixels: int, check: Callable[[], None]) -> Iterator[None]:
        """Waits until the pixels fit, and holds them while the `with` block runs.

        Args:
            pixels: Pixels of one picture.
            check: Runs regularly during the wait, which ends if it raises.
        """
        share, place = min(pixels, self._max_pixels), object()
        with self._changed:
            self._waiting.append(place)
            try:
                while self._waiting[0] is not place or self._used + share > self._max_pixels:
                    check()
                    self._changed.wait(_CHECK_S)
                self._used += share
            finally:
                self._waiting.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._used -= share
                self._changed.notify_all()


class Decoding:
    """The decoding of one caller's pictures.

    Attributes:
        most_pixels: Pixels of the largest picture so far.
    """

    def __init__(self, budget: PixelBudget | None = None) -> None:
        """Starts without pictures. Without a budget it has one of its own."""
        self._budget = PixelBudget() if budget is None else budget
        self._left = threading.Event()
        self.most_pixels = 0

    def leave(self) -> None:
        """Ends the decoding: the caller has left."""
        self._left.set()

    def cancelled(self) -> bool:
        """Returns whether the caller has left."""
        return self._left.is_set()

    @contextmanager
    def reserved(self, pixels: int) -> Iterator[None]:
        """Holds the pixels of one picture while the `with` block runs. Raises Cancelled if the caller has left."""
        self.most_pixels = max(self.most_pixels, pixels)
        with self._budget.reserved(pixels, self._check):
            self._check()
            yield

    def _check(self) -> None:
        if self.cancelled():
            raise Cancelled("the caller left before its image was decoded")


@dataclass(frozen=True, slots=True)
class StartedWork(Generic[T]):
    """Work in a thread.

    Attributes:
        future: Ends when the thread has ended the work, also if the caller has left before.
        leave: Ends the work early where that is possible.
    """

    future: asyncio.Future[T]
    leave: Callable[[], None]

    async def result(self) -> T:
        """Returns the result. If the caller is cancelled, it leaves."""
        try:
            return await asyncio.shield(self.future)
        except asyncio.CancelledError:
            self.leave()
            self.future.add_done_callback(_retrieved)
            raise


class DecodePool:
    """Threads for work that decodes pictures, so that such work delays no other. Callers take turns."""

    def __init__(self, budget: PixelBudget | None = None, threads: int = _THREADS) -> None:
        """Makes the pool; its threads start with the first work. Without a budget it has one of its own."""
        self.budget = PixelBudget() if budget is None else budget
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
        self._waiting: CallerTurns[Callable[[], None]] = CallerTurns()
        self._lock = threading.Lock()

    def start(self, work: Callable[[Decoding], T]) -> StartedWork[T]:
        """Starts `work` of the current caller in a thread.

        If the caller leaves, waiting work is dropped and running work ends early.
        """
        decoding = Decoding(self.budget)
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(_run(work, decoding))
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            self._waiting.put(current_caller().name, run)
        self._threads.submit(self._run_next).add_done_callback(
            lambda turn: future.cancel() if turn.cancelled() else None  # the pool is closed
        )

        def leave() -> None:
            decoding.leave()
            future.cancel()

        return StartedWork(asyncio.wrap_future(future), leave)

    async def run(self, work: Callable[[Decoding], T]) -> T:
        """Starts `work` and returns its result."""
        return await self.start(work).result()

    def close(self) -> None:
        """Drops the work that waits, lets the running work finish, and ends the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run_next(self) -> None:
        with self._lock:
            run = self._waiting.pop()
        run()


def start_in_thread(work: Callable[[Decoding], T]) -> StartedWork[T]:
    """Starts work without pictures in one of the threads for everything."""
    future = asyncio.get_running_loop().run_in_executor(None, work, Decoding())
    return StartedWork(future, lambda: None)


def run_decoding(work: Callable[[Decoding], T], budget: PixelBudget) -> T:
    """Runs `work` in the calling thread, for a caller that does not leave."""
    return _run(work, Decoding(budget))


def give_back_memory() -> bool:
    """Gives the free memory of the allocator back to the system.

    glibc keeps what was freed, for each thread. It keeps up to 256 MiB of it on purpose (`keep_large_buffers`), for
    tensors, and pictures may leave several times as much.

    Returns:
        Whether the allocator is glibc.
    """
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return True
    return False


def _retrieved(future: "asyncio.Future[Any]") -> None:
    """Looks at the error of work whose caller has left: asyncio logs errors that nobody looks at."""
    if not future.cancelled():
        future.exception()


def _run(work: Callable[[Decoding], T], decoding: Decoding) -> T:
    try:
        return work(decoding)
    finally:
        if decoding.most_pixels >= LARGE_PIXELS:
            give_back_memory()
