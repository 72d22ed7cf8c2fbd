"""Brings an image's states to the scale of a prompt's embeddings, so that alpha is a share (zimage.md, 2.1).

All functions take and return [T, width] float32. Statistics over tokens are population statistics (no correction), so
that one token has a deviation of 0.

A few dimensions of Qwen3 are hundreds of times larger than the others (zimage.md, F4): the standard deviation of its
embeddings is mostly that of two dimensions of one token. Where a statistic sets a scale, such massive dimensions are
left out.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch

MASSIVE = 10.0
"""A dimension is massive if its RMS is more than this many times the median RMS of all dimensions."""
_EPSILON = 1e-6
_CLAMP = 3.0


class Normalization(StrEnum):
    """How states are brought to scale."""

    NONE = "none"
    TOKEN_RMS = "token_rms"
    GLOBAL = "global"
    PER_DIM = "per_dim"
    HYBRID = "hybrid"

    @property
    def needs_reference(self) -> bool:
        """Whether the encoder's per-dimension statistics are needed."""
        return self in (Normalization.PER_DIM, Normalization.HYBRID)


@dataclass(frozen=True, slots=True)
class EmbeddingStatistics:
    """The scale of embeddings, with nothing left out.

    Attributes:
        token_rms: Median over the tokens of the RMS of a token.
        mean: Mean of all values.
        std: Standard deviation of all values.
        tokens: Number of tokens.
    """

    token_rms: float
    mean: float
    std: float
    tokens: int


def embedding_statistics(embeds: torch.Tensor) -> EmbeddingStatistics:
    """Measures embeddings [T, width] of any float dtype."""
    values = embeds.float()
    return EmbeddingStatistics(
        token_rms=float(values.pow(2).mean(1).sqrt().median()),
        mean=float(values.mean()),
        std=float(values.std(correction=0)),
        tokens=len(values),
    )


def ordinary_dimensions(*embeds: torch.Tensor) -> torch.Tensor:
    """Returns which dimensions are massive in none of `embeds`, [width] bool; all of them if none is ordinary."""
    ordinary = torch.ones(embeds[0].shape[1], dtype=torch.bool)
    for values in embeds:
        rms = values.pow(2).mean(0).sqrt()
        ordinary &= rms <= MASSIVE * rms.median()
    return ordinary if bool(ordinary.any()) else torch.ones_like(ordinary)


def standard_deviation(embeds: torch.Tensor, dimensions: torch.Tensor) -> float:
    """Returns the standard deviation of all values in `dimensions` [width] bool."""
    return float(embeds[:, dimensions].std(correction=0))


def token_rms(embeds: torch.Tensor, dimensions: torch.Tensor) -> torch.Tensor:
    """Returns the RMS of each token over `dimensions` [width] bool: [T]."""
    return embeds[:, dimensions].pow(2).mean(1).sqrt()


def normalize_token_rms(states: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Scales each token to the median RMS of the prompt's tokens, both measured without massive dimensions.

    The first layer of the transformer normalises each token anyway (zimage.md, F3), so this changes only a token's
    share in a blend. A token of zeros stays zero.
    """
    dimensions = ordinary_dimensions(states, prompt)
    target = token_rms(prompt, dimensions).median()
    return states * (target / token_rms(states, dimensions).clamp_min(_EPSILON))[:, None]


def normalize_global(states: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Scales by one factor: states * std(prompt) / std(states), both measured without massive dimensions."""
    dimensions = ordinary_dimensions(states, prompt)
    return states * (standard_deviation(prompt, dimensions) / max(standard_deviation(states, dimensions), _EPSILON))


def normalize_per_dim(states: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Brings each dimension to the reference's mean and std [width].

    z = (x - mean_d) / std_d with the statistics of the states, clamped to -3..3; the result is z * std + mean.
    """
    own_mean, own_std = states.mean(0), states.std(0, correction=0).clamp_min(_EPSILON)
    return ((states - own_mean) / own_std).clamp(-_CLAMP, _CLAMP) * std + mean


def normalize_hybrid(states: torch.Tensor, prompt: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Returns the mean of `normalize_per_dim` and `normalize_global`."""
    return 0.5 * normalize_per_dim(states, mean, std) + 0.5 * normalize_global(states, prompt)


def normalize(
    states: torch.Tensor,
    prompt: torch.Tensor,
    normalization: Normalization,
    reference: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Normalises states.

    Args:
        states: States of the image.
        prompt: Embeddings of the prompt.
        normalization: The method.
        reference: Mean and std [width] of each dimension of the encoder, for per_dim and hybrid.

    Raises:
        ValueError: The reference is needed and missing.
    """
    if normalization.needs_reference and reference is None:
        raise ValueError(f"reference: expected statistics for {normalization}, got none")
    match normalization:
        case Normalization.NONE:
            return states
        case Normalization.TOKEN_RMS:
            return normalize_token_rms(states, prompt)
        case Normalization.GLOBAL:
            return normalize_global(states, prompt)
    mean, std = reference if reference is not None else (states[0], states[0])
    if normalization is Normalization.PER_DIM:
        return normalize_per_dim(states, mean, std)
    return normalize_hybrid(states, prompt, mean, std)
