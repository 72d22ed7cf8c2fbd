"""Runs real services in the test's process, on free loopback ports."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from zrelay_shared import channels
from zrelay_shared.rpc import Stub
from zrelay_shared.service import lifecycle
from zrelay_shared.service.listening import ListenAddress

S = TypeVar("S", bound=lifecycle.Service)
T = TypeVar("T")


@dataclass(frozen=True)
class ServedService(Generic[S]):
    """A running service with a stub that calls it."""

    service: S
    server: lifecycle.RunningServer
    stub: Stub
    endpoint: str


@asynccontextmanager
async def serve(service: S, *, loaded: bool = True) -> AsyncIterator[ServedService[S]]:
    """Serves `service` on a free loopback port until the block ends.

    Args:
        service: An encoder, vision or generator service.
        loaded: Whether to wait for the model; else the service may still be loading.
    """
    async with AsyncExitStack() as stack:
        options = lifecycle.ServeOptions(ListenAddress("127.0.0.1", 0))
        server = await stack.enter_async_context(lifecycle.running(service, options))
        if loaded:
            await server.loaded
        endpoint = str(server.address)
        channel = await stack.enter_async_context(channels.dial(endpoint))
        yield ServedService(service, server, Stub(channel, service.descriptor, endpoint), endpoint)


class ServerThread:
    """A thread whose event loop runs services, so that tests with event loops of their own can share them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._running = AsyncExitStack()
        self._thread = threading.Thread(target=self._loop.run_forever, name="services", daemon=True)
        self._thread.start()

    def start(self, service: lifecycle.Service) -> str:
        """Serves `service` until `stop`, and returns its endpoint once the model is loaded."""

        async def started() -> str:
            return (await self._running.enter_async_context(serve(service))).endpoint

        return self._wait(started())

    def run(self, service: lifecycle.Service, options: lifecycle.ServeOptions) -> lifecycle.RunningServer:
        """Serves `service` with these options until `stop`, and returns its server once the model is loaded."""

        async def started() -> lifecycle.RunningServer:
            server = await self._running.enter_async_context(lifecycle.running(service, options))
            await server.loaded
            return server

        return self._wait(started())

    def stop(self) -> None:
        """Ends the services and the thread."""
        self._wait(self._running.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)
