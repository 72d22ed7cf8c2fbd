"""A loaded generator: device thread, writer and board, wired together."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from zrelay_generator.api.contents import Uploads
from zrelay_generator.api.replies import accepted_bytes
from zrelay_generator.api.requests import RequestReader
from zrelay_generator.cost.model import Speed, check_fits
from zrelay_generator.engine.calibrate import calibrate, warm_up_side
from zrelay_generator.engine.device import DeviceThread
from zrelay_generator.engine.engine import Engine
from zrelay_generator.engine.events import EngineEvent, Event, ImagePixels, PreviewPixels
from zrelay_generator.engine.job import Job
from zrelay_generator.features.acceptance import Acceptance, acceptance
from zrelay_generator.features.provenance import LoadedIdentity
from zrelay_generator.jobs.board import HEARTBEAT_S, JobBoard, Surroundings
from zrelay_generator.jobs.image_writer import Writer
from zrelay_generator.model.identity import identify
from zrelay_generator.model.loading import LoadedModel, load_model
from zrelay_generator.settings import GeneratorConfig, serving_threads
from zrelay_generator.store.retention import Retention
from zrelay_generator.store.store import JobStore, open_store
from zrelay_shared.checkpoints import model_id, open_pipeline
from zrelay_shared.paths import cache_dir
from zrelay_shared.torch_devices import DeviceReport, dtype_name, pick_device, pick_dtype, report, stored_dtype

log = logging.getLogger(__name__)
LoadModel = Callable[[Path, torch.device, torch.dtype], LoadedModel]
"""Makes the model of a pipeline folder. Raises CheckpointError."""
_RETAIN_EVERY = 5
"""Heart-beats between two looks at what is to be let go."""
_IN_MEMORY_BYTES = 256 << 20


@dataclass(eq=False)
class Runtime:
    """What serves jobs. Built by `start`; `close` ends its threads and lets the state folder go."""

    accepts: Acceptance
    loaded: LoadedIdentity
    device_report: DeviceReport
    store: JobStore
    requests: RequestReader
    uploads: Uploads
    board: JobBoard
    device: DeviceThread
    speed: Speed
    writer: Writer
    heart: asyncio.Task[None] = field(init=False)

    async def close(self) -> None:
        self.heart.cancel()
        await self.board.close()
        self.device.stop()
        await asyncio.to_thread(self.device.join, 60.0)
        await asyncio.to_thread(self.writer.close)
        await asyncio.to_thread(self.store.close)


async def start(config: GeneratorConfig, load: LoadModel = load_model) -> Runtime:
    """Opens the state folder, loads the model on the device thread and, beside it, hashes its files; goes on with the
    jobs that were left. Raises CheckpointError; FailedPrecondition for a device that is not here, and for a state
    folder that cannot be used."""
    store = await asyncio.to_thread(open_store, config.state, retention(config))
    if not store.durable:
        log.warning("jobs are kept in memory alone (--state none): they are lost when this process ends")
    try:
        return await _start(config, store, load)
    except BaseException:
        await asyncio.to_thread(store.close)
        raise


def retention(config: GeneratorConfig) -> Retention:
    """What the store keeps; in memory at most a share of it."""
    most = _IN_MEMORY_BYTES if config.state is None else max(config.keep_results_bytes, config.keep_contents_bytes)
    return Retention(
        results_s=config.keep_results_s,
        results=config.keep_results,
        result_bytes=min(most, config.keep_results_bytes),
        content_bytes=min(most, config.keep_contents_bytes),
    )


async def _start(config: GeneratorConfig, store: JobStore, load_from: LoadModel) -> Runtime:
    loop = asyncio.get_running_loop()
    device = pick_device(config.device)
    stored = stored_dtype(open_pipeline(config.model).component("transformer").weights)
    dtype, why = pick_dtype(config.dtype, device, stored)
    log.info("computing in %s on %s: %s", dtype_name(dtype), device.type, why)
    speed = Speed()
    loaded: list[LoadedModel] = []
    router = _Router(loop)
    thread = DeviceThread(serving_threads(config.threads) if device.type == "cpu" else config.threads, router.lost)

    def load() -> Engine:
        loaded.append(load_from(config.model, device, dtype))
        calibrate(loaded[0], speed, warm_up_side(device.type, config.min_side, loaded[0].defaults.width))
        return Engine(loaded[0], config.tick_tokens, speed, router.emit, changed=thread.wake)

    ready = asyncio.wrap_future(thread.start(load))
    hashing = asyncio.to_thread(identify, config.model, model_id(config.model), cache_dir())
    try:
        _, identity = await asyncio.gather(ready, hashing)
    except BaseException:
        thread.stop()
        raise
    found = report(device)
    loaded_identity = LoadedIdentity(
        identity.model_id, identity.transformer_digest, identity.vae_digest, found.kind, dtype_name(dtype)
    )
    accepts = acceptance(config, loaded[0].limits, loaded[0].defaults, identity)
    # A host may be given away meanwhile, and kills who takes more than it has; a device says no.
    idle_bytes = found.memory_free_bytes if device.type != "cpu" else 0
    requests = RequestReader(accepts, store, lambda spec: check_fits(spec, speed, device, idle_bytes))
    around = Surroundings(store, speed, thread.add, requests.load, accepted_bytes, identity.image_digest)
    board = JobBoard(config, around)
    router.publish, router.give_up = board.publish, board.lost
    router.writer = writer = Writer(loaded_identity, router.from_thread)
    runtime = Runtime(accepts, loaded_identity, found, store, requests, Uploads(store), board, thread, speed, writer)
    restored = await board.restore()
    if restored:
        log.info("going on with %d jobs that were left", restored)
    runtime.heart = asyncio.create_task(_beat(runtime, device))
    return runtime


class _Router:
    """Brings events from the device's and the writer's threads to the event loop, pixels by way of the writer."""

    writer: Writer
    publish: Callable[[Job, Event], None]
    give_up: Callable[[list[str]], None]

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def emit(self, job: Job, event: EngineEvent) -> None:
        if isinstance(event, PreviewPixels | ImagePixels):
            self.writer.put(job, event)
        else:
            self.from_thread(job, event)

    def lost(self, suspects: list[str]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended, and the process with it
            self._loop.call_soon_threadsafe(self.give_up, suspects)

    def from_thread(self, job: Job, event: Event) -> None:
        self._loop.call_soon_threadsafe(self.publish, job, event)


async def _beat(runtime: Runtime, device: torch.device) -> None:
    """Tells the jobs that wait where they stand, and keeps the report of free memory fresh off the event loop."""
    beats = 0
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        try:
            await runtime.board.heartbeat()
            if (beats := beats + 1) % _RETAIN_EVERY == 0:
                await runtime.board.recover()
            runtime.device_report = await asyncio.to_thread(report, device)
        except Exception:  # a device that cannot even be asked must not end what keeps callers and the disk informed
            log.exception("a heart-beat failed")
