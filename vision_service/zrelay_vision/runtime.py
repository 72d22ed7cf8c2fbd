"""The engines behind their queue: loads in the background, decodes in one thread, computes in another."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch

from zrelay_shared import torch_devices
from zrelay_shared.service.lifecycle import Readiness
from zrelay_shared.service.worker import serving_threads
from zrelay_vision.config import VisionConfig
from zrelay_vision.engines import Engine, EngineKind
from zrelay_vision.features import engine_missing
from zrelay_vision.images import Picture
from zrelay_vision.picture_store import ImageRef, PictureStore, StoredPicture
from zrelay_vision.reference_stats import ReferenceSets, open_reference_sets
from zrelay_vision.worker import VisionWorker

if TYPE_CHECKING:  # transformers takes seconds to load, and not every service needs it: `_load` does
    from zrelay_vision.qwen import Qwen3VLEngine
    from zrelay_vision.siglip import SiglipEngine

    Loaded: TypeAlias = tuple[ReferenceSets, SiglipEngine | None, Qwen3VLEngine | None, torch.device | None]

log = logging.getLogger(__name__)
Gone: TypeAlias = Callable[[], bool]
"""Whether the caller went away."""


class VisionRuntime:
    """Whichever engines were asked for, one device thread. Used from one event loop; it never blocks it."""

    def __init__(self, config: VisionConfig) -> None:
        self.config = config
        self.worker = VisionWorker(config.max_waiting, lambda: torch.set_num_threads(serving_threads(config.threads)))
        self.references: ReferenceSets = open_reference_sets(None)
        self.qwen3_vl: Qwen3VLEngine | None = None
        self.siglip: SiglipEngine | None = None
        self.device: torch.device | None = None
        self._pictures = PictureStore(config.image_cache_bytes, config.max_image_pixels)
        self._readiness = Readiness("vision service")

    @property
    def ready(self) -> bool:
        """Whether calls are taken: what the process was started with is loaded, and it is not draining."""
        return self._readiness.ready

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Those that are loaded."""
        return tuple(engine for engine in (self.siglip, self.qwen3_vl) if engine is not None)

    async def load(self) -> None:
        """Reference statistics, then each engine, and one small run. Raises CheckpointError, FailedPrecondition."""
        self.references, self.siglip, self.qwen3_vl, self.device = await self.worker.on_device(self._load)
        self._readiness.set_loaded()
        if not self.engines:
            log.warning("no engine: prompts are conditioned with saved states alone; give --qwen3-vl or --siglip")

    def _load(self) -> "Loaded":
        config = self.config
        references = open_reference_sets(config.reference_stats)
        siglip, qwen3_vl, device = None, None, None
        if config.siglip is not None:
            from zrelay_vision.siglip import SiglipEngine

            siglip = SiglipEngine(config.siglip, config.dtype)
        if config.qwen3_vl is not None:
            from zrelay_vision.qwen import Qwen3VLEngine

            qwen3_vl = Qwen3VLEngine(config.qwen3_vl, config)
        for engine in (siglip, qwen3_vl):
            if engine is not None:
                device = torch_devices.pick_device(config.device)
                engine.load(device, config.cache)
                engine.warm_up()
        return references, siglip, qwen3_vl, device

    def needs_siglip(self, feature: str, field: str) -> "SiglipEngine":
        """The SigLIP2 engine. Raises FeatureMissing, ModelLoading, Draining."""
        if self.config.siglip is None:
            raise engine_missing(EngineKind.SIGLIP, feature, field)
        self.check_ready()
        if self.siglip is None:
            raise RuntimeError("siglip: expected a loaded engine, got none")
        return self.siglip

    def needs_qwen3_vl(self, feature: str, field: str) -> "Qwen3VLEngine":
        """The Qwen3-VL engine. Raises FeatureMissing, ModelLoading, Draining."""
        if self.config.qwen3_vl is None:
            raise engine_missing(EngineKind.QWEN3_VL, feature, field)
        self.check_ready()
        if self.qwen3_vl is None:
            raise RuntimeError("qwen3_vl: expected a loaded engine, got none")
        return self.qwen3_vl

    def check_ready(self) -> None:
        """Raises ModelLoading, Draining."""
        self._readiness.check()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Gone]:
        """The block of one call, with what tells the threads that its caller went away. Raises QueueFull."""
        gone = threading.Event()
        async with self.worker.turn():
            try:
                yield gone.is_set
            except asyncio.CancelledError:
                gone.set()
                raise

    async def open(self, ref: ImageRef) -> tuple[StoredPicture, Picture | None]:
        """What an image of a call is; its pixels too where they had to be decoded to know it.

        Raises InvalidArgument, NotFound.
        """
        return await self.worker.on_images(lambda: self._pictures.open(ref))

    def pixels(self, ref: ImageRef, stored: StoredPicture, picture: Picture | None) -> Picture:
        """The pixels of what `open` gave, decoded now where they are not there. For the thread of images."""
        return picture if picture is not None else self._pictures.picture(stored, ref.field)

    async def drain(self, grace_s: float) -> None:
        """No new calls from now on; returns when none runs, or after `grace_s`."""
        self._readiness.set_draining()
        try:
            await asyncio.wait_for(self.worker.drained(), grace_s)
        except TimeoutError:
            return

    async def close(self) -> None:
        """Ends the threads; what waits is dropped."""
        self._readiness.set_draining()
        await self.worker.close()
        self.qwen3_vl = self.siglip = None
