"""Async methods as ones that wait, on one event loop in a thread of its own."""

import asyncio
import functools
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import AsyncGeneratorType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

_POLL_S = 0.01
_WAIT_S = 0.2 if os.name == "nt" else None
"""On Windows Ctrl-C does not interrupt a wait, so a wait must end by itself."""
A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")


class BackgroundLoop:
    """An event loop in a daemon thread. Safe to share between threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._working: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="zrelay-client", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._loop.is_closed()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` to its end. Raises RuntimeError where the loop has ended, or would wait for itself."""
        if self.closed or threading.current_thread() is self._thread:
            work.close()
            why = "is closed" if self.closed else "cannot wait within its own callback: use another thread"
            raise RuntimeError(f"this client {why}")
        future = asyncio.run_coroutine_threadsafe(self._known(work), self._loop)
        try:
            while True:
                try:
                    return future.result(_WAIT_S)
                except TimeoutError:
                    if future.done():  # the work's own
                        raise
        except BaseException:
            future.cancel()  # Ctrl-C in the waiting thread cancels the work; `close` waits until it is gone
            raise

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancels what still runs, runs `last`, ends the thread."""
        if self.closed:
            return
        self.wait(self._finish(last))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _known(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        if task is None:  # cannot be: a coroutine runs in a task
            return await work
        self._working.add(task)
        try:
            return await work
        finally:
            self._working.discard(task)

    async def _finish(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancels the calls under way, but not their parts: a cancelled call still tells its generator to stop."""
        me = asyncio.current_task()
        calls = [task for task in self._working if task is not me]
        for task in calls:
            if not task.cancelling():
                task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()  # streams that nobody read to their end
        await last()
        others = asyncio.all_tasks() - {me}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Facade(Generic[A]):
    """Something with methods made by `waits` and `iterates`: `target` has the async ones."""

    def __init__(self, target: A, loop: BackgroundLoop) -> None:
        self._target = target
        self._loop = loop


def waits(method: Callable[Concatenate[A, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Facade[A], P], T]:
    """A coroutine method as one that waits for its result."""

    def waiting(self: Facade[A], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.wait(method(self._target, *args, **kwargs))

    functools.update_wrapper(waiting, method)
    return waiting


def iterates(
    method: Callable[Concatenate[A, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Facade[A], P], Iterator[T]]:
    """An async generator method as a generator; closing it closes the other."""

    def iterating(self: Facade[A], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        events = method(self._target, *args, **kwargs)
        try:
            while True:
                try:
                    yield self._loop.wait(_next(events))
                except StopAsyncIteration:
                    return
        finally:
            if not self._loop.closed:
                self._loop.wait(_close(events))

    functools.update_wrapper(iterating, method)
    return iterating


async def _next(events: AsyncGenerator[T, None]) -> T:
    return await anext(events)


async def _close(events: AsyncGenerator[Any, None]) -> None:
    while cast(
        "AsyncGeneratorType[Any, None]", events
    ).ag_running:  # its cancelled `_next` (Ctrl-C) is still telling the generator to stop
        await asyncio.sleep(_POLL_S)
    await events.aclose()
