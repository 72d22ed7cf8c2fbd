"""One transformer block over a packed sequence, and the modulation of all blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zrelay_generator.model.attention import Spans, ragged_attention
from zrelay_generator.model.weights import BlockWeights, TransformerWeights
from zrelay_shared.torch_linear import linear


@dataclass(frozen=True, slots=True, eq=False)
class Modulation:
    """The modulation of one timestep.

    Attributes:
        refiner: [blocks, 4, dim], norm weights of the noise refiner's blocks times `1 + scale` or `tanh(gate)`.
        layers: [blocks, 4, dim], the same of the main blocks.
        final: [dim], `1 + scale` of the final layer.
    """

    refiner: Tensor
    layers: Tensor
    final: Tensor


def modulation(weights: TransformerWeights, timestep: float) -> Modulation:
    """Computes the modulation of `timestep` (1 - sigma), in float32 with one rounding to the model's dtype.

    diffusers runs these small linear layers in every forward. Their result depends on the timestep only.
    """
    time = torch.tensor([timestep], dtype=torch.float32, device=weights.device)
    embedding = weights.time_embedder(time * weights.time_scale).to(weights.dtype)
    final = 1.0 + weights.final_adaln(embedding)[0].float()
    return Modulation(
        refiner=torch.stack([_norms(block, embedding) for block in weights.noise_refiner]).to(weights.dtype),
        layers=torch.stack([_norms(block, embedding) for block in weights.layers]).to(weights.dtype),
        final=final.to(weights.dtype),
    )


def _norms(block: BlockWeights, embedding: Tensor) -> Tensor:
    """Returns [4, dim] float32: scale before and gate after attention, scale before and gate after the MLP."""
    if block.adaln is None:
        raise ValueError("adaln: expected a modulated block, got a context refiner block")
    raw = linear(embedding, block.adaln.weight, block.adaln.bias)[0].float().view(4, -1)
    factors = torch.stack([1.0 + raw[0], raw[1].tanh(), 1.0 + raw[2], raw[3].tanh()])
    return block.norms.float() * factors


def run_block(weights: BlockWeights, tokens: Tensor, spans: Spans, rope: Tensor, norms: Sequence[Tensor]) -> Tensor:
    """Runs one block.

    Args:
        weights: The block.
        tokens: [tokens, dim].
        spans: Positions of the segments.
        rope: complex64 [tokens, 1, head_dim / 2].
        norms: The four norm weights multiplied by the modulation, each [dim] for the whole sequence or [tokens, dim]
            if segments differ in their timestep.

    Returns:
        [tokens, dim].
    """
    before_attention, after_attention, before_mlp, after_mlp = norms
    eps = weights.eps
    mixed = _attention(weights, scaled_norm(tokens, before_attention, eps), spans, rope)
    tokens = tokens + scaled_norm(mixed, after_attention, eps)
    normed = scaled_norm(tokens, before_mlp, eps)
    mixed = linear(F.silu(linear(normed, weights.gate)) * linear(normed, weights.up), weights.down)
    return tokens + scaled_norm(mixed, after_mlp, eps)


def scaled_norm(tokens: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns the RMS norm over the last axis times `weight`, [dim] or one row per token."""
    shape = tokens.shape[-1:]
    if weight.ndim == 1:
        return F.rms_norm(tokens, shape, weight, eps)
    return F.rms_norm(tokens, shape, None, eps) * weight


def _attention(weights: BlockWeights, tokens: Tensor, spans: Spans, rope: Tensor) -> Tensor:
    shape = (len(tokens), weights.heads, -1)
    query = linear(tokens, weights.query).view(shape)
    key = linear(tokens, weights.key).view(shape)
    value = linear(tokens, weights.value).view(shape)
    query = _rotated(scaled_norm(query, weights.query_norm, weights.qk_eps), rope)
    key = _rotated(scaled_norm(key, weights.key_norm, weights.qk_eps), rope)
    return linear(ragged_attention(query, key, value, spans).flatten(1), weights.out)


def _rotated(heads: Tensor, rope: Tensor) -> Tensor:
    """Applies RoPE in float32: two neighbouring values are one complex number (ZSingleStreamAttnProcessor)."""
    pairs = torch.view_as_complex(heads.float().view(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rope).flatten(-2).type_as(heads)
