"""Loads the engines, and admits calls to the threads: one decodes images, one runs the models."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch

from zrelay_shared import torch_devices
from zrelay_shared.callers import current_caller
from zrelay_shared.service.decoding import LARGE_PIXELS
from zrelay_shared.service.lifecycle import Readiness
from zrelay_shared.service.torch_memory import compute_dtype, plan_memory
from zrelay_shared.service.worker import serving_threads
from zrelay_vision.conditioning.reference import ReferenceSets, open_reference_sets
from zrelay_vision.config import VisionConfig
from zrelay_vision.engines import EngineKind, ImageEngine, engine_missing
from zrelay_vision.images.store import DecodedImage, ImageRef, ImageStore, StoredImage
from zrelay_vision.worker import VisionWorker

if TYPE_CHECKING:  # transformers takes seconds to import, and a service without engines does not need it
    from zrelay_vision.qwen3_vl.engine import Qwen3VLEngine
    from zrelay_vision.siglip.engine import SiglipEngine

    Loaded: TypeAlias = tuple[ReferenceSets, SiglipEngine | None, Qwen3VLEngine | None, torch.device | None]

log = logging.getLogger(__name__)
CancelCheck: TypeAlias = Callable[[], bool]
"""Returns whether the caller cancelled the call."""


class VisionRuntime:
    """The configured engines and the threads they run on. Used from one event loop, which it never blocks.

    Attributes:
        config: The settings.
        worker: The threads, and the queue in front of them.
        references: Reference statistics of encoders.
        qwen3_vl: The Qwen3-VL engine, None until it is loaded or if it is not configured.
        siglip: The SigLIP2 engine, likewise.
        device: Where the engines compute, None without engines.
    """

    def __init__(self, config: VisionConfig) -> None:
        self.config = config
        self.worker = VisionWorker(
            config.max_waiting,
            lambda: torch.set_num_threads(serving_threads(config.threads)),
            share_percent=config.caller_share,
        )
        self.references: ReferenceSets = open_reference_sets(None)
        self.qwen3_vl: Qwen3VLEngine | None = None
        self.siglip: SiglipEngine | None = None
        self.device: torch.device | None = None
        self._images = ImageStore(config.image_cache_bytes, config.max_image_pixels)
        self._large_decoded = False
        self._readiness = Readiness("vision service")

    @property
    def ready(self) -> bool:
        """Whether calls are accepted: all configured engines are loaded, and the service is not draining."""
        return self._readiness.ready

    @property
    def engines(self) -> tuple[ImageEngine, ...]:
        """The engines that are loaded."""
        return tuple(engine for engine in (self.siglip, self.qwen3_vl) if engine is not None)

    async def load(self) -> None:
        """Loads reference statistics and engines, and runs each engine once.

        Raises:
            CheckpointError: A checkpoint or a reference set is damaged.
            FailedPrecondition: The device or dtype is not available.
            OutOfMemory: The weights do not fit.
        """
        self.references, self.siglip, self.qwen3_vl, self.device = await self.worker.on_device(self._load)
        self._readiness.set_loaded()
        if not self.engines:
            log.warning("no engine: prompts can only be conditioned with saved states; give --qwen3-vl or --siglip")

    def _load(self) -> "Loaded":
        config = self.config
        references = open_reference_sets(config.reference_stats)
        siglip, qwen3_vl = None, None
        if config.siglip is None and config.qwen3_vl is None:
            return references, None, None, None
        device = torch_devices.pick_device(config.device)
        dtype = compute_dtype(plan_memory(config, device).dtype)
        if config.siglip is not None:
            from zrelay_vision.siglip.engine import SiglipEngine

            siglip = SiglipEngine(config.siglip, dtype)
        if config.qwen3_vl is not None:
            from zrelay_vision.qwen3_vl.engine import Qwen3VLEngine

            qwen3_vl = Qwen3VLEngine(config.qwen3_vl, config, dtype)
        for engine in (siglip, qwen3_vl):
            if engine is not None:
                engine.load(device, config.cache)
                engine.warm_up()
        return references, siglip, qwen3_vl, device

    def require_siglip(self, capability: str, field: str) -> "SiglipEngine":
        """Returns the SigLIP2 engine. Raises FeatureMissing, ModelLoading, Draining.

        Args:
            capability: What the request needs, for the refusal.
            field: Path of the request's field that needs it.
        """
        if self.config.siglip is None:
            raise engine_missing(EngineKind.SIGLIP, capability, field)
        self.check_ready()
        if self.siglip is None:
            raise RuntimeError("siglip: expected a loaded engine, got none")
        return self.siglip

    def require_qwen3_vl(self, capability: str, field: str) -> "Qwen3VLEngine":
        """Returns the Qwen3-VL engine. Arguments and errors as for `require_siglip`."""
        if self.config.qwen3_vl is None:
            raise engine_missing(EngineKind.QWEN3_VL, capability, field)
        self.check_ready()
        if self.qwen3_vl is None:
            raise RuntimeError("qwen3_vl: expected a loaded engine, got none")
        return self.qwen3_vl

    def check_ready(self) -> None:
        """Raises ModelLoading or Draining if calls are not accepted."""
        self._readiness.check()

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[CancelCheck]:
        """Waits until the worker admits the call; the `with` block is the call. Raises QueueFull.

        Yields:
            A function that returns whether the caller cancelled the call, for use in the threads.
        """
        cancelled = threading.Event()
        async with self.worker.turn():
            try:
                yield cancelled.is_set
            except asyncio.CancelledError:
                cancelled.set()
                raise
            finally:
                if self._large_decoded:
                    self._large_decoded = False
                    self.worker.give_back_memory()

    async def open(self, ref: ImageRef, cancelled: CancelCheck) -> tuple[StoredImage, DecodedImage | None]:
        """Finds an image of a request of the current caller. See `ImageStore.open`."""
        owner = current_caller().owner
        stored, image = await self.worker.on_images(lambda: self._images.open(ref, cancelled, owner))
        self._large_decoded |= stored.width * stored.height >= LARGE_PIXELS
        return stored, image

    def decoded(
        self, ref: ImageRef, stored: StoredImage, image: DecodedImage | None, cancelled: CancelCheck
    ) -> DecodedImage:
        """Returns `image`, or decodes the stored file if there is none. Runs in the thread for images."""
        return image if image is not None else self._images.decode(stored, ref.field, cancelled)

    async def drain(self, grace_s: float) -> None:
        """Refuses new calls. Returns when none is running, or after `grace_s` seconds."""
        self._readiness.set_draining()
        try:
            await asyncio.wait_for(self.worker.drained(), grace_s)
        except TimeoutError:
            return

    async def close(self) -> None:
        """Ends the threads. Waiting calls are discarded."""
        self._readiness.set_draining()
        await self.worker.close()
        self.qwen3_vl = self.siglip = None
