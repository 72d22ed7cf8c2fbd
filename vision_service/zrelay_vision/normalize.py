"""Bringing an image's states to the scale of a prompt's embeddings, so that alpha means a share (zimage.md, 2.1).

All take and give [T, width] float32. Statistics over tokens are population statistics (no correction), so that one
token has a deviation, 0.
"""

from enum import StrEnum

import torch

from zrelay_vision.measures import deviation, ordinary_dimensions, token_rms

_LEAST = 1e-6
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


def normalize_token_rms(states: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Each token scaled to the median RMS of the prompt's tokens, both measured without massive dimensions.

    The transformer's first layer normalises each token anyway (F3), so this changes nothing about a token but its share
    in a blend. A token of zeros stays one.
    """
    dimensions = ordinary_dimensions(states, prompt)
    target = token_rms(prompt, dimensions).median()
    return states * (target / token_rms(states, dimensions).clamp_min(_LEAST))[:, None]


def normalize_global(states: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """states * std(prompt) / std(states): one factor for all, both measured without massive dimensions (F4)."""
    dimensions = ordinary_dimensions(states, prompt)
    return states * (deviation(prompt, dimensions) / max(deviation(states, dimensions), _LEAST))


def normalize_per_dim(states: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Each dimension to the reference's `mean` and `std` [width]: z = (x - mean_d) / std_d of the states' own tokens,
    held within 3, then z * std + mean."""
    own_mean, own_std = states.mean(0), states.std(0, correction=0).clamp_min(_LEAST)
    return ((states - own_mean) / own_std).clamp(-_CLAMP, _CLAMP) * std + mean


def normalize_hybrid(states: torch.Tensor, prompt: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Half per_dim, half global."""
    return 0.5 * normalize_per_dim(states, mean, std) + 0.5 * normalize_global(states, prompt)


def normalize(
    states: torch.Tensor,
    prompt: torch.Tensor,
    how: Normalization,
    reference: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """States normalised as asked; `reference` is the encoder's mean and std [width] of each dimension.

    Raises ValueError where it is needed and absent.
    """
    if how.needs_reference and reference is None:
        raise ValueError(f"reference: expected statistics for {how}, got none")
    match how:
        case Normalization.NONE:
            return states
        case Normalization.TOKEN_RMS:
            return normalize_token_rms(states, prompt)
        case Normalization.GLOBAL:
            return normalize_global(states, prompt)
    mean, std = reference if reference is not None else (states[0], states[0])
    if how is Normalization.PER_DIM:
        return normalize_per_dim(states, mean, std)
    return normalize_hybrid(states, prompt, mean, std)
