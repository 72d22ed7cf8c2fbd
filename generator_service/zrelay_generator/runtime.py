"""A loaded generator: device thread, writer and board, wired together."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from zrelay_generator.acceptance import Acceptance, acceptance
from zrelay_generator.board import HEARTBEAT_S, JobBoard
from zrelay_generator.config import GeneratorConfig, serving_threads
from zrelay_generator.device import DeviceThread
from zrelay_generator.engine import Engine, run_to_end
from zrelay_generator.events import EngineEvent, Event, Failed, ImagePixels, PreviewPixels
from zrelay_generator.identity import identify
from zrelay_generator.job import Job, JobSpec, Sampling
from zrelay_generator.loading import LoadedModel, load_model
from zrelay_generator.provenance import Painter
from zrelay_generator.schedule import shifted_schedule
from zrelay_generator.work import Speed
from zrelay_generator.writer import Writer
from zrelay_shared.checkpoints import model_id, open_pipeline
from zrelay_shared.paths import cache_dir
from zrelay_shared.torch_devices import DeviceReport, dtype_name, pick_device, pick_dtype, report, stored_dtype

log = logging.getLogger(__name__)
_WARM_UP_ROUNDS = 2
_WARM_UP_SIDE = 512


@dataclass(eq=False)
class Runtime:
    """What serves jobs. Built by `start`; `close` ends its threads."""

    accepts: Acceptance
    painter: Painter
    device_report: DeviceReport
    board: JobBoard
    device: DeviceThread
    writer: Writer
    heart: asyncio.Task[None] = field(init=False)

    async def close(self) -> None:
        self.heart.cancel()
        self.device.stop()
        await asyncio.to_thread(self.device.join, 60.0)
        await asyncio.to_thread(self.writer.close)


async def start(config: GeneratorConfig) -> Runtime:
    """Loads the model on the device thread and, beside it, hashes its files. Raises CheckpointError; FailedPrecondition
    for a device that is not here."""
    loop = asyncio.get_running_loop()
    device = pick_device(config.device)
    stored = stored_dtype(open_pipeline(config.model).component("transformer").weights)
    dtype, why = pick_dtype(config.dtype, device, stored)
    log.info("computing in %s on %s: %s", dtype_name(dtype), device.type, why)
    thread = DeviceThread(serving_threads(config.threads) if device.type == "cpu" else config.threads)
    speed = Speed()
    loaded: list[LoadedModel] = []
    router = _Router(loop)

    def load() -> Engine:
        loaded.append(load_model(config.model, device, dtype))
        _warm_up(loaded[0], speed, warm_up_side(device.type, config.min_side, loaded[0].defaults.width))
        return Engine(loaded[0], config.tick_tokens, speed, router.emit)

    ready = asyncio.wrap_future(thread.start(load))
    hashing = asyncio.to_thread(identify, config.model, model_id(config.model), cache_dir())
    try:
        _, identity = await asyncio.gather(ready, hashing)
    except BaseException:
        thread.stop()
        raise
    found = report(device)
    painter = Painter(identity.model_id, identity.transformer_digest, found.kind, dtype_name(dtype))
    board = JobBoard(config, speed, thread.add)
    router.publish = board.publish
    router.writer = writer = Writer(painter, router.from_thread)
    accepts = acceptance(config, loaded[0].limits, loaded[0].defaults, identity)
    runtime = Runtime(accepts, painter, found, board, thread, writer)
    runtime.heart = asyncio.create_task(_beat(runtime, device))
    return runtime


class _Router:
    """Brings events from the device's and the writer's threads to the event loop, pixels by way of the writer."""

    writer: Writer
    publish: Callable[[Job, Event], None]

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def emit(self, job: Job, event: EngineEvent) -> None:
        if isinstance(event, PreviewPixels | ImagePixels):
            self.writer.put(job, event)
        else:
            self.from_thread(job, event)

    def from_thread(self, job: Job, event: Event) -> None:
        self._loop.call_soon_threadsafe(self.publish, job, event)


def warm_up_side(device: str, min_side: int, default_width: int) -> int:
    """Pixels of a warm-up picture's side. On a CPU the least: time is in its pixels. On a GPU small pictures take the
    time of their launches, and estimates from them would be far too long; so up to 512, as the checkpoint paints."""
    return min_side if device == "cpu" else max(min_side, min(_WARM_UP_SIDE, default_width))


def _warm_up(model: LoadedModel, speed: Speed, side: int) -> None:
    """Small pictures, so that the first caller pays for no lazy initialisation and estimates have a ground.

    Raises what ended them: a model that cannot paint these is not served.
    """

    def emit(job: Job, event: EngineEvent) -> None:
        if isinstance(event, Failed):
            raise event.error

    engine = Engine(model, 1, speed, emit)
    multiple = model.limits.size_multiple
    side = -(-side // multiple) * multiple
    sampling = Sampling(side, side, 0.0, 0.0, 1.0, 1.0, shifted_schedule(2, 1.0), 0, 1)
    spec = JobSpec(torch.zeros(1, model.limits.embeds_width), None, sampling)
    for _ in range(_WARM_UP_ROUNDS):
        speed.forget()
        engine.add(Job("warm-up", spec, 0))
        run_to_end(engine)


async def _beat(runtime: Runtime, device: torch.device) -> None:
    """Tells the jobs that wait where they stand, and keeps the report of free memory fresh off the event loop."""
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        runtime.board.heartbeat()
        runtime.device_report = await asyncio.to_thread(report, device)
