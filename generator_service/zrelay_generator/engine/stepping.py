"""One image's part of a tick: its segments before the forward, its latents after it.

Free functions, and the only module that calls the hooks of features during a step. The engine packs, runs, measures and
isolates failures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zrelay_generator.engine.job import DeviceJob, ImageState
from zrelay_generator.features.protocol import PROMPT, Prompt, Step
from zrelay_generator.model.latents import denoised, euler_step, noise_from
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.packing import Conditioning
from zrelay_generator.model.transformer import Prediction, Segment


@dataclass(frozen=True, slots=True, eq=False)
class PlannedStep:
    """A step that an image takes in this tick, with its segments by name."""

    image: ImageState
    step: Step
    segments: dict[str, Segment]

    @property
    def latents(self) -> Tensor:
        """The latents before the step, [channels, h, w] float32."""
        return self.segments[PROMPT].latents


@dataclass(frozen=True, slots=True, eq=False)
class CompletedStep:
    """The latents after a step and the prediction that led to them, both [channels, h, w] float32."""

    latents: Tensor
    prediction: Tensor


def begin(job: DeviceJob, model: LoadedModel) -> None:
    """Computes what is the same in all steps: the refined caption, the features' data, the modulation of each step."""

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
    job.conditioning = conditioning  # last: a job that failed before this line has not begun


def plan_step(image: ImageState, model: LoadedModel) -> PlannedStep:
    """Prepares the next step of an image whose job has begun; draws its noise at the first step.

    Raises:
        ValueError: The job has not begun.
    """
    job, step = image.job, image.step
    if job.conditioning is None:
        raise ValueError("conditioning: expected a job that has begun, got one that has not")
    if image.latents is None:
        image.latents = _initial_latents(image, model)
    segments = {PROMPT: Segment(image.latents, job.conditioning, model.transformer.modulation(step.timestep))}
    for feature in job.features:
        segments = feature.segments(model, step, segments)
    return PlannedStep(image, step, segments)


def complete_step(planned: PlannedStep, predictions: Mapping[str, Prediction]) -> CompletedStep:
    """Applies the features to the predictions and takes one Euler step."""
    prediction, features = predictions[PROMPT].full, planned.image.job.features
    for feature in features:
        prediction = feature.adjust_prediction(planned.step, prediction, predictions)
    latents = euler_step(planned.latents, prediction, planned.step.sigma, planned.step.sigma_next)
    for feature in features:
        latents = feature.adjust_latents(planned.step, latents)
    return CompletedStep(latents, prediction)


def preview(planned: PlannedStep, completed: CompletedStep, model: LoadedModel) -> Tensor | None:
    """Returns [h, w, 3] uint8 pixels of the clean image that the step predicts, None if no preview is due."""
    image, output = planned.image, planned.image.job.spec.output
    if not output.preview_every or image.done % output.preview_every or image.denoised:
        return None
    clean = denoised(planned.latents, completed.prediction, planned.step.sigma)
    return model.latent_to_rgb.pixels(clean, output.preview_max_side)


def latents_shape(job: DeviceJob, model: LoadedModel) -> tuple[int, int, int]:
    """Returns (channels, h, w) of the latents of a job's images."""
    sampling, factor = job.spec.sampling, model.vae.factor
    return model.transformer.weights.channels, sampling.height // factor, sampling.width // factor


def _initial_latents(image: ImageState, model: LoadedModel) -> Tensor:
    """The latents an image starts from: those of the first feature that has some, else noise."""
    generator = torch.Generator("cpu").manual_seed(image.seed)
    shape, sigma = latents_shape(image.job, model), image.step.sigma
    for feature in image.job.features:
        if (found := feature.start(image.index, generator, shape, sigma)) is not None:
            return found.to(model.transformer.weights.device)
    return noise_from(generator, shape).to(model.transformer.weights.device)
