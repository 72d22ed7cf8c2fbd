"""One image's own part of a tick: what goes into the forward, and what is made of the predictions.

Free functions; the one place that calls a feature's hooks. The engine packs, runs, counts time, keeps failures apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zrelay_generator.engine.job import ImageState, Job
from zrelay_generator.features.protocol import PROMPT, Prompt, Step
from zrelay_generator.model.latents import denoised, euler_step, noise_from
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.packing import Conditioning
from zrelay_generator.model.transformer import Prediction, Segment


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """An image in a tick: the step it takes, and its segments by name."""

    image: ImageState
    step: Step
    segments: dict[str, Segment]

    @property
    def before(self) -> Tensor:
        """The latents before the step."""
        return self.segments[PROMPT].latents


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """The latents after a step, and the prediction that led there, both [channels, h, w] float32."""

    latents: Tensor
    prediction: Tensor


def begin(job: Job, model: LoadedModel) -> None:
    """What is computed once per job: the refined caption, what features need, the schedule's modulation."""

    def condition(prompt: Prompt) -> Conditioning:
        for feature in job.features:
            if (found := feature.conditioning(model, prompt)) is not None:
                return found
        _, height, width = latents_shape(job, model)
        return model.transformer.conditioning(model.transformer.context(prompt.embeds), height, width)

    conditioning = condition(job.spec.prompt)
    for feature in job.features:
        feature.begin(model, condition)
    for step in job.steps:
        model.transformer.modulation(step.timestep)
    job.conditioning = conditioning  # last: a job that failed on the way has not begun


def take(image: ImageState, model: LoadedModel) -> Taken:
    """The next step of an image whose job has begun."""
    job, step = image.job, image.step
    if job.conditioning is None:
        raise ValueError("conditioning: expected a job that has begun, got one that has not")
    if image.latents is None:
        image.latents = _start(image, model)
    segments = {PROMPT: Segment(image.latents, job.conditioning, model.transformer.modulation(step.timestep))}
    for feature in job.features:
        segments = feature.segments(model, step, segments)
    return Taken(image, step, segments)


def settle(taken: Taken, predictions: Mapping[str, Prediction]) -> Settled:
    """The prediction as the features bend it, and one Euler step along it."""
    prediction, features = predictions[PROMPT].full, taken.image.job.features
    for feature in features:
        prediction = feature.bend(taken.step, prediction, predictions)
    latents = euler_step(taken.before, prediction, taken.step.sigma, taken.step.sigma_next)
    for feature in features:
        latents = feature.settle(taken.step, latents)
    return Settled(latents, prediction)


def preview(taken: Taken, settled: Settled, model: LoadedModel) -> Tensor | None:
    """[h, w, 3] uint8 of where the step points to, None where none is due."""
    image, output = taken.image, taken.image.job.spec.output
    if not output.preview_every or image.done % output.preview_every or image.denoised:
        return None
    clean = denoised(taken.before, settled.prediction, taken.step.sigma)
    return model.latent_to_rgb.pixels(clean, output.preview_max_side)


def latents_shape(job: Job, model: LoadedModel) -> tuple[int, int, int]:
    """[channels, h, w] of the job's images."""
    sampling, factor = job.spec.sampling, model.vae.factor
    return model.transformer.weights.channels, sampling.height // factor, sampling.width // factor


def _start(image: ImageState, model: LoadedModel) -> Tensor:
    """The latents that an image begins with: what a feature makes, else noise."""
    generator = torch.Generator("cpu").manual_seed(image.seed)
    shape, sigma = latents_shape(image.job, model), image.step.sigma
    for feature in image.job.features:
        if (found := feature.start(image.index, generator, shape, sigma)) is not None:
            return found.to(model.transformer.weights.device)
    return noise_from(generator, shape).to(model.transformer.weights.device)
