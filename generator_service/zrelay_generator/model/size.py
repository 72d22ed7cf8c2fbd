"""The size of a forward in the terms that its time depends on: tokens, and squared tokens for attention."""

from dataclasses import dataclass

from zrelay_generator.model.rope import TOKEN_MULTIPLE, padded

PIXELS_PER_TOKEN = 16 * 16
"""A patch of Z-Image is 2 x 2 latent pixels of 8 x 8 pixels each."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of one forward or of several.

    Both values may be fractions: a segment that runs through half of the blocks counts half.

    Attributes:
        tokens: Tokens that run through all blocks.
        squares: Sum over the segments of their squared tokens, which the time of attention depends on.
    """

    tokens: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.tokens + other.tokens, self.squares + other.squares)

    def __mul__(self, share: float) -> "Size":
        return Size(self.tokens * share, self.squares * share)


def segment_size(width: int, height: int, text_tokens: int) -> Size:
    """Returns the size of a plain image of `width` x `height` pixels under a prompt of `text_tokens` tokens."""
    tokens = padded(width * height // PIXELS_PER_TOKEN) + max(TOKEN_MULTIPLE, padded(text_tokens))
    return Size(tokens, tokens * tokens)
