"""The token sequence of one image: its size, and its positions on the transformer's three RoPE axes."""

import torch
from torch import Tensor

from zrelay_generator.cost.model import Size

TOKEN_MULTIPLE = 32
"""Caption and image are each padded to a multiple of this (SEQ_MULTI_OF in ZImageTransformer2DModel)."""


PIXELS_PER_TOKEN = 16 * 16
"""Z-Image's patch of 2 x 2 latent pixels of 8 x 8 pixels."""


def padded(tokens: int) -> int:
    """Returns `tokens` rounded up to the multiple that the transformer pads to."""
    return -(-tokens // TOKEN_MULTIPLE) * TOKEN_MULTIPLE


def caption_positions(tokens: int) -> Tensor:
    """Returns [padded(tokens), 3] int64: axis 0 counts from 1, padding included; axes 1 and 2 are 0."""
    positions = torch.zeros(padded(tokens), 3, dtype=torch.int64)
    positions[:, 0] = torch.arange(1, len(positions) + 1)
    return positions


def image_positions(rows: int, columns: int, caption_tokens: int) -> Tensor:
    """Returns [padded(rows * columns), 3] int64: axis 0 is one after the padded caption, then row and column.

    The positions of padding are 0.
    """
    count = rows * columns
    positions = torch.zeros(padded(count), 3, dtype=torch.int64)
    positions[:count, 0] = padded(caption_tokens) + 1
    positions[:count, 1] = torch.arange(rows).repeat_interleave(columns)
    positions[:count, 2] = torch.arange(columns).repeat(rows)
    return positions


def segment_size(width: int, height: int, text_tokens: int) -> Size:
    """Returns the size of the sequence of one image.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        text_tokens: Tokens of the prompt, before padding.
    """
    tokens = padded(width * height // PIXELS_PER_TOKEN) + max(TOKEN_MULTIPLE, padded(text_tokens))
    return Size(tokens, tokens * tokens)
