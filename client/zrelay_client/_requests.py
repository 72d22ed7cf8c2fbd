"""What a caller asked for, as messages of the contract; what was not asked for stays absent."""

from collections.abc import Sequence

from zrelay.v1.encoder_pb2 import EncodePromptsRequest, Prompt
from zrelay.v1.generation_pb2 import GenerationSpec, SamplingOptions
from zrelay.v1.generator_pb2 import GenerateRequest
from zrelay_client._embeds import Embeds
from zrelay_client._enums import set_word
from zrelay_client._options import EncodeOptions, GenerateOptions
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.wire import Parcel

_SAMPLING = (
    ("width", 32),
    ("height", 32),
    ("num_inference_steps", 32),
    ("seed", 64),
    ("num_images", 32),
)
"""Whole numbers of SamplingOptions and their bits."""
_SAMPLING_FLOATS = ("guidance_scale", "cfg_normalization", "cfg_truncation", "shift")


def encode_request(prompts: Sequence[str], options: EncodeOptions, text_limit: int | None) -> EncodePromptsRequest:
    """Prompts to encode, all alike. `text_limit` (tokens) is the generator's; the options' own goes first."""
    request = EncodePromptsRequest(prompts=[_prompt(text, options) for text in prompts])
    message = request.options
    message.SetInParent()
    limit = options.text_limit if options.text_limit is not None else text_limit
    if limit is not None:
        message.text_limit = _unsigned("text_limit", limit, 32)
    if options.hidden_layer is not None:
        message.hidden_layer = options.hidden_layer
    if options.pad_to is not None:
        message.pad_to = _unsigned("pad_to", options.pad_to, 32)
    set_word(message, "long_prompt_mode", options.long_prompt_mode)
    set_word(message, "dtype", options.dtype)
    message.bypass_cache = options.bypass_cache
    message.deterministic = options.deterministic
    return request


def generate_request(embeds: Embeds, options: GenerateOptions, request_id: str) -> Parcel[GenerateRequest]:
    """A picture to paint from embeddings, whose bytes are passed on as they are."""
    parcel = Parcel(GenerateRequest(request_id=request_id), embeds.parcel)
    spec = parcel.message.spec
    spec.CopyFrom(embeds.parcel.message)
    _sampling(spec.sampling, options)
    _output(spec, options)
    if options.preview_every:
        spec.preview.every_steps = _unsigned("preview_every", options.preview_every, 32)
        if options.preview_max_side is not None:
            spec.preview.max_side = _unsigned("preview_max_side", options.preview_max_side, 32)
    set_word(spec, "priority", options.priority)
    spec.deterministic = options.deterministic
    return parcel


def _prompt(text: str, options: EncodeOptions) -> Prompt:
    prompt = Prompt(
        text=_text("prompt", text),
        system_prompt=_text("system_prompt", options.system_prompt or ""),
        assistant_prefill=_text("assistant_prefill", options.assistant_prefill or ""),
        thinking_content=_text("thinking_content", options.thinking_content or ""),
        template=_text("template", options.template or ""),
    )
    set_word(prompt, "think_mode", options.think_mode)
    set_word(prompt, "quote_stripping", options.quote_stripping)
    if options.clean_whitespace is not None:
        prompt.clean_whitespace = options.clean_whitespace
    return prompt


def _sampling(message: SamplingOptions, options: GenerateOptions) -> None:
    message.SetInParent()
    for name, bits in _SAMPLING:
        if (whole := getattr(options, name)) is not None:
            setattr(message, name, _unsigned(name, whole, bits))
    for name in _SAMPLING_FLOATS:
        if (number := getattr(options, name)) is not None:
            setattr(message, name, number)
    message.sigmas.extend(options.sigmas)


def _output(spec: GenerationSpec, options: GenerateOptions) -> None:
    set_word(spec.output, "format", options.format)
    if options.quality is not None:
        spec.output.quality = _unsigned("quality", options.quality, 32)
    if not options.provenance:
        spec.output.omit_provenance = True
    if not options.keep_prompt:
        spec.provenance.ClearField("prompt")
        spec.provenance.ClearField("negative_prompt")
    for label, value in options.labels.items():
        spec.provenance.labels[_text("labels", label)] = _text("labels", value)


def _unsigned(name: str, value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise InvalidArgument(
            f"{name}: expected a whole number from 0 to 2^{bits} - 1, got {value}",
            field=name,
            reason=f"{name.upper()}_INVALID",
            metadata={"got": value},
        )
    return value


def _text(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"{name}: expected valid Unicode, got bytes that are not UTF-8 at character {error.start}",
            field=name,
            reason="TEXT_INVALID",
        ) from error
    return text
