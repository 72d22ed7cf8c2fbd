"""Forwards of the packed transformer by themselves: what company costs, how well one image fills the device."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zrelay_generator.model.transformer import PackedTransformer, Segment
from zrelay_generator.model.weights import transformer_weights

FACTOR = 8
"""Pixels of a latent pixel's side."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a forward: its side in pixels, the tokens of its prompt, the timestep it is at."""

    side: int
    text_tokens: int = 100
    timestep: float = 0.5


def packed(model: Any) -> PackedTransformer:
    """The engine's transformer on the weights of a diffusers ZImageTransformer2DModel, not copied."""
    with torch.inference_mode():
        return PackedTransformer(transformer_weights(model))


def segments(transformer: PackedTransformer, pictures: Sequence[Picture]) -> list[Segment]:
    """Random latents under random prompts."""
    weights = transformer.weights
    made = []
    with torch.inference_mode():
        for picture in pictures:
            side = picture.side // FACTOR
            context = transformer.context(torch.randn(picture.text_tokens, weights.width))
            conditioning = transformer.conditioning(context, side, side)
            latents = torch.randn(weights.channels, side, side, device=weights.device)
            made.append(Segment(latents, conditioning, transformer.modulation(picture.timestep)))
    return made


def seconds(work: Callable[[], object], device: torch.device, rounds: int, warm: int = 1) -> float:
    """Median seconds of `work`, the device waited for."""

    def timed() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    with torch.inference_mode():
        return statistics.median([timed() for _ in range(warm + rounds)][warm:])


def company(transformer: PackedTransformer, side: int, rounds: int, count: int = 4) -> float:
    """Time of one forward of `count` images over as many forwards of one: 1 where one image fills the device."""
    picture = Picture(side, text_tokens=20)
    one, many = segments(transformer, [picture]), segments(transformer, [picture] * count)
    device = transformer.weights.device
    alone = seconds(lambda: transformer.forward(one), device, rounds)
    return seconds(lambda: transformer.forward(many), device, rounds) / (count * alone)
