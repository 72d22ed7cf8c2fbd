"""Parses requests. Every field is checked, and every error contains the path of the field."""

from collections.abc import Sequence

from zrelay.v1.embeds_pb2 import LongPromptMode, ThinkMode
from zrelay.v1.encoder_pb2 import (
    ChatRole,
    EncodeOptions,
    EncodePromptsRequest,
    FormatPromptRequest,
    Prompt,
    QuoteStripping,
)
from zrelay_encoder.api.capabilities import unavailable
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.prompts.formatting import Conversation, OmniPrompt, PromptInput, single_turn
from zrelay_encoder.runtime import EncodeRequest, FormatRequest
from zrelay_shared.errors import invalid
from zrelay_shared.limits import MAX_OMNI_IMAGES
from zrelay_shared.service.parsing import known_enum
from zrelay_shared.tensors import FLOATS, dtype_name

_UNAVAILABLE_FIELDS = {
    "system_prompt": "encode.system_prompt",
    "assistant_prefill": "encode.prefill",
    "template": "encode.template",
    "clean_whitespace": "encode.clean_whitespace",
}
_UNAVAILABLE_LONG_MODES = {
    LongPromptMode.LONG_PROMPT_MODE_INTERPOLATE: "encode.long_prompt.interpolate",
    LongPromptMode.LONG_PROMPT_MODE_POOL: "encode.long_prompt.pool",
    LongPromptMode.LONG_PROMPT_MODE_ATTENTION_POOL: "encode.long_prompt.attention_pool",
}
_THINK_MODES = {
    ThinkMode.THINK_MODE_NONE: "none",
    ThinkMode.THINK_MODE_EMPTY: "empty",
    ThinkMode.THINK_MODE_CONTENT: "content",
}


def parse_encode(request: EncodePromptsRequest, config: EncoderConfig) -> EncodeRequest:
    """Parses a request of EncodePrompts. Raises InvalidArgument, FeatureMissing."""
    options = request.options
    _refuse_unavailable(options)
    text_limit = (
        _text_limit(options.text_limit, "options.text_limit", config) if options.HasField("text_limit") else None
    )
    pad_to = options.pad_to if options.HasField("pad_to") else None
    if pad_to is not None and not 1 <= pad_to <= config.max_text_limit:
        raise invalid("options.pad_to", f"1 to {config.max_text_limit} tokens", pad_to)
    if pad_to is not None and any(prompt.image_count for prompt in request.prompts):
        raise invalid("options.pad_to", "no padding together with image_count", pad_to)
    return EncodeRequest(
        prompts=_prompts(request.prompts, config),
        hidden_layer=options.hidden_layer if options.HasField("hidden_layer") else None,
        text_limit=text_limit,
        refuse_long=options.long_prompt_mode == LongPromptMode.LONG_PROMPT_MODE_REFUSE,
        dtype=_dtype(options),
        pad_to=pad_to,
        deterministic=options.deterministic,
    )


def parse_format(request: FormatPromptRequest, config: EncoderConfig) -> FormatRequest:
    """Parses a request of FormatPrompt. Raises InvalidArgument, FeatureMissing."""
    text_limit = _text_limit(request.text_limit, "text_limit", config) if request.HasField("text_limit") else None
    return FormatRequest(_prompts(request.prompts, config), text_limit)


def _prompts(prompts: Sequence[Prompt], config: EncoderConfig) -> tuple[PromptInput, ...]:
    if not 1 <= len(prompts) <= config.max_prompts:
        raise invalid("prompts", f"1 to {config.max_prompts} prompts", len(prompts), reason="PROMPT_COUNT")
    return tuple(_prompt(prompt, f"prompts[{index}]", config) for index, prompt in enumerate(prompts))


def _prompt(prompt: Prompt, field: str, config: EncoderConfig) -> PromptInput:
    for name, capability in _UNAVAILABLE_FIELDS.items():
        if getattr(prompt, name):
            raise unavailable(capability, f"{field}.{name}")
    known_enum(prompt.quote_stripping, QuoteStripping, f"{field}.quote_stripping")
    if prompt.quote_stripping > QuoteStripping.QUOTE_STRIPPING_NONE:
        raise unavailable("encode.quote_stripping", f"{field}.quote_stripping")
    think_mode = _think_mode(prompt, field)
    text = _text(prompt, field)
    chars = len(text) + len(prompt.thinking_content)
    if chars > config.max_prompt_chars:
        raise invalid(field, f"at most {config.max_prompt_chars} characters", chars, reason="PROMPT_TOO_LARGE")
    if prompt.image_count:
        return _omni(prompt.image_count, text, think_mode, field)
    return Conversation(single_turn(text).messages, think_mode, prompt.thinking_content)


def _omni(images: int, text: str, think_mode: str, field: str) -> OmniPrompt:
    if images > MAX_OMNI_IMAGES:
        raise invalid(f"{field}.image_count", f"at most {MAX_OMNI_IMAGES} images", images)
    if think_mode != "none":
        raise invalid(f"{field}.think_mode", "no think block together with image_count", think_mode)
    return OmniPrompt(text, images)


def _text(prompt: Prompt, field: str) -> str:
    """Returns the user's text, which may be empty only with `allow_empty` (the unconditional prompt of guidance)."""
    if prompt.WhichOneof("content") == "conversation":
        for index, message in enumerate(prompt.conversation.messages):
            known_enum(message.role, ChatRole, f"{field}.conversation.messages[{index}].role")
        raise unavailable("encode.conversation", f"{field}.conversation")
    if not prompt.text.strip() and not prompt.allow_empty:
        raise invalid(
            f"{field}.text",
            "a description of the image",
            "an empty prompt",
            reason="PROMPT_EMPTY",
        )
    return prompt.text


def _think_mode(prompt: Prompt, field: str) -> str:
    known_enum(prompt.think_mode, ThinkMode, f"{field}.think_mode")
    has_content = bool(prompt.thinking_content)
    if prompt.think_mode == ThinkMode.THINK_MODE_UNSPECIFIED:
        return "content" if has_content else "none"
    if has_content != (prompt.think_mode == ThinkMode.THINK_MODE_CONTENT):
        raise invalid(
            f"{field}.thinking_content",
            "text with THINK_MODE_CONTENT and none with another mode",
            f"{'some' if has_content else 'none'} with {ThinkMode.Name(prompt.think_mode)}",
        )
    return _THINK_MODES[prompt.think_mode]


def _refuse_unavailable(options: EncodeOptions) -> None:
    if options.layer_weights:
        raise unavailable("encode.layer_weights", "options.layer_weights")
    if options.steering:
        raise unavailable("encode.steering", "options.steering")
    known_enum(options.long_prompt_mode, LongPromptMode, "options.long_prompt_mode")
    if capability := _UNAVAILABLE_LONG_MODES.get(options.long_prompt_mode):
        raise unavailable(capability, "options.long_prompt_mode")


def _dtype(options: EncodeOptions) -> str:
    if not options.dtype:
        return "BF16"
    name = dtype_name(options.dtype)
    if name not in FLOATS:
        raise invalid("options.dtype", " or ".join(FLOATS), name or options.dtype)
    return name


def _text_limit(value: int, field: str, config: EncoderConfig) -> int:
    if not 1 <= value <= config.max_text_limit:
        raise invalid(field, f"1 to {config.max_text_limit} tokens", value)
    return value
