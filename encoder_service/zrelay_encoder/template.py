"""A prompt in the checkpoint's own chat template, with or without a think block."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

THINK_MODES = ("none", "empty", "content")
_EMPTY_BLOCK = "<think>\n\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is formatted: the turns, and the think block that opens the assistant's answer.

    `thinking` is the block's content and is read only where `think_mode` is "content".
    """

    messages: tuple[Message, ...]
    think_mode: str = "none"
    thinking: str = ""


def of_prompt(text: str) -> Conversation:
    """One user turn without a think block: what Z-Image was trained with."""
    return Conversation((Message("user", text),))


def format_prompt(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """The text that is tokenised: the turns through the chat template, the assistant's turn opened.

    Qwen's template adds an empty block where enable_thinking is False and none where it is True (which is how diffusers
    calls it). A template that knows no such switch gets the same block appended, so that a mode means one thing.
    """
    plain = _apply(tokenizer, conversation.messages, enable_thinking=True)
    match conversation.think_mode:
        case "none":
            return plain
        case "empty":
            switched = _apply(tokenizer, conversation.messages, enable_thinking=False)
            return switched if switched != plain else plain + _EMPTY_BLOCK
        case "content":
            return f"{plain}<think>\n{conversation.thinking}\n</think>\n\n"
        case other:
            raise ValueError(f"think_mode: expected one of {', '.join(THINK_MODES)}, got {other!r}")


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, enable_thinking: bool) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
    )
    if not isinstance(text, str):
        raise TypeError(f"expected one formatted text, got {type(text).__name__}")
    return text
