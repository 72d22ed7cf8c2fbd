"""Differences of tensors, relative to what they should be."""

from torch import Tensor


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Returns the norm of the difference over the norm of `theirs`."""
    return float((ours - theirs).norm() / theirs.norm())


def largest_token_difference(ours: Tensor, theirs: Tensor) -> float:
    """Returns the largest difference of two tokens [..., T, width], relative to the norm of the token in `theirs`."""
    assert ours.shape == theirs.shape
    ours, theirs = ours.float(), theirs.float()
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())
