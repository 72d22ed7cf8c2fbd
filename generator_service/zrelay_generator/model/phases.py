"""Phases of the main blocks. Every segment passes through all blocks; a variant of a segment leaves some blocks out.

Up to its first omitted block a variant equals its segment, so it starts there as a copy. While its blocks are omitted,
its tokens are stored separately.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Variant:
    """A segment without some main blocks.

    Attributes:
        segment: Index of the segment.
        number: Index of the variant in its segment.
        blocks: Indices of the blocks that are left out.
    """

    segment: int
    number: int
    blocks: frozenset[int]


@dataclass(frozen=True, slots=True)
class Phase:
    """Consecutive main blocks that run on the same tokens: those of all segments, then those of `variants`.

    Attributes:
        first, stop: First block, and the block after the last.
        variants: Variants that run in these blocks.
        begins: Variants that are copied from their segments before these blocks.
    """

    first: int
    stop: int
    variants: tuple[Variant, ...]
    begins: tuple[Variant, ...]


def phases_of(without: Sequence[Sequence[frozenset[int]]], layers: int) -> tuple[Phase, ...]:
    """Returns the phases of the main blocks.

    Args:
        without: For each segment the sets of blocks that its variants leave out.
        layers: Number of main blocks.

    Raises:
        ValueError: A set is empty or names a block that does not exist.
    """
    variants = [Variant(i, n, blocks) for i, own in enumerate(without) for n, blocks in enumerate(own)]
    for variant in variants:
        if not variant.blocks or min(variant.blocks) < 0 or max(variant.blocks) >= layers:
            raise ValueError(f"without: expected some blocks of 0 to {layers - 1}, got {sorted(variant.blocks)}")
    edges = {0, layers}
    for variant in variants:
        edges |= {block for block in variant.blocks if block - 1 not in variant.blocks}
        edges |= {block + 1 for block in variant.blocks if block + 1 not in variant.blocks}
    bounds = sorted(edges)
    return tuple(
        Phase(
            first,
            stop,
            tuple(v for v in variants if first > min(v.blocks) and first not in v.blocks),
            tuple(v for v in variants if first == min(v.blocks)),
        )
        for first, stop in pairwise(bounds)
    )
