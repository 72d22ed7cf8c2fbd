"""Positions of Z-Image Omni's tokens on the transformer's three RoPE axes, and the mask of clean tokens.

Every row equals that of ZImageTransformer2DModel.patchify_and_embed_omni and _prepare_sequence in diffusers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zrelay_generator.model.sequence import TOKEN_MULTIPLE, padded
from zrelay_shared.omni import segment_starts


@dataclass(frozen=True, slots=True)
class Extent:
    """Rows and columns of a grid."""

    rows: int
    columns: int

    @property
    def count(self) -> int:
        return self.rows * self.columns


def image_slots(segments: Sequence[int]) -> tuple[int, ...]:
    """Returns the position on axis 0 of the image after each segment. Its SigLIP grid has the next position.

    Args:
        segments: Tokens of each segment.
    """
    return tuple(start + length for start, length in zip(segment_starts(segments), segments, strict=True))


def segment_positions(segments: Sequence[int]) -> Tensor:
    """Returns the positions of a prompt's segments, [sum of padded lengths, 3] int64.

    diffusers makes a position for every token, padding included, and then zeros for the padding again. From the second
    segment on, positions are therefore shifted against their tokens by the padding so far. The published weights are
    used in this way, so it is reproduced here.
    """
    parts = []
    for start, length in zip(segment_starts(segments), segments, strict=True):
        whole = torch.zeros(2 * padded(length) - length, 3, dtype=torch.int64)
        whole[: padded(length), 0] = torch.arange(start, start + padded(length))
        parts.append(whole)
    return torch.cat(parts)[: sum(map(padded, segments))]


def picture_positions(slot: int, patches: Extent) -> Tensor:
    """Returns the positions of a picture with `slot` on axis 0, [padded(rows * columns), 3] int64; padding is 0."""
    return _grid(slot, torch.arange(patches.rows), torch.arange(patches.columns))


def siglip_positions(slot: int, grid: Extent, latents: Extent) -> Tensor:
    """Returns the positions of a SigLIP grid, spread over the latents of its picture.

    Returns:
        [padded(rows * columns), 3] int64; padding is 0.
    """
    return _grid(slot, _spread(grid.rows, latents.rows), _spread(grid.columns, latents.columns))


def unseen_positions() -> Tensor:
    """Returns the positions of the padding in place of the generated image's SigLIP grid, [32, 3] int64."""
    return torch.zeros(TOKEN_MULTIPLE, 3, dtype=torch.int64)


def clean_tokens(segments: Sequence[int], pictures: Sequence[int], image: int, grids: Sequence[int]) -> Tensor:
    """Returns which tokens are clean, bool [tokens].

    The order is prompt, pictures, image, grids, padding of the image's grid. A picture and the segment before it are
    clean; the user's text and the segments after it are not.

    Args:
        segments: Tokens of each segment of the prompt.
        pictures: Tokens of each reference.
        image: Tokens of the generated image.
        grids: Tokens of each SigLIP grid.
    """
    clean, noisy = sum(map(padded, segments[: len(pictures)])), sum(map(padded, segments[len(pictures) :]))
    runs = ((True, clean), (False, noisy), (True, sum(map(padded, pictures))), (False, padded(image)),
            (True, sum(map(padded, grids))), (False, TOKEN_MULTIPLE))  # fmt: skip
    return torch.cat([torch.full((length,), value) for value, length in runs])


def _grid(slot: int, rows: Tensor, columns: Tensor) -> Tensor:
    count = len(rows) * len(columns)
    positions = torch.zeros(padded(count), 3, dtype=torch.int64)
    positions[:count, 0] = slot
    positions[:count, 1] = rows.repeat_interleave(len(columns))
    positions[:count, 2] = columns.repeat(len(rows))
    return positions


def _spread(count: int, latents: int) -> Tensor:
    """Returns `count` positions from 0 to `latents - 1`, rounded down in float32 as in diffusers."""
    return (torch.arange(count).float() / max(count - 1, 1) * (latents - 1)).to(torch.int64)
