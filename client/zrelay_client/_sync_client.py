"""The client for code without an event loop: the async one, run on a loop in a thread of its own."""

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import AsyncGeneratorType, TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from zrelay_client._async_client import AsyncClient
from zrelay_client._budget import DEFAULT_S

_POLL_S = 0.01
P = ParamSpec("P")
T = TypeVar("T")


def _waits(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    """A coroutine method as one that waits for its result."""

    def waiting(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._wait(method(self._client, *args, **kwargs))

    functools.update_wrapper(waiting, method)
    return waiting


def _iterates(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate["Client", P], Iterator[T]]:
    """An async generator method as a generator; closing it closes the other."""

    def iterating(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        events = method(self._client, *args, **kwargs)
        try:
            while True:
                try:
                    yield self._wait(_next(events))
                except StopAsyncIteration:
                    return
        finally:
            if not self._loop.is_closed():
                self._wait(_close(events))

    functools.update_wrapper(iterating, method)
    return iterating


class Client:
    """AsyncClient's methods, each waiting for its result. Safe to share between threads.

        with Client() as client:  # configured services, or those of `zrelay up`
            result = client.generate("a red fox", seed=7)
            result.images[0].save("fox.png")

    Callbacks (`on_event`) run in the client's own thread.
    """

    def __init__(
        self,
        *,
        encoder: str | None = None,
        generator: str | None = None,
        vision: str | None = None,
        profile: str | None = None,
        timeout_s: float = DEFAULT_S,
    ) -> None:
        self._client = AsyncClient(
            encoder=encoder, generator=generator, vision=vision, profile=profile, timeout_s=timeout_s
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="zrelay-client", daemon=True)
        self._thread.start()

    info = _waits(AsyncClient.info)
    encoder_info = _waits(AsyncClient.encoder_info)
    generator_info = _waits(AsyncClient.generator_info)
    vision_info = _waits(AsyncClient.vision_info)
    serving = _waits(AsyncClient.serving)
    encode = _waits(AsyncClient.encode)
    encode_batch = _waits(AsyncClient.encode_batch)
    generate = _waits(AsyncClient.generate)
    stream = _iterates(AsyncClient.stream)
    cancel = _waits(AsyncClient.cancel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what still runs, ends the connections and the thread."""
        if self._loop.is_closed():
            return
        self._wait(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed() or threading.current_thread() is self._thread:
            work.close()
            why = "is closed" if self._loop.is_closed() else "cannot wait within its own callback: use another thread"
            raise RuntimeError(f"this client {why}")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the waiting thread cancels the work; `close` waits until it is gone
            raise

    async def _finish(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()  # streams that nobody read to their end: their jobs are cancelled
        await self._client.aclose()


async def _next(events: AsyncGenerator[T, None]) -> T:
    return await anext(events)


async def _close(events: AsyncGenerator[Any, None]) -> None:
    while cast(
        "AsyncGeneratorType[Any, None]", events
    ).ag_running:  # its cancelled `_next` (Ctrl-C) is still telling the generator to stop
        await asyncio.sleep(_POLL_S)
    await events.aclose()
