"""Blends of a prompt's embeddings X with an image's states V (zimage.md, 2.1; V there as here).

All take [T, width] float32 and give float32; `alpha` is 0 to 1. V is resampled to X's length first (`resample`) but for
`linear`, which cuts both as its document says, and `adain_per_dim`, which needs no pairs.
"""

from enum import StrEnum

import torch
from torch.nn.functional import interpolate

from zrelay_vision.measures import deviation, ordinary_dimensions

_LEAST = 1e-6
_PARALLEL = 1e-4
"""Angle in radians below which slerp is lerp: the sine that it divides by vanishes."""


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


class Curve(StrEnum):
    """How alpha grows along the tokens of a graduated blend."""

    LINEAR = "linear"
    EASE_IN = "ease_in"
    EASE_OUT = "ease_out"


def resample(states: torch.Tensor, tokens: int) -> torch.Tensor:
    """States at `tokens` rows by linear interpolation along the tokens, corners not aligned."""
    if len(states) == tokens:
        return states
    return interpolate(states.T[None], size=tokens, mode="linear", align_corners=False)[0].T


def mix(prompt: torch.Tensor, states: torch.Tensor, alpha: float | torch.Tensor) -> torch.Tensor:
    """alpha V + (1 - alpha) X, `alpha` one for all or [T, 1]."""
    return alpha * states + (1 - alpha) * prompt


def linear(prompt: torch.Tensor, states: torch.Tensor, alpha: float) -> torch.Tensor:
    """Both cut to the shorter length, then mixed."""
    rows = min(len(prompt), len(states))
    return mix(prompt[:rows], states[:rows], alpha)


def adain(prompt: torch.Tensor, states: torch.Tensor, alpha: float) -> torch.Tensor:
    """Each token of X with the mean and deviation over channels of V's, mixed with X: ((X - mx) / sx) sv + mv."""
    return mix(prompt, _restyle(prompt, states, 1), alpha)


def adain_per_dim(prompt: torch.Tensor, states: torch.Tensor, alpha: float) -> torch.Tensor:
    """The same with mean and deviation of each channel over the tokens, of all of V's."""
    return mix(prompt, _restyle(prompt, states, 0), alpha)


def _restyle(prompt: torch.Tensor, states: torch.Tensor, dim: int) -> torch.Tensor:
    mean, std = prompt.mean(dim, keepdim=True), prompt.std(dim, correction=0, keepdim=True)
    wanted_mean, wanted_std = states.mean(dim, keepdim=True), states.std(dim, correction=0, keepdim=True)
    return (prompt - mean) / std.clamp_min(_LEAST) * wanted_std + wanted_mean


def graduated_alphas(tokens: int, alpha: float, curve: Curve) -> torch.Tensor:
    """[tokens, 1]: 2 alpha f(t), t from 0 to 1 along the tokens, at most 1; f is t, t^2 or 1 - (1 - t)^2."""
    t = torch.linspace(0, 1, tokens) if tokens > 1 else torch.full((1,), 0.5)  # one token: the middle of the way
    match curve:
        case Curve.EASE_IN:
            t = t**2
        case Curve.EASE_OUT:
            t = 1 - (1 - t) ** 2
    return (2 * alpha * t).clamp_max(1.0)[:, None]


def slerp(prompt: torch.Tensor, states: torch.Tensor, alpha: float) -> torch.Tensor:
    """Each token turned from X's direction towards V's by alpha of the angle, its length mixed linearly; tokens nearly
    parallel (or opposite, or zero) are mixed."""
    x, v = prompt.double(), states.double()  # float32 knows the angle of near-parallel tokens to 0.0005 only
    lengths = x.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
    units = x / lengths[0].clamp_min(_LEAST), v / lengths[1].clamp_min(_LEAST)
    angle = (units[0] * units[1]).sum(1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    turned = (((1 - alpha) * angle).sin() * units[0] + (alpha * angle).sin() * units[1]) / sine.clamp_min(_LEAST)
    length = (1 - alpha) * lengths[0] + alpha * lengths[1]
    apart = (sine > _PARALLEL) & (lengths[0] > _LEAST) & (lengths[1] > _LEAST)
    return torch.where(apart, turned * length, mix(x, v, alpha)).float()


def style_delta(prompt: torch.Tensor, states: torch.Tensor, neutral: torch.Tensor, alpha: float) -> torch.Tensor:
    """X + alpha D std(X) / std(D), with D = V - V(neutral) resampled to X's length; both measured without massive
    dimensions (F4). An image like the neutral one changes nothing."""
    delta = resample(states - neutral, len(prompt))
    dimensions = ordinary_dimensions(prompt)
    spread = deviation(delta, dimensions)
    if spread < _LEAST:
        return prompt
    return prompt + alpha * delta * (deviation(prompt, dimensions) / spread)
