"""The gRPC server of a service: its connections are bounded, and no call can end it."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, cast

import grpc
import grpc.aio
from grpc._cython import cygrpc
from grpc.aio import _server as grpc_aio_server

from zrelay_shared.channels import server_options

log = logging.getLogger(__name__)
HANDSHAKE_S = 10.0
"""Seconds that a connection may take for its HTTP/2 handshake; gRPC's default is two minutes."""
MAX_STREAMS = 256
"""Calls that one connection may have open at once, where a call does not last as long as a job. gRPC refuses the others
before they cost anything, and keeps at most 100 more that were reset: a connection that resets 1,000 calls at once
costs 70 ms of processor time, and 270 ms without this limit."""


def make_server(
    *,
    max_connections: int,
    max_streams: int,
    max_request_bytes: int,
    handshake_s: float = HANDSHAKE_S,
    further_options: Sequence[tuple[str, Any]] = (),
) -> grpc.aio.Server:
    """Returns a server for services that `rpc.add_service` adds.

    The accept loop of grpcio 1.84 and later ends for good at a path that is not UTF-8
    (docs/explanation/accept-loop.md). With these versions the loop of the returned server receives only calls of
    registered methods, whose names are known. All other calls are answered with UNIMPLEMENTED, whatever their paths.

    Args:
        max_connections: Connections beyond this number are closed when they are accepted.
        max_streams: Calls that one connection may have open at once.
        max_request_bytes: Size of one message from a caller. gRPC refuses a larger one without copying it; the copies
            of one that it receives hold the event loop, 1 to 4 ms for each MiB.
        handshake_s: Seconds that a connection may take for its handshake.
        further_options: Options of gRPC that replace those of `channels.server_options`.
    """
    options = [
        *server_options(max_request_bytes),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_concurrent_streams", max_streams),
        ("grpc.server_handshake_timeout_ms", int(handshake_s * 1000)),
        *further_options,  # gRPC takes the last of two options of one name
    ]
    if not hasattr(cygrpc.AioServer, "_request_registered_call"):  # its loop does not look at paths
        return grpc.aio.server(options=options)
    try:
        return cast(grpc.aio.Server, _RegisteredMethodsServer(options))
    except (TypeError, AttributeError):
        log.warning("grpcio %s is unknown to this zrelay: a call with an invalid path may end it", grpc.__version__)
        return grpc.aio.server(options=options)


async def ended(server: grpc.aio.Server, interval_s: float) -> str:
    """Waits until a started server has ended, and returns why.

    Args:
        server: The server.
        interval_s: Seconds between two looks at it. Only a look shows that its accept loop has failed: `stop` is the
            sole other end of `wait_for_termination`.
    """
    try:
        while await server.wait_for_termination(interval_s):
            pass
    except Exception as error:  # whatever ended the loop
        return f"gRPC's accept loop failed: {error!r}"
    return "the server was stopped"


class _RegisteredMethodsLoop(cygrpc.AioServer):  # type: ignore[misc]  # it has no types
    """grpcio's server with an accept loop that receives only calls of registered methods."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._refusals: set[asyncio.Task[None]] = set()

    async def _request_call(self) -> None:
        """Takes the place of the method from which the accept loop receives the call of an unregistered method.

        Raises:
            Exception: The server is shutting down; grpcio's own exception, which the loop expects.
        """
        while True:
            refusal = asyncio.create_task(self._refuse(await super()._request_call()))
            self._refusals.add(refusal)
            refusal.add_done_callback(self._refusals.discard)

    async def _refuse(self, call: object) -> None:
        context = cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop())
        with contextlib.suppress(grpc.aio.AbortError, cygrpc.ExecuteBatchError):  # the second: the caller has left
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


class _RegisteredMethodsServer(grpc_aio_server.Server):
    """grpcio's server on top of `_RegisteredMethodsLoop`."""

    def __init__(self, options: list[tuple[str, Any]]) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = _RegisteredMethodsLoop(self._loop, None, (), (), options, None)
