"""Tokens of Z-Image Omni that are the same in all steps: prompts in segments, SigLIP grids, embedded references."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zrelay_generator.features.omni.positions import segment_positions
from zrelay_generator.model.attention import spans_of
from zrelay_generator.model.blocks import run_block
from zrelay_generator.model.sequence import TOKEN_MULTIPLE, padded
from zrelay_generator.model.transformer import PackedTransformer
from zrelay_generator.model.weights import BlockWeights


def refined_prompt(transformer: PackedTransformer, prompt_embeds: Tensor, segments: Sequence[int]) -> Tensor:
    """Embeds a prompt, pads each segment and refines all of them together.

    Args:
        transformer: The model.
        prompt_embeds: [sum of segments, width], any dtype and device.
        segments: Tokens of each segment.

    Returns:
        [sum of padded segments, dim].
    """
    weights = transformer.weights
    caption: Tensor = weights.caption_embedder(prompt_embeds.to(weights.device, weights.dtype))
    tokens = _padded(caption.split(list(segments)), weights.caption_pad)
    return _refined(transformer, tokens, segment_positions(segments), weights.context_refiner)


def refined_siglip(transformer: PackedTransformer, grids: Sequence[Tensor], positions: Tensor) -> Tensor:
    """Embeds SigLIP grids, pads each of them, adds 32 pads for the generated image's grid and refines all together.

    Args:
        transformer: The model.
        grids: [rows, columns, siglip_width] each.
        positions: Positions of all tokens, pads included.

    Returns:
        [tokens, dim].

    Raises:
        ValueError: The model has no SigLIP parts.
    """
    parts = transformer.weights.siglip
    if parts is None:
        raise ValueError("siglip: expected a transformer with SigLIP parts, got one without")
    weights = transformer.weights
    embedded = [parts.embedder(_scrambled(grid).to(weights.device, weights.dtype)) for grid in grids]
    tokens = torch.cat([_padded(embedded, parts.pad), parts.pad.expand(TOKEN_MULTIPLE, -1)])
    return _refined(transformer, tokens, positions, parts.refiner)


def embedded_pictures(transformer: PackedTransformer, latents: Sequence[Tensor]) -> Tensor:
    """Embeds clean latents [channels, h, w] on the device and pads those of each picture: [tokens, dim]."""
    return _padded([transformer.embed(one) for one in latents], transformer.weights.image_pad)


def _refined(
    transformer: PackedTransformer, tokens: Tensor, positions: Tensor, blocks: Sequence[BlockWeights]
) -> Tensor:
    rope = transformer.rope(positions)
    spans = spans_of([len(tokens)], rope.device)
    for block in blocks:
        tokens = run_block(block, tokens, spans, rope, block.norms.unbind())
    return tokens


def _padded(parts: Sequence[Tensor], pad: Tensor) -> Tensor:
    """Returns the parts one after the other, each padded by `pad` [1, dim] to a multiple of 32."""
    return torch.cat([tokens for part in parts for tokens in (part, pad.expand(padded(len(part)) - len(part), -1))])


def _scrambled(grid: Tensor) -> Tensor:
    """Flattens a grid [rows, columns, width] to [rows * columns, width] as patchify_and_embed_omni in diffusers does.

    Channels come first and are cut into rows of `width` values, so that one token holds few channels of many places.
    The published weights were trained with this order.
    """
    return grid.permute(2, 0, 1).reshape(-1, grid.shape[-1])
