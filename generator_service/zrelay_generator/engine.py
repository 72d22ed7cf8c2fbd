"""The step engine: each tick picks work, runs it once, advances what it touched, and says what happened.

Plain and single-threaded: the device thread owns it, tests call it directly. It knows neither callers nor clocks of
theirs, and no feature by name: a feature adds to segments before the forward and bends predictions after it.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from zrelay_generator.events import EngineEvent, Failed, ImagePixels, PreviewPixels, Progress, Stage
from zrelay_generator.guidance import guidance_at, guided
from zrelay_generator.job import ImageState, Job
from zrelay_generator.latents import denoised, euler_step, is_finite, noise
from zrelay_generator.loading import LoadedModel
from zrelay_generator.packing import Conditioning
from zrelay_generator.policy import Decode, next_work
from zrelay_generator.refusals import device_failure, not_decodable, not_finite, out_of_memory
from zrelay_generator.transformer import Segment
from zrelay_generator.work import Speed
from zrelay_shared.errors import Cancelled, OutOfMemory, ZrelayError
from zrelay_shared.torch_devices import is_out_of_memory, release_cached_memory

log = logging.getLogger(__name__)
Emit = Callable[[Job, EngineEvent], None]


class Engine:
    """Jobs in, events out, one tick at a time."""

    def __init__(self, model: LoadedModel, tick_tokens: int, speed: Speed, emit: Emit) -> None:
        self._model = model
        self._tick_tokens = tick_tokens
        self._speed = speed
        self._emit = emit
        self._jobs: list[Job] = []

    @property
    def idle(self) -> bool:
        return not self._jobs

    def add(self, job: Job) -> None:
        self._jobs.append(job)

    def tick(self) -> None:
        """One unit of work: a denoising step of some images, or one image decoded."""
        self._drop_cancelled()
        work = next_work(self._jobs, self._tick_tokens)
        if work is None:
            return
        images = (work.image,) if isinstance(work, Decode) else work.images
        failure: ZrelayError | None = None
        try:
            if isinstance(work, Decode):
                self._decode(work.image)
            else:
                self._step(work.images)
        except ZrelayError as error:
            failure = error
        except Exception as error:  # whatever it is, it ends the jobs it touched and not the device thread
            failure = self._explained(error, images)
        if failure is not None:
            self._fail(images, failure)

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._jobs if job.cancelled]:
            self._end(job, Failed(Cancelled("the job was cancelled")))

    def _step(self, images: tuple[ImageState, ...]) -> None:
        for job in {image.job.id: image.job for image in images}.values():
            self._begin(job)
        started = time.perf_counter()
        segments, counts = [], []
        for image in images:
            own = self._segments(image)
            segments += own
            counts.append(len(own))
        predictions = iter(self._model.transformer.forward(segments))
        for image, count in zip(images, counts, strict=True):
            self._advance(image, [next(predictions) for _ in range(count)])
        # Reading the finiteness waited for the device, so the clock is honest on CUDA too.
        seconds = time.perf_counter() - started
        self._speed.saw_forward(sum(s.conditioning.tokens for s in segments), seconds)
        self._stepped(images, seconds)

    def _begin(self, job: Job) -> None:
        """What is computed once per job: the refined captions, positions, the schedule's modulation."""
        if job.conditioning is not None:
            return
        started = time.perf_counter()
        job.timings.queue_s = time.monotonic() - job.accepted_at
        job.conditioning = self._conditioning(job, job.spec.prompt_embeds)
        if job.spec.guided and job.spec.negative_prompt_embeds is not None:
            job.negative_conditioning = self._conditioning(job, job.spec.negative_prompt_embeds)
        for timestep in job.spec.sampling.schedule.timesteps:
            self._model.transformer.modulation(timestep)
        job.timings.prepare_s = seconds = time.perf_counter() - started
        self._emit(job, Progress(Stage.PREPARE, 1, 1, seconds, self._speed.remaining_s(job)))

    def _conditioning(self, job: Job, prompt_embeds: Tensor) -> Conditioning:
        transformer, factor = self._model.transformer, self._model.vae.factor
        sampling = job.spec.sampling
        context = transformer.context(prompt_embeds)
        return transformer.conditioning(context, sampling.height // factor, sampling.width // factor)

    def _segments(self, image: ImageState) -> list[Segment]:
        """One segment, or with guidance in force two: the prompt's and the negative prompt's."""
        job, transformer = image.job, self._model.transformer
        sampling = job.spec.sampling
        if image.latents is None:
            factor = self._model.vae.factor
            drawn = noise(image.seed, transformer.weights.channels, sampling.height // factor, sampling.width // factor)
            image.latents = drawn.to(transformer.weights.device)
        timestep = sampling.schedule.timesteps[image.step]
        branches = [job.conditioning]
        if guidance_at(timestep, sampling.guidance_scale, sampling.cfg_truncation) > 0.0:
            branches.append(job.negative_conditioning)
        modulation = transformer.modulation(timestep)
        return [Segment(image.latents, branch, modulation) for branch in branches if branch is not None]

    def _advance(self, image: ImageState, predictions: list[Tensor]) -> None:
        """Bend the predictions by guidance and take the Euler step."""
        job, sampling = image.job, image.job.spec.sampling
        prediction = predictions[0]
        if len(predictions) == 2:
            positive, negative = predictions
            prediction = guided(positive, negative, sampling.guidance_scale, sampling.cfg_normalization)
        sigma, sigma_next = sampling.schedule.sigmas[image.step : image.step + 2]
        before, image.step = image.latents, image.step + 1
        if before is None:
            raise ValueError("latents: expected noise or the result of the step before, got none")
        image.latents = euler_step(before, prediction, sigma, sigma_next)
        if not is_finite(image.latents):
            raise not_finite(image, sigma, self._model.transformer.weights.dtype)
        every = job.spec.output.preview_every
        if every and image.step % every == 0 and not image.denoised:
            clean = denoised(before, prediction, sigma)
            pixels = self._model.latent_to_rgb.pixels(clean, job.spec.output.preview_max_side)
            self._emit(job, PreviewPixels(image.index, image.step, pixels))

    def _stepped(self, images: Iterable[ImageState], seconds: float) -> None:
        jobs = {image.job.id: image.job for image in images}.values()
        for job in jobs:
            job.timings.denoise_s += seconds
            eta = self._speed.remaining_s(job)
            self._emit(job, Progress(Stage.DENOISE, job.steps_done, job.steps_total, seconds, eta))

    def _decode(self, image: ImageState) -> None:
        job = image.job
        if image.latents is None:
            raise ValueError("latents: expected those of the last step, got none")
        started = time.perf_counter()
        pixels = self._model.vae.decode(image.latents)
        seconds = time.perf_counter() - started
        job.timings.decode_s += seconds
        self._speed.saw_decode(pixels.shape[0] * pixels.shape[1], seconds)
        image.latents, image.decoded = None, True
        eta = self._speed.remaining_s(job)
        self._emit(job, Progress(Stage.DECODE, job.decoded, len(job.images), seconds, eta))
        last = job.decoded == len(job.images)
        self._emit(job, ImagePixels(image.index, image.seed, pixels, last))
        if last:
            self._jobs.remove(job)

    def _explained(self, error: Exception, images: tuple[ImageState, ...]) -> ZrelayError:
        """What the caller is told of a failure; the log keeps the rest under the same incident id."""
        device = self._model.transformer.weights.device
        if is_out_of_memory(error):
            return out_of_memory(images, device)
        if isinstance(error, FloatingPointError):
            return not_decodable(images[0], self._model.transformer.weights.dtype)
        incident = uuid.uuid4().hex[:12]
        log.exception("incident %s: a tick failed", incident)
        return device_failure(incident)

    def _fail(self, images: Iterable[ImageState], error: ZrelayError) -> None:
        for job in {image.job.id: image.job for image in images}.values():
            self._end(job, Failed(error))
        if isinstance(error, OutOfMemory):
            # Only here: while an exception is handled, its frames hold the tensors that did not fit.
            release_cached_memory(self._model.transformer.weights.device)

    def _end(self, job: Job, event: Failed) -> None:
        self._jobs.remove(job)
        for image in job.images:
            image.latents = None
        self._emit(job, event)


def run_to_end(engine: Engine) -> None:
    """Tick until nothing is left."""
    with torch.inference_mode():
        while not engine.idle:
            engine.tick()
