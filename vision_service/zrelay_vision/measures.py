"""How large embeddings are, measured so that a handful of massive values does not decide it.

Qwen3 has a few dimensions whose activations are hundreds of times the others' (zimage.md, F4): the plain deviation of
its embeddings is that of two dimensions and one token. Where a measure sets a scale, those are left out.
"""

from dataclasses import dataclass

import torch

MASSIVE = 10.0
"""A dimension is massive whose RMS is more than this many times the median dimension's."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Scale of embeddings: median over tokens of the token's RMS, mean and deviation of all values, rows."""

    token_rms: float
    mean: float
    std: float
    tokens: int


def statistics(embeds: torch.Tensor) -> Statistics:
    """The plain statistics of embeds [T, width], nothing left out."""
    values = embeds.float()
    return Statistics(
        token_rms=float(values.pow(2).mean(1).sqrt().median()),
        mean=float(values.mean()),
        std=float(values.std(correction=0)),
        tokens=len(values),
    )


def ordinary_dimensions(*embeds: torch.Tensor) -> torch.Tensor:
    """[width] bool: dimensions that are massive in none of `embeds`, each [T, width] float32."""
    ordinary = torch.ones(embeds[0].shape[1], dtype=torch.bool)
    for values in embeds:
        rms = values.pow(2).mean(0).sqrt()
        ordinary &= rms <= MASSIVE * rms.median()
    return ordinary if bool(ordinary.any()) else torch.ones_like(ordinary)


def deviation(embeds: torch.Tensor, dimensions: torch.Tensor) -> float:
    """The standard deviation of all values of embeds [T, width] in `dimensions` [width] bool."""
    return float(embeds[:, dimensions].std(correction=0))


def token_rms(embeds: torch.Tensor, dimensions: torch.Tensor) -> torch.Tensor:
    """[T]: each token's RMS over `dimensions`."""
    return embeds[:, dimensions].pow(2).mean(1).sqrt()
