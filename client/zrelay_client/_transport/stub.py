"""A connection to one service: its channel, its health, and streams that must not fall silent."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

from zrelay_client._transport.deadline import CONNECT_S
from zrelay_client._transport.endpoint import Endpoint
from zrelay_shared import status
from zrelay_shared.errors import DeadlineExceeded, Unavailable, ZrelayError
from zrelay_shared.rpc import M, Response, Stub
from zrelay_shared.wire import Parcel

if TYPE_CHECKING:
    from zrelay_client._transport.handshake import ChannelDiagnosis

SILENCE_S = 10.0
"""A generator reports a waiting job every 2 s and a running one after each step. One long step may be silent, but the
generator still answers GetInfo meanwhile. The keep-alive of gRPC takes up to 40 s to notice a lost connection."""
T = TypeVar("T")


class ServiceStub:
    """The connection to one service. Create it inside the event loop that uses it.

    Subclasses set `role` and `descriptor`, and add a method for each rpc.
    """

    role: str
    descriptor: ServiceDescriptor

    def __init__(self, endpoint: Endpoint) -> None:
        self._dialled, self.endpoint = endpoint, endpoint.address
        self._channel: grpc.aio.Channel = endpoint.channel()
        self._diagnosis: ChannelDiagnosis | None = None
        self.stub = Stub(self._channel, self.descriptor, self.endpoint, self._explained)

    async def serving(self, timeout: float = CONNECT_S) -> bool:
        """Returns whether the service reports SERVING (grpc.health.v1).

        Raises:
            ZrelayError: The service does not answer.
        """
        try:
            return await is_serving(self._channel, role=self.role, endpoint=self.endpoint, timeout=timeout)
        except ZrelayError as error:
            raise await self._explained(error) from error

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def _explained(self, error: ZrelayError) -> ZrelayError:
        """Returns what is wrong with TLS where that is why a call failed, else the given error."""
        if not isinstance(error, Unavailable) or "grpc" not in error.metadata:
            return error
        if self._diagnosis is None:
            from zrelay_client._transport.handshake import ChannelDiagnosis  # loads ssl, which other calls do not need

            self._diagnosis = ChannelDiagnosis(self._dialled)
        return await self._diagnosis.explained(error)

    async def quick_call(self, method: str, request: Response, response_type: type[M], timeout: float) -> Parcel[M]:
        """Calls a method that answers at once where the service is there, with a timeout of at most CONNECT_S.

        Raises:
            Unavailable: There was no answer within CONNECT_S.
            ZrelayError: Any other failure of the call.
        """
        try:
            return await self.stub.call(method, request, response_type, timeout=min(timeout, CONNECT_S))
        except DeadlineExceeded as error:
            if timeout <= CONNECT_S:
                raise
            raise Unavailable(
                f"cannot reach the {self.role} service at {self.endpoint}: no answer in {CONNECT_S:g} s; is the "
                "machine awake, and is the endpoint right? `zrelay doctor` checks every hop",
                metadata=error.metadata,
            ) from error


async def is_serving(channel: grpc.aio.Channel, *, role: str, endpoint: str, timeout: float) -> bool:
    """Returns whether the server of a channel reports SERVING (grpc.health.v1).

    Args:
        channel: The channel.
        role, endpoint: Named in errors.
        timeout: Timeout in seconds.

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


async def listen(
    messages: AsyncGenerator[T, None], check: Callable[[], Awaitable[None]], silence_s: float = SILENCE_S
) -> AsyncGenerator[T, None]:
    """Yields the messages of a stream, and checks that the sender is alive while there are none.

    Args:
        messages: The stream.
        check: Called after every `silence_s` seconds without a message. If it raises, the stream ends with that error.
        silence_s: Seconds without a message after which `check` is called.
    """
    while True:
        coming = asyncio.ensure_future(anext(messages))
        try:
            while not (await asyncio.wait({coming}, timeout=silence_s))[0]:
                await check()
            message = coming.result()
        except StopAsyncIteration:
            return
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})
        yield message
