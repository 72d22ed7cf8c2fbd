"""The far ends: one object for each service, which owns its channel and its stub."""

import contextlib
from collections.abc import AsyncGenerator
from typing import cast

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from zrelay.v1 import encoder_pb2, generator_pb2, vision_pb2
from zrelay.v1.encoder_pb2 import (
    EncodePromptsRequest,
    EncodePromptsResponse,
    EncoderServiceGetInfoRequest,
    EncoderServiceGetInfoResponse,
)
from zrelay.v1.generator_pb2 import (
    CancelJobRequest,
    CancelJobResponse,
    GenerateRequest,
    GenerateResponse,
    GeneratorServiceGetInfoRequest,
    GeneratorServiceGetInfoResponse,
)
from zrelay.v1.jobs_pb2 import JobEvent
from zrelay.v1.vision_pb2 import VisionServiceGetInfoRequest, VisionServiceGetInfoResponse
from zrelay_client import _health
from zrelay_client._budget import CONNECT_S
from zrelay_client._endpoints import parse_endpoint
from zrelay_client._enums import word
from zrelay_client._info import EncoderInfo, GeneratorInfo, VisionInfo
from zrelay_client._info_replies import encoder_info, generator_info, vision_info
from zrelay_shared.channels import dial
from zrelay_shared.errors import DeadlineExceeded, Unavailable
from zrelay_shared.rpc import M, Response, Stub
from zrelay_shared.wire import Parcel


class _Service:
    """A channel to one service. Made inside the event loop that uses it."""

    role: str
    descriptor: ServiceDescriptor

    def __init__(self, endpoint: str) -> None:
        self.endpoint = parse_endpoint(self.role, endpoint)
        self._channel: grpc.aio.Channel = dial(self.endpoint)
        self._stub = Stub(self._channel, self.descriptor, self.endpoint)

    async def serving(self, timeout: float = CONNECT_S) -> bool:
        """Whether it is ready, by its health service."""
        return await _health.serving(self._channel, role=self.role, endpoint=self.endpoint, timeout=timeout)

    async def close(self) -> None:
        """Ends the channel."""
        await self._channel.close()

    async def _first(self, method: str, request: Response, response_type: type[M], timeout: float) -> Parcel[M]:
        """A call that only asks whether and what somebody is there, so it may not take long."""
        try:
            return await self._stub.call(method, request, response_type, timeout=min(timeout, CONNECT_S))
        except DeadlineExceeded as error:
            if timeout <= CONNECT_S:
                raise
            raise Unavailable(
                f"cannot reach the {self.role} service at {self.endpoint}: no answer in {CONNECT_S:g} s; is the "
                "machine awake, and is the endpoint right? `zrelay doctor` checks every hop",
                metadata=error.metadata,
            ) from error


class EncoderService(_Service):
    """The encoder."""

    role = "encoder"
    descriptor = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"]

    async def info(self, timeout: float = CONNECT_S) -> EncoderInfo:
        """GetInfo."""
        request = EncoderServiceGetInfoRequest()
        reply = await self._first("GetInfo", request, EncoderServiceGetInfoResponse, timeout)
        return encoder_info(self.endpoint, reply.message)

    async def encode(self, request: EncodePromptsRequest, timeout: float) -> Parcel[EncodePromptsResponse]:
        """EncodePrompts."""
        return await self._stub.call("EncodePrompts", request, EncodePromptsResponse, timeout=timeout)


class GeneratorService(_Service):
    """The generator."""

    role = "generator"
    descriptor = generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"]

    async def info(self, timeout: float = CONNECT_S) -> GeneratorInfo:
        """GetInfo."""
        request = GeneratorServiceGetInfoRequest()
        reply = await self._first("GetInfo", request, GeneratorServiceGetInfoResponse, timeout)
        return generator_info(self.endpoint, reply.message)

    async def generate(self, request: Parcel[GenerateRequest], timeout: float) -> AsyncGenerator[JobEvent, None]:
        """Generate. Closing the generator ends the call."""
        stream = self._stub.stream("Generate", request, GenerateResponse, timeout=timeout)
        async with contextlib.aclosing(cast("AsyncGenerator[Parcel[GenerateResponse], None]", stream)) as replies:
            async for reply in replies:
                yield reply.message.event

    async def cancel(self, request_id: str, timeout: float = CONNECT_S) -> str:
        """CancelJob; the state that the job is in afterwards."""
        reply = await self._stub.call(
            "CancelJob", CancelJobRequest(request_id=request_id), CancelJobResponse, timeout=timeout
        )
        return word(reply.message.job, "state")


class VisionService(_Service):
    """The vision service."""

    role = "vision"
    descriptor = vision_pb2.DESCRIPTOR.services_by_name["VisionService"]

    async def info(self, timeout: float = CONNECT_S) -> VisionInfo:
        """GetInfo."""
        request = VisionServiceGetInfoRequest()
        reply = await self._first("GetInfo", request, VisionServiceGetInfoResponse, timeout)
        return vision_info(self.endpoint, reply.message)
