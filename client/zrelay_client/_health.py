"""Health checks of services (grpc.health.v1)."""

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from zrelay_shared import status


async def serving(channel: grpc.aio.Channel, *, role: str, endpoint: str, timeout: float) -> bool:
    """Asks a server whether it is ready.

    Args:
        channel: The connection.
        role: Role of the service, named in errors.
        endpoint: Where it is, named in errors.
        timeout: Seconds until the check fails.

    Returns:
        Whether the server reports SERVING for the whole server.

    Raises:
        ZrelayError: The server does not answer.
    """
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        reply: health_pb2.HealthCheckResponse = await stub.Check(  # type: ignore[attr-defined]
            health_pb2.HealthCheckRequest(), timeout=timeout
        )
    except grpc.RpcError as error:
        raise status.from_call(error, service=role, endpoint=endpoint) from error
    return reply.status == health_pb2.HealthCheckResponse.SERVING
