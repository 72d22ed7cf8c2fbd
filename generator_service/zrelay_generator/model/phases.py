"""Who goes through which main blocks: every segment through all, a variant of it through some.

A variant leaves blocks out (skip-layer guidance). Up to the first of them it is its segment, so it begins there, as a
copy; while blocks are left out it stands aside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Variant:
    """Segment number `segment` without some `blocks`."""

    segment: int
    number: int
    blocks: frozenset[int]


@dataclass(frozen=True, slots=True)
class Phase:
    """Blocks `first` to before `stop` with the same tokens in them: all segments, then `variants`; `begins` are those
    that are copied from their segments just before."""

    first: int
    stop: int
    variants: tuple[Variant, ...]
    begins: tuple[Variant, ...]


def phases_of(without: Sequence[Sequence[frozenset[int]]], layers: int) -> tuple[Phase, ...]:
    """The phases of `layers` main blocks, given the blocks that each segment's variants leave out.

    Raises ValueError for a variant that leaves out nothing, or a block that is not there.
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
