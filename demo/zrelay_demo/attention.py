"""Attention by explicit matrix products, for training.

On a CPU, the backward pass of flash attention is slow for short sequences.
"""

from typing import Any

import torch
from torch import Tensor


class ProductAttention:
    """An attention processor for Z-Image that computes the same as diffusers' own; it supports no mask."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        """Returns the attention's output [N, tokens, dim].

        Args:
            attn: The attention module of a block.
            hidden_states: Its input [N, tokens, dim].
            encoder_hidden_states: Not used.
            attention_mask: Not used.
            freqs_cis: Rotary embedding as `real_rope` returns it.
        """
        batch, tokens, _ = hidden_states.shape
        split = (batch, tokens, attn.heads, -1)
        value = attn.to_v(hidden_states).view(split)
        query = _rotate(attn.norm_q(attn.to_q(hidden_states).view(split)), freqs_cis)
        key = _rotate(attn.norm_k(attn.to_k(hidden_states).view(split)), freqs_cis)
        query = query * query.shape[-1] ** -0.5
        q, k, v = (item.to(value.dtype).transpose(1, 2).flatten(0, 1) for item in (query, key, value))
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1).to(v.dtype)
        mixed = torch.bmm(weights, v).unflatten(0, (batch, attn.heads)).transpose(1, 2).flatten(2)
        out: Tensor = attn.to_out[0](mixed)
        return out


def real_rope(freqs_cis: Tensor) -> Tensor:
    """Converts a rotary embedding to a real tensor, which torch.compile supports.

    Complex64 [tokens, head_dim / 2] -> float32 [1, tokens, 1, head_dim / 2, 2].
    """
    return torch.view_as_real(freqs_cis)[None, :, None]


def _rotate(x: Tensor, rope: Tensor | None) -> Tensor:
    """Applies a rotary embedding in float32: [N, tokens, heads, head_dim] -> the same shape."""
    if rope is None:
        return x
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope.unbind(-1)
    return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1).flatten(-2)
