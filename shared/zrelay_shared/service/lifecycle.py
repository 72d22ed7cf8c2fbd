"""The lifecycle of a service: bind, health, reflection, load in the background, watch, drain on SIGTERM."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from zrelay_shared import atomic, descriptors, exits, rpc
from zrelay_shared.callers import PortKind
from zrelay_shared.calls import CallLimits, OpenCalls
from zrelay_shared.errors import Draining, ModelLoading, Unavailable, ZrelayError
from zrelay_shared.limits import MAX_OPEN_CALLS, SMALL_MESSAGE_BYTES
from zrelay_shared.receiving import largest_request
from zrelay_shared.service import grpc_server, process, reflection, self_probe
from zrelay_shared.service.authentication import Authenticator, ServerSecurity
from zrelay_shared.service.health import CHECK_LIMITS, HEALTH, NOT_SERVING, SERVING, HealthServicer
from zrelay_shared.service.listening import ListenAddress
from zrelay_shared.service.self_probe import ProbeOptions
from zrelay_shared.service.systemd import Systemd
from zrelay_shared.signals import on_signals

log = logging.getLogger(__name__)
LIVENESS = "liveness"
"""Health name that only states that the event loop runs; "" and the service's own name state that it is ready."""
_DRAIN_MARGIN_S = 3.0
"""Seconds beyond its time after which a wait of the drain is given up."""
_CLOSE_S = 7.0
"""Seconds after which the end of a service is given up. With two waits of the drain it stays within the 45 s of the
deploy files."""
HEALTH_CONNECTIONS = 256
"""Connections of the port that answers health checks alone."""


class Service(Protocol):
    """A servicer of the contract with its lifecycle. Services inherit from it."""

    @property
    def descriptor(self) -> ServiceDescriptor:
        """The service of the contract whose methods it has."""

    @property
    def unhealthy_reason(self) -> str:
        """Why the service cannot serve at the moment, "" if it can. Read regularly once the model is loaded."""
        return ""

    @property
    def restart_reason(self) -> str:
        """Why only a new process can serve again, "" if this process can. Read regularly."""
        return ""

    @property
    def max_streams(self) -> int | None:
        """Calls that one connection may have open at once; None if `max_calls` alone limits them."""
        return grpc_server.MAX_STREAMS

    async def load(self) -> None:
        """Loads the model, off the event loop. Calls that arrive meanwhile are refused with ModelLoading.

        Raises:
            ZrelayError: The model cannot be loaded (usually CheckpointError); the process then ends.
        """

    async def drain(self, grace_s: float) -> None:
        """Refuses new calls with Draining, and returns when no call runs, or after `grace_s` seconds."""

    async def close(self) -> None:
        """Ends threads and releases the device."""


class Readiness:
    """Whether a service accepts calls, and the error for those that it does not accept."""

    def __init__(self, service: str) -> None:
        """Starts in the state "loading". `service` is the service's name in error messages, for example `encoder`."""
        self._service = service
        self._loaded = self._draining = False

    @property
    def ready(self) -> bool:
        """Whether calls are accepted."""
        return self._loaded and not self._draining

    @property
    def draining(self) -> bool:
        """Whether the service is shutting down and accepts no new calls."""
        return self._draining

    def set_loaded(self) -> None:
        """Accepts calls from now on."""
        self._loaded = True

    def set_draining(self) -> None:
        """Refuses calls from now on."""
        self._draining = True

    def check(self) -> None:
        """Raises an error if calls are not accepted at the moment.

        Raises:
            Draining: The service is shutting down.
            ModelLoading: The model is not loaded yet.
        """
        if self._draining:
            raise Draining(f"this {self._service} is shutting down: try again later, or use another one")
        if not self._loaded:
            raise ModelLoading(f"this {self._service} is still loading its model: try again in a few seconds")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How a service is served.

    Attributes:
        listen: The address to bind.
        grace_s: Seconds that running calls get after SIGTERM.
        address_file: Where to write `host:port` once bound; `zrelay up` learns a free port from it.
        watch_interval_s: Seconds between two looks at `unhealthy_reason`, `restart_reason` and the accept loop.
        max_connections: Connections beyond this number are closed when they are accepted.
        max_calls: Calls that may be open at once.
        handshake_s: Seconds that a connection may take for its HTTP/2 handshake.
        drain_margin_s: Seconds that the service and the server may take beyond `grace_s` before the drain goes on.
        close_s: Seconds that the server and the service may take to end. The process then ends without them.
        probe: When the service probes itself.
        tls: Whether `listen` has TLS, and its callers show certificates; else it is plaintext.
        security: Certificate of the service, and who its callers are. Required for TLS.
        token_listen: A second port, with TLS, whose callers send bearer tokens.
        health_listen: A further port, in plaintext, which answers health checks alone.
    """

    listen: ListenAddress
    grace_s: float = 30.0
    address_file: Path | None = None
    watch_interval_s: float = 1.0
    max_connections: int = descriptors.MAX_CONNECTIONS
    max_calls: int = MAX_OPEN_CALLS
    handshake_s: float = grpc_server.HANDSHAKE_S
    drain_margin_s: float = _DRAIN_MARGIN_S
    close_s: float = _CLOSE_S
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    tls: bool = False
    security: ServerSecurity | None = None
    token_listen: ListenAddress | None = None
    health_listen: ListenAddress | None = None


def serve(service: Service, options: ServeOptions) -> int:
    """Serves until SIGTERM or SIGINT, and returns the exit code of the process."""
    return asyncio.run(_serve(service, options))


async def _serve(service: Service, options: ServeOptions) -> int:
    stop = asyncio.Event()
    with on_signals(("SIGTERM", "SIGINT"), stop.set):  # before anyone can know that it listens
        return await _serve_until(stop, service, options)


async def _serve_until(stop: asyncio.Event, service: Service, options: ServeOptions) -> int:
    async with running(service, options, process.freeze_objects) as server:
        stopped = asyncio.create_task(stop.wait())
        restart = asyncio.create_task(server.restart_needed.wait())
        watchdog = asyncio.create_task(server.systemd.heartbeat())
        await asyncio.wait({stopped, restart, server.loaded}, return_when=asyncio.FIRST_COMPLETED)
        if server.loaded.done() and (error := server.loaded.exception()) is not None:
            _leave_at_once(_failed(error))
        await asyncio.wait({stopped, restart}, return_when=asyncio.FIRST_COMPLETED)
        server.systemd.notify("STOPPING=1")
        if not server.loaded.done():
            log.info("stopped while loading")
            _leave_at_once(exits.UNREACHABLE if restart.done() else exits.OK)
        log.info("draining: running calls have %.0f s, a second signal ends them", options.grace_s)
        stop.clear()
        again, drained = asyncio.create_task(stop.wait()), asyncio.create_task(server.drain())
        await asyncio.wait({again, drained}, return_when=asyncio.FIRST_COMPLETED)
        watchdog.cancel()
        if drained.done():
            drained.result()
    # systemd, Kubernetes, docker and launchd restart a process that ends with an error; of these only Kubernetes also
    # reacts to a failing health check.
    code = exits.UNREACHABLE if server.restart_needed.is_set() else exits.OK
    if not server.closed:
        _leave_at_once(code)
    return code


def _failed(error: BaseException) -> int:
    """Logs why loading failed, and returns the exit code."""
    if isinstance(error, ZrelayError):
        log.error("%s", error.message)
        return exits.code_of(error)
    log.error("loading failed", exc_info=error)
    return exits.BUG


def _leave_at_once(code: int) -> NoReturn:
    """Ends the process although a thread may still load or run the model. A normal exit would wait for the thread, or
    abort inside torch."""
    logging.shutdown()
    os._exit(code)


class RunningServer:
    """A bound server whose model loads in the background."""

    def __init__(self, service: Service, options: ServeOptions, on_loaded: Callable[[], None] = lambda: None) -> None:
        """Prepares the server; `start` binds it. `on_loaded` runs before the service is reported as ready."""
        self.service, self._options, self._on_loaded = service, options, on_loaded
        self._server = grpc_server.make_server(
            max_connections=options.max_connections,
            max_streams=min(options.max_calls, service.max_streams or options.max_calls),
            max_request_bytes=largest_request(service.descriptor),
            handshake_s=options.handshake_s,
        )
        self._health_server: grpc.aio.Server | None = None
        self._authenticator = Authenticator(_plaintext(options), options.security)
        self._calls = OpenCalls(CallLimits(calls=options.max_calls))
        self._health = HealthServicer()
        self._started = self._draining = False
        self._watches: list[asyncio.Task[None]] = []
        self.systemd = Systemd(os.environ)
        self.address = options.listen
        self.token_address, self.health_address = options.token_listen, options.health_listen
        self.loaded: asyncio.Task[None]
        """Ends when loading has succeeded or failed; set by `start`."""
        self.restart_needed = asyncio.Event()
        """Set once the service has a `restart_reason`, or no longer accepts connections."""
        self.closed = False
        """Whether the service has ended its threads."""

    async def start(self) -> None:
        """Binds the address, answers health checks and calls, and starts to load the model.

        Raises:
            Unavailable: LISTEN_FAILED, an address cannot be bound.
            OSError: The address file cannot be written.
        """
        options, identify = self._options, self._authenticator.identify
        name = self.service.descriptor.full_name
        rpc.add_service(self._server, self.service.descriptor, self.service, calls=self._calls, identify=identify)
        self._health.add_to(self._server)
        if _plaintext(options) is not PortKind.INSECURE:
            reflection.add_to(self._server, (name, HEALTH.full_name), self._calls, identify)
        self.address = _bind(
            self._server, options.listen, "--listen", self._credentials(of_clients=True, tls=options.tls)
        )
        if options.token_listen is not None:
            credentials = self._credentials(of_clients=False, tls=True)
            self.token_address = _bind(self._server, options.token_listen, "--token-listen", credentials)
        if options.health_listen is not None:
            self._health_server = grpc_server.make_server(
                max_connections=HEALTH_CONNECTIONS,
                max_streams=CHECK_LIMITS.calls,
                max_request_bytes=SMALL_MESSAGE_BYTES,
                handshake_s=options.handshake_s,
            )
            self._health.add_to(self._health_server)
            self.health_address = _bind(self._health_server, options.health_listen, "--health-listen", None)
        self._set_ready(False)
        self._health.set(LIVENESS, SERVING)
        await self._server.start()
        if self._health_server is not None:
            await self._health_server.start()
        self._started = True
        self.loaded = asyncio.create_task(self._load())
        self._watches.append(asyncio.create_task(self._watch_connections()))
        if options.security is not None:
            self._watches.append(asyncio.create_task(self._watch_certificate(options.security)))
        if self._options.address_file is not None:
            atomic.write_bytes(self._options.address_file, str(self.address).encode())
        log.info("%s listening on %s%s, loading", name, self.address, " with TLS" if options.tls else "")
        if self.token_address is not None:
            log.info("tokens are accepted on %s", self.token_address)
        if self.health_address is not None:
            log.info("health is answered in plaintext on %s", self.health_address)
        if _plaintext(options) is PortKind.INSECURE:
            log.warning("%s is neither encrypted nor authenticated: every caller may do everything", self.address)

    def _credentials(self, *, of_clients: bool, tls: bool) -> grpc.ServerCredentials | None:
        """Returns the credentials of a port, None for plaintext."""
        if not tls:
            return None
        if self._options.security is None:
            raise ValueError("security: expected the certificate of the service, got none")
        return self._options.security.certificate.credentials(of_clients=of_clients)

    async def _load(self) -> None:
        await self.service.load()
        if self._draining:
            return
        self._on_loaded()
        self._set_ready(True)
        self.systemd.notify("READY=1")
        log.info("%s ready on %s", self.service.descriptor.full_name, self.address)
        self._watches.append(asyncio.create_task(self._follow()))

    async def _follow(self) -> None:
        """Keeps the reported health equal to the state of the service."""
        before = ""
        while not self._draining:
            now = self.service.unhealthy_reason
            if bool(now) != bool(before):
                log.log(logging.ERROR if now else logging.INFO, "%s", f"not ready: {now}" if now else "ready again")
                self._set_ready(not now)
            before = now
            if self.service.restart_reason:
                self.restart_needed.set()
            await asyncio.sleep(self._options.watch_interval_s)

    async def _watch_connections(self) -> None:
        """Sets `restart_needed` once the server no longer accepts connections: nothing in this process repairs that."""
        options, security = self._options, self._options.security
        tls = None if security is None else security.certificate.client_context
        signs = {
            asyncio.create_task(grpc_server.ended(self._server, options.watch_interval_s)),
            asyncio.create_task(self_probe.until_deaf(self.address, options.probe, tls if options.tls else None)),
        }
        if self.token_address is not None:
            signs.add(asyncio.create_task(self_probe.until_deaf(self.token_address, options.probe, tls)))
        try:
            done, _ = await asyncio.wait(signs, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for sign in signs:
                sign.cancel()
        if not self._draining:
            log.error("the service no longer accepts connections and ends: %s", done.pop().result())
            self.restart_needed.set()

    async def _watch_certificate(self, security: ServerSecurity) -> None:
        """Reads new files of the certificate, and warns before it ends."""
        while True:
            await asyncio.to_thread(security.certificate.refresh)
            security.certificate.warn()
            await asyncio.sleep(self._options.watch_interval_s)

    def _set_ready(self, ready: bool) -> None:
        for name in ("", self.service.descriptor.full_name):
            self._health.set(name, SERVING if ready else NOT_SERVING)

    async def drain(self) -> None:
        """Reports NOT_SERVING, refuses new calls, and waits until running calls have been answered or time is up."""
        self._draining = True
        clock = asyncio.get_running_loop().time
        grace_s, margin_s = self._options.grace_s, self._options.drain_margin_s
        ends = clock() + grace_s
        self._set_ready(False)
        await _bounded(self.service.drain(grace_s), grace_s + margin_s, "the service drains")
        self._health.end_watches()
        # Returns once every answer has arrived: a finished one may still be under way on a slow network.
        rest_s = max(1.0, ends - clock())
        await _bounded(self._server.stop(rest_s), rest_s + margin_s, "the server stops")
        await self._stop_health()

    async def _stop_health(self) -> None:
        if self._health_server is not None:
            await self._health_server.stop(None)

    async def close(self) -> None:
        """Ends the server and the service at once, also after a `start` that failed. Gives up after `close_s`."""
        clock = asyncio.get_running_loop().time
        ends = clock() + self._options.close_s
        if self._started:
            self.loaded.cancel()
            await asyncio.wait({self.loaded}, timeout=self._options.close_s / 2)
            for watch in self._watches:
                watch.cancel()
            stops = asyncio.gather(self._server.stop(None), self._stop_health())
            await _bounded(stops, self._options.close_s / 2, "the server stops")
        else:
            await _bounded(self._free_servers(), self._options.close_s / 2, "the server stops")
        self.systemd.close()
        self.closed = await _bounded(self.service.close(), ends - clock(), "the service ends its threads")

    async def _free_servers(self) -> None:
        """Ends servers that were not started. gRPC frees without faults only those that were started and stopped."""
        for server in (self._server, self._health_server):
            if server is not None:
                await server.start()
                await server.stop(None)


def _plaintext(options: ServeOptions) -> PortKind | None:
    """Returns the kind of the plaintext port, None if there is none."""
    if options.tls:
        return None
    return PortKind.LOOPBACK if options.listen.loopback else PortKind.INSECURE


def _bind(
    server: grpc.aio.Server, address: ListenAddress, flag: str, credentials: grpc.ServerCredentials | None
) -> ListenAddress:
    """Binds an address, in plaintext without credentials, and returns it with its port. Raises Unavailable."""
    try:
        if credentials is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), credentials)
    except RuntimeError as error:
        raise Unavailable(
            f"cannot listen on {address}: the port is taken or the address is not this machine's; choose another with "
            f"{flag} HOST:PORT, or end the process that holds it",
            reason="LISTEN_FAILED",
        ) from error
    return ListenAddress(address.host, int(port))


async def _bounded(work: Awaitable[object], limit_s: float, what: str) -> bool:
    """Waits for work, but not longer than `limit_s` seconds. Returns whether it has ended. Raises what it raises."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=limit_s)
    finally:
        task.cancel()
    if done:
        task.result()
    else:
        log.error("waited %.0f s in vain until %s: going on without", limit_s, what)
    return bool(done)


@contextlib.asynccontextmanager
async def running(
    service: Service, options: ServeOptions, on_loaded: Callable[[], None] = lambda: None
) -> AsyncIterator[RunningServer]:
    """Serves while the block runs. Yields the server, bound and still loading."""
    server = RunningServer(service, options, on_loaded)
    try:
        await server.start()
        yield server
    finally:
        await server.close()
