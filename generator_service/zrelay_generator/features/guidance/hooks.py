"""Classifier-free guidance as diffusers' ZImagePipeline has it: scale, truncation, normalisation."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from zrelay_generator.features.hooks import PROMPT, Condition, Feature, Step
from zrelay_generator.features.protocol import JobSpec
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.packing import Conditioning
from zrelay_generator.model.size import Size, segment_size
from zrelay_generator.model.transformer import Prediction, Segment

NEGATIVE = "negative"


class Guidance(Feature):
    """A second segment, the negative prompt's, wherever guidance is in force."""

    def __init__(self, spec: JobSpec, negative: Tensor) -> None:
        self._spec, self._negative = spec, negative
        self._conditioning: Conditioning | None = None

    @classmethod
    def of(cls, spec: JobSpec) -> "Guidance | None":
        negative = spec.negative_prompt_embeds
        return cls(spec, negative) if negative is not None and spec.guided else None

    def size(self, step: Step, layers: int) -> Size:
        sampling = self._spec.sampling
        return segment_size(sampling.width, sampling.height, len(self._negative)) if self._acts(step) else Size()

    def begin(self, model: LoadedModel, condition: Condition) -> None:
        self._conditioning = condition(self._negative)

    def segments(self, model: LoadedModel, step: Step, segments: dict[str, Segment]) -> dict[str, Segment]:
        if not self._acts(step) or self._conditioning is None:
            return segments
        return segments | {NEGATIVE: replace(segments[PROMPT], conditioning=self._conditioning)}

    def bend(self, step: Step, prediction: Tensor, predictions: Mapping[str, Prediction]) -> Tensor:
        if NEGATIVE not in predictions:
            return prediction
        sampling = self._spec.sampling
        return guided(prediction, predictions[NEGATIVE].full, sampling.guidance_scale, sampling.cfg_normalization)

    def _acts(self, step: Step) -> bool:
        sampling = self._spec.sampling
        return guidance_at(step.timestep, sampling.guidance_scale, sampling.cfg_truncation) > 0.0


def guidance_at(timestep: float, guidance_scale: float, cfg_truncation: float) -> float:
    """The scale in force at a timestep (1 - sigma): 0 once the timestep exceeds `cfg_truncation`."""
    return 0.0 if timestep > cfg_truncation else guidance_scale


def guided(positive: Tensor, negative: Tensor, guidance_scale: float, cfg_normalization: float) -> Tensor:
    """pos + g (pos - neg); with `cfg_normalization` k above 0 its L2 norm is bounded by k times that of `positive`.

    Predictions are float32 of any equal shape.
    """
    prediction = torch.add(positive, positive - negative, alpha=guidance_scale)
    if cfg_normalization <= 0.0:
        return prediction
    norm = torch.linalg.vector_norm(prediction)
    bound = torch.linalg.vector_norm(positive) * cfg_normalization
    return prediction * torch.where(norm > bound, bound / norm, 1.0)
