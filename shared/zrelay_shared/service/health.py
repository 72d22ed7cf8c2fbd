"""Health of a server, as grpc.health.v1 defines it.

Health is answered also where the limits of calls are reached: it has limits of its own, and requests that do not arrive
make room for those that do.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from zrelay_shared import rpc
from zrelay_shared.calls import CallLimits, OpenCalls
from zrelay_shared.errors import NotFound
from zrelay_shared.rpc import Context
from zrelay_shared.wire import Parcel

HEALTH: ServiceDescriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]  # type: ignore[assignment]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
CHECK_LIMITS = CallLimits(calls=256, receive_s=5.0)
WATCH_LIMITS = CallLimits(calls=1024, receive_s=5.0)
_LAST_STATE_S = 0.5
"""Seconds that watches have to end by themselves."""


class HealthServicer:
    """Implements Check, List and Watch of grpc.health.v1.Health.

    States are set without waiting for any watcher. A watcher receives the latest state, not every one.
    """

    def __init__(self, checks: CallLimits = CHECK_LIMITS, watches: CallLimits = WATCH_LIMITS) -> None:
        """Starts without names.

        Args:
            checks: Limits of Check and List.
            watches: Limits of Watch.
        """
        self._checks, self._watches = OpenCalls(checks), OpenCalls(watches)
        self._states: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._ended = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves health with `server`."""
        rpc.add_service(server, HEALTH, self, {"Watch": self._watches}, self._checks)

    def set(self, name: str, state: int) -> None:
        """Sets the state of a name."""
        self._states[name] = state
        self._wake()

    def end_watches(self) -> None:
        """Ends all Watch calls. Later ones end at once, and those whose caller does not read within half a second."""
        self._ended = True
        self._wake()
        asyncio.get_running_loop().call_later(_LAST_STATE_S, self._watches.end_all)

    async def Check(
        self, parcel: Parcel[health_pb2.HealthCheckRequest], context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Returns the state of a name. Raises NotFound."""
        state = self._states.get(parcel.message.service)
        if state is None:
            raise NotFound(f"service: expected one of {', '.join(map(repr, self._states))}, got another name")
        return health_pb2.HealthCheckResponse(status=state)

    async def List(self, parcel: Parcel[Any], context: Context) -> Any:
        """Returns all states. Older versions of grpcio-health-checking do not have this method."""
        reply: Any = GetMessageClass(HEALTH.methods_by_name["List"].output_type)()
        for name, state in self._states.items():
            reply.statuses[name].status = state
        return reply

    async def Watch(
        self, parcel: Parcel[health_pb2.HealthCheckRequest], context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yields the state of a name, and again when it has changed, until `end_watches`."""
        last = None
        while not self._ended:
            changed, state = self._changed, self._states.get(parcel.message.service, _UNKNOWN)
            if state != last:
                last = state
                yield health_pb2.HealthCheckResponse(status=state)
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
