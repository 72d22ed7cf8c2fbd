"""The step engine: each tick picks work, runs it once, advances what it touched, and says what happened.

Plain and single-threaded: the device thread owns it, tests call it directly. It knows neither callers nor clocks of
theirs, and no feature by name: a feature adds to segments before the forward and bends predictions after it.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence

import torch

from zrelay_generator.cost.model import Speed
from zrelay_generator.engine.decoding import Decoded, DecodeThread, decode_now
from zrelay_generator.engine.events import EngineEvent, Failed, ImagePixels, PreviewPixels, Progress, Stage
from zrelay_generator.engine.job import ImageState, Job
from zrelay_generator.engine.refusals import explained, not_finite, unexpected, without_frames
from zrelay_generator.engine.stepping import Settled, Taken, begin, preview, settle, take
from zrelay_generator.engine.token_budget import TokenBudget
from zrelay_generator.engine.watchdog import Watchdog
from zrelay_generator.model.latents import magnitude
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.size import Size
from zrelay_generator.scheduling.policy import Decode, Work, next_work
from zrelay_shared.errors import Cancelled, OutOfMemory, ZrelayError
from zrelay_shared.torch_devices import is_device_lost, is_out_of_memory, release_cached_memory

log = logging.getLogger(__name__)
Emit = Callable[[Job, EngineEvent], None]


class Engine:
    """Jobs in, events out, one tick at a time."""

    def __init__(
        self,
        model: LoadedModel,
        tick_tokens: int,
        speed: Speed,
        emit: Emit,
        changed: Callable[[], None] = lambda: None,
        decode_beside: bool | None = None,
    ) -> None:
        """`changed` is called, from another thread, when an idle engine has something to do again. `decode_beside`:
        decode on a thread of its own; None does so where the device has streams."""
        self._model = model
        self._device = model.transformer.weights.device
        self._token_budget = TokenBudget(tick_tokens)
        self._speed = speed
        self._emit = emit
        self._jobs: list[Job] = []
        beside = self._device.type == "cuda" if decode_beside is None else decode_beside
        self._decoder = DecodeThread(model.vae, self._device, changed) if beside else None
        self._watchdog = Watchdog()
        self._at_work: list[Job] = []

    @property
    def idle(self) -> bool:
        """Whether there is no job."""
        return not self._jobs

    @property
    def waits(self) -> bool:
        """Whether a tick would do nothing but wait for a decoder at work."""
        return self._decoder is not None and self._decoder.busy and not self._decoder.ready and self._next() is None

    @property
    def stuck_s(self) -> float:
        """Seconds by which the work under way is over any time it could take; 0 while all is well."""
        beside = 0.0 if self._decoder is None else self._decoder.watchdog.stuck_s
        return max(self._watchdog.stuck_s, beside)

    @property
    def suspects(self) -> list[str]:
        """Ids of the jobs whose work is under way: one of them it was, where a tick did not come back."""
        decoding = [job for job in self._jobs if any(image.decoding for image in job.images)]
        return list({job.id: None for job in [*self._at_work, *decoding]})

    def add(self, job: Job) -> None:
        self._jobs.append(job)

    def tick(self) -> None:
        """One unit of work: a denoising step of some images, or one image decoded.

        What fails for a job ends that job. What is raised is either the device, lost for good (`is_device_lost`), or a
        bug outside of any one job's part, after which `abandon` makes the engine as new.
        """
        self._drop_cancelled()
        self._take_decoded()
        work = self._next()
        if isinstance(work, Decode):
            self._decode(work.image)
        elif work is not None:
            self._step(work.images)
        elif self._decoder is not None and self._decoder.busy:
            self._decoded(self._decoder.take())
        self._at_work = []  # not where it raised: they are the suspects

    def abandon(self, error: Exception) -> None:
        """Ends every job that is here, after a tick that raised."""
        refusal = unexpected(error)
        for job in list(self._jobs):
            self._end(job, Failed(refusal))

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()

    def _next(self) -> Work | None:
        return next_work(self._jobs, self._token_budget.tokens, self._speed, time.monotonic())

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._jobs if job.cancelled]:
            self._end(job, Failed(Cancelled("the job was cancelled")))

    # A step: every image by itself up to the forward, all in the forward, every image by itself after it.

    def _step(self, images: Sequence[ImageState]) -> None:
        self._at_work = [image.job for image in images]
        taken = [one for image in images if (one := self._take(image)) is not None]
        if not taken:
            return
        size = sum((self._speed.step_size(one.image) for one in taken), Size())
        started = time.perf_counter()
        try:
            with self._watchdog.beat(self._speed.forward_s(size)):
                settled, greatest = self._forward(taken)
        except Exception as error:  # whatever it is, it ends the jobs it concerns and not the device thread
            failure = without_frames(error)
        else:
            seconds = time.perf_counter() - started
            self._speed.saw_forward(size.tokens, seconds, size.squares)
            self._token_budget.went_well()
            self._stepped(taken, settled, greatest, seconds)
            return
        self._step_failed(taken, failure, size)

    def _take(self, image: ImageState) -> Taken | None:
        """The image's part of the tick; None where that failed, which has ended the job."""
        job = image.job
        if job not in self._jobs:
            return None  # an image before it, of the same job, has failed
        try:
            if job.conditioning is None:
                self._begin(job)
            return take(image, self._model)
        except Exception as error:
            failure = without_frames(error)
        self._fail(job, failure)
        return None

    def _begin(self, job: Job) -> None:
        started = time.perf_counter()
        job.timings.queue_s = time.monotonic() - job.accepted_at
        with self._watchdog.beat(self._speed.encode_s(job.features)):
            begin(job, self._model)
        job.timings.prepare_s = seconds = time.perf_counter() - started
        self._emit(job, Progress(Stage.PREPARE, 1, 1, seconds, self._speed.remaining_s(job)))

    def _forward(self, taken: Sequence[Taken]) -> tuple[list[Settled], list[float]]:
        """All segments in one forward: each image after its step, and the magnitude of its latents."""
        predictions = iter(self._model.transformer.forward([s for one in taken for s in one.segments.values()]))
        settled = [settle(one, {name: next(predictions) for name in one.segments}) for one in taken]
        # One reading for all images waits for the device once, and makes the clock honest on CUDA too.
        return settled, torch.stack([magnitude(one.latents) for one in settled]).tolist()

    def _stepped(
        self, taken: Sequence[Taken], settled: Sequence[Settled], greatest: Sequence[float], seconds: float
    ) -> None:
        for one, after, most in zip(taken, settled, greatest, strict=True):
            image = one.image
            image.done, image.alone = image.done + 1, False
            if image.job not in self._jobs:
                continue  # an image before it, of the same job, has failed
            if not math.isfinite(most):
                self._fail(image.job, not_finite(image, one.step.sigma, self._model.transformer.weights.dtype))
                continue
            image.latents = after.latents
            self._preview(one, after)
        for job in {one.image.job.id: one.image.job for one in taken}.values():
            if job in self._jobs:
                job.timings.denoise_s += seconds
                eta = self._speed.remaining_s(job)
                self._emit(job, Progress(Stage.DENOISE, job.steps_done, job.steps_total, seconds, eta))
        if self._decoder is not None:
            for image in [one.image for one in taken if one.image.denoised and one.image.job in self._jobs]:
                self._hand_over(self._decoder, image)

    def _preview(self, one: Taken, after: Settled) -> None:
        image = one.image
        try:
            pixels = preview(one, after, self._model)
        except Exception as error:
            failure = without_frames(error)
        else:
            if pixels is not None:
                self._emit(image.job, PreviewPixels(image.index, image.done, pixels))
            return
        self._fail(image.job, failure)

    def _step_failed(self, taken: Sequence[Taken], error: Exception, size: Size) -> None:
        """Company is taken apart: each image repeats its step alone, and only who fails alone has failed."""
        if is_device_lost(error):
            raise error
        if is_out_of_memory(error):
            release_cached_memory(self._device)
            if len(taken) > 1:
                self._token_budget.ran_out(size.tokens)
                log.warning("out of memory at %d tokens: ticks get at most %d", size.tokens, self._token_budget.tokens)
            elif self._decoder is not None and self._decoder.busy:
                self._decoded(self._decoder.take())  # what decodes beside it holds memory: once more without it
                return
        if len(taken) == 1:
            self._fail(taken[0].image.job, error)
            return
        for one in taken:
            one.image.alone = True

    # Decoding.

    def _decode(self, image: ImageState) -> None:
        if image.latents is None:
            raise ValueError("latents: expected those of the last step, got none")
        self._at_work = [image.job]
        sampling = image.job.spec.sampling
        with self._watchdog.beat(self._speed.decode_s(sampling.width * sampling.height)):
            result = decode_now(self._model.vae, image, image.latents)
        self._decoded(result)

    def _hand_over(self, decoder: DecodeThread, image: ImageState) -> None:
        if image.latents is not None:
            image.decoding = True
            sampling = image.job.spec.sampling
            decoder.put(image, image.latents, self._speed.decode_s(sampling.width * sampling.height))

    def _take_decoded(self) -> None:
        while self._decoder is not None and self._decoder.ready:
            self._decoded(self._decoder.take())

    def _decoded(self, result: Decoded) -> None:
        image, job = result.image, result.image.job
        if job not in self._jobs:
            return  # cancelled meanwhile
        pixels = result.pixels
        if pixels is None:
            error = result.error or RuntimeError("no pixels")
            if image.decoding and is_out_of_memory(error):
                image.decoding = False  # once more on the device thread, with nothing beside it
                release_cached_memory(self._device)
                return
            self._fail(job, error)
            return
        job.timings.decode_s += result.seconds
        self._speed.saw_decode(pixels.shape[0] * pixels.shape[1], result.seconds)
        image.latents, image.decoded, image.decoding = None, True, False
        eta = self._speed.remaining_s(job)
        self._emit(job, Progress(Stage.DECODE, job.decoded, len(job.images), result.seconds, eta))
        last = job.decoded == len(job.images)
        self._emit(job, ImagePixels(image.index, image.seed, pixels, last, eta))
        if last:
            self._leave(job)

    # Endings.

    def _fail(self, job: Job, error: Exception) -> None:
        if is_device_lost(error):
            raise error  # no fault of this job alone, and none can go on: the next process does
        told = error if isinstance(error, ZrelayError) else explained(error, job, self._model.transformer.weights)
        self._end(job, Failed(told))
        if isinstance(told, OutOfMemory):
            release_cached_memory(self._device)

    def _end(self, job: Job, event: Failed) -> None:
        for image in job.images:
            image.latents = None
        self._leave(job)
        self._emit(job, event)

    def _leave(self, job: Job) -> None:
        self._jobs.remove(job)
        job.release()
        self._model.transformer.forget_segments()


def run_to_end(engine: Engine) -> None:
    """Tick until nothing is left."""
    with torch.inference_mode():
        while not engine.idle:
            engine.tick()
