"""The far ends: one object for each service, which owns its channel and its stub."""

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from zrelay.v1 import encoder_pb2, vision_pb2
from zrelay.v1.encoder_pb2 import (
    EncodePromptsRequest,
    EncodePromptsResponse,
    EncoderServiceGetInfoRequest,
    EncoderServiceGetInfoResponse,
)
from zrelay.v1.vision_pb2 import (
    ConditionPromptRequest,
    ConditionPromptResponse,
    EncodeImagesRequest,
    EncodeImagesResponse,
    ScoreImagesRequest,
    ScoreImagesResponse,
    VisionServiceGetInfoRequest,
    VisionServiceGetInfoResponse,
)
from zrelay_client import _health
from zrelay_client._budget import CONNECT_S
from zrelay_client._endpoints import parse_endpoint
from zrelay_client._info import EncoderInfo, VisionInfo
from zrelay_client._info_replies import encoder_info, vision_info
from zrelay_shared.channels import dial
from zrelay_shared.errors import DeadlineExceeded, Unavailable
from zrelay_shared.rpc import M, Response, Stub
from zrelay_shared.wire import Parcel


class ServiceStub:
    """A channel to one service. Made inside the event loop that uses it."""

    role: str
    descriptor: ServiceDescriptor

    def __init__(self, endpoint: str) -> None:
        self.endpoint = parse_endpoint(self.role, endpoint)
        self._channel: grpc.aio.Channel = dial(self.endpoint)
        self.stub = Stub(self._channel, self.descriptor, self.endpoint)

    async def serving(self, timeout: float = CONNECT_S) -> bool:
        """Whether it is ready, by its health service."""
        return await _health.serving(self._channel, role=self.role, endpoint=self.endpoint, timeout=timeout)

    async def close(self) -> None:
        """Ends the channel."""
        await self._channel.close()

    async def first(self, method: str, request: Response, response_type: type[M], timeout: float) -> Parcel[M]:
        """A call that only asks whether and what somebody is there, so it may not take long."""
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


class EncoderService(ServiceStub):
    """The encoder."""

    role = "encoder"
    descriptor = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"]

    async def info(self, timeout: float = CONNECT_S) -> EncoderInfo:
        """GetInfo."""
        request = EncoderServiceGetInfoRequest()
        reply = await self.first("GetInfo", request, EncoderServiceGetInfoResponse, timeout)
        return encoder_info(self.endpoint, reply.message)

    async def encode(self, request: EncodePromptsRequest, timeout: float) -> Parcel[EncodePromptsResponse]:
        """EncodePrompts."""
        return await self.stub.call("EncodePrompts", request, EncodePromptsResponse, timeout=timeout)


class VisionService(ServiceStub):
    """The vision service."""

    role = "vision"
    descriptor = vision_pb2.DESCRIPTOR.services_by_name["VisionService"]

    async def info(self, timeout: float = CONNECT_S) -> VisionInfo:
        """GetInfo."""
        request = VisionServiceGetInfoRequest()
        reply = await self.first("GetInfo", request, VisionServiceGetInfoResponse, timeout)
        return vision_info(self.endpoint, reply.message)

    async def encode_images(self, request: EncodeImagesRequest, timeout: float) -> Parcel[EncodeImagesResponse]:
        """EncodeImages."""
        return await self.stub.call("EncodeImages", request, EncodeImagesResponse, timeout=timeout)

    async def score_images(self, request: ScoreImagesRequest, timeout: float) -> ScoreImagesResponse:
        """ScoreImages."""
        return (await self.stub.call("ScoreImages", request, ScoreImagesResponse, timeout=timeout)).message

    async def condition(
        self, request: Parcel[ConditionPromptRequest], timeout: float
    ) -> Parcel[ConditionPromptResponse]:
        """ConditionPrompt."""
        return await self.stub.call("ConditionPrompt", request, ConditionPromptResponse, timeout=timeout)
