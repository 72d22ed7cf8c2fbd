"""Conditions a prompt with an image's states: mask outliers, normalise, blend; and records it in the fingerprint."""

import hashlib
from dataclasses import dataclass, replace

import torch

from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.vision_fingerprint import VisionFingerprint
from zrelay_vision.conditioning import blend as blends
from zrelay_vision.conditioning.blend import BlendMode, GraduatedCurve
from zrelay_vision.conditioning.normalize import EmbeddingStatistics, Normalization, embedding_statistics, normalize
from zrelay_vision.conditioning.outliers import OutlierMask, Outliers, find_outliers, mask_outliers
from zrelay_vision.conditioning.reference import ReferenceStatistics
from zrelay_vision.qwen3_vl.states import ImageStates, StatesParameters

MODIFICATION = "conditioning"
"""First of the two modifications in the fingerprint of a conditioned prompt; the second has the details."""
_DIGEST_DIGITS = 12
"""Digits of a SHA-256 in these details: enough to tell two values apart, and short enough to read."""


@dataclass(frozen=True, slots=True)
class ConditioningOptions:
    """How a prompt is conditioned.

    Attributes:
        alpha: Share of the image, 0..1.
        blend: The blend.
        normalization: How states are brought to the scale of the prompt.
        outlier_mask: How outlier dimensions are changed.
        outlier_threshold: Ratio of deviations above which a dimension is an outlier.
        curve: Curve of BlendMode.GRADUATED.
        token_weights: One weight per token of the prompt, for BlendMode.TOKEN_WEIGHTS.
    """

    alpha: float = 0.3
    blend: BlendMode = BlendMode.INTERPOLATE
    normalization: Normalization = Normalization.TOKEN_RMS
    outlier_mask: OutlierMask = OutlierMask.NONE
    outlier_threshold: float = 10.0
    curve: GraduatedCurve = GraduatedCurve.LINEAR
    token_weights: tuple[float, ...] = ()

    @property
    def needs_reference(self) -> bool:
        """Whether the encoder's per-dimension statistics are needed."""
        return self.normalization.needs_reference or self.outlier_mask is not OutlierMask.NONE

    @property
    def summary(self) -> str:
        """A few words for the fingerprint, such as `interpolate alpha=0.3 token_rms`."""
        words = [str(self.blend), f"alpha={self.alpha:.6g}", str(self.normalization)]
        if self.blend is BlendMode.GRADUATED:
            words.append(str(self.curve))
        if self.outlier_mask is not OutlierMask.NONE:
            words.append(f"{self.outlier_mask}>{self.outlier_threshold:.6g}")
        return " ".join(words)


@dataclass(frozen=True, slots=True, eq=False)
class ConditioningResult:
    """A conditioned prompt, with what was measured.

    Attributes:
        prompt_embeds: [T, width] in the prompt's dtype.
        before: Statistics of the prompt.
        states: Statistics of the states, after normalisation.
        after: Statistics of the result.
        outliers: The outlier dimensions that were masked.
    """

    prompt_embeds: torch.Tensor
    before: EmbeddingStatistics
    states: EmbeddingStatistics
    after: EmbeddingStatistics
    outliers: Outliers


def condition(
    prompt: torch.Tensor,
    states: ImageStates,
    options: ConditioningOptions,
    reference: ReferenceStatistics | None = None,
    neutral: torch.Tensor | None = None,
) -> ConditioningResult:
    """Blends an image's states into a prompt, on the CPU in float32. With alpha 0 the prompt is returned unchanged.

    Args:
        prompt: Embeddings [T, width].
        states: States of the image, [S, width].
        options: How to condition.
        reference: Statistics of the prompt's encoder, if the options need them.
        neutral: States [S, width] of a plain image, for style_delta.

    Raises:
        ValueError: Shapes do not fit, or something that an option needs is missing.
    """
    if prompt.shape[1] != states.hidden_states.shape[1]:
        raise ValueError(f"states: expected rows of {prompt.shape[1]}, got {states.hidden_states.shape[1]}")
    if options.needs_reference and reference is None:
        raise ValueError(f"reference: expected statistics for {options.summary}, got none")
    text = prompt.float()
    outliers = _outliers(states, options, reference)
    ready = _prepare(states, states.hidden_states.float(), outliers, text, options, reference)
    if options.alpha == 0:
        result = prompt
    else:  # the plain image loses the same dimensions as the image, because only their difference counts
        plain = None if neutral is None else _prepare(states, neutral.float(), outliers, text, options, reference)
        result = _blend(text, ready, plain, options).to(prompt.dtype)
    return ConditioningResult(
        result, embedding_statistics(prompt), embedding_statistics(ready), embedding_statistics(result), outliers
    )


def conditioned_fingerprint(
    fingerprint: EncoderFingerprint,
    options: ConditioningOptions,
    parameters: StatesParameters,
    states: ImageStates,
    made_by: VisionFingerprint,
    *,
    sha256: str,
    reference: ReferenceStatistics | None,
) -> EncoderFingerprint:
    """Adds two modifications to a prompt's fingerprint: MODIFICATION, and the details as words `name=value`.

    The details hold everything that changes the result. A picture may be published without its prompt, so texts, system
    prompts and weights appear only as the beginning of a digest.

    Args:
        fingerprint: The prompt's fingerprint.
        options: How the prompt was conditioned.
        parameters: How the image was read. Ignored for saved states, whose digest covers it.
        states: The states.
        made_by: The fingerprint of the engine that made the states.
        sha256: Digest (hex) of the image's file, "" for saved states.
        reference: The reference statistics that were used, None if none were.
    """
    engine = f"{made_by.engine} {made_by.digest[:_DIGEST_DIGITS]}"
    words = [f"{options.summary}; {engine} layer={made_by.hidden_layer} {states.tokens}"]
    if sha256:
        words.append(f"image={sha256[:_DIGEST_DIGITS]}")
        if parameters.text and states.tokens.has_text:  # otherwise the text after the image is not read
            words.append(f"text={_digest(parameters.text.encode('utf-8', 'replace'))}")
        if parameters.system_prompt:
            words.append(f"system_prompt={_digest(parameters.system_prompt.encode('utf-8', 'replace'))}")
    else:
        words.append(f"states={_digest(_bytes(states.hidden_states))}")
    if options.blend is BlendMode.TOKEN_WEIGHTS:
        words.append(f"token_weights={_digest(_bytes(torch.tensor(options.token_weights)))}")
    if reference is not None:
        words.append(f"reference={_digest(_bytes(torch.stack([reference.mean, reference.std])))}")
    return replace(fingerprint, modifications=(*fingerprint.modifications, MODIFICATION, " ".join(words)))


def _masked_rows(states: ImageStates) -> slice:
    """Returns the rows of the image, or all rows if there are none: text has the same outliers as the encoder."""
    return slice(states.start, states.start + states.count) if states.count else slice(None)


def _outliers(states: ImageStates, options: ConditioningOptions, reference: ReferenceStatistics | None) -> Outliers:
    if options.outlier_mask is OutlierMask.NONE or reference is None:
        return Outliers((), ())
    rows = states.hidden_states[_masked_rows(states)].float()
    return find_outliers(rows, reference.std, options.outlier_threshold)


def _prepare(
    states: ImageStates,
    rows: torch.Tensor,
    outliers: Outliers,
    prompt: torch.Tensor,
    options: ConditioningOptions,
    reference: ReferenceStatistics | None,
) -> torch.Tensor:
    """Masks outliers in the image's rows, then normalises all rows; `rows` has the tokens of `states` in order."""
    if outliers.dimensions:
        image, rows = _masked_rows(states), rows.clone()
        rows[image] = mask_outliers(rows[image], outliers, options.outlier_mask, options.outlier_threshold)
    pair = None if reference is None else (reference.mean, reference.std)
    return normalize(rows, prompt, options.normalization, pair)


def _blend(
    prompt: torch.Tensor, states: torch.Tensor, neutral: torch.Tensor | None, options: ConditioningOptions
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


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGEST_DIGITS]


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
