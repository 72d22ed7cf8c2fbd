"""grpc.health.v1 without its package, which only servers install: one byte each way."""

import grpc
import grpc.aio

from zrelay_shared import status

_METHOD = "/grpc.health.v1.Health/Check"
_WHOLE_SERVER = b""  # HealthCheckRequest(service="")
_SERVING = b"\x08\x01"  # HealthCheckResponse(status=SERVING)


async def serving(channel: grpc.aio.Channel, *, role: str, endpoint: str, timeout: float) -> bool:
    """Whether the server says that it is ready. Raises ZrelayError where it does not answer."""
    check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
    try:
        return await check(_WHOLE_SERVER, timeout=timeout) == _SERVING
    except grpc.RpcError as error:
        raise status.from_call(error, service=role, endpoint=endpoint) from error
