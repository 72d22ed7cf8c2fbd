"""Classifier-free guidance as in diffusers' ZImagePipeline: scale, truncation, normalization."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from zrelay_generator.cost.model import Size
from zrelay_generator.features.guidance.spec import GuidanceSpec
from zrelay_generator.features.protocol import (
    PROMPT,
    Condition,
    JobFeature,
    JobSpec,
    Prompt,
    SamplingSettings,
    SequenceSize,
    Step,
)
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.packing import Conditioning
from zrelay_generator.model.transformer import Prediction, Segment

NEGATIVE = "negative"
"""Name of the negative prompt's segment."""


def guidance_hooks(spec: GuidanceSpec, job: JobSpec) -> "Guidance | None":
    """Makes the hooks of a job, None if its guidance scale is 0."""
    return Guidance(spec.negative_prompt, job.sampling) if job.sampling.guidance_scale > 0.0 else None


class Guidance(JobFeature):
    """Adds a second segment, that of the negative prompt, in every step in which guidance is on."""

    def __init__(self, negative_prompt: Prompt, sampling: SamplingSettings) -> None:
        self._negative_prompt, self._sampling = negative_prompt, sampling
        self._conditioning: Conditioning | None = None

    def size(self, step: Step, layers: int, sequence_size: SequenceSize) -> Size:
        return sequence_size(self._negative_prompt) if self._acts(step) else Size()

    def begin(self, model: LoadedModel, condition: Condition) -> None:
        self._conditioning = condition(self._negative_prompt)

    def segments(self, model: LoadedModel, step: Step, segments: dict[str, Segment]) -> dict[str, Segment]:
        if not self._acts(step) or self._conditioning is None:
            return segments
        return segments | {NEGATIVE: replace(segments[PROMPT], conditioning=self._conditioning)}

    def adjust_prediction(self, step: Step, prediction: Tensor, predictions: Mapping[str, Prediction]) -> Tensor:
        if NEGATIVE not in predictions:
            return prediction
        sampling = self._sampling
        return guided(prediction, predictions[NEGATIVE].full, sampling.guidance_scale, sampling.cfg_normalization)

    def _acts(self, step: Step) -> bool:
        sampling = self._sampling
        return guidance_at(step.timestep, sampling.guidance_scale, sampling.cfg_truncation) > 0.0


def guidance_at(timestep: float, guidance_scale: float, cfg_truncation: float) -> float:
    """Returns the guidance scale at a timestep (1 - sigma): 0 once the timestep exceeds `cfg_truncation`."""
    return 0.0 if timestep > cfg_truncation else guidance_scale


def guided(positive: Tensor, negative: Tensor, guidance_scale: float, cfg_normalization: float) -> Tensor:
    """Returns `positive + guidance_scale * (positive - negative)`, with its L2 norm bounded.

    Args:
        positive, negative: Predictions, float32 of equal shape.
        guidance_scale: Factor.
        cfg_normalization: The bound as a multiple of the norm of `positive`; 0 is no bound.
    """
    prediction = torch.add(positive, positive - negative, alpha=guidance_scale)
    if cfg_normalization <= 0.0:
        return prediction
    norm = torch.linalg.vector_norm(prediction)
    bound = torch.linalg.vector_norm(positive) * cfg_normalization
    return prediction * torch.where(norm > bound, bound / norm, 1.0)
