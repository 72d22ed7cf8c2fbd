"""How large a forward is, in what its time depends on: tokens, and tokens attended to by tokens."""

from dataclasses import dataclass

from zrelay_generator.model.rope import TOKEN_MULTIPLE, padded

PIXELS_PER_TOKEN = 16 * 16
"""Z-Image's patch of 2 x 2 latent pixels of 8 x 8 pixels."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of one forward or of several.

    Attributes: `tokens` through all blocks; `squares` the sum over segments of their tokens squared, which attention
    goes with. Both may be fractions: a segment that runs through half of the blocks counts half.
    """

    tokens: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.tokens + other.tokens, self.squares + other.squares)

    def __mul__(self, share: float) -> "Size":
        return Size(self.tokens * share, self.squares * share)


def segment_size(width: int, height: int, text_tokens: int) -> Size:
    """An image of `width` x `height` pixels under a prompt of so many tokens."""
    tokens = padded(width * height // PIXELS_PER_TOKEN) + max(TOKEN_MULTIPLE, padded(text_tokens))
    return Size(tokens, tokens * tokens)
