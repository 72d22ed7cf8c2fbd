"""The size of the sequence of one image, in tokens."""

from zrelay_generator.cost.size import Size as Size
from zrelay_generator.model.rope import TOKEN_MULTIPLE, padded

PIXELS_PER_TOKEN = 16 * 16
"""Z-Image's patch of 2 x 2 latent pixels of 8 x 8 pixels."""


def segment_size(width: int, height: int, text_tokens: int) -> Size:
    """Returns the size of the sequence of one image.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        text_tokens: Tokens of the prompt, before padding.
    """
    tokens = padded(width * height // PIXELS_PER_TOKEN) + max(TOKEN_MULTIPLE, padded(text_tokens))
    return Size(tokens, tokens * tokens)
