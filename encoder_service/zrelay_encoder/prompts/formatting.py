"""Formats and tokenizes prompts: the checkpoint's chat template, think blocks, and the segments of Z-Image Omni."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, TypeAlias

from transformers import PreTrainedTokenizerBase

from zrelay_shared.checkpoints import TextEncoderFolder
from zrelay_shared.configuration import read_component
from zrelay_shared.errors import CheckpointError
from zrelay_shared.omni import fits
from zrelay_shared.tokenizer import TokenizerIdentity, check_rows, identify_tokenizer, load_tokenizer, padding_id

THINK_MODES = ("none", "empty", "content")
_PROBE = "a prompt"
_EMPTY_BLOCK = "<think>\n\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation.

    Attributes:
        role: system, user or assistant.
        content: The text of the turn.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt for the chat template.

    Attributes:
        messages: The turns, in order.
        think_mode: Which think block opens the assistant's answer, one of THINK_MODES.
        thinking: Content of the think block. Only used with think_mode "content".
    """

    messages: tuple[ChatMessage, ...]
    think_mode: str = "none"
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class OmniPrompt:
    """A prompt of Z-Image Omni. Its template has no think block.

    Attributes:
        text: The user's text.
        images: Number of reference images, at least 1.
    """

    text: str
    images: int
    think_mode: ClassVar[str] = "none"


PromptInput: TypeAlias = Conversation | OmniPrompt
"""One prompt of a request."""


@dataclass(frozen=True, slots=True)
class FormattedPrompt:
    """A prompt after the template and the tokenizer, neither truncated nor padded.

    Attributes:
        text: The formatted text.
        ids: All token ids.
        segments: Token count of each segment of an Omni prompt; empty for an ordinary prompt.
    """

    text: str
    ids: tuple[int, ...]
    segments: tuple[int, ...] = ()

    def fits(self, limit: int) -> bool:
        """Returns whether a generator that takes ordinary prompts of `limit` tokens takes this prompt whole."""
        return fits(self.segments, limit) if self.segments else len(self.ids) <= limit


def single_turn(text: str) -> Conversation:
    """Returns a conversation of one user turn without a think block, which is what Z-Image was trained with."""
    return Conversation((ChatMessage("user", text),))


def format_prompt(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """Formats a conversation with the chat template, up to the start of the assistant's answer.

    Qwen's template adds an empty think block with enable_thinking=False and none with True, which is how diffusers
    calls it. If a template has no such switch, the empty block is appended here, so that a mode always means the same.

    Raises:
        ValueError: The think mode is unknown.
    """
    plain = _apply_template(tokenizer, conversation.messages, enable_thinking=True)
    match conversation.think_mode:
        case "none":
            return plain
        case "empty":
            switched = _apply_template(tokenizer, conversation.messages, enable_thinking=False)
            return switched if switched != plain else plain + _EMPTY_BLOCK
        case "content":
            return f"{plain}<think>\n{conversation.thinking}\n</think>\n\n"
        case other:
            raise ValueError(f"think_mode: expected one of {', '.join(THINK_MODES)}, got {other!r}")


def omni_segments(prompt: OmniPrompt) -> list[str]:
    """Formats an Omni prompt as ZImageOmniPipeline does: `images` + 2 segments, each encoded on its own.

    The template is the pipeline's, not the checkpoint's. Without images it equals Qwen's template of one turn.

    Raises:
        ValueError: There is no image.
    """
    if prompt.images < 1:
        raise ValueError(f"images: expected at least 1, got {prompt.images}")
    return [
        "<|im_start|>user\n<|vision_start|>",
        *["<|vision_end|><|vision_start|>"] * (prompt.images - 1),
        f"<|vision_end|>{prompt.text}<|im_end|>\n<|im_start|>assistant\n<|vision_start|>",
        "<|vision_end|><|im_end|>",
    ]


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Returns the token ids of each text, neither truncated nor padded."""
    ids: list[list[int]] = tokenizer(list(texts), padding=False, truncation=False).input_ids
    return ids


class PromptFormatter:
    """A tokenizer with its chat template. Use it from one thread at a time: tokenizers keep state between calls.

    Attributes:
        pad_id: Token id of padding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.pad_id = padding_id(tokenizer)

    def format(self, prompts: Sequence[PromptInput]) -> list[FormattedPrompt]:
        """Formats and tokenizes prompts."""
        texts = [self._texts(prompt) for prompt in prompts]
        ids = iter(tokenize(self._tokenizer, [text for own in texts for text in own]))
        return [_formatted(own, [next(ids) for _ in own]) for own in texts]

    def identity(self) -> TokenizerIdentity:
        """Computes the digests of the tokenizer and of its chat template, which takes about a second for Qwen3."""
        return identify_tokenizer(self._tokenizer)

    def _texts(self, prompt: PromptInput) -> list[str]:
        if isinstance(prompt, OmniPrompt):
            return omni_segments(prompt)
        return [format_prompt(self._tokenizer, prompt)]


def load_formatter(folder: TextEncoderFolder) -> PromptFormatter:
    """Loads the tokenizer of a checkpoint and formats one prompt, so that a bad template fails before the model loads.

    Raises:
        CheckpointError: The tokenizer cannot be read or does not fit the model, or its template cannot format a prompt.
    """
    configuration = read_component(folder.component)  # transformers reads it for the tokenizer too, and names no key
    tokenizer = load_tokenizer(folder.tokenizer, folder.chat_template)
    check_rows(folder.tokenizer, tokenizer, configuration.values["vocab_size"])
    formatter = PromptFormatter(tokenizer)
    try:
        [formatted] = formatter.format([single_turn(_PROBE)])
    except Exception as error:  # a template is a program and can raise anything
        raise CheckpointError(
            f"{folder.tokenizer.name}: its chat template cannot format a prompt ({type(error).__name__}: {error}); "
            "copy it again from the checkpoint"
        ) from error
    if _PROBE not in formatted.text:
        raise CheckpointError(
            f"{folder.tokenizer.name}: its chat template leaves out the prompt; copy it again from the checkpoint"
        )
    return formatter


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[ChatMessage], *, enable_thinking: bool
) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
    )
    if not isinstance(text, str):
        raise TypeError(f"expected one formatted text, got {type(text).__name__}")
    return text


def _formatted(texts: Sequence[str], ids: Sequence[Sequence[int]]) -> FormattedPrompt:
    segments = tuple(map(len, ids)) if len(ids) > 1 else ()
    return FormattedPrompt("".join(texts), tuple(chain.from_iterable(ids)), segments)
