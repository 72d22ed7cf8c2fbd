"""Prompts of Z-Image Omni: one segment before, between and behind the places of its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from zrelay_encoder.tokens import TokenisedPrompt
from zrelay_shared.omni import fits, segment_count, text_segment


@dataclass(frozen=True, slots=True)
class OmniPrompt:
    """The user's text for a picture made after so many reference images, at least one.

    Z-Image Omni knows no think block, so there is none.
    """

    text: str
    images: int
    think_mode: ClassVar[str] = "none"


def omni_segments(prompt: OmniPrompt) -> list[str]:
    """The formatted segments, `images` + 2 of them, as ZImageOmniPipeline writes them; each is encoded by itself.

    The template is the pipeline's own and not the checkpoint's: with no image it is what Qwen's makes of one turn.
    """
    if prompt.images < 1:
        raise ValueError(f"images: expected at least 1, got {prompt.images}")
    return [
        "<|im_start|>user\n<|vision_start|>",
        *["<|vision_end|><|vision_start|>"] * (prompt.images - 1),
        f"<|vision_end|>{prompt.text}<|im_end|>\n<|im_start|>assistant\n<|vision_start|>",
        "<|vision_end|><|im_end|>",
    ]


def fit_omni(ids: Sequence[int], lengths: Sequence[int], limit: int) -> TokenisedPrompt:
    """The prompt held to a generator's `limit`: the segment with the user's words keeps its first tokens.

    `ids` are those of all segments, `lengths` how many each has. Raises ValueError where nothing of it would be left.
    """
    images = len(lengths) - 2
    if len(lengths) != segment_count(images):
        raise ValueError(f"lengths: expected those of at least 3 segments, got {len(lengths)}")
    words = text_segment(images)
    kept = list(lengths)
    kept[words] = min(kept[words], limit)
    while kept[words] and not fits(kept, limit):
        kept[words] -= 1
    if not kept[words]:
        raise ValueError(f"limit: expected room for the places of {images} images and a prompt, got {limit} tokens")
    end = sum(lengths[: words + 1])
    cut = (*ids[: end - lengths[words] + kept[words]], *ids[end:])
    return TokenisedPrompt(cut, len(ids), segments=tuple(kept))
