"""The prompt of Z-Image Omni: its segments, and their positions on the transformer's first RoPE axis."""

from collections.abc import Sequence

_TOKEN_MULTIPLE = 32
"""Each segment is padded to a multiple of this (SEQ_MULTI_OF in ZImageTransformer2DModel)."""


def segment_count(images: int) -> int:
    """Returns the number of segments of a prompt with `images` reference images.

    The segments are the text before, between and after the positions of these images and of the generated one.
    """
    return images + 2 if images else 1


def image_count(segments: int) -> int:
    """Returns the number of reference images of a prompt with `segments` segments; the inverse of `segment_count`."""
    return max(0, segments - 2)


def text_segment(images: int) -> int:
    """Returns the index of the segment with the user's text; the generated image follows it."""
    return images


def segment_starts(lengths: Sequence[int]) -> list[int]:
    """Returns the position of each segment's first token.

    A segment starts two positions after the last token of the segment before: the image and its SigLIP grid take the
    positions between. Padding overlaps with them (ZImageTransformer2DModel.patchify_and_embed_omni).

    Args:
        lengths: Tokens of each segment without padding.
    """
    starts, start = [], 1
    for length in lengths:
        starts.append(start)
        start += length + 2
    return starts


def last_position(lengths: Sequence[int]) -> int:
    """Returns the highest position in a prompt with these segments, padding and images included."""
    starts = segment_starts(lengths)
    ends = [
        start + -(-length // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE - 1
        for start, length in zip(starts, lengths, strict=True)
    ]
    painted = max(0, len(lengths) - 2)
    return max(*ends, starts[painted] + lengths[painted])


def fits(lengths: Sequence[int], text_limit: int) -> bool:
    """Returns whether an Omni prompt fits the positions of a transformer.

    Args:
        lengths: Token counts of the prompt's segments.
        text_limit: The limit of the transformer for an ordinary prompt, in tokens.
    """
    return last_position(lengths) <= text_limit + 1
