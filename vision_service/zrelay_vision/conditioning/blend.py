"""Blends a prompt's embeddings X with an image's states V (zimage.md, 2.1, uses the same letters).

All functions take [T, width] float32 and return float32; `alpha` is in 0..1. The caller resamples V to the length of X
(`resample`), except for `linear`, which truncates both, and for `adain_per_dim`, which does not pair rows.
"""

from enum import StrEnum

import torch
from torch.nn.functional import interpolate

from zrelay_vision.conditioning.normalize import ordinary_dimensions, standard_deviation

_EPSILON = 1e-6
_PARALLEL = 1e-4
"""Angle in radians below which slerp becomes a linear mix, because it divides by the sine."""


class BlendMode(StrEnum):
    """How states and prompt are blended."""

    INTERPOLATE = "interpolate"
    LINEAR = "linear"
    ADAIN = "adain"
    ADAIN_PER_DIM = "adain_per_dim"
    GRADUATED = "graduated"
    SLERP = "slerp"
    STYLE_DELTA = "style_delta"
    TOKEN_WEIGHTS = "token_weights"


class GraduatedCurve(StrEnum):
    """How alpha grows along the tokens of a graduated blend."""

    LINEAR = "linear"
    EASE_IN = "ease_in"
    EASE_OUT = "ease_out"


def resample(states: torch.Tensor, tokens: int) -> torch.Tensor:
    """Resamples states to `tokens` rows by linear interpolation along the tokens, corners not aligned."""
    if len(states) == tokens:
        return states
    return interpolate(states.T[None], size=tokens, mode="linear", align_corners=False)[0].T


def mix(prompt: torch.Tensor, states: torch.Tensor, alpha: float | torch.Tensor) -> torch.Tensor:
    """Returns alpha V + (1 - alpha) X; `alpha` is one number or [T, 1]."""
    return alpha * states + (1 - alpha) * prompt


def linear(prompt: torch.Tensor, states: torch.Tensor, alpha: float) -> torch.Tensor:
    """Truncates both to the shorter length and mixes them."""
    rows = min(len(prompt), len(states))
    return mix(prompt[:rows], states[:rows], alpha)


def adain(prompt: torch.Tensor, states: torch.Tensor, alpha: float) -> torch.Tensor:
    """Mixes X with ((X - mx) / sx) sv + mv: each token with the mean and deviation over channels of V's token."""
    return mix(prompt, _restyle(prompt, states, 1), alpha)


def adain_per_dim(prompt: torch.Tensor, states: torch.Tensor, alpha: float) -> torch.Tensor:
    """As `adain`, with mean and deviation of each channel over all tokens of V."""
    return mix(prompt, _restyle(prompt, states, 0), alpha)


def _restyle(prompt: torch.Tensor, states: torch.Tensor, dim: int) -> torch.Tensor:
    mean, std = prompt.mean(dim, keepdim=True), prompt.std(dim, correction=0, keepdim=True)
    wanted_mean, wanted_std = states.mean(dim, keepdim=True), states.std(dim, correction=0, keepdim=True)
    return (prompt - mean) / std.clamp_min(_EPSILON) * wanted_std + wanted_mean


def graduated_alphas(tokens: int, alpha: float, curve: GraduatedCurve) -> torch.Tensor:
    """Returns min(1, 2 alpha f(t)) as [tokens, 1], t from 0 to 1 along the tokens; f is t, t^2 or 1 - (1 - t)^2."""
    t = torch.linspace(0, 1, tokens) if tokens > 1 else torch.full((1,), 0.5)  # one token: the middle
    match curve:
        case GraduatedCurve.EASE_IN:
            t = t**2
        case GraduatedCurve.EASE_OUT:
            t = 1 - (1 - t) ** 2
    return (2 * alpha * t).clamp_max(1.0)[:, None]


def slerp(prompt: torch.Tensor, states: torch.Tensor, alpha: float) -> torch.Tensor:
    """Turns each token from X's direction towards V's by alpha of the angle, and mixes its length linearly.

    Tokens that are nearly parallel, opposite or zero are mixed.
    """
    x, v = prompt.double(), states.double()  # float32 resolves the angle of near-parallel tokens to 0.0005 only
    lengths = x.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
    units = x / lengths[0].clamp_min(_EPSILON), v / lengths[1].clamp_min(_EPSILON)
    angle = (units[0] * units[1]).sum(1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    turned = (((1 - alpha) * angle).sin() * units[0] + (alpha * angle).sin() * units[1]) / sine.clamp_min(_EPSILON)
    length = (1 - alpha) * lengths[0] + alpha * lengths[1]
    apart = (sine > _PARALLEL) & (lengths[0] > _EPSILON) & (lengths[1] > _EPSILON)
    return torch.where(apart, turned * length, mix(x, v, alpha)).float()


def style_delta(prompt: torch.Tensor, states: torch.Tensor, neutral: torch.Tensor, alpha: float) -> torch.Tensor:
    """Returns X + alpha D std(X) / std(D), with D = V - V(neutral) resampled to the length of X.

    Both deviations are measured without massive dimensions (zimage.md, F4). An image that equals the neutral one
    changes nothing.
    """
    delta = resample(states - neutral, len(prompt))
    dimensions = ordinary_dimensions(prompt)
    spread = standard_deviation(delta, dimensions)
    if spread < _EPSILON:
        return prompt
    return prompt + alpha * delta * (standard_deviation(prompt, dimensions) / spread)
