"""The size of a forward, in the quantities that its time depends on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """Size of one forward, or the sum of several.

    Attributes:
        tokens: Tokens that pass through all blocks.
        squares: Sum over the segments of tokens squared, which the time of attention is proportional to.

    Both may be fractions: a segment that passes through half of the blocks counts half.
    """

    tokens: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.tokens + other.tokens, self.squares + other.squares)

    def __mul__(self, share: float) -> "Size":
        return Size(self.tokens * share, self.squares * share)
