"""VisionService of the contract and its life. Torch is loaded by `load`: until then calls are told so at once."""

import asyncio
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import ServiceDescriptor

from zrelay.v1 import vision_pb2 as pb
from zrelay.v1.info_pb2 import QueueInfo
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.rpc import Context
from zrelay_shared.service import info as service_info
from zrelay_shared.service.lifecycle import Readiness, Service
from zrelay_shared.vision_fingerprint import ENGINES
from zrelay_shared.wire import Parcel
from zrelay_vision.config import VisionConfig
from zrelay_vision.features import features

if TYPE_CHECKING:
    from zrelay_vision.runtime import VisionRuntime


class VisionService(Service):
    """The servicer and its lifecycle."""

    descriptor: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["VisionService"]

    def __init__(self, config: VisionConfig | None = None) -> None:
        """Without a config there is no engine: prompts are conditioned with saved states alone."""
        self._config = config or VisionConfig()
        self._made: VisionRuntime | None = None
        self._readiness = Readiness("vision service")
        libraries = ("torch", "transformers", "tokenizers", "pillow", "grpcio")
        self._version = service_info.server_version("vision", libraries)

    async def load(self) -> None:
        """Loads torch, then the engines. Raises CheckpointError, FailedPrecondition."""
        await asyncio.to_thread(_import_handlers)
        from zrelay_vision.runtime import VisionRuntime

        self._made = VisionRuntime(self._config)
        await self._made.load()

    async def drain(self, grace_s: float) -> None:
        """Refuses new calls; returns when none runs, or after `grace_s`."""
        self._readiness.set_draining()
        if self._made is not None:
            await self._made.drain(grace_s)

    async def close(self) -> None:
        """Ends the threads."""
        if self._made is not None:
            await self._made.close()

    async def EncodeImages(
        self, parcel: Parcel[pb.EncodeImagesRequest], context: Context
    ) -> Parcel[pb.EncodeImagesResponse]:
        """Encodes images with one of the engines, all or none."""
        runtime = self._runtime()
        from zrelay_vision import handlers

        return await handlers.encode(runtime, parcel)

    async def ConditionPrompt(
        self, parcel: Parcel[pb.ConditionPromptRequest], context: Context
    ) -> Parcel[pb.ConditionPromptResponse]:
        """Blends an image's states into a prompt."""
        runtime = self._runtime()
        from zrelay_vision import handlers

        return await handlers.condition(runtime, parcel)

    async def ScoreImages(self, parcel: Parcel[pb.ScoreImagesRequest], context: Context) -> pb.ScoreImagesResponse:
        """Scores how well texts describe images."""
        runtime = self._runtime()
        from zrelay_vision import handlers

        return await handlers.score(runtime, parcel)

    async def GetInfo(self, parcel: Parcel[Any], context: Context) -> pb.VisionServiceGetInfoResponse:
        """What this vision service is; answers while it loads."""
        config, made = self._config, self._made
        siglip = made.siglip if made is not None else None
        listed = features(
            config,
            can_score=config.siglip is not None and (siglip is None or siglip.can_score),
            calibrations=len(made.references.digests) if made is not None else 0,
        )
        folders = {"siglip": config.siglip, "qwen3_vl": config.qwen3_vl}
        info = pb.VisionServiceGetInfoResponse(
            version=self._version,
            ready=made is not None and made.ready,
            engines=[
                pb.VisionEngineInfo(engine=ENGINES[name]) for name, folder in folders.items() if folder is not None
            ],
            features=service_info.features(listed),
            queue=QueueInfo(max_waiting=config.max_waiting),
            max_images=config.max_images,
            max_image_bytes=config.max_image_bytes,
            max_image_pixels=config.max_image_pixels,
            max_message_bytes=MAX_MESSAGE_BYTES,
        )
        if made is not None:
            from zrelay_vision import handlers

            await handlers.describe(made, info)
        return info

    def _runtime(self) -> "VisionRuntime":
        """Raises ModelLoading, Draining."""
        if self._made is None:
            self._readiness.check()
            raise RuntimeError("vision service: expected a runtime, got none")
        return self._made


def _import_handlers() -> None:
    """Torch takes seconds to load; in a thread, health and GetInfo are answered meanwhile."""
    from zrelay_vision import handlers  # noqa: F401
