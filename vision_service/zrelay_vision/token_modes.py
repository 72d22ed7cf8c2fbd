"""How an image is read: which rows of its sequence are kept, and where the image's tokens then stand."""

from dataclasses import dataclass
from enum import StrEnum

import torch


class TokenMode(StrEnum):
    """What is kept: everything, the text without the image and its markers, the image with them, or without."""

    FULL = "full"
    TEXT_ONLY = "text_only"
    IMAGE_ONLY = "image_only"
    IMAGE_NO_MARKERS = "image_no_markers"

    @property
    def has_text(self) -> bool:
        """Whether what follows the image is needed."""
        return self in (TokenMode.FULL, TokenMode.TEXT_ONLY)


@dataclass(frozen=True, slots=True)
class StatesOptions:
    """How an image is read. `hidden_layer` None is the server's default."""

    hidden_layer: int | None = None
    tokens: TokenMode = TokenMode.FULL
    text: str = ""
    system_prompt: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Hidden states [T, width] with the place of the image's tokens among their rows (`count` 0 where none were
    kept)."""

    hidden_states: torch.Tensor
    start: int
    count: int
    tokens: TokenMode


def select(before: torch.Tensor, after: torch.Tensor | None, start: int, count: int, tokens: TokenMode) -> States:
    """The rows that `tokens` keeps.

    `before` [T, width] are the states up to and with vision_end, its last row; the image's `count` tokens begin at row
    `start`, behind vision_start. `after` are those of what follows, None where the mode needs none. Raises ValueError
    where a mode with text gets none.
    """
    if len(before) != start + count + 1 or start < 1:
        raise ValueError(
            f"before: expected vision_start, {count} tokens from {start} on, vision_end, got {len(before)}"
        )
    if tokens.has_text and after is None:
        raise ValueError(f"after: expected states for {tokens}, got none")
    match tokens:
        case TokenMode.IMAGE_ONLY:
            return States(before[start - 1 :], 1, count, tokens)
        case TokenMode.IMAGE_NO_MARKERS:
            return States(before[start:-1], 0, count, tokens)
    text = after if after is not None else before[:0]
    if tokens is TokenMode.TEXT_ONLY:
        return States(torch.cat([before[: start - 1], text]), 0, 0, tokens)
    return States(torch.cat([before, text]), start, count, tokens)
