"""VisionService of the contract, in its first form: it says what it is, and refuses what it does not do yet."""

from typing import Any, Never

from google.protobuf.descriptor import ServiceDescriptor

from zrelay.v1 import vision_pb2
from zrelay.v1.info_pb2 import Feature, ServerVersion
from zrelay.v1.vision_pb2 import VisionServiceGetInfoResponse
from zrelay_shared import __version__, serving
from zrelay_shared.errors import FeatureMissing
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.rpc import Context
from zrelay_shared.wire import Parcel

_WHY = "this version of the vision service has no engine yet"
_FEATURES = {"EncodeImages": "vision.encode", "ConditionPrompt": "vision.condition", "ScoreImages": "vision.score"}


class VisionService:
    """Answers GetInfo; everything else is refused with FEATURE_MISSING until its engines exist."""

    descriptor: ServiceDescriptor = vision_pb2.DESCRIPTOR.services_by_name["VisionService"]

    async def load(self) -> None:
        """There is nothing to load: the service is never ready for work, and says so in GetInfo."""

    async def drain(self, grace_s: float) -> None:
        """Nothing runs."""

    async def close(self) -> None:
        """Nothing is held."""

    async def GetInfo(self, parcel: Parcel[Any], context: Context) -> VisionServiceGetInfoResponse:
        """Version and features, all of them unavailable."""
        return VisionServiceGetInfoResponse(
            version=ServerVersion(
                service="vision",
                version=__version__,
                contract="v1",
                libraries=serving.libraries(["grpcio", "protobuf"]),
            ),
            ready=False,
            features=[Feature(name=name, available=False, note=_WHY) for name in _FEATURES.values()],
            max_message_bytes=MAX_MESSAGE_BYTES,
        )

    async def EncodeImages(self, parcel: Parcel[Any], context: Context) -> Never:
        """Refused."""
        _refuse("EncodeImages")

    async def ConditionPrompt(self, parcel: Parcel[Any], context: Context) -> Never:
        """Refused."""
        _refuse("ConditionPrompt")

    async def ScoreImages(self, parcel: Parcel[Any], context: Context) -> Never:
        """Refused."""
        _refuse("ScoreImages")


def _refuse(method: str) -> Never:
    raise FeatureMissing(
        f"{method}: {_WHY}; GetInfo lists what a server does. Leave reference images out of the request",
        metadata={"feature": _FEATURES[method]},
    )
