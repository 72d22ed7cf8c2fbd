"""Reflection: callers read the contract from the server. It has the limits of every other call, and its permissions.

grpcio's own service has none: its calls may stay open without a message, and it reads messages of any size.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

from zrelay_shared import rpc
from zrelay_shared.callers import Identify, by_address, set_current_caller
from zrelay_shared.calls import OpenCalls
from zrelay_shared.errors import DeadlineExceeded
from zrelay_shared.receiving import received

_SERVICE: ServiceDescriptor = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]  # type: ignore[assignment]
_METHOD = _SERVICE.methods_by_name["ServerReflectionInfo"]
IDLE_S = 60.0
"""Seconds between two questions of a call."""


def add_to(
    server: grpc.aio.Server,
    names: Sequence[str],
    calls: OpenCalls,
    identify: Identify = by_address,
    idle_s: float = IDLE_S,
) -> None:
    """Serves reflection.

    Args:
        server: The server, not yet started.
        names: Full names of its other services.
        calls: Open calls of the server.
        identify: Identifies the caller of a call, and refuses callers that may not make it.
        idle_s: Seconds that a caller has for each further question.
    """
    answers: Any = reflection.aio.ReflectionServicer((*names, reflection.SERVICE_NAME))

    async def serve(requests: AsyncIterator[bytes], context: rpc.Context) -> AsyncIterator[bytes]:
        async with rpc.refusing(_METHOD.name, context):
            set_current_caller(identify(f"{_SERVICE.full_name}/{_METHOD.name}", context))
            call = calls.open(context)
            raw: Any = await call.request()
            while isinstance(raw, bytes):
                question = await received(_METHOD, reflection_pb2.ServerReflectionRequest, raw)
                async for answer in answers.ServerReflectionInfo(_only(question.message), context):
                    message = answer.SerializeToString()
                    call.sending(len(message))
                    yield message
                    call.sent()
                raw = await _next(context, idle_s)

    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {_METHOD.name: grpc.stream_stream_rpc_method_handler(serve)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers),))
    server.add_registered_method_handlers(_SERVICE.full_name, handlers)


async def _next(context: rpc.Context, idle_s: float) -> Any:
    """Returns the bytes of the next question, or grpc.aio.EOF."""
    try:
        async with asyncio.timeout(idle_s):
            return await context.read()
    except TimeoutError:
        raise DeadlineExceeded(
            f"no question arrived within {idle_s:g} s: end the call when you have asked everything",
            metadata={"stage": "receive"},
        ) from None


async def _only(question: Any) -> AsyncIterator[Any]:
    yield question
