"""Classifier-free guidance as diffusers' ZImagePipeline has it: scale, truncation, normalisation."""

import torch
from torch import Tensor


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
