"""A loaded generator: store, device thread, image writer, scheduler and job manager, wired together."""

import asyncio
import contextlib
import logging
import platform
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zrelay_generator.api.contents import DEFAULT_UPLOAD_LIMITS, UploadLimits, Uploads
from zrelay_generator.api.replies import accepted_bytes, is_related, related_bytes
from zrelay_generator.api.requests import RequestReader
from zrelay_generator.api.servicer import ServedModel
from zrelay_generator.cost.cache import CostCache
from zrelay_generator.engine.calibrate import calibrate, warm_up_side
from zrelay_generator.engine.device import DeviceThread
from zrelay_generator.engine.engine import StepEngine
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.events import EngineEvent, ImagePixels, PreviewPixels
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.features.acceptance import acceptance
from zrelay_generator.features.expected_encoder import ExpectedEncoder
from zrelay_generator.features.provenance import LoadedIdentity
from zrelay_generator.jobs.events import JobEvent
from zrelay_generator.jobs.image_writer import ImageWriter
from zrelay_generator.jobs.manager import DEFAULT_INTERVALS, Dependencies, Intervals, JobManager
from zrelay_generator.model.identity import Identity, hash_encoder, identify_loaded
from zrelay_generator.model.loading import LoadedModel, load_model
from zrelay_generator.scheduling.scheduler import Scheduler
from zrelay_generator.store.clock import SYSTEM_CLOCKS, SystemClocks
from zrelay_generator.store.protocol import JobStore
from zrelay_generator.store.retention import Retention
from zrelay_generator.store.sqlite import open_store
from zrelay_shared import descriptors
from zrelay_shared.checkpoints import model_id
from zrelay_shared.errors import Cancelled
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.paths import cache_dir
from zrelay_shared.service.decoding import DecodePool
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.service.torch_memory import compute_dtype, plan_memory, stored_dtype
from zrelay_shared.service.worker import lower_thread_priority, serving_threads
from zrelay_shared.torch_devices import DeviceReport, pick_device, report
from zrelay_shared.weight_files import WeightFiles

log = logging.getLogger(__name__)
LoadModel = Callable[[Path, torch.device, torch.dtype, torch.dtype], LoadedModel]
"""Loads the model of a pipeline folder; the dtypes are those of the computation and of the weights in memory. Raises
CheckpointError."""
MakeScheduler = Callable[[JobEstimator], Scheduler]
"""Makes the scheduler of a generator."""
ReportDevice = Callable[[torch.device], DeviceReport]
"""Describes a device and its free memory."""
HashEncoder = Callable[[EncoderFingerprint, WeightFiles, Callable[[], bool]], EncoderFingerprint]
"""Completes a fingerprint with the digest of the weights. Raises Cancelled once its last argument returns True."""
_IN_MEMORY_BYTES = 256 << 20


@dataclass(eq=False)
class GeneratorRuntime(ServedModel):
    """What serves jobs. Made by `start`; `close` ends its threads and lets the state folder go.

    Attributes:
        store: Where jobs are kept.
        device: The device thread.
        writer: Writes image files.
        pictures: Decodes the pictures of requests.
        expected: The encoder that belongs to the checkpoint.
        hashing: Computes the digest of that encoder's weights after the start, None if it was known.
        heartbeats: The task that sends heartbeats.
    """

    store: JobStore
    device: DeviceThread
    writer: ImageWriter
    pictures: DecodePool
    expected: ExpectedEncoder
    hashing: "EncoderHashing | None" = None
    heartbeats: asyncio.Task[None] = field(init=False)

    @property
    def problem(self) -> str:
        """Why jobs cannot be served at the moment; "" if nothing is wrong."""
        return self.device.problem or self.store.problem

    async def set_encoder(self, fingerprint: EncoderFingerprint) -> None:
        """Completes what the generator accepts, and releases the jobs that waited for it."""
        self.accepts = replace(self.accepts, encoder=fingerprint)
        await self.jobs.set_encoder(fingerprint)

    async def close(self) -> None:
        """Ends everything."""
        self.heartbeats.cancel()
        if self.hashing is not None:
            self.hashing.stop()
        await self.jobs.close()
        self.expected.close()  # the image writer may wait for it
        self.device.stop()
        await asyncio.to_thread(self.device.join, 60.0)
        await asyncio.to_thread(self.pictures.close)
        await asyncio.to_thread(self.writer.close)
        await asyncio.to_thread(self.store.close)


async def start(
    config: GeneratorConfig,
    load: LoadModel | None = None,
    intervals: Intervals = DEFAULT_INTERVALS,
    *,
    make_scheduler: MakeScheduler = Scheduler,
    report_device: ReportDevice = report,
    hash_weights: HashEncoder = hash_encoder,
    clocks: SystemClocks = SYSTEM_CLOCKS,
    upload_limits: UploadLimits = DEFAULT_UPLOAD_LIMITS,
) -> GeneratorRuntime:
    """Starts a generator: opens the state folder, loads and hashes the model, continues unfinished jobs.

    Args:
        config: The settings.
        load: Loads the model, None for `load_model` with the digests in the cache folder.
        intervals: Intervals of heartbeats, retries and leases.
        make_scheduler: Makes the scheduler.
        report_device: Describes the device, at the start and with every heartbeat.
        hash_weights: Computes the digest of the text encoder's weights after the start.
        clocks: The clocks of the system, for the order and the age of jobs.
        upload_limits: Limits of uploads.

    Raises:
        CheckpointError: The model folder cannot be used.
        FailedPrecondition: The device is missing, or the state folder cannot be used.
    """
    store = await asyncio.to_thread(open_store, config.state, retention(config), clocks)
    if not store.durable:
        log.warning("jobs are kept in memory alone (--state none): they are lost when this process ends")
    try:
        load = load or partial(load_model, cache=cache_dir())
        return await _start(config, store, load, intervals, make_scheduler, report_device, hash_weights, upload_limits)
    except BaseException:
        await asyncio.to_thread(store.close)
        raise


def retention(config: GeneratorConfig) -> Retention:
    """Returns the limits of what the store keeps; for a store in memory, the byte limits are lower."""
    most = _IN_MEMORY_BYTES if config.state is None else max(config.keep_results_bytes, config.keep_contents_bytes)
    return Retention(
        results_s=config.keep_results_s,
        results=config.keep_results,
        result_bytes=min(most, config.keep_results_bytes),
        content_bytes=min(most, config.keep_contents_bytes),
    )


async def _start(
    config: GeneratorConfig,
    store: JobStore,
    load_from: LoadModel,
    intervals: Intervals,
    make_scheduler: MakeScheduler,
    report_device: ReportDevice,
    hash_weights: HashEncoder,
    upload_limits: UploadLimits,
) -> GeneratorRuntime:
    loop = asyncio.get_running_loop()
    device = pick_device(config.device)
    plan = await asyncio.to_thread(plan_memory, config, device)
    dtype = compute_dtype(plan.dtype)
    estimator = JobEstimator()
    scheduler = make_scheduler(estimator)
    loaded: list[tuple[LoadedModel, Identity]] = []
    router = _EventRouter(loop)
    threads = serving_threads(config.threads) if device.type == "cpu" else config.threads
    thread = DeviceThread(threads, router.device_ended)

    def load() -> StepEngine:
        model = load_from(config.model, device, dtype, stored_dtype(plan.dtype))
        identity = identify_loaded(
            config.model, model_id(config.model), cache_dir(), model.weights_digests, model.configurations
        )
        loaded.append((model, identity))
        side = warm_up_side(device.type, config.min_side, model.defaults.width)
        calibrate(
            model, estimator.cost, side, _cost_cache(identity, plan.dtype, side) if device.type == "cpu" else None
        )
        selector = scheduler.selector
        return StepEngine(
            model,
            plan.tick_tokens,
            estimator,
            selector.select,
            router.emit,
            completed=selector.completed,
            changed=thread.wake,
        )

    try:
        await asyncio.wrap_future(thread.start(load))
    except BaseException:
        thread.stop()
        raise
    model, identity = loaded[0]
    found = report_device(device)
    loaded_identity = LoadedIdentity(
        identity.model_id,
        identity.transformer_digest,
        identity.vae_digest,
        identity.configuration_digest,
        found.kind,
        plan.dtype,
    )
    accepts = acceptance(config, model.limits, model.defaults, identity)
    # Other processes may take the memory of a host, and the kernel kills a process that takes more than is left; a
    # device refuses instead.
    idle_bytes = found.memory_free_bytes if device.type != "cpu" else 0
    most_bytes = plan.room_bytes if config.memory_budget_bytes is not None else None
    pictures = DecodePool()
    requests = RequestReader(
        accepts,
        store,
        lambda spec: estimator.check_fits(spec, device, idle_bytes, most_bytes),
        pictures,
        most_bytes,
    )
    expected = ExpectedEncoder(identity.encoder if identity.pending is None else None)
    dependencies = Dependencies(
        store,
        estimator,
        scheduler,
        thread.add,
        requests.load,
        partial(accepted_bytes, expected),
        identity.image_digest,
        intervals,
        expected,
        is_related,
        related_bytes,
    )
    jobs = JobManager(config, dependencies)
    router.publish, router.device_lost = jobs.publish, jobs.device_lost
    router.writer = writer = ImageWriter(loaded_identity, expected, router.from_thread)
    runtime = GeneratorRuntime(
        accepts=accepts,
        loaded=loaded_identity,
        requests=requests,
        uploads=Uploads(store, upload_limits),
        jobs=jobs,
        cost=estimator.cost,
        device_report=found,
        store=store,
        device=thread,
        writer=writer,
        pictures=pictures,
        expected=expected,
    )
    restored = await jobs.restore()
    if restored:
        log.info("continuing %d unfinished jobs", restored)
    if identity.pending is not None:
        runtime.hashing = EncoderHashing(identity.encoder, identity.pending, hash_weights, runtime.set_encoder)
    runtime.heartbeats = asyncio.create_task(_heartbeats(runtime, lambda: report_device(device), intervals))
    return runtime


def _cost_cache(identity: Identity, dtype: str, side: int) -> CostCache:
    """Returns the cache of what a CPU's measurements depend on. Called in the thread that computes."""
    machine = (platform.node(), report(torch.device("cpu")).name, str(torch.get_num_threads()), torch.__version__)
    return CostCache(cache_dir(), (identity.image_digest, dtype, str(side), *machine))


class EncoderHashing:
    """Hashes the text encoder's weights in a thread of low priority. Only the comparison of encoders needs them."""

    def __init__(
        self,
        encoder: EncoderFingerprint,
        weights: WeightFiles,
        hash_weights: HashEncoder,
        done: Callable[[EncoderFingerprint], Coroutine[Any, Any, None]],
    ) -> None:
        """Starts the thread.

        Args:
            encoder: The fingerprint so far.
            weights: The text encoder's weights.
            hash_weights: Computes the digest.
            done: Receives the complete fingerprint, on the event loop.
        """
        self._loop, self._stopped = asyncio.get_running_loop(), threading.Event()
        self._hash, self._done = hash_weights, done
        # A daemon: storage that hangs must not keep the process from ending.
        thread = threading.Thread(target=self._run, args=(encoder, weights), name="encoder-digest", daemon=True)
        thread.start()

    def stop(self) -> None:
        """Ends the thread after the present chunk. The fingerprint is not completed."""
        self._stopped.set()

    def _run(self, encoder: EncoderFingerprint, weights: WeightFiles) -> None:
        lower_thread_priority()
        started = time.monotonic()
        try:
            fingerprint = self._hash(encoder, weights, self._stopped.is_set)
        except Cancelled:
            return
        except Exception:  # the jobs must not wait forever
            log.exception("the digest of the text encoder's weights cannot be computed")
            fingerprint = encoder
        log.info("identified the text encoder after %.0f s", time.monotonic() - started)
        with contextlib.suppress(RuntimeError):  # the event loop has ended, and the process with it
            asyncio.run_coroutine_threadsafe(self._done(fingerprint), self._loop)


class _EventRouter:
    """Brings events from the device's and the writer's threads to the event loop; pixels pass through the writer."""

    writer: ImageWriter
    publish: Callable[[DeviceJob, JobEvent], None]
    device_lost: Callable[[list[str]], None]

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def emit(self, job: DeviceJob, event: EngineEvent) -> None:
        if isinstance(event, PreviewPixels | ImagePixels):
            self.writer.put(job, event)
        else:
            self.from_thread(job, event)

    def device_ended(self, suspects: list[str]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended, and the process with it
            self._loop.call_soon_threadsafe(self.device_lost, suspects)

    def from_thread(self, job: DeviceJob, event: JobEvent) -> None:
        self._loop.call_soon_threadsafe(self.publish, job, event)


async def _heartbeats(runtime: GeneratorRuntime, report_now: Callable[[], DeviceReport], intervals: Intervals) -> None:
    """Sends heartbeats to watchers, applies the limits of the store, and refreshes the report of free memory."""
    beats, beats_to_retain = 0, max(1, round(intervals.retain_s / intervals.heartbeat_s))
    while True:
        await asyncio.sleep(intervals.heartbeat_s)
        try:
            await runtime.jobs.heartbeat()
            if (beats := beats + 1) % beats_to_retain == 0:
                await runtime.jobs.recover()
            runtime.device_report = await asyncio.to_thread(report_now)
        except Exception as error:  # a device that cannot be queried must not end what watchers and the disk depend on
            if descriptors.exhausted(error):
                log.warning("the device's memory cannot be read: no file descriptor is free")
            else:
                log.exception("a heartbeat failed")
