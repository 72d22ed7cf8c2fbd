"""Reflection: callers read the contract from the server. It is for those who may call the service."""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

import grpc.aio
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from zrelay_shared import rpc
from zrelay_shared.callers import Identify, set_current_caller
from zrelay_shared.calls import OpenCalls

_METHOD = f"{reflection.SERVICE_NAME}/ServerReflectionInfo"


def add_to(server: grpc.aio.Server, names: Sequence[str], calls: OpenCalls, identify: Identify) -> None:
    """Serves reflection.

    Args:
        server: The server, not yet started.
        names: Full names of its other services.
        calls: Open calls of the server.
        identify: Identifies the caller of a call, and refuses callers that may not make it.
    """
    servicer = _AuthenticatedReflection((*names, reflection.SERVICE_NAME), calls, identify)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)


class _AuthenticatedReflection(reflection.aio.ReflectionServicer):
    """The reflection of grpcio, which identifies no callers."""

    def __init__(self, names: Sequence[str], calls: OpenCalls, identify: Identify) -> None:
        super().__init__(names)
        self._calls, self._identify = calls, identify

    async def ServerReflectionInfo(  # type: ignore[override]  # an iterator, as grpcio's own; its types are wrong
        self, requests: AsyncIterable[Any], context: rpc.Context
    ) -> AsyncIterator[Any]:
        """Answers questions about the contract."""
        async with rpc.refusing(_METHOD, context):
            set_current_caller(self._identify(_METHOD, context))
            self._calls.open(context)
            answers: Any = super().ServerReflectionInfo(requests, context)
            async for answer in answers:
                yield answer
