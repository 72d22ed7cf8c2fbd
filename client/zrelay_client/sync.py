"""The client for code without an event loop: the asynchronous client, run on a loop in a thread of its own."""

import asyncio
import functools
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from types import AsyncGeneratorType, TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from zrelay_client._transport.deadline import DEFAULT_S
from zrelay_client._transport.endpoint import EndpointSource
from zrelay_client.client import AsyncClient, client_arguments
from zrelay_client.jobs import AsyncJobs
from zrelay_shared.config import ROLES

if TYPE_CHECKING:
    from zrelay_client.settings import Settings

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
        """Whether the loop has ended."""
        return self._loop.is_closed()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine and returns its result.

        Raises:
            RuntimeError: The loop has ended, or the caller is a callback on the loop itself.
        """
        if self.closed or threading.current_thread() is self._thread:
            work.close()
            why = "is closed" if self.closed else "cannot wait within its own callback: use another thread"
            raise RuntimeError(f"this client {why}")
        future = asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)
        try:
            while True:
                try:
                    return future.result(_WAIT_S)
                except TimeoutError:
                    if future.done():  # raised by `work`
                        raise
        except BaseException:
            future.cancel()  # Ctrl-C in the waiting thread cancels the work; `close` waits for its end
            raise

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancels the calls in progress, runs `last`, and ends the thread."""
        if self.closed:
            return
        self.wait(self._finish(last))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _tracked(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        if task is None:  # not reached: a coroutine on a loop runs in a task
            return await work
        self._working.add(task)
        try:
            return await work
        finally:
            self._working.discard(task)

    async def _finish(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancels the calls in progress, but not their subtasks: a cancelled call still cancels its job."""
        me = asyncio.current_task()
        calls = [task for task in self._working if task is not me]
        for task in calls:
            if not task.cancelling():
                task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()  # streams that were not read to their end
        await last()
        others = asyncio.all_tasks() - {me}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Facade(Generic[A]):
    """An object whose methods are made by `waits` and `iterates` from the asynchronous methods of `target`."""

    def __init__(self, target: A, loop: BackgroundLoop) -> None:
        self._target = target
        self._loop = loop


def waits(method: Callable[Concatenate[A, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Facade[A], P], T]:
    """Returns a coroutine method as a method that waits for the result."""

    def waiting(self: Facade[A], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.wait(method(self._target, *args, **kwargs))

    functools.update_wrapper(waiting, method)
    return waiting


def iterates(
    method: Callable[Concatenate[A, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Facade[A], P], Iterator[T]]:
    """Returns an async generator method as a generator method. Closing the generator closes the async one."""

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


class Jobs(Facade[AsyncJobs]):
    """The jobs of a client's generators: `client.jobs` of a Client. The methods are those of AsyncJobs, and wait."""

    list = iterates(AsyncJobs.list)
    get = waits(AsyncJobs.get)
    cancel = waits(AsyncJobs.cancel)
    watch = iterates(AsyncJobs.watch)
    fetch = waits(AsyncJobs.fetch)


class Client(Facade[AsyncClient]):
    """The methods of AsyncClient, each waiting for its result. Threads may share a client.

        with Client() as client:  # configured services, or those of `zrelay up`
            result = client.generate("a red fox", seed=7)
            result.images[0].save("fox.png")

    Arguments as AsyncClient. Callbacks (`on_event`) run in the client's own thread.
    """

    def __init__(
        self,
        *,
        encoder: EndpointSource = None,
        generator: EndpointSource = None,
        vision: EndpointSource = None,
        profile: str | None = None,
        timeout_s: float = DEFAULT_S,
    ) -> None:
        client = AsyncClient(encoder=encoder, generator=generator, vision=vision, profile=profile, timeout_s=timeout_s)
        super().__init__(client, BackgroundLoop())
        self.jobs = Jobs(client.jobs, self._loop)

    @classmethod
    def from_settings(
        cls, settings: "Settings", *, roles: Sequence[str] = ROLES, timeout_s: float | None = None
    ) -> "Client":
        """Returns a client of the endpoints of loaded settings. Arguments as `AsyncClient.from_settings`."""
        return cls(**client_arguments(settings, roles, timeout_s))

    info = waits(AsyncClient.info)
    status = waits(AsyncClient.status)
    encoder_info = waits(AsyncClient.encoder_info)
    generator_info = waits(AsyncClient.generator_info)
    vision_info = waits(AsyncClient.vision_info)
    serving = waits(AsyncClient.serving)
    encode = waits(AsyncClient.encode)
    encode_batch = waits(AsyncClient.encode_batch)
    encode_images = waits(AsyncClient.encode_images)
    score_images = waits(AsyncClient.score_images)
    condition_prompt = waits(AsyncClient.condition_prompt)
    generate = waits(AsyncClient.generate)
    stream = iterates(AsyncClient.stream)
    generate_many = iterates(AsyncClient.generate_many)
    prepare = waits(AsyncClient.prepare)
    submit = waits(AsyncClient.submit)
    cancel = waits(AsyncClient.cancel)
    detach = waits(AsyncClient.detach)

    def running(self) -> tuple[str, ...]:
        """Returns the request_ids of the jobs that this client runs now."""
        return self._target.running()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancels the calls in progress, closes the connections, and ends the thread."""
        self._loop.close(self._target.aclose)


async def _next(events: AsyncGenerator[T, None]) -> T:
    return await anext(events)


async def _close(events: AsyncGenerator[Any, None]) -> None:
    while cast("AsyncGeneratorType[Any, None]", events).ag_running:  # a cancelled `_next` still cancels its job
        await asyncio.sleep(_POLL_S)
    await events.aclose()
