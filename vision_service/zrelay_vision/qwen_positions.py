"""Positions of a sequence with one image in it, as Qwen3-VL's rotary embedding takes them (mrope)."""

import torch


def positions(before: int, grid: tuple[int, int], after: int) -> torch.Tensor:
    """Time, height and width of each token: [3, before + rows * columns + after] int64.

    `grid` is rows and columns of image tokens, after merging. Text counts on all three axes alike; an image has one
    time, the position after the text before it, and from there its rows and columns; text goes on behind the longer
    side (transformers' Qwen3VLModel.get_rope_index).
    """
    rows, columns = grid
    if min(rows, columns) < 1 or min(before, after) < 0:
        raise ValueError(f"grid: expected at least 1 x 1 between texts of at least 0, got {before}, {grid}, {after}")
    height = torch.arange(rows).repeat_interleave(columns) + before
    width = torch.arange(columns).repeat(rows) + before
    image = torch.stack([torch.full_like(height, before), height, width])
    text = [torch.arange(length).expand(3, -1) + start for start, length in ((0, before), (before + max(grid), after))]
    return torch.cat([text[0], image, text[1]], 1)
