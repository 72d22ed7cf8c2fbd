"""Specs and embeddings for the generator's tests."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zrelay_generator.features.protocol import SamplingSettings
from zrelay_generator.features.schedule import shifted_schedule

FLOAT32_BOUND = 1e-4
"""Largest relative difference of final latents in float32 from those of diffusers' pipelines."""


def make_sampling(**changed: Any) -> SamplingSettings:
    """128 x 128, 4 forwards, shift 3, guidance 0, seed 7, one image, or as `changed`."""
    steps, shift = changed.pop("steps", 4), changed.pop("shift", 3.0)
    plain = SamplingSettings(
        width=128,
        height=128,
        guidance_scale=0.0,
        cfg_normalization=0.0,
        cfg_truncation=1.0,
        shift=shift,
        schedule=shifted_schedule(steps, shift),
        seed=7,
        num_images=1,
    )
    return replace(plain, **changed)


def make_embeds(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Random embeddings [tokens, width] float32, of the size that encoders give."""
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)) * 5.0
