"""Z-Image Omni's tokens that no step changes: segmented prompts, SigLIP grids, embedded references."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zrelay_generator.features.omni.positions import segment_positions
from zrelay_generator.model.attention import spans_of
from zrelay_generator.model.blocks import run_block
from zrelay_generator.model.rope import TOKEN_MULTIPLE, padded
from zrelay_generator.model.transformer import PackedTransformer
from zrelay_generator.model.weights import BlockWeights


def refined_prompt(transformer: PackedTransformer, prompt_embeds: Tensor, segments: Sequence[int]) -> Tensor:
    """[sum of segments, width] of any dtype and device -> [sum of padded segments, dim]: embedded, each segment padded,
    refined together."""
    weights = transformer.weights
    caption: Tensor = weights.caption_embedder(prompt_embeds.to(weights.device, weights.dtype))
    tokens = _padded(caption.split(list(segments)), weights.caption_pad)
    return _refined(transformer, tokens, segment_positions(segments), weights.context_refiner)


def refined_siglip(transformer: PackedTransformer, grids: Sequence[Tensor], positions: Tensor) -> Tensor:
    """Grids [rows, columns, siglip_width] and their `positions` -> [tokens, dim]: embedded, each padded, 32 pads behind
    them in place of the painted image's grid, refined together. Raises ValueError for a model without SigLIP parts."""
    parts = transformer.weights.siglip
    if parts is None:
        raise ValueError("siglip: expected a transformer with SigLIP parts, got one without")
    weights = transformer.weights
    embedded = [parts.embedder(_scrambled(grid).to(weights.device, weights.dtype)) for grid in grids]
    tokens = torch.cat([_padded(embedded, parts.pad), parts.pad.expand(TOKEN_MULTIPLE, -1)])
    return _refined(transformer, tokens, positions, parts.refiner)


def embedded_pictures(transformer: PackedTransformer, latents: Sequence[Tensor]) -> Tensor:
    """Clean latents [channels, h, w] on the device -> [tokens, dim]: embedded patches, each picture's padded."""
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
    """The parts one behind the other, each padded by `pad` [1, dim] to a multiple of 32."""
    return torch.cat([tokens for part in parts for tokens in (part, pad.expand(padded(len(part)) - len(part), -1))])


def _scrambled(grid: Tensor) -> Tensor:
    """[rows, columns, width] -> [rows * columns, width] as patchify_and_embed_omni reads it: channels first, cut into
    rows of `width` values. So a token holds many places' values of few channels; the weights were trained through it.
    """
    return grid.permute(2, 0, 1).reshape(-1, grid.shape[-1])
