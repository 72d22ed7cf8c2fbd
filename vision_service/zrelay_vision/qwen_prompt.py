"""An image and a text in the checkpoint's own chat template: the ids before the image, and those behind it."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from zrelay_shared.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """Token ids that frame an image and stand for its parts."""

    start: int
    image: int
    video: int
    end: int


@dataclass(frozen=True, slots=True)
class VisionPrompt:
    """`before` ends with vision_start; `after` begins behind vision_end and holds the text and the assistant's turn."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def format_vision_prompt(
    tokenizer: PreTrainedTokenizerBase, tokens: ImageTokens, text: str, system_prompt: str
) -> VisionPrompt:
    """The ids of [system turn,] user turn with the image and `text`, and the opened assistant's turn.

    Whether that opens a think block (Thinking) or not (Instruct) is the template's business. Raises InvalidArgument
    (TEXT_HAS_IMAGE) where text or system prompt bring image tokens of their own; ValueError where the template puts no
    image between its markers.
    """
    content: list[dict[str, str]] = [{"type": "image"}]
    if text:
        content.append({"type": "text", "text": text})
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system_prompt:
        turns.insert(0, {"role": "system", "content": system_prompt})
    formatted = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(formatted, padding=False, truncation=False).input_ids
    if tokens.video in ids or ids.count(tokens.image) > 1:
        raise InvalidArgument(
            "states_options: expected text without the model's own image and video marks, got some; leave out "
            "<|image_pad|> and <|video_pad|>",
            field="states_options",
            reason="TEXT_HAS_IMAGE",
        )
    at = ids.index(tokens.image) if tokens.image in ids else 0
    if not 0 < at < len(ids) - 1 or (ids[at - 1], ids[at + 1]) != (tokens.start, tokens.end):
        raise ValueError("chat_template: expected one image between vision_start and vision_end, got none")
    return VisionPrompt(tuple(ids[:at]), tuple(ids[at + 2 :]))
