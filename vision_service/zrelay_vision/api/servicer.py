"""The servicer of VisionService. `load` imports torch; until then GetInfo answers and other calls are refused."""

import asyncio
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import ServiceDescriptor

from zrelay.v1 import vision_pb2 as pb
from zrelay.v1.info_pb2 import QueueInfo
from zrelay_shared.receiving import largest_request
from zrelay_shared.rpc import Context
from zrelay_shared.service.info import connection_info, server_version
from zrelay_shared.service.lifecycle import Readiness, Service
from zrelay_shared.vision_fingerprint import ENGINES
from zrelay_shared.wire import Parcel
from zrelay_vision.api.capabilities import capabilities
from zrelay_vision.config import VisionConfig

if TYPE_CHECKING:
    from zrelay_vision.runtime import VisionRuntime


class VisionServicer(Service):
    """Implements VisionService of the contract, with its lifecycle.

    Attributes:
        runtime: What answers the calls, None until torch is imported.
    """

    descriptor: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["VisionService"]

    def __init__(self, config: VisionConfig | None = None) -> None:
        """Without a config there is no engine, and prompts can only be conditioned with saved states."""
        self._config = config or VisionConfig()
        self.runtime: VisionRuntime | None = None
        self._readiness = Readiness("vision service")
        self._version = server_version("vision", ("torch", "transformers", "tokenizers", "pillow", "grpcio"))

    async def load(self) -> None:
        """Imports torch, then loads the engines. Raises CheckpointError, FailedPrecondition, OutOfMemory."""
        await asyncio.to_thread(_import_handlers)
        from zrelay_vision.runtime import VisionRuntime

        self.runtime = VisionRuntime(self._config)
        await self.runtime.load()

    async def drain(self, grace_s: float) -> None:
        """Refuses new calls. Returns when none is running, or after `grace_s` seconds."""
        self._readiness.set_draining()
        if self.runtime is not None:
            await self.runtime.drain(grace_s)

    async def close(self) -> None:
        """Ends the threads."""
        if self.runtime is not None:
            await self.runtime.close()

    async def EncodeImages(
        self, parcel: Parcel[pb.EncodeImagesRequest], context: Context
    ) -> Parcel[pb.EncodeImagesResponse]:
        """Encodes images with one of the engines, all or none."""
        runtime = self._require_runtime()
        from zrelay_vision.api import handlers

        return await handlers.encode(runtime, parcel)

    async def ConditionPrompt(
        self, parcel: Parcel[pb.ConditionPromptRequest], context: Context
    ) -> Parcel[pb.ConditionPromptResponse]:
        """Blends an image's states into a prompt."""
        runtime = self._require_runtime()
        from zrelay_vision.api import handlers

        return await handlers.condition(runtime, parcel)

    async def ScoreImages(self, parcel: Parcel[pb.ScoreImagesRequest], context: Context) -> pb.ScoreImagesResponse:
        """Scores how well texts describe images."""
        runtime = self._require_runtime()
        from zrelay_vision.api import handlers

        return await handlers.score(runtime, parcel)

    async def GetInfo(self, parcel: Parcel[Any], context: Context) -> pb.VisionServiceGetInfoResponse:
        """Describes this vision service. Answers while the models load."""
        config, runtime = self._config, self.runtime
        siglip = runtime.siglip if runtime is not None else None
        listed = capabilities(
            config,
            can_score=config.siglip is not None and (siglip is None or siglip.can_score),
            calibrations=len(runtime.references.digests) if runtime is not None else 0,
        )
        folders = {"siglip": config.siglip, "qwen3_vl": config.qwen3_vl}
        info = pb.VisionServiceGetInfoResponse(
            version=self._version,
            ready=runtime is not None and runtime.ready,
            engines=[
                pb.VisionEngineInfo(engine=ENGINES[name]) for name, folder in folders.items() if folder is not None
            ],
            features=listed,
            queue=QueueInfo(max_waiting=config.max_waiting),
            max_images=config.max_images,
            max_image_bytes=config.max_image_bytes,
            max_image_pixels=config.max_image_pixels,
            max_message_bytes=largest_request(self.descriptor),
            connection=connection_info(),
        )
        if runtime is not None:
            from zrelay_vision.api import handlers

            await handlers.describe(runtime, info)
        return info

    def _require_runtime(self) -> "VisionRuntime":
        """Returns the runtime. Raises ModelLoading, Draining."""
        if self.runtime is None:
            self._readiness.check()
            raise RuntimeError("vision service: expected a runtime, got none")
        return self.runtime


def _import_handlers() -> None:
    """Imports torch, which takes seconds. In a thread, health and GetInfo are answered meanwhile."""
    from zrelay_vision.api import handlers  # noqa: F401
