"""Positions of Z-Image Omni's tokens on the transformer's three RoPE axes, and which of them are clean.

Equal to ZImageTransformer2DModel.patchify_and_embed_omni and _prepare_sequence (diffusers), row by row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zrelay_generator.model.rope import TOKEN_MULTIPLE, padded
from zrelay_shared.omni import segment_starts


@dataclass(frozen=True, slots=True)
class Extent:
    """Rows and columns of something."""

    rows: int
    columns: int

    @property
    def count(self) -> int:
        return self.rows * self.columns


def image_slots(segments: Sequence[int]) -> tuple[int, ...]:
    """Position on axis 0 of the image behind each segment, given their tokens; its SigLIP grid has the next one."""
    return tuple(start + length for start, length in zip(segment_starts(segments), segments, strict=True))


def segment_positions(segments: Sequence[int]) -> Tensor:
    """[sum of padded lengths, 3] int64 of a prompt's segments.

    diffusers makes a position for every token and then zeros for the padding once more, so that from the second
    segment on positions lie behind their tokens by the padding so far. The weights are run with it, so it stays.
    """
    parts = []
    for start, length in zip(segment_starts(segments), segments, strict=True):
        whole = torch.zeros(2 * padded(length) - length, 3, dtype=torch.int64)
        whole[: padded(length), 0] = torch.arange(start, start + padded(length))
        parts.append(whole)
    return torch.cat(parts)[: sum(map(padded, segments))]


def picture_positions(slot: int, patches: Extent) -> Tensor:
    """[padded(rows * columns), 3] int64 of a picture at `slot`; padding is 0."""
    return _grid(slot, torch.arange(patches.rows), torch.arange(patches.columns))


def siglip_positions(slot: int, grid: Extent, latents: Extent) -> Tensor:
    """[padded(rows * columns), 3] int64 of a SigLIP grid that is spread over its picture's latents; padding is 0."""
    return _grid(slot, _spread(grid.rows, latents.rows), _spread(grid.columns, latents.columns))


def unseen_positions() -> Tensor:
    """[32, 3] int64 of the padding that stands for the painted image's SigLIP grid."""
    return torch.zeros(TOKEN_MULTIPLE, 3, dtype=torch.int64)


def clean_tokens(segments: Sequence[int], pictures: Sequence[int], painted: int, grids: Sequence[int]) -> Tensor:
    """bool [tokens] of those that are clean, in the order prompt, pictures, painted image, grids, unseen grid.

    All counts but the painted image's are without padding. The segments before each picture are clean with it; the
    user's words and what is behind them are not.
    """
    clean, noisy = sum(map(padded, segments[: len(pictures)])), sum(map(padded, segments[len(pictures) :]))
    runs = ((True, clean), (False, noisy), (True, sum(map(padded, pictures))), (False, padded(painted)),
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
    """`count` positions from 0 to latents - 1, rounded down as diffusers does in float32."""
    return (torch.arange(count).float() / max(count - 1, 1) * (latents - 1)).to(torch.int64)
