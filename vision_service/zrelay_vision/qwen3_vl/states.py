"""Hidden states of an image: how they are requested, and which rows of a sequence are kept."""

from dataclasses import dataclass
from enum import StrEnum

import torch


class TokenMode(StrEnum):
    """Which rows are kept.

    full: all. text_only: all but the image and its markers. image_only: the image with its markers. image_no_markers:
    the image.
    """

    FULL = "full"
    TEXT_ONLY = "text_only"
    IMAGE_ONLY = "image_only"
    IMAGE_NO_MARKERS = "image_no_markers"

    @property
    def has_text(self) -> bool:
        """Whether the rows after the image are kept."""
        return self in (TokenMode.FULL, TokenMode.TEXT_ONLY)


@dataclass(frozen=True, slots=True)
class StatesParameters:
    """How the hidden states of an image are computed.

    Attributes:
        hidden_layer: Index of the hidden layer, negative; None for the server's default.
        tokens: Which rows are kept.
        text: Text after the image.
        system_prompt: System prompt before the image.
    """

    hidden_layer: int | None = None
    tokens: TokenMode = TokenMode.FULL
    text: str = ""
    system_prompt: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ImageStates:
    """Hidden states of an image.

    Attributes:
        hidden_states: [T, width].
        start: First row of the image's tokens.
        count: Number of the image's tokens, 0 if none were kept.
        tokens: Which rows were kept.
    """

    hidden_states: torch.Tensor
    start: int
    count: int
    tokens: TokenMode


def select_rows(
    prefix: torch.Tensor, suffix: torch.Tensor | None, start: int, count: int, tokens: TokenMode
) -> ImageStates:
    """Keeps the rows that `tokens` selects.

    Args:
        prefix: States [T, width] up to and including vision_end, its last row.
        suffix: States of the rows after vision_end, or None if the mode needs none.
        start: First row of the image's tokens, after vision_start.
        count: Number of the image's tokens.
        tokens: The rows to keep.

    Raises:
        ValueError: The rows do not fit, or a mode with text has no suffix.
    """
    if len(prefix) != start + count + 1 or start < 1:
        raise ValueError(
            f"prefix: expected {start + count + 1} rows ({start} up to vision_start, {count} image tokens, "
            f"vision_end), got {len(prefix)}"
        )
    if tokens.has_text and suffix is None:
        raise ValueError(f"suffix: expected states for {tokens}, got none")
    match tokens:
        case TokenMode.IMAGE_ONLY:
            return ImageStates(prefix[start - 1 :], 1, count, tokens)
        case TokenMode.IMAGE_NO_MARKERS:
            return ImageStates(prefix[start:-1], 0, count, tokens)
    text = suffix if suffix is not None else prefix[:0]
    if tokens is TokenMode.TEXT_ONLY:
        return ImageStates(torch.cat([prefix[: start - 1], text]), 0, 0, tokens)
    return ImageStates(torch.cat([prefix, text]), start, count, tokens)
