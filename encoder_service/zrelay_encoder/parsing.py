"""Requests off the wire into calls: every field looked at, every refusal by the field's path."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from zrelay.v1.embeds_pb2 import LongPromptMode, ThinkMode
from zrelay.v1.encoder_pb2 import (
    ChatRole,
    EncodeOptions,
    EncodePromptsRequest,
    FormatPromptRequest,
    Prompt,
    QuoteStripping,
)
from zrelay_encoder.calls import Asked, EncodeCall, FormatCall
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.features import missing
from zrelay_encoder.omni import OmniPrompt
from zrelay_encoder.template import Conversation, of_prompt
from zrelay_shared.errors import InvalidArgument, listed
from zrelay_shared.limits import MAX_OMNI_IMAGES
from zrelay_shared.tensors import FLOATS, dtype_name

_MISSING_LONG_MODES = {
    LongPromptMode.LONG_PROMPT_MODE_INTERPOLATE: "encode.long_prompt.interpolate",
    LongPromptMode.LONG_PROMPT_MODE_POOL: "encode.long_prompt.pool",
    LongPromptMode.LONG_PROMPT_MODE_ATTENTION_POOL: "encode.long_prompt.attention_pool",
}


def encode_call(request: EncodePromptsRequest, config: EncoderConfig) -> EncodeCall:
    """The call of a request. Raises InvalidArgument, FeatureMissing."""
    options = request.options
    _refuse_missing(options)
    limit = _limit(options.text_limit, "options.text_limit", config) if options.HasField("text_limit") else None
    pad_to = options.pad_to if options.HasField("pad_to") else None
    if pad_to is not None and not 1 <= pad_to <= config.max_text_limit:
        raise _invalid("options.pad_to", "PAD_TO_INVALID", f"1 to {config.max_text_limit} tokens", pad_to)
    if pad_to is not None and any(prompt.image_count for prompt in request.prompts):
        raise _invalid("options.pad_to", "PAD_TO_INVALID", "none beside image_count: Omni knows no padding", pad_to)
    return EncodeCall(
        prompts=_prompts(request.prompts, config),
        hidden_layer=options.hidden_layer if options.HasField("hidden_layer") else None,
        text_limit=limit,
        refuse_long=options.long_prompt_mode == LongPromptMode.LONG_PROMPT_MODE_REFUSE,
        dtype=_dtype(options),
        pad_to=pad_to,
        deterministic=options.deterministic,
    )


def format_call(request: FormatPromptRequest, config: EncoderConfig) -> FormatCall:
    """The call of a request. Raises InvalidArgument, FeatureMissing."""
    limit = _limit(request.text_limit, "text_limit", config) if request.HasField("text_limit") else None
    return FormatCall(_prompts(request.prompts, config), limit)


def _prompts(prompts: Sequence[Prompt], config: EncoderConfig) -> tuple[Asked, ...]:
    if not 1 <= len(prompts) <= config.max_prompts:
        raise _invalid("prompts", "PROMPT_COUNT", f"1 to {config.max_prompts} prompts", len(prompts))
    return tuple(_prompt(prompt, f"prompts[{at}]", config) for at, prompt in enumerate(prompts))


def _prompt(prompt: Prompt, path: str, config: EncoderConfig) -> Asked:
    for name, feature in (("system_prompt", "encode.system_prompt"), ("assistant_prefill", "encode.prefill"),
                          ("template", "encode.template"),
                          ("clean_whitespace", "encode.clean_whitespace")):  # fmt: skip
        if getattr(prompt, name):
            raise missing(feature, f"{path}.{name}")
    _known(prompt.quote_stripping, QuoteStripping, f"{path}.quote_stripping")
    if prompt.quote_stripping > QuoteStripping.QUOTE_STRIPPING_NONE:
        raise missing("encode.quote_stripping", f"{path}.quote_stripping")
    think_mode = _think_mode(prompt, path)
    text = _text(prompt, path)
    chars = len(text) + len(prompt.thinking_content)
    if chars > config.max_prompt_chars:
        raise _invalid(path, "PROMPT_TOO_LARGE", f"at most {config.max_prompt_chars} characters", chars)
    if prompt.image_count:
        return _omni(prompt.image_count, text, think_mode, path)
    return Conversation(of_prompt(text).messages, think_mode, prompt.thinking_content)


def _omni(images: int, text: str, think_mode: str, path: str) -> OmniPrompt:
    if images > MAX_OMNI_IMAGES:
        raise _invalid(f"{path}.image_count", "IMAGE_COUNT_INVALID", f"at most {MAX_OMNI_IMAGES} images", images)
    if think_mode != "none":
        expected = "no think block beside image_count: Omni's template has none"
        raise _invalid(f"{path}.think_mode", "THINK_MODE_INVALID", expected, think_mode)
    return OmniPrompt(text, images)


def _text(prompt: Prompt, path: str) -> str:
    """The user's text: not empty, unless `allow_empty` says that it is meant (the unconditional side of guidance)."""
    if prompt.WhichOneof("content") == "conversation":
        for at, message in enumerate(prompt.conversation.messages):
            _known(message.role, ChatRole, f"{path}.conversation.messages[{at}].role")
        raise missing("encode.conversation", f"{path}.conversation")
    if not prompt.text.strip() and not prompt.allow_empty:
        raise InvalidArgument(
            f"{path}.text: expected what to paint, got an empty prompt",
            field=f"{path}.text",
            reason="PROMPT_EMPTY",
        )
    return prompt.text


def _think_mode(prompt: Prompt, path: str) -> str:
    _known(prompt.think_mode, ThinkMode, f"{path}.think_mode")
    content = bool(prompt.thinking_content)
    if prompt.think_mode == ThinkMode.THINK_MODE_UNSPECIFIED:
        return "content" if content else "none"
    if content != (prompt.think_mode == ThinkMode.THINK_MODE_CONTENT):
        raise InvalidArgument(
            f"{path}.thinking_content: expected text with THINK_MODE_CONTENT and none with another mode, got "
            f"{'some' if content else 'none'} with {ThinkMode.Name(prompt.think_mode)}",
            field=f"{path}.thinking_content",
            reason="THINKING_CONTENT_INVALID",
        )
    return {ThinkMode.THINK_MODE_NONE: "none", ThinkMode.THINK_MODE_EMPTY: "empty"}.get(prompt.think_mode, "content")


def _refuse_missing(options: EncodeOptions) -> None:
    if options.layer_weights:
        raise missing("encode.layer_weights", "options.layer_weights")
    if options.steering:
        raise missing("encode.steering", "options.steering")
    _known(options.long_prompt_mode, LongPromptMode, "options.long_prompt_mode")
    if feature := _MISSING_LONG_MODES.get(options.long_prompt_mode):
        raise missing(feature, "options.long_prompt_mode")


def _dtype(options: EncodeOptions) -> str:
    if not options.dtype:
        return "BF16"
    name = dtype_name(options.dtype)
    if name not in FLOATS:
        raise _invalid("options.dtype", "DTYPE_INVALID", " or ".join(FLOATS), name or options.dtype)
    return name


def _limit(value: int, field: str, config: EncoderConfig) -> int:
    if not 1 <= value <= config.max_text_limit:
        raise _invalid(field, "TEXT_LIMIT_INVALID", f"1 to {config.max_text_limit} tokens", value)
    return value


class _Enum(Protocol):
    def items(self) -> Iterable[tuple[str, int]]: ...


def _known(value: int, enum: _Enum, field: str) -> None:
    """Refuse a value that this contract does not name (proto3 lets any number through)."""
    names = {number: name for name, number in enum.items()}
    if value not in names:
        reason = f"{field.rpartition('.')[2].upper()}_UNKNOWN"
        raise _invalid(field, reason, f"one of {listed([names[number] for number in sorted(names)])}", value)


def _invalid(field: str, reason: str, expected: str, got: object) -> InvalidArgument:
    return InvalidArgument(
        f"{field}: expected {expected}, got {got}",
        field=field,
        reason=reason,
        metadata={"expected": expected, "got": got},
    )
