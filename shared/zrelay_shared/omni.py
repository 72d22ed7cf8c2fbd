"""Z-Image Omni's prompt: how many segments it has, and where they stand on the transformer's first RoPE axis."""

from collections.abc import Sequence

_TOKEN_MULTIPLE = 32
"""Each segment is padded to a multiple of this (SEQ_MULTI_OF in ZImageTransformer2DModel)."""


def segment_count(images: int) -> int:
    """Segments of a prompt of so many reference images: what stands before, between and behind their places and the
    painted image's."""
    return images + 2 if images else 1


def image_count(segments: int) -> int:
    """Reference images of a prompt of so many segments, the inverse of `segment_count`."""
    return max(0, segments - 2)


def text_segment(images: int) -> int:
    """The segment that holds the user's words; the painted image's place is right behind it."""
    return images


def segment_starts(lengths: Sequence[int]) -> list[int]:
    """Position of each segment's first token, given their tokens without padding.

    The next segment begins two behind the last token of the one before: an image's place and its SigLIP grid's are
    between them, and padding counts on into all of that (ZImageTransformer2DModel.patchify_and_embed_omni).
    """
    starts, start = [], 1
    for length in lengths:
        starts.append(start)
        start += length + 2
    return starts


def last_position(lengths: Sequence[int]) -> int:
    """The highest position that a token of such a prompt takes, padding and images included."""
    starts = segment_starts(lengths)
    ends = [
        start + -(-length // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE - 1
        for start, length in zip(starts, lengths, strict=True)
    ]
    painted = max(0, len(lengths) - 2)
    return max(*ends, starts[painted] + lengths[painted])


def fits(lengths: Sequence[int], text_limit: int) -> bool:
    """Whether a transformer that takes ordinary prompts of `text_limit` tokens has positions for all of them."""
    return last_position(lengths) <= text_limit + 1
