"""Running a service: bind, health, reflection, load in the background, drain on SIGTERM."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol, runtime_checkable

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from zrelay_shared import atomic, collector, exits, rpc
from zrelay_shared.channels import SERVER_OPTIONS
from zrelay_shared.errors import Unavailable, ZrelayError
from zrelay_shared.health import HealthServicer
from zrelay_shared.listening import ListenAddress

log = logging.getLogger(__name__)
ALIVE = "liveness"
"""Health name that says only that the event loop runs; "" and the service's own name say that it is ready."""
_WATCH_S = 1.0


class Service(Protocol):
    """What `run` serves: a servicer of the contract and its life."""

    @property
    def descriptor(self) -> ServiceDescriptor:
        """The service of the contract whose methods it has."""

    async def load(self) -> None:
        """Loads the model, off the event loop. Calls arrive meanwhile and must be refused with ModelLoading.

        Raises ZrelayError (CheckpointError) where it cannot; the process then ends.
        """

    async def drain(self, grace_s: float) -> None:
        """Refuses new work from now on (Draining) and returns when what runs is done, or after `grace_s`."""

    async def close(self) -> None:
        """Ends threads and frees the device."""


@runtime_checkable
class Watched(Protocol):
    """A service that can tell when it is in no state to serve."""

    @property
    def trouble(self) -> str:
        """Why it cannot serve now, "" where it can. Looked at each second."""


@runtime_checkable
class Mortal(Protocol):
    """A service that can tell when only a new process serves again."""

    @property
    def lost(self) -> str:
        """Why the process must be started again, "" while it need not. Looked at each second."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How a service is served. `grace_s` is the time that running work gets after SIGTERM."""

    listen: ListenAddress
    grace_s: float = 30.0
    address_file: Path | None = None
    """Where to write `host:port` once bound: how `zrelay up` learns a port that it left to the system."""


def serve(service: Service, options: ServeOptions) -> int:
    """Serves until SIGTERM or SIGINT; the exit code of the process."""
    return asyncio.run(_serve(service, options))


async def _serve(service: Service, options: ServeOptions) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # before anybody can know that it listens
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(service, options, collector.keep_what_is_here) as server:
        stopped = asyncio.create_task(stop.wait())
        beat = asyncio.create_task(_watchdog())
        await asyncio.wait({stopped, server.loaded}, return_when=asyncio.FIRST_COMPLETED)
        if server.loaded.done() and (error := server.loaded.exception()) is not None:
            _leave_at_once(_failed(error))
        lost = asyncio.create_task(server.lost.wait())
        await asyncio.wait({stopped, lost}, return_when=asyncio.FIRST_COMPLETED)
        notify("STOPPING=1")
        if not server.loaded.done():
            log.info("stopped while loading")
            _leave_at_once(exits.OK)
        log.info("draining: what runs has %.0f s, a second signal ends it", options.grace_s)
        stop.clear()
        again, drained = asyncio.create_task(stop.wait()), asyncio.create_task(server.drain())
        await asyncio.wait({again, drained}, return_when=asyncio.FIRST_COMPLETED)
        beat.cancel()
        if drained.done():
            drained.result()
        # Whoever supervises processes (systemd, Kubernetes, docker, launchd) starts one again that ends in an error; a
        # health that says no is heard by Kubernetes alone.
        return exits.UNREACHABLE if server.lost.is_set() else exits.OK


def _failed(error: BaseException) -> int:
    """Tells why loading failed; the exit code."""
    if isinstance(error, ZrelayError):
        log.error("%s", error.message)
        return exits.code_of(error)
    log.error("loading failed", exc_info=error)
    return exits.BUG


def _leave_at_once(code: int) -> NoReturn:
    """Ends the process while a thread may still load: no work was taken, and Python would wait until all is read, or
    abort where torch is in the middle of something."""
    logging.shutdown()
    os._exit(code)


class RunningServer:
    """A bound server whose model loads in the background."""

    def __init__(self, service: Service, options: ServeOptions, settle: Callable[[], None] = lambda: None) -> None:
        """`settle` is called when the model is loaded, before anybody hears that it is."""
        self._service, self._options, self._settle = service, options, settle
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._health = HealthServicer()
        self._started = self._draining = False
        self._watch: asyncio.Task[None] | None = None
        self.address = options.listen
        self.loaded: asyncio.Task[None]
        """Ends when the model is loaded or has failed to; there from `start` on."""
        self.lost = asyncio.Event()
        """Set once the service says that only a new process can serve again (`Mortal`)."""

    async def start(self) -> None:
        """Binds, answers health and calls, begins to load.

        Raises Unavailable (LISTEN_FAILED) where the port is taken, OSError where the address file cannot be written.
        """
        name = self._service.descriptor.full_name
        rpc.add_service(self._server, self._service.descriptor, self._service)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self._options.listen.loopback:
            reflection.enable_server_reflection((name, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.address = ListenAddress(self._options.listen.host, self._bind())
        await self._set_ready(False)
        await self._health.set(ALIVE, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        self._started = True
        self.loaded = asyncio.create_task(self._load())
        if self._options.address_file is not None:
            atomic.write_bytes(self._options.address_file, str(self.address).encode())
        log.info("%s listening on %s, loading", name, self.address)

    def _bind(self) -> int:
        try:
            return int(self._server.add_insecure_port(str(self._options.listen)))
        except RuntimeError as error:
            raise Unavailable(
                f"cannot listen on {self._options.listen}: the port is taken or the address is not this machine's; "
                "choose another with --listen HOST:PORT, or end what listens there",
                reason="LISTEN_FAILED",
            ) from error

    async def _load(self) -> None:
        await self._service.load()
        if self._draining:
            return
        self._settle()
        await self._set_ready(True)
        notify("READY=1")
        log.info("%s ready on %s", self._service.descriptor.full_name, self.address)
        if isinstance(self._service, Watched):
            self._watch = asyncio.create_task(self._follow(self._service))

    async def _follow(self, service: Watched) -> None:
        """Keeps readiness true to what the service says of itself."""
        before = ""
        while not self._draining:
            now = service.trouble
            if bool(now) != bool(before):
                log.log(logging.ERROR if now else logging.INFO, "%s", f"not ready: {now}" if now else "ready again")
                await self._set_ready(not now)
            before = now
            if isinstance(service, Mortal) and service.lost:
                self.lost.set()
            await asyncio.sleep(_WATCH_S)

    async def _set_ready(self, ready: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", self._service.descriptor.full_name):
            await self._health.set(name, state)

    async def drain(self) -> None:
        """Not ready any more, no new work; what runs is finished and its answers arrive, or the time is up."""
        self._draining = True
        clock = asyncio.get_running_loop().time
        ends = clock() + self._options.grace_s
        await self._set_ready(False)
        await self._service.drain(self._options.grace_s)
        self._health.end_watches()
        # Returns once every answer has arrived: finished work may still be on its way over a slow link.
        await self._server.stop(max(1.0, ends - clock()))

    async def close(self) -> None:
        """Ends the server and the service at once; what `start` began, if it did not end well."""
        if self._started:
            self.loaded.cancel()
            await asyncio.wait({self.loaded})
            if self._watch is not None:
                self._watch.cancel()
            await self._server.stop(None)
        await self._service.close()


@contextlib.asynccontextmanager
async def running(
    service: Service, options: ServeOptions, settle: Callable[[], None] = lambda: None
) -> AsyncIterator[RunningServer]:
    """Serves while the block runs (tests and `serve`): yields a RunningServer, bound, still loading."""
    server = RunningServer(service, options, settle)
    try:
        await server.start()
        yield server
    finally:
        await server.close()


def notify(*messages: str) -> None:
    """Tells systemd (sd_notify's protocol); does nothing elsewhere."""
    where = os.environ.get("NOTIFY_SOCKET")
    if not where:
        return
    address = "\0" + where[1:] if where.startswith("@") else where
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto("\n".join(messages).encode(), address)


async def _watchdog() -> None:
    """Feeds systemd's watchdog from the event loop, twice as often as it asks."""
    period = os.environ.get("WATCHDOG_USEC")
    if not period:
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(int(period) / 2e6)


def libraries(names: Sequence[str]) -> dict[str, str]:
    """Versions of installed libraries by name, for GetInfo; those not installed are left out."""
    from importlib import metadata

    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
