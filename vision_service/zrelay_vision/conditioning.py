"""A prompt conditioned by an image's states: masked, normalised, blended, and what was done."""

from dataclasses import dataclass

import torch

from zrelay_vision import blend as blends
from zrelay_vision.blend import BlendMode, Curve
from zrelay_vision.measures import Statistics, statistics
from zrelay_vision.normalize import Normalization, normalize
from zrelay_vision.outliers import OutlierMask, Outliers, find_outliers, mask_outliers
from zrelay_vision.token_modes import States

MODIFICATION = "conditioning"
"""What a fingerprint's modifications say of a conditioned prompt, followed by the particulars."""


@dataclass(frozen=True, slots=True)
class ConditionOptions:
    """How a prompt is conditioned. `token_weights` belong to BlendMode.TOKEN_WEIGHTS."""

    alpha: float = 0.3
    blend: BlendMode = BlendMode.INTERPOLATE
    normalization: Normalization = Normalization.TOKEN_RMS
    outlier_mask: OutlierMask = OutlierMask.NONE
    outlier_threshold: float = 10.0
    curve: Curve = Curve.LINEAR
    token_weights: tuple[float, ...] = ()

    @property
    def needs_reference(self) -> bool:
        """Whether the encoder's per-dimension statistics are needed."""
        return self.normalization.needs_reference or self.outlier_mask is not OutlierMask.NONE

    @property
    def said(self) -> str:
        """In a few words, for the fingerprint: `interpolate alpha=0.3 token_rms`."""
        words = [str(self.blend), f"alpha={self.alpha:.6g}", str(self.normalization)]
        if self.blend is BlendMode.GRADUATED:
            words.append(str(self.curve))
        if self.outlier_mask is not OutlierMask.NONE:
            words.append(f"{self.outlier_mask}>{self.outlier_threshold:.6g}")
        return " ".join(words)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The encoder's own mean and deviation of each dimension, [width] float32."""

    mean: torch.Tensor
    std: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Conditioned:
    """The result [T, width] in the prompt's dtype, and what was measured on the way."""

    prompt_embeds: torch.Tensor
    before: Statistics
    states: Statistics
    after: Statistics
    outliers: Outliers


def condition(
    prompt: torch.Tensor,
    states: States,
    options: ConditionOptions,
    reference: Reference | None = None,
    neutral: torch.Tensor | None = None,
) -> Conditioned:
    """prompt [T, width] blended with an image's states [S, width], on the CPU in float32.

    With alpha 0 the prompt itself comes back, bit for bit. `neutral` [S, width] are the states of a plain image, for
    style_delta. Raises ValueError where shapes do not fit, or where what an option needs is absent.
    """
    if prompt.shape[1] != states.hidden_states.shape[1]:
        raise ValueError(f"states: expected rows of {prompt.shape[1]}, got {states.hidden_states.shape[1]}")
    if options.needs_reference and reference is None:
        raise ValueError(f"reference: expected statistics for {options.said}, got none")
    text = prompt.float()
    outliers = _outliers(states, options, reference)
    ready = _prepare(states, states.hidden_states.float(), outliers, text, options, reference)
    if options.alpha == 0:
        result = prompt
    else:  # a plain image loses the dimensions that the image loses: the difference of the two is what counts
        plain = None if neutral is None else _prepare(states, neutral.float(), outliers, text, options, reference)
        result = _blend(text, ready, plain, options).to(prompt.dtype)
    return Conditioned(result, statistics(prompt), statistics(ready), statistics(result), outliers)


def _masked_rows(states: States) -> slice:
    """The image's rows alone, where there are any: text has outliers of its own, which are the encoder's too."""
    return slice(states.start, states.start + states.count) if states.count else slice(None)


def _outliers(states: States, options: ConditionOptions, reference: Reference | None) -> Outliers:
    if options.outlier_mask is OutlierMask.NONE or reference is None:
        return Outliers((), ())
    rows = states.hidden_states[_masked_rows(states)].float()
    return find_outliers(rows, reference.std, options.outlier_threshold)


def _prepare(
    states: States,
    rows: torch.Tensor,
    outliers: Outliers,
    prompt: torch.Tensor,
    options: ConditionOptions,
    reference: Reference | None,
) -> torch.Tensor:
    """Rows, laid out as `states`, with their outliers masked and brought to the prompt's scale."""
    if outliers.dimensions:
        image, rows = _masked_rows(states), rows.clone()
        rows[image] = mask_outliers(rows[image], outliers, options.outlier_mask, options.outlier_threshold)
    pair = None if reference is None else (reference.mean, reference.std)
    return normalize(rows, prompt, options.normalization, pair)


def _blend(
    prompt: torch.Tensor, states: torch.Tensor, neutral: torch.Tensor | None, options: ConditionOptions
) -> torch.Tensor:
    alpha = options.alpha
    match options.blend:
        case BlendMode.LINEAR:
            return blends.linear(prompt, states, alpha)
        case BlendMode.ADAIN_PER_DIM:
            return blends.adain_per_dim(prompt, states, alpha)
        case BlendMode.STYLE_DELTA:
            if neutral is None:
                raise ValueError("neutral: expected the states of a plain image for style_delta, got none")
            return blends.style_delta(prompt, states, neutral, alpha)
    paired = blends.resample(states, len(prompt))
    match options.blend:
        case BlendMode.ADAIN:
            return blends.adain(prompt, paired, alpha)
        case BlendMode.SLERP:
            return blends.slerp(prompt, paired, alpha)
        case BlendMode.GRADUATED:
            return blends.mix(prompt, paired, blends.graduated_alphas(len(prompt), alpha, options.curve))
        case BlendMode.TOKEN_WEIGHTS:
            if len(options.token_weights) != len(prompt):
                raise ValueError(f"token_weights: expected {len(prompt)}, got {len(options.token_weights)}")
            return blends.mix(prompt, paired, alpha * torch.tensor(options.token_weights)[:, None])
    return blends.mix(prompt, paired, alpha)
