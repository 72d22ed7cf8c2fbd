"""The step engine: each tick selects work, runs it once, advances the jobs it contains, and reports what happened.

It is single-threaded: the device thread owns it, tests call it directly. It knows no caller and no feature by name.
The function `select` decides which work a tick does.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence

import torch

from zrelay_generator.cost.model import Size
from zrelay_generator.engine.decoding import DecodeResult, DecodeThread, decode_now
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.events import EngineEvent, ImagePixels, JobFailed, JobStage, PreviewPixels, StageProgress
from zrelay_generator.engine.job import DeviceJob, ImageState
from zrelay_generator.engine.refusals import explained, not_finite, unexpected, without_frames
from zrelay_generator.engine.stepping import (
    CompletedStep,
    PlannedStep,
    begin,
    complete_step,
    plan_step,
    preview,
)
from zrelay_generator.engine.ticks import DecodeTick, DenoiseTick, SelectTick, Tick, TickCompleted
from zrelay_generator.engine.token_budget import TokenBudget
from zrelay_generator.engine.watchdog import Watchdog
from zrelay_generator.model.latents import magnitude
from zrelay_generator.model.model import LoadedModel
from zrelay_shared.errors import Cancelled, OutOfMemory, ZrelayError
from zrelay_shared.torch_devices import is_device_lost, is_out_of_memory, release_cached_memory

log = logging.getLogger(__name__)
Emit = Callable[[DeviceJob, EngineEvent], None]


class StepEngine:
    """Runs jobs, one tick at a time, and emits their events."""

    def __init__(
        self,
        model: LoadedModel,
        tick_tokens: int,
        estimator: JobEstimator,
        select: SelectTick,
        emit: Emit,
        *,
        completed: TickCompleted = lambda jobs, tick, seconds: None,
        changed: Callable[[], None] = lambda: None,
        decode_beside: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Creates an engine without jobs.

        Args:
            model: The model on its device.
            tick_tokens: Tokens that one forward may have.
            estimator: Estimates durations; the engine adds its measurements to its cost model.
            select: Chooses the work of each tick.
            emit: Receives every event.
            completed: Receives every tick that was run and its seconds on the device.
            changed: Called from another thread when an engine that waits has work again.
            decode_beside: Decode on a thread of its own; None does so if the device has streams.
            clock: Seconds that only grow, for the watchdog.
        """
        self._model = model
        self._device = model.transformer.weights.device
        self._token_budget = TokenBudget(tick_tokens)
        self._estimator, self._cost = estimator, estimator.cost
        self._select, self._completed, self._emit = select, completed, emit
        self._jobs: list[DeviceJob] = []
        beside = self._device.type == "cuda" if decode_beside is None else decode_beside
        self._decoder = DecodeThread(model.vae, self._device, changed, clock) if beside else None
        self._watchdog = Watchdog(clock)
        self._at_work: list[DeviceJob] = []

    @property
    def idle(self) -> bool:
        """Whether the engine has no job."""
        return not self._jobs

    @property
    def waits(self) -> bool:
        """Whether a tick could only wait for the decode thread."""
        return self._decoder is not None and self._decoder.busy and not self._decoder.ready and self._next() is None

    @property
    def overdue_s(self) -> float:
        """Seconds by which the current unit of work exceeds its longest plausible time; 0 if nothing is wrong."""
        beside = 0.0 if self._decoder is None else self._decoder.watchdog.overdue_s
        return max(self._watchdog.overdue_s, beside)

    @property
    def suspects(self) -> list[str]:
        """Ids of the jobs in the current unit of work: if a tick did not return, one of them is the cause."""
        decoding = [job for job in self._jobs if any(image.decoding for image in job.images)]
        return list({job.id: None for job in [*self._at_work, *decoding]})

    def add(self, job: DeviceJob) -> None:
        """Adds a job; it joins at the next tick."""
        self._jobs.append(job)

    def tick(self) -> None:
        """Runs one unit of work: a denoising step of some images, or one decode.

        A failure that belongs to one job ends that job only.

        Raises:
            Exception: The device is lost (`is_device_lost`), or there is a bug that belongs to no single job; after a
                bug `abandon` makes the engine usable again.
        """
        self._drop_cancelled()
        self._take_decoded()
        tick = self._next()
        if isinstance(tick, DecodeTick):
            self._decode(tick)
        elif tick is not None:
            self._denoise(tick)
        elif self._decoder is not None and self._decoder.busy:
            self._decoded(self._decoder.take())
        self._at_work = []  # kept if a tick raised: these jobs are the suspects

    def abandon(self, error: Exception) -> None:
        """Ends every job of the engine, after a tick that raised."""
        refusal = unexpected(error)
        for job in list(self._jobs):
            self._end(job, JobFailed(refusal))

    def close(self) -> None:
        """Ends the decode thread."""
        if self._decoder is not None:
            self._decoder.close()

    def _next(self) -> Tick | None:
        return self._select(self._jobs, self._token_budget.tokens)

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._jobs if job.cancelled]:
            self._end(job, JobFailed(Cancelled("the job was cancelled")))

    # A step: each image by itself before the forward, all in the forward, each image by itself after it.

    def _denoise(self, tick: DenoiseTick) -> None:
        self._at_work = [image.job for image in tick.images]
        started = time.perf_counter()
        planned = [one for image in tick.images if (one := self._plan(image)) is not None]
        if not planned:
            return
        size = sum((self._estimator.step_size(one.image) for one in planned), Size())
        began = time.perf_counter()
        try:
            with self._watchdog.unit(self._cost.forward_s(size)):
                completed, magnitudes = self._forward(planned)
        except Exception as error:  # of any kind: it ends the jobs it concerns and not the device thread
            failure = without_frames(error)
        else:
            now = time.perf_counter()
            self._cost.observe_forward(size, now - began)
            self._token_budget.succeeded()
            self._completed(self._jobs, DenoiseTick(tuple(one.image for one in planned)), now - started)
            self._advance(planned, completed, magnitudes, now - began)
            return
        self._step_failed(planned, failure, size)

    def _plan(self, image: ImageState) -> PlannedStep | None:
        """Prepares the image's part of the tick. Returns None if that failed, which has ended the job."""
        job = image.job
        if job not in self._jobs:
            return None  # an earlier image of the same job has failed
        try:
            if job.conditioning is None:
                self._begin(job)
            return plan_step(image, self._model)
        except Exception as error:
            failure = without_frames(error)
        self._fail(job, failure)
        return None

    def _begin(self, job: DeviceJob) -> None:
        started = time.perf_counter()
        job.timings.queue_s = time.monotonic() - job.accepted_at
        with self._watchdog.unit(self._estimator.encode_s(job.features)):
            begin(job, self._model)
        job.timings.prepare_s = seconds = time.perf_counter() - started
        self._emit(job, StageProgress(JobStage.PREPARE, 1, 1, seconds, self._estimator.remaining_s(job)))

    def _forward(self, planned: Sequence[PlannedStep]) -> tuple[list[CompletedStep], list[float]]:
        """Runs all segments in one forward. Returns each image after its step, and the magnitude of its latents."""
        predictions = iter(self._model.transformer.forward([s for one in planned for s in one.segments.values()]))
        completed = [complete_step(one, {name: next(predictions) for name in one.segments}) for one in planned]
        # One reading for all images synchronises with the device once, and makes the measured time true on CUDA too.
        return completed, torch.stack([magnitude(one.latents) for one in completed]).tolist()

    def _advance(
        self,
        planned: Sequence[PlannedStep],
        completed: Sequence[CompletedStep],
        magnitudes: Sequence[float],
        seconds: float,
    ) -> None:
        for one, after, largest in zip(planned, completed, magnitudes, strict=True):
            image = one.image
            image.done, image.alone = image.done + 1, False
            if image.job not in self._jobs:
                continue  # an earlier image of the same job has failed
            if not math.isfinite(largest):
                self._fail(image.job, not_finite(image, one.step.sigma, self._model.transformer.weights.dtype))
                continue
            image.latents = after.latents
            self._preview(one, after)
        for job in {one.image.job.id: one.image.job for one in planned}.values():
            if job in self._jobs:
                job.timings.denoise_s += seconds
                eta = self._estimator.remaining_s(job)
                self._emit(job, StageProgress(JobStage.DENOISE, job.steps_done, job.steps_total, seconds, eta))
        if self._decoder is not None:
            for image in [one.image for one in planned if one.image.denoised and one.image.job in self._jobs]:
                self._hand_over(self._decoder, image)

    def _preview(self, planned: PlannedStep, completed: CompletedStep) -> None:
        image = planned.image
        try:
            pixels = preview(planned, completed, self._model)
        except Exception as error:
            failure = without_frames(error)
        else:
            if pixels is not None:
                self._emit(image.job, PreviewPixels(image.index, image.done, pixels))
            return
        self._fail(image.job, failure)

    def _step_failed(self, planned: Sequence[PlannedStep], error: Exception, size: Size) -> None:
        """Splits a tick that failed: each image repeats its step alone, and a job ends only if that fails too."""
        if is_device_lost(error):
            raise error
        if is_out_of_memory(error):
            release_cached_memory(self._device)
            if len(planned) > 1:
                self._token_budget.exhausted(size.tokens)
                log.warning("out of memory at %d tokens: ticks get at most %d", size.tokens, self._token_budget.tokens)
            elif self._decoder is not None and self._decoder.busy:
                self._decoded(self._decoder.take())  # a decode beside it holds memory: try again without it
                return
        if len(planned) == 1:
            self._fail(planned[0].image.job, error)
            return
        for one in planned:
            one.image.alone = True

    # Decoding.

    def _decode(self, tick: DecodeTick) -> None:
        image = tick.image
        if image.latents is None:
            raise ValueError("latents: expected those of the last step, got none")
        self._at_work = [image.job]
        with self._watchdog.unit(self._estimator.decode_s(image.job)):
            result = decode_now(self._model.vae, image, image.latents)
        self._decoded(result)

    def _hand_over(self, decoder: DecodeThread, image: ImageState) -> None:
        if image.latents is not None:
            image.decoding = True
            decoder.put(image, image.latents, self._estimator.decode_s(image.job))

    def _take_decoded(self) -> None:
        while self._decoder is not None and self._decoder.ready:
            self._decoded(self._decoder.take())

    def _decoded(self, result: DecodeResult) -> None:
        image, job = result.image, result.image.job
        self._completed(self._jobs, DecodeTick(image), result.seconds)
        if job not in self._jobs:
            return  # cancelled meanwhile
        pixels = result.pixels
        if pixels is None:
            error = result.error or RuntimeError("no pixels")
            if image.decoding and is_out_of_memory(error):
                image.decoding = False  # again on the device thread, with nothing beside it
                release_cached_memory(self._device)
                return
            self._fail(job, error)
            return
        job.timings.decode_s += result.seconds
        self._cost.observe_decode(pixels.shape[0] * pixels.shape[1], result.seconds)
        image.latents, image.decoded, image.decoding = None, True, False
        eta = self._estimator.remaining_s(job)
        self._emit(job, StageProgress(JobStage.DECODE, job.decoded, len(job.images), result.seconds, eta))
        last = job.decoded == len(job.images)
        self._emit(job, ImagePixels(image.index, image.seed, pixels, last, eta))
        if last:
            self._leave(job)

    # Ending jobs.

    def _fail(self, job: DeviceJob, error: Exception) -> None:
        if is_device_lost(error):
            raise error  # not the fault of this job alone, and no job can go on: the next process continues them
        refusal = error if isinstance(error, ZrelayError) else explained(error, job, self._model.transformer.weights)
        self._end(job, JobFailed(refusal))
        if isinstance(refusal, OutOfMemory):
            release_cached_memory(self._device)

    def _end(self, job: DeviceJob, event: JobFailed) -> None:
        for image in job.images:
            image.latents = None
        self._leave(job)
        self._emit(job, event)

    def _leave(self, job: DeviceJob) -> None:
        self._jobs.remove(job)
        job.release()
        self._model.transformer.forget_segments()


def run_to_end(engine: StepEngine) -> None:
    """Runs ticks until the engine has no job."""
    with torch.inference_mode():
        while not engine.idle:
            engine.tick()
